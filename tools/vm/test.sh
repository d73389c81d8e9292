#!/bin/bash
# Runs the tests that another kernel than the host's may change, in the test VM: tools/vm/test.sh [PACKAGE...]
# The programs are built on the host, without the race detector, which would take too long in emulation. It prints every
# test that ran and, at the end, how many passed, failed and were skipped. A skipped test is a failure here: one that
# cannot run in the VM is not to be in the table.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$top"

# Directory, tests, and tests that are left out although they match (a dash: none). The VM is to take less than 8 minutes on
# 2 cores that have nothing else to do: matrices of crashes stay on the host, as does what has a limit of seconds; of the pools on loop devices only the built-in one is tried in full.
suites() {
	cat <<- 'END'
		fs . UsersNamesFewOfManyProcesses
		snapshot . -
		internal/volume . Crash|PowerCut|Random
		cmd/orlop ^Test(GrowthPutsNoVolumeOutOfReach|ShutdownLeavesMountsAndTheNextDaemonFindsThem|ThinVolumesEndToEnd|BackupsAreRestoredToTheOtherKindOfPool)$ -
		blockdev/loop . DirectoryOn|WhileExtentsMove|DuringABalance
		lvm ^Test(ThinVolumesKeepTheContract|NothingThatChangedBetweenSnapshotsIsLeftOut|TwoPoolsOfOneGroupKeepToThemselves)$ CallsForDifferentDevicesRunAtOnce
	END
}

# inside is what happens in the VM: the programs in DIR print what they do, between lines that name the package.
inside() {
	local dir=$1 package pattern skip start status=0 code
	# Many tests want /tmp by name, for the sake of short paths to sockets.
	mkdir -m 1777 /mnt/tmp /mnt/top
	mount --bind "$top" /mnt/top
	mount --bind /mnt/tmp /tmp
	export TMPDIR=/tmp
	while read -r package pattern skip; do
		[[ -e /mnt/top/$dir/${package//\//-}.test ]] || continue
		echo "<== $package"
		start=$SECONDS code=0
		cd "/mnt/top/$package"
		"/mnt/top/$dir/${package//\//-}.test" -test.v -test.timeout 15m -test.run "$pattern" -test.skip "${skip/#-/^$}" 2>&1 ||
			code=$? status=1
		echo "==> $code $((SECONDS - start))"
	done < <(suites)
	read -r start _ < /proc/uptime
	echo "${start%.*} s after power-on"
	return "$status"
}

# summary shortens what inside prints, and counts. It fails if a test was skipped, or a package ran none. The reason of a skip
# is what the test said last.
summary() {
	awk '
		/^<== / { package = $2; split("", count); text = ""; next }
		/^==> / {
			printf "== %s: %d passed, %d failed, %d skipped in %d s\n", package, count["PASS"], count["FAIL"], count["SKIP"], $3
			if ($2 != 0) printf "%s== %s: exit status %d\n", text, package, $2
			if ($2 != 0 || !count["PASS"] || count["SKIP"]) bad = 1
			for (kind in count) total[kind] += count[kind]
			package = ""
			next
		}
		package == "" { print; next }
		/^=== / || /^PASS$/ || /^FAIL$/ { next }
		/^--- (PASS|FAIL|SKIP): / {
			sub(/:$/, "", $2)
			count[$2]++
			line = tolower($2) " " package " " $3 " " $4
			if ($2 == "SKIP") line = line ":" said
			print line
			if ($2 == "FAIL") printf "%s", text
			text = ""
			next
		}
		/^[[:space:]]+--- SKIP: / { count["SKIP"]++; print "skip " package " " $3 " " $4 ":" said; next }
		/^[[:space:]]+--- PASS: / { next }
		/^[[:space:]]+[^[:space:]]+_test\.go:[0-9]+: / { said = $0 }
		{ text = text $0 "\n" }
		END {
			if (package != "") printf "%s== %s: not finished\n", text, package
			printf "vm: %d passed, %d failed, %d skipped\n", total["PASS"], total["FAIL"], total["SKIP"]
			exit bad || package != "" || !total["PASS"]
		}'
}

if [[ ${1-} == --inside ]]; then
	inside "$2"
	exit
fi

mkdir -p bin/vm
dir=$(mktemp -d bin/vm/tests.XXXXXX)
trap 'rm -rf "$top/$dir"' EXIT
trap 'exit 130' INT TERM HUP
while read -r package _; do
	if [[ -d $package ]] && { [[ $# == 0 ]] || [[ " $* " == *" $package "* ]]; }; then
		CGO_ENABLED=0 go test -c -tags root,vm -o "$dir/${package//\//-}.test" "./$package"
	fi
done < <(suites)
tools/vm/run.sh --limit 40m tools/vm/test.sh --inside "$dir" | summary
