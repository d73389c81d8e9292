#!/bin/bash
# Installs the Debian packages of the commands that are missing: tools/deps.sh GROUP...
# Groups: build, run (what the daemon calls), quickstart, lint, test, vm, bench. Nothing is removed, nothing is upgraded that
# apt does not have to, no service is started, and no PostgreSQL cluster is made.
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
		need cron cron
		need jq jq
		need zsh zsh # completion is tried in the real shells, bash among them
		need fish fish
		need podman podman
		need strace strace
		need docker-compose docker-compose
		need postgresql /usr/lib/postgresql/*/bin/pgbench # its wrapper in PATH comes with less
		need systemd systemd-analyze
		need python3 /usr/bin/python3 # the second reader of backups; another python3 in PATH has not these modules
		need python3-cryptography /usr/lib/python3/dist-packages/cryptography
		need python3-zstandard /usr/lib/python3/dist-packages/zstandard
		;;
	vm) # see tools/vm; the kernel is not installed
		group run
		need qemu-system-x86 qemu-system-x86_64
		need lvm2 lvm
		need thin-provisioning-tools thin_delta
		need kmod depmod modprobe
		static busybox || missing+=(busybox-static)
		;;
	bench)
		need fio fio
		need restic restic
		need borgbackup borg
		;;
	*)
		echo "usage: $0 build|run|quickstart|lint|test|vm|bench..." >&2
		exit 2
		;;
	esac
}

# Debian's PostgreSQL makes a cluster when it is installed, unless this file forbids it.
clusters=/etc/postgresql-common/createcluster.conf
forbidden=''
forbid_cluster() {
	[[ " ${missing[*]} " == *' postgresql '* ]] || return 0
	forbidden=yes
	export UCF_FORCE_CONFFOLD=1 # the package asks nobody about the file
	mkdir -p "${clusters%/*}"
	[[ ! -e $clusters ]] || cp -p "$clusters" "$log.clusters"
	echo 'create_main_cluster = false' >> "$clusters"
}

tidy() {
	local original=$log.clusters
	if [[ -n $forbidden ]]; then
		[[ -e $original ]] || original=/usr/share/postgresql-common/createcluster.conf
		if [[ -e $original ]]; then cp -p "$original" "$clusters"; else rm -f "$clusters"; fi
	fi
	rm -f "$log" "$log.clusters" ${policy:+"$policy"}
}

# apt runs apt-get with its output in $log. While another program holds one of apt's locks it waits, for 5 minutes at most;
# apt-get itself can only wait for dpkg's.
apt() {
	local deadline=$((SECONDS + 300))
	until LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" > "$log" 2>&1; do
		if ((SECONDS >= deadline)) || ! grep -q 'Could not get lock' "$log"; then
			return 1
		fi
		sleep 1
	done
}

install() { apt install -y --no-install-recommends --no-remove "${missing[@]}"; }

[[ $# -gt 0 ]] || group ''
for name; do group "$name"; done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $EUID != 0 ]] || ! command -v apt-get > /dev/null; then
	echo "missing here, install as root: ${missing[*]} (names of Debian packages)" >&2
	exit 1
fi

log=$(mktemp)
policy=''
trap tidy EXIT
# Exit status 101 of this keeps packages from starting their services. One that is there is somebody else's.
if (set -o noclobber && printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d) 2> /dev/null; then
	policy=/usr/sbin/policy-rc.d
	chmod 755 "$policy"
fi
forbid_cluster
echo "installing ${missing[*]}"
if ! install && ! { apt update && install; }; then
	cat "$log" >&2
	echo "could not install ${missing[*]}" >&2
	exit 1
fi
