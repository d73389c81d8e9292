#!/bin/bash
# Prints the directory of an unpacked Debian kernel, and fetches it first if it is not there: tools/vm/kernel.sh
# The package is never installed. In the directory: boot/vmlinuz-VERSION and lib/modules/VERSION, as in the package.
# ORLOP_VM_CACHE is where it is kept, bin/vm by default.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
cache=${ORLOP_VM_CACHE:-$(cd "$(dirname "$0")/../.." && pwd)/bin/vm}

mkdir -p "$cache"
exec {lock}> "$cache/lock"
flock "$lock" # two runs that start at once fetch it once
if [[ -d $cache/kernel ]]; then
	echo "$cache/kernel"
	exit
fi

work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# The metapackage names the package of the current kernel.
download() {
	package=$(apt-cache depends linux-image-amd64 2> log | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
	[[ -n $package ]] && apt-get -o APT::Sandbox::User=root download "$package" > log 2>&1
}
if ! download && ! { apt-get update > log 2>&1 && download; }; then
	cat log >&2
	echo "cannot download Debian's kernel package linux-image-amd64" >&2
	exit 1
fi
echo "fetched $package for the test VM" >&2
dpkg -x linux-image-*.deb kernel
for modules in kernel/lib/modules/*; do
	depmod -b kernel "${modules##*/}"
done
sync -f kernel
mv kernel "$cache/kernel" # whole or not at all
echo "$cache/kernel"
