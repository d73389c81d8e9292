#!/bin/bash
# Shows the main job from end to end, and leaves nothing behind: a daemon on a scratch root with the built-in loop
# pool, a container on a volume of its own, a restart, a resize in use, a snapshot and the way back to it, backups, and
# a restore on a second daemon that has nothing but the destination and the key. Uses the
# Docker daemon that runs here, or starts a private one. Needs root and bin/orlop.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if [[ $EUID != 0 ]]; then
	echo "quickstart needs root: it attaches loop devices and mounts filesystems" >&2
	exit 1
fi

top=$(cd "$(dirname "$0")/.." && pwd)
orlop=$top/bin/orlop
scratch=$(mktemp -d /tmp/orlop-quickstart-XXXXXX)
name=orlop-quickstart-$$
export ORLOP_SOCKET=$scratch/control.sock XDG_CACHE_HOME=$scratch/cache
daemon_pid='' second_pid='' docker_pid=''
docker=(docker)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# show prints a command as a user would type it, then runs it.
show() {
	local word line=''
	for word; do
		case $word in *[[:space:]]*) word="'$word'" ;; esac
		line+=" $word"
	done
	printf '  $%s\n' "$line"
	run "$@" | sed 's/^/    /'
}

run() {
	case $1 in
	docker) "${docker[@]}" "${@:2}" ;;
	orlop) "$orlop" "${@:2}" ;;
	*) "$@" ;;
	esac
}

