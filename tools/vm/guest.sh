#!/bin/bash
# Process 1 of the VM, on the host's root: guest.sh RUN. It mounts what a booted system has, runs the command that RUN
# describes, sends its output and exit status to the host over virtio ports, and turns the machine off.
set -u
run=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/mnt

off() {
	sync
	umount /mnt 2> /dev/null
	echo 1 > /proc/sys/kernel/sysrq
	echo o > /proc/sysrq-trigger
	while :; do sleep 1; done
}
trap off EXIT

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs -o mode=755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
hostname orlop-vm
busybox ip link set lo up

mapfile -d '' -t words < "$run/command"
modules='' directory='' environment=()
# shellcheck source=/dev/null
source "$run/settings" # sets these three: where the kernel's modules are, and where and with what the command is run
mkdir -p /lib/modules
mount --bind "$modules" /lib/modules

for path in /sys/class/virtio-ports/*; do
	case $(< "$path/name") in
	output) output=/dev/${path##*/} ;;
	status) status=/dev/${path##*/} ;;
	esac
done

# The first disk is the room for temporary files, on ext4; the second stays blank. What is in /tmp on the host can be seen.
mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard /dev/vda && mount -o discard /dev/vda /mnt && chmod 1777 /mnt
export ORLOP_VM_DISK=/dev/vdb

cd "$directory" || exit
# A port has one writer: programs that open /dev/stderr would be refused, so that cat is between.
exec {pipe}> >(exec cat > "$output")
relay=$!
env "${environment[@]}" "${words[@]}" < /dev/null >&"$pipe" 2>&1 {pipe}>&-
code=$?
exec {pipe}>&-
for _ in {1..20}; do # what the command left running may hold the pipe for ever
	[[ -e /proc/$relay ]] || break
	sleep 0.1
done
echo "$code" > "$status"
