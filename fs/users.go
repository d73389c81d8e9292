package fs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A Use is one reason why a filesystem cannot be unmounted or its device cannot be freed.
type Use struct {
	Mountpoint string   // a mount in this mount namespace; empty for other uses
	Process    *Process // a process that has something open; nil for other uses
	Path       string   // what the process has open, or its directory
	Kernel     string   // the kernel itself, on behalf of nobody that runs: a loop device on a file, say
}

func (u Use) String() string {
	switch {
	case u.Mountpoint != "":
		return "a mount at " + u.Mountpoint
	case u.Process != nil:
		return fmt.Sprintf("%s with %s", u.Process, u.Path)
	}
	return u.Kernel
}

// usersLimit bounds the search for processes: a look at what is open on a network filesystem may take for ever.
const usersLimit = 2 * time.Second

// mostUsers is how many processes a search names.
const mostUsers = 5

// searching is held by the one search for processes, which may be stuck.
var searching sync.Mutex

// Users lists what uses the filesystem on the block device with the number device, besides its mount at dir: other
// mounts in this mount namespace, mounts below dir, loop devices on its files, and processes, 5 at most, that have one of
// its files, a directory of it or the device itself open. Processes in another mount namespace that shows the device are
// MountedElsewhere's to list and are left out, as is this process. It takes 2 seconds at most and lists what it has found
// by then; where an earlier search is still stuck it lists no processes.
func Users(ctx context.Context, device uint64, dir string) ([]Use, error) {
	uses, err := OtherMounts(device, dir)
	if err != nil {
		return nil, err
	}
	uses = append(uses, stacked(device)...)
	if !searching.TryLock() {
		return uses, nil
	}
	ctx, cancel := context.WithTimeout(ctx, usersLimit)
	defer cancel()
	found := make(chan Use)
	go func() { // ends by itself, at the latest when what it looks at answers
		defer searching.Unlock()
		defer close(found)
		findProcesses(ctx, device, found)
	}()
	for processes := 0; processes < mostUsers; processes++ {
		select {
		case use, more := <-found:
			if !more {
				return uses, nil
			}
			uses = append(uses, use)
		case <-ctx.Done():
			return uses, nil
		}
	}
	return uses, nil
}

// OtherMounts lists the mounts of a device in this mount namespace other than the one at dir and its propagated copies,
// which go when that goes, and those of any device below dir.
func OtherMounts(device uint64, dir string) (uses []Use, err error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	byID := map[int]*mountinfo.Info{}
	var ours *mountinfo.Info
	for _, info := range infos {
		byID[info.ID] = info
		if info.Mountpoint == dir {
			ours = info
		}
	}
	for _, info := range infos {
		its := unix.Mkdev(uint32(info.Major), uint32(info.Minor)) == device
		below := strings.HasPrefix(info.Mountpoint, dir+"/")
		copied := ours != nil && propagated(byID, ours, info)
		if below || its && info.Mountpoint != dir && !copied {
			uses = append(uses, Use{Mountpoint: info.Mountpoint})
		}
	}
	return uses, nil
}

// propagated reports whether the kernel unmounts other together with m: what they are mounted on is one place, shown by two
// mounts of which the second gets the mount events of the first.
func propagated(byID map[int]*mountinfo.Info, m, other *mountinfo.Info) bool {
	on, otherOn := byID[m.Parent], byID[other.Parent]
	if on == nil || otherOn == nil || place(on, m) != place(otherOn, other) {
		return false
	}
	group := option(on, "shared:")
	return group != "" && (option(otherOn, "shared:") == group || option(otherOn, "master:") == group)
}

// place is where in the filesystem of parent m is mounted.
func place(parent, m *mountinfo.Info) string {
	return filepath.Join(parent.Root, strings.TrimPrefix(m.Mountpoint, parent.Mountpoint))
}

func option(m *mountinfo.Info, prefix string) string {
	for word := range strings.FieldsSeq(m.Optional) {
		if group, ok := strings.CutPrefix(word, prefix); ok {
			return group
		}
	}
	return ""
}

// stacked lists the block devices that the kernel has made of the device or of files on it.
func stacked(device uint64) (uses []Use) {
	holders, _ := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/holders/*", unix.Major(device), unix.Minor(device))) // no match is no error
	for _, path := range holders {
		uses = append(uses, Use{Kernel: "block device /dev/" + filepath.Base(path)})
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range loops {
		text, err := os.ReadFile(path)
		file := strings.TrimSpace(string(text))
		if err == nil && isOn(file, device) {
			uses = append(uses, Use{Kernel: "loop device /dev/" + strings.Split(path, "/")[3] + " on " + file})
		}
	}
	return uses
}

func isOn(path string, device uint64) bool {
	var stat unix.Stat_t
	return unix.Stat(path, &stat) == nil && stat.Dev == device
}

// findProcesses sends one Use for each process that uses a device, until ctx is done.
func findProcesses(ctx context.Context, device uint64, found chan<- Use) {
	proc, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	shows := map[string]bool{}
	wanted := map[string]uint64{fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device)): device}
	own, _ := os.Readlink("/proc/self/ns/mnt") // empty: no process is left out then
	for _, entry := range proc {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := "/proc/" + entry.Name()
		namespace, _ := os.Readlink(dir + "/ns/mnt") // a process that has ended, and shows nothing below
		if _, looked := shows[namespace]; !looked && namespace != own {
			there, err := mountsAt(dir+"/mountinfo", wanted)
			shows[namespace] = err == nil && len(there) > 0
		}
		if shows[namespace] {
			continue
		}
		path := opened(ctx, dir, device)
		if path == "" {
			continue
		}
		process := describe(pid)
		select {
		case found <- Use{Process: &process, Path: path}:
		case <-ctx.Done():
			return
		}
	}
}

// opened says what the process with a directory in /proc has open of a device, or returns "".
func opened(ctx context.Context, process string, device uint64) string {
	for link, what := range map[string]string{"cwd": "its directory ", "root": "its root directory ", "exe": "its program "} {
		if isOn(process+"/"+link, device) {
			return what + target(process+"/"+link)
		}
	}
	links, _ := filepath.Glob(process + "/fd/*") // no match is no error
	for _, link := range links {
		if ctx.Err() != nil {
			return ""
		}
		var stat unix.Stat_t
		switch err := unix.Stat(link, &stat); {
		case err != nil: // closed meanwhile
		case stat.Dev == device:
			return target(link) + " open"
		case stat.Mode&unix.S_IFMT == unix.S_IFBLK && stat.Rdev == device:
			return "the device " + target(link) + " open"
		}
	}
	return mapped(process+"/maps", device)
}

func target(link string) string {
	path, err := os.Readlink(link)
	if err != nil {
		return "?"
	}
	return path
}

// mapped says which file of a device the memory map at path has, or returns "".
func mapped(path string, device uint64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	wanted := fmt.Sprintf("%02x:%02x", unix.Major(device), unix.Minor(device))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 5 && fields[3] == wanted {
			return strings.Join(fields[5:], " ") + " mapped"
		}
	}
	return ""
}
