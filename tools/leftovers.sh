#!/bin/bash
# Runs a command and fails if it leaves something behind: tools/leftovers.sh COMMAND...
# Looks at loop devices, mounts, processes of Orlop and Docker, and /tmp/orlop*. What was there before does not
# count. The exit status is the command's, or 1 if only the leftovers are wrong.
set -uo pipefail

snapshot() {
	{
		grep -sH . /sys/block/loop*/loop/backing_file | sed -E 's|/sys/block/(loop[0-9]+)[^:]*:|loop device /dev/\1 on |'
		awk '{ print "mount", $5, "of", $3 }' /proc/self/mountinfo
		ps -eo pid=,stat=,comm= | awk '$2 !~ /^Z/ && $3 ~ /^(orlop|dockerd|containerd)/ { print "process", $1, $3 }'
		find /tmp -maxdepth 1 -name 'orlop*' -printf 'file %p\n'
	} | sort
}

before=$(snapshot)
"$@"
status=$?

# The kernel and dying processes get a moment.
for _ in {1..50}; do
	left=$(comm -13 <(printf '%s\n' "$before") <(snapshot))
	[[ -n $left ]] || exit "$status"
	sleep 0.2
done
printf 'left behind by %s:\n%s\n' "$*" "$left" >&2
[[ $status != 0 ]] || status=1
exit "$status"
