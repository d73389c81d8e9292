#!/bin/busybox sh
# shellcheck shell=dash
# The first program in the VM, run from the initramfs: it loads modules, mounts the host's root read-only over 9p with
# a file system for what is written on top, and continues with tools/vm/guest.sh from there.
# run.sh says on the kernel's command line where guest.sh and the description of the run are.
export PATH=/bin
busybox mkdir -p /proc /lower /upper /new
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
	busybox insmod "/modules/$module" || echo "cannot load $module"
done < /modules/order
read -r line < /proc/cmdline
for word in $line; do
	case $word in
	orlop.guest=*) guest=${word#*=} ;;
	orlop.run=*) run=${word#*=} ;;
	orlop.upper=*) upper=${word#*=} ;;
	esac
done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower || busybox poweroff -f
if [ "$upper" = tmpfs ]; then
	busybox mount -t tmpfs -o size=75%,mode=755 tmpfs /upper
elif ! busybox mount -t ext4 "$upper" /upper 2> /dev/null; then # the first boot
	busybox mount -o bind /dev /lower/dev
	busybox chroot /lower /sbin/mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$upper"
	busybox umount /lower/dev
	busybox mount -t ext4 "$upper" /upper
fi
busybox mkdir -p /upper/files /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new || busybox poweroff -f
busybox umount /proc
busybox umount /dev
exec busybox switch_root /new /bin/bash "$guest" "$run"
