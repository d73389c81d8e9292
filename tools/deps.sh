#!/bin/bash
# Installs the Debian packages of the commands that are missing: tools/deps.sh GROUP...
# Groups: build, run (what the daemon calls), quickstart, lint, test, bench. Nothing is removed, nothing is upgraded that
# apt does not have to, and no service is started.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()

# need PACKAGE COMMAND... asks for the package unless every command, or file, is there.
need() {
	local package=$1 command
	shift
	for command; do
		if [[ ! -e $command ]] && ! command -v "$command" > /dev/null; then
			missing+=("$package")
			return
		fi
	done
}

static() { command -v "$1" > /dev/null && ! ldd "$(command -v "$1")" > /dev/null 2>&1; }

group() {
	case $1 in
	build) need git git ;;
	run)
		need e2fsprogs mkfs.ext4 e2fsck
		need xfsprogs mkfs.xfs
		;;
	quickstart)
		group run
		need docker.io dockerd docker
		static busybox || missing+=(busybox-static)
		;;
	lint) need shellcheck shellcheck ;;
	test)
		group quickstart
		need btrfs-progs mkfs.btrfs
		need gcc gcc # for the race detector, as is the next
		need libc6-dev /usr/include/stdlib.h
		need jq jq
		;;
	bench) need fio fio ;;
	*)
		echo "usage: $0 build|run|quickstart|lint|test|bench..." >&2
		exit 2
		;;
	esac
}

install() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --no-remove "${missing[@]}"; }

[[ $# -gt 0 ]] || group ''
for name; do group "$name"; done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $EUID != 0 ]] || ! command -v apt-get > /dev/null; then
	echo "missing here, install as root: ${missing[*]} (names of Debian packages)" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
policy=/usr/sbin/policy-rc.d # exit status 101 keeps packages from starting their services
if (set -o noclobber && printf '#!/bin/sh\nexit 101\n' > "$policy") 2> /dev/null; then
	trap 'rm -f "$log" "$policy"' EXIT
	chmod 755 "$policy"
fi
echo "installing ${missing[*]}"
if ! install > "$log" 2>&1 && ! { apt-get update && install; } > "$log" 2>&1; then
	cat "$log" >&2
	echo "could not install ${missing[*]}" >&2
	exit 1
fi
