#!/bin/bash
# Removes what "make install" put there: tools/uninstall.sh DESTDIR PREFIX UNITS PURGE COMPLETION... -- UNIT...
# With a DESTDIR it removes files below that and nothing else: no daemon is stopped, and PURGE is refused. Otherwise it refuses
# while volumes are mounted, and keeps them unless PURGE is given.
set -euo pipefail

destdir=$1 prefix=$2 units=$3 purge=$4
shift 4
files=("$prefix/bin/orlop")
while [[ $1 != -- ]]; do
	files+=("$prefix/share/$1")
	shift
done
shift
for unit; do files+=("$units/$unit"); done

remove_files() { rm -f "${files[@]/#/$destdir}"; }

if [[ -n $destdir ]]; then
	if [[ -n $purge ]]; then
		echo "refused: PURGE=1 deletes the volumes of this host, and DESTDIR is another tree" >&2
		exit 2
	fi
	remove_files
	echo "removed the files below $destdir; what runs on this host was not touched"
	exit
fi

# setting prints what the daemon's settings have for a name, as systemd reads them.
setting() {
	[[ ! -r /etc/default/orlop ]] || sed -nE "s/^$1=(.*)\$/\\1/p" /etc/default/orlop | tail -n 1 | sed -E "s/^([\"'])(.*)\\1\$/\\2/"
}
root=$(setting ORLOP_ROOT)
root=$(realpath -m -- "${root:-/var/lib/orlop}")
if [[ $root == / ]]; then
	echo "refused: the data root of /etc/default/orlop is /" >&2
	exit 1
fi
systemd() { [[ -d /run/systemd/system && -e $units/$1 ]]; }

# mounted lists the mount points that begin with a path. It calls no command: one that is missing must not look like "none".
mounted() {
	local point status=1
	while read -r _ _ _ _ point _; do
		printf -v point '%b' "$point" # a blank is \040 there
		if [[ $point == "$1"* ]]; then
			echo "$point"
			status=0
		fi
	done < /proc/self/mountinfo
	return "$status"
}

# busy lists the files below the data root that loop devices have.
busy() {
	local path file status=1
	for path in /sys/block/loop*/loop/backing_file; do
		if { read -r file < "$path"; } 2> /dev/null && [[ $file == "$root/"* ]]; then
			echo "$file"
			status=0
		fi
	done
	return "$status"
}

[[ -r /proc/self/mountinfo ]]
if mounted "$root/mounts/"; then
	echo "refused: these volumes are mounted; stop their containers first" >&2
	exit 1
fi
if systemd orlop-backup.service; then systemctl stop orlop-backup.service; fi
if [[ -x $prefix/bin/orlop ]]; then
	socket=$(setting ORLOP_CONTROL_SOCKET)
	"$prefix/bin/orlop" ${socket:+--socket "$socket"} shutdown --detach || [[ $? == 6 ]] # 6: no daemon runs
fi
if systemd orlop.socket; then systemctl disable --quiet --now orlop.socket orlop.service; fi
if systemd orlop-backup.timer; then systemctl disable --quiet --now orlop-backup.timer; fi
if mounted "$root/" || busy; then
	echo "refused: the pool is still attached; start the daemon and try again" >&2
	exit 1
fi
remove_files
[[ ! -d /run/systemd/system ]] || systemctl daemon-reload
if [[ -z $purge ]]; then
	echo "removed; the volumes are still in $root (PURGE=1 deletes them)"
	exit
fi
chattr -f -i "$root"/pool "$root"/mounts/* "$root"/pool/images/*.img || true # empty mount points are immutable, and snapshots
rm -rf --one-file-system -- "$root"
rm -f /etc/default/orlop /etc/orlop/backup.env
rmdir --ignore-fail-on-non-empty /etc/orlop 2> /dev/null || true # a key may be there
while [[ $root != / ]]; do # notes that the root was on a disk of its own
	rm -f -- "${root%/*}/.${root##*/}.orlop-root"
	root=$(dirname "$root")
done
echo "removed, volumes and all"
