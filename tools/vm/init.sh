#!/bin/busybox sh
# shellcheck shell=dash
# The first program in the VM, run from the initramfs: it loads modules, mounts the host's root read-only over 9p with
# a tmpfs on top, and goes on with tools/vm/guest.sh from there.
# run.sh says on the kernel's command line where guest.sh and the description of the run are.
export PATH=/bin
busybox mkdir -p /proc /lower /upper /new
busybox mount -t proc proc /proc
while read -r module; do
	busybox insmod "/modules/$module" || echo "cannot load $module"
done < /modules/order
read -r line < /proc/cmdline
for word in $line; do
	case $word in
	orlop.guest=*) guest=${word#*=} ;;
	orlop.run=*) run=${word#*=} ;;
	esac
done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower || busybox poweroff -f
busybox mount -t tmpfs -o size=75%,mode=755 tmpfs /upper
busybox mkdir /upper/files /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new || busybox poweroff -f
busybox umount /proc
exec busybox switch_root /new /bin/bash "$guest" "$run"
