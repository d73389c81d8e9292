#!/bin/bash
# Process 1 of the VM, on the host's root: guest.sh RUN. It mounts what a booted system has, runs the command that RUN
# describes, sends its output and exit status to the host over virtio ports, and turns the machine off.
#
# With systemd, that becomes process 1 instead, and the command its service, "guest.sh RUN service". Units that are enabled
# on the host are not; the command enables those that it wants. It is run at every boot, and may reboot the machine: what
# was written anywhere is there then. How often the machine has booted is in ORLOP_VM_BOOT. No disk is blank: the first one
# holds what is written over the host's files; the second one is /mnt, where /var/lib/orlop, /var/lib/docker and
# /var/lib/containerd are, too.
set -u
run=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/mnt
modules='' directory='' environment=() systemd=''
# shellcheck source=/dev/null
source "$run/settings" # where the kernel's modules are, where and with what the command is run, and whether by systemd

disk=/dev/vda
[[ -z $systemd ]] || disk=/dev/vdb

prepare() {
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
	mkdir -p /lib/modules
	mount --bind "$modules" /lib/modules
	# Room for temporary files. What is in /tmp on the host can be seen.
	[[ $(blkid -o value -s TYPE "$disk") == ext4 ]] ||
		mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$disk"
	mount -o discard "$disk" /mnt && chmod 1777 /mnt
}

# become_systemd continues as systemd, on a system of which only the command is enabled.
become_systemd() {
	local boot=1 name
	[[ ! -e /mnt/boots ]] || boot=$(($(< /mnt/boots) + 1))
	echo "$boot" > /mnt/boots
	for name in orlop docker containerd; do
		mkdir -p "/mnt/lib/$name" "/var/lib/$name"
		mount --bind "/mnt/lib/$name" "/var/lib/$name"
	done
	[[ $boot != 1 ]] || find /etc/systemd/system -type l -path '*.wants/*' -delete
	ln -sfn /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
	: > /etc/fstab
	mkdir -p /etc/systemd/system.conf.d
	printf '[Manager]\nDefaultTimeoutStartSec=15min\n' > /etc/systemd/system.conf.d/emulated.conf
	ln -sfn /dev/null /etc/tmpfiles.d/tmp.conf # it would walk the host's /tmp
	cat > /etc/systemd/system/orlop-vm.service <<- END
		[Unit]
		After=multi-user.target
		[Service]
		ExecStart=/bin/bash $(readlink -f "$0") $run service
		Environment=ORLOP_VM_BOOT=$boot
		TimeoutStopSec=10
	END
	mkdir -p /etc/systemd/system/multi-user.target.wants
	ln -s ../orlop-vm.service /etc/systemd/system/multi-user.target.wants/
	exec /lib/systemd/systemd --show-status=0
}

# execute runs the command and reports to the host.
execute() {
	local path output='' status='' words pipe relay code
	mapfile -d '' -t words < "$run/command"
	for path in /sys/class/virtio-ports/*; do
		case $(< "$path/name") in
		output) output=/dev/${path##*/} ;;
		status) status=/dev/${path##*/} ;;
		esac
	done
	export ORLOP_VM_DISK=/dev/vdb
	cd "$directory" || return
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
}

off() {
	sync
	umount /mnt 2> /dev/null
	echo 1 > /proc/sys/kernel/sysrq
	echo o > /proc/sysrq-trigger
	while :; do sleep 1; done
}

if [[ ${2-} == service ]]; then
	trap 'exit 0' TERM # the machine is being rebooted, by the command
	execute
	off
fi
trap off EXIT
prepare
[[ -z $systemd ]] || become_systemd
execute
