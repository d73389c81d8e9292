#!/bin/bash
# Runs a command in a virtual machine of its own, as root on Debian's kernel: tools/vm/run.sh [OPTION...] COMMAND [ARG...]
#
#   --limit DURATION   end the machine after this time, as for timeout(1) (8m)
#   --disk SIZE        size of the blank disk, as for truncate(1) (16G)
#   --memory SIZE      (4G)
#   --systemd          run it as a service of systemd, on a system that boots, and may boot again: see guest.sh
#   --env NAME=VALUE   add to the command's environment; variables named ORLOP_* are carried over by themselves
#
# The machine is emulated (qemu, TCG) and sees the host's whole file tree; what it writes there stays in its memory. Also
# in there: an empty ext4 at /mnt, which is TMPDIR, on a disk of 16 GiB, and a blank disk, whose name is in ORLOP_VM_DISK.
# Both are sparse files, which are gone with the machine. No network but loopback, and no udev; systemd only if asked for.
# The command runs in the same directory as here; what it prints, to stdout and stderr, comes out on stdout. The exit
# status is the command's, 124 when the limit was reached, and 125 when the machine ended without one. Then, and when the
# command failed, the console's log is kept, and its path is printed.
# Any number may run at once. Nothing is left, even if this script is killed: qemu ends with it.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${ORLOP_VM_CACHE:-$(cd "$here/../.." && pwd)/bin/vm}

usage() {
	sed -n '2s/^# //p' "$0" >&2
	exit 2
}

limit=8m disk=16G memory=4G systemd='' upper=tmpfs extra=()
while [[ ${1-} == --* ]]; do
	if [[ $1 == --systemd ]]; then
		systemd=yes upper=/dev/vda
		shift
		continue
	fi
	[[ $# -gt 1 ]] || usage
	case $1 in
	--limit) limit=$2 ;;
	--disk) disk=$2 ;;
	--memory) memory=$2 ;;
	--env) extra+=("$2") ;;
	*) usage ;;
	esac
	shift 2
done
[[ $# -gt 0 ]] || usage

"$here/../deps.sh" vm
kernel=$("$here/kernel.sh")
image=("$kernel"/boot/vmlinuz-*)
version=${image[0]##*/vmlinuz-}

run=$(mktemp -d "${TMPDIR:-/tmp}/orlop-vm.XXXXXX")
pid=''
# shellcheck disable=SC2317 # the trap calls it
# end is called however this script ends, but for kill -9: then the kernel ends qemu, and only files are left.
end() {
	if [[ -n $pid ]]; then
		kill -KILL "$pid" 2> /dev/null || true
		wait "$pid" 2> /dev/null || true
	fi
	rm -rf "$run"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The modules that lead to the host's root and those that every test needs, which load faster from here. Each comes after
# those that it needs. The kernel loads others by itself, from the host's root.
initramfs() {
	local name file
	mkdir -p "$run/initramfs/bin" "$run/initramfs/modules" "$run/initramfs/dev"
	cp "$(command -v busybox)" "$run/initramfs/bin/busybox"
	install -m 755 "$here/init.sh" "$run/initramfs/init"
	for name in virtio_pci 9pnet_virtio 9p overlay virtio_blk virtio_console loop ext4 xfs dm-mod dm-thin-pool; do
		modprobe -d "$kernel" -S "$version" --show-depends "$name"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
		cp "$file" "$run/initramfs/modules/"
		echo "${file##*/}" >> "$run/initramfs/modules/order"
	done
	(cd "$run/initramfs" && find . | busybox cpio -o -H newc 2> /dev/null) > "$run/initramfs.cpio"
}
initramfs

printf '%s\0' "$@" > "$run/command"
environment=()
while IFS= read -r name; do environment+=("$name=${!name}"); done < <(compgen -e | grep '^ORLOP_' || true)
environment+=("${extra[@]}")
modules=$kernel/lib/modules directory=$PWD
declare -p modules directory environment systemd > "$run/settings"
truncate -s 16G "$run/tmp.img"
truncate -s "$disk" "$run/blank.img"
: > "$run/status"

exec {output}> >(exec cat) # qemu wants to open it, which a pipe allows in any case
relay=$!
# shellcheck disable=SC2054 # the commas are qemu's
qemu=(qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" -nodefaults -no-user-config
	-display none -nic none
	-kernel "${image[0]}" -initrd "$run/initramfs.cpio"
	-append "console=ttyS0 panic=-1 mitigations=off no_timer_check orlop.guest=$here/guest.sh orlop.run=$run orlop.upper=$upper"
	-chardev "file,id=console,path=$run/console" -serial chardev:console
	-chardev "file,id=output,path=/dev/fd/$output" -chardev "file,id=status,path=$run/status"
	-device virtio-serial -device virtserialport,chardev=output,name=output
	-device virtserialport,chardev=status,name=status
	-virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
	-drive "file=$run/tmp.img,format=raw,if=virtio,cache=unsafe,discard=unmap"
	-drive "file=$run/blank.img,format=raw,if=virtio,cache=unsafe,discard=unmap")
[[ -n $systemd ]] || qemu+=(-no-reboot)
setpriv --pdeathsig KILL timeout --signal KILL "$limit" setpriv --pdeathsig KILL "${qemu[@]}" < /dev/null 2> "$run/qemu" > /dev/null &
pid=$!
exec {output}>&-
wait "$pid" && code=0 || code=$?
wait "$relay" || true
pid=''

if [[ -s $run/status ]]; then
	code=$(< "$run/status")
	[[ $code != 0 ]] || exit 0
elif [[ $code == 137 ]]; then
	echo "the machine was ended: it ran for $limit" >&2
	code=124
else
	cat "$run/qemu" >&2
	echo "the machine ended without the command's exit status" >&2
	code=125
fi
mkdir -p "$cache/log"
log=$(mktemp "$cache/log/$(date -u +%Y%m%dT%H%M%SZ).XXXX")
cat "$run/console" > "$log"
echo "console log: $log" >&2
exit "$code"
