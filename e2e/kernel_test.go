//go:build root

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mounts returns what the mount table of process pid shows at or below dir, in mount order: mount point and device
// as major:minor.
func mounts(pid, dir string) (entries [][2]string, err error) {
	f, err := os.Open("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, mountinfo.PrefixFilter(dir))
	for _, info := range infos {
		entries = append(entries, [2]string{info.Mountpoint, fmt.Sprintf("%d:%d", info.Major, info.Minor)})
	}
	return entries, err
}

// deviceAt returns the device that process pid sees mounted on path, the uppermost, or "".
func deviceAt(pid, path string) string {
	entries, err := mounts(pid, path)
	if err != nil {
		return ""
	}
	device := ""
	for _, entry := range entries {
		if entry[0] == path {
			device = entry[1]
		}
	}
	return device
}

// loops returns the backing file of every attached loop device on a file below dir, by device as major:minor.
func loops(dir string) map[string]string {
	found := map[string]string{}
	devices, _ := filepath.Glob("/sys/block/loop*") // no match is no error
	for _, device := range devices {
		backing, err := os.ReadFile(device + "/loop/backing_file")
		if err != nil {
			continue // not attached
		}
		number, err := os.ReadFile(device + "/dev")
		if file := trimmed(string(backing)); err == nil && strings.HasPrefix(file, dir+"/") {
			found[trimmed(string(number))] = file
		}
	}
	return found
}

// left describes what the kernel still has below dir.
func left(dir string) (list []string) {
	entries, err := mounts("self", dir)
	if err != nil {
		list = append(list, err.Error())
	}
	for _, entry := range entries {
		list = append(list, "mount "+entry[0])
	}
	for device, file := range loops(dir) {
		list = append(list, "loop device "+device+" on "+file)
	}
	slices.Sort(list)
	return list
}

// sweep takes away what the kernel still has below dir, whatever uses it. It is for after a failure.
func sweep(dir string) error {
	gone := func() bool {
		entries, err := mounts("self", dir)
		if err != nil {
			return false
		}
		slices.Reverse(entries)
		for _, entry := range entries {
			if unix.Unmount(entry[0], unix.UMOUNT_NOFOLLOW) != nil {
				_ = unix.Unmount(entry[0], unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH) // the next round tells
			}
		}
		for device := range loops(dir) {
			clearLoop(device)
		}
		return len(left(dir)) == 0
	}
	if err := await(patience, "everything is taken away", gone); err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(left(dir), ", "))
	}
	return nil
}

// clearLoop detaches a loop device from its file.
func clearLoop(device string) {
	_, minor, _ := strings.Cut(device, ":")
	f, err := os.OpenFile("/dev/loop"+minor, os.O_RDONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0) // the caller looks again
}

// removeTree deletes dir, which nothing is mounted below, and the immutable directories in it.
func removeTree(dir string) error {
	if len(left(dir)) > 0 {
		return fmt.Errorf("%s is not removed: something is still mounted or attached there", dir)
	}
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = exec.Command("chattr", "-f", "-R", "-i", dir).Run() // RemoveAll tells
	return os.RemoveAll(dir)
}

// hasCapability tells whether this process, and so the daemons it starts, has a capability.
func hasCapability(t *testing.T, number int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	check(t, unix.Capget(&header, &data[0]))
	return data[number/32].Effective&(1<<(number%32)) != 0
}

// A namespace is a process that holds, in a mount namespace of its own, what was mounted when it started: a
// container that nobody told orlop of.
type namespace struct{ *process }

// newNamespace starts one that sees device at path.
func newNamespace(t *testing.T, path string) namespace {
	t.Helper()
	device := deviceAt("self", path)
	if device == "" {
		t.Fatalf("nothing is mounted at %s", path)
	}
	// A namespace begins as a copy with all that is mounted: what belongs to other tests goes.
	const keepOne = `cut -d' ' -f5 /proc/self/mountinfo | grep "^$1/" | grep -vxF "$2" | sort -r | while read -r dir; do umount -l "$dir"; done; exec sleep 3600`
	p, err := start(filepath.Join(t.TempDir(), "log"), nil, "unshare", "--mount", "--propagation", "private", "sh", "-c", keepOne, "sh", os.TempDir(), path)
	check(t, err)
	n := namespace{p}
	t.Cleanup(func() { n.end(t) })
	own, err := os.Readlink("/proc/self/ns/mnt")
	check(t, err)
	check(t, p.ready(func() bool {
		name, err := os.ReadFile("/proc/" + n.pid() + "/comm")
		there, linkErr := os.Readlink("/proc/" + n.pid() + "/ns/mnt")
		return errors.Join(err, linkErr) == nil && trimmed(string(name)) == "sleep" && there != own
	}))
	if got := deviceAt(n.pid(), path); got != device {
		t.Fatalf("the other namespace sees device %q at %s, want %s", got, path, device)
	}
	return n
}

func (n namespace) pid() string { return fmt.Sprint(n.cmd.Process.Pid) }

func (n namespace) end(t *testing.T) {
	t.Helper()
	check(t, n.kill())
}