await() { # await SECONDS WHAT COMMAND...
	local limit=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" > /dev/null 2>&1; do
		if ((SECONDS >= limit)); then
			echo "$what did not come up" >&2
			tail -n 20 "$scratch"/*.log >&2
			return 1
		fi
		sleep 0.1
	done
}

# ended waits until a process is gone.
ended() { ! kill -0 "$1" 2> /dev/null; }

stop() { # stop PID
	[[ -n $1 ]] || return 0
	kill "$1" 2> /dev/null || return 0
	await 30 "the end of process $1" ended "$1" || kill -9 "$1" 2> /dev/null || true
}

clean() {
	local status=$?
	set +e
	trap - EXIT INT TERM
	run docker rm -f "$name" > /dev/null 2>&1
	run docker volume rm -f "$name" > /dev/null 2>&1
	run docker image rm "$name:latest" > /dev/null 2>&1
	stop "$docker_pid"
	if [[ -n $second_pid ]]; then
		ORLOP_SOCKET=$scratch/second.sock "$orlop" umount "$name" 2> /dev/null
		ORLOP_SOCKET=$scratch/second.sock "$orlop" shutdown --detach 2> /dev/null
		stop "$second_pid"
	fi
	if [[ -n $daemon_pid ]]; then
		ORLOP_SOCKET=$scratch/control.sock "$orlop" shutdown --detach 2> /dev/null
		stop "$daemon_pid"
	fi
	# Whatever a failure left, below the scratch directory only, deepest first.
	cut -d' ' -f5 /proc/self/mountinfo | grep "^$scratch/" | sort -r | while read -r dir; do umount "$dir"; done
	chattr -R -i "$scratch"/*/mounts "$scratch"/*/pool 2> /dev/null
	rm -rf --one-file-system "$scratch"
	if ((status == 0)); then
		say "Done: nothing is left behind."
	else
		echo "quickstart failed (exit $status)" >&2
	fi
	exit "$status"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! docker version > /dev/null 2>&1; then
	say "No Docker daemon runs here: starting a private one"
	docker=(docker -H "unix://$scratch/docker.sock")
	dockerd --data-root "$scratch/docker" --exec-root "$scratch/exec" -p "$scratch/docker.pid" -H "unix://$scratch/docker.sock" \
		--bridge none --iptables=false --ip6tables=false > "$scratch/docker.log" 2>&1 &
	docker_pid=$!
	await 60 "dockerd" run docker version
fi

say "1. Start the Orlop daemon on a scratch root, with its built-in loop pool"
printf '  $ orlop daemon --root %s/root --plugin-name %s &\n' "$scratch" "$name"
"$orlop" daemon --root "$scratch/root" --plugin-name "$name" --control-socket "$ORLOP_SOCKET" > "$scratch/orlop.log" 2>&1 &
daemon_pid=$!
await 60 "orlop" "$orlop" info

say "2. An image from static busybox"
mkdir -p "$scratch/image/bin"
cp "$(command -v busybox)" "$scratch/image/bin/busybox"
for applet in sh cat dd df sleep ls; do ln -s busybox "$scratch/image/bin/$applet"; done
tar -C "$scratch/image" -c . | run docker import - "$name" > /dev/null
echo "    imported as $name"

say "3. Run a container on a volume of its own: Orlop makes a block device and a filesystem for it"
show docker volume create --driver "$name" -o size=1G -o fs=xfs -o label.app=demo "$name"
show docker run --detach --name "$name" --network none --volume-driver "$name" -v "$name:/data" "$name" sleep 3600
show docker exec "$name" sh -c 'echo "stored below the waterline" > /data/note; df -h /data'
show orlop list

say "4. Restart the container: its data is still there"
show docker restart -t 0 "$name"
show docker exec "$name" cat /data/note

say "5. Grow the volume while the container uses it"
show orlop resize "$name" --size 3G
show docker exec "$name" df -h /data

say "6. Take a snapshot while the container runs, make a mistake, and go back"
show orlop snapshot create "$name" --name good
show docker exec "$name" sh -c 'echo "overboard" > /data/note'
show docker stop -t 0 "$name"
show orlop snapshot restore "$name@good" --discard-current
show docker start "$name"
show docker exec "$name" cat /data/note
[[ $(run docker exec "$name" cat /data/note) == 'stored below the waterline' ]]
show orlop snapshot delete "$name@good"

say "7. What uses a volume is known, and protected"
printf '  $ orlop delete %s\n' "$name"
if "$orlop" delete "$name" 2>&1 | sed 's/^/    /'; then
	echo "a volume in use was deleted" >&2
	exit 1
fi

say "8. Back it up to a directory, change 10 MiB, and back it up again: only the change is read and stored"
export ORLOP_DEST=$scratch/nas ORLOP_KEY_FILE=$scratch/orlop.key
show orlop key create "$ORLOP_KEY_FILE"
show orlop backup init "$ORLOP_DEST"
show docker exec "$name" dd if=/dev/urandom of=/data/ballast bs=1M count=200 status=none
show orlop backup run --all
show docker exec "$name" dd if=/dev/urandom of=/data/more bs=1M count=10 status=none
show orlop backup run --all --keep-daily 7 --keep-weekly 5
show orlop backup list
echo '    As a line in /etc/cron.d/orlop:'
printf '    17 * * * * root orlop backup run --all --quiet --dest %s --key-file %s --keep-daily 7\n' "$ORLOP_DEST" "$ORLOP_KEY_FILE"

say "9. Lose the volume"
show docker rm --force "$name"
show docker volume rm "$name"
show orlop list

say "10. Restore it on a second host: another daemon with another root, which has only the destination and the key"
first=$ORLOP_SOCKET
export ORLOP_SOCKET=$scratch/second.sock XDG_CACHE_HOME=$scratch/cache2
printf '  $ orlop daemon --root %s/second --plugin-name %s-2 &\n' "$scratch" "$name"
"$orlop" daemon --root "$scratch/second" --plugin-name "$name-2" --control-socket "$ORLOP_SOCKET" --pool-size 4G > "$scratch/orlop-2.log" 2>&1 &
second_pid=$!
await 60 "the second daemon" "$orlop" info
show orlop backup restore --all "$ORLOP_DEST"
show orlop mount "$name"
show cat "$("$orlop" inspect "$name" | sed -nE 's/^ *"mountpoint": "(.+)",$/\1/p' | head -n 1)/note"
[[ $(cat "$scratch/second/mounts/$name/note") == 'stored below the waterline' ]]

say "11. Tear everything down"
show orlop umount "$name"
show orlop delete "$name"
show orlop shutdown --detach
await 30 "the second daemon's end" ended "$second_pid"
second_pid=''
export ORLOP_SOCKET=$first
show orlop list
[[ $("$orlop" list --json) == '[]' ]]
show orlop shutdown --detach
await 30 "the daemon's end" ended "$daemon_pid"
daemon_pid=''
if grep -q "$scratch" /sys/block/loop*/loop/backing_file /proc/self/mountinfo 2> /dev/null && [[ -z $docker_pid ]]; then
	echo "a loop device or mount was left behind" >&2
	exit 1
fi
