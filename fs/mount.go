package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// A mountOption is a word for --mount-option and what it means to mount(2).
type mountOption struct {
	set, clear uintptr
	data       bool // handed to the filesystem as text
	types      []string
}

// mountOptions are the options that a volume may have, beyond the default ones. None of them can weaken what an
// fsync promises.
var mountOptions = map[string]mountOption{
	"suid":        {clear: unix.MS_NOSUID},
	"nosuid":      {set: unix.MS_NOSUID},
	"dev":         {clear: unix.MS_NODEV},
	"nodev":       {set: unix.MS_NODEV},
	"exec":        {clear: unix.MS_NOEXEC},
	"noexec":      {set: unix.MS_NOEXEC},
	"noatime":     {set: unix.MS_NOATIME, clear: unix.MS_RELATIME},
	"nodiratime":  {set: unix.MS_NODIRATIME},
	"relatime":    {set: unix.MS_RELATIME, clear: unix.MS_NOATIME},
	"strictatime": {set: unix.MS_STRICTATIME, clear: unix.MS_NOATIME | unix.MS_RELATIME},
	"lazytime":    {set: unix.MS_LAZYTIME},
	"sync":        {set: unix.MS_SYNCHRONOUS},
	"dirsync":     {set: unix.MS_DIRSYNC},
	"ro":          {set: unix.MS_RDONLY},
	"rw":          {clear: unix.MS_RDONLY},
	"discard":     {data: true},
	"nodiscard":   {data: true},
	"acl":         {data: true, types: []string{"ext4"}},
	"user_xattr":  {data: true, types: []string{"ext4"}},
	"data=ordered": {
		data: true, types: []string{"ext4"},
	},
	"data=journal": {data: true, types: []string{"ext4"}},
	"inode64":      {data: true, types: []string{"xfs"}},
	"largeio":      {data: true, types: []string{"xfs"}},
}

// CheckMountOption fails with fault.ErrInvalid, listing what there is, if a volume of this type cannot have the
// option.
func (t Type) CheckMountOption(option string) error {
	allowed := t.MountOptions()
	if slices.Contains(allowed, option) {
		return nil
	}
	return fault.Errorf(fault.ErrInvalid, "mount option %q: not allowed on %s: use %s", option, t.Name, strings.Join(allowed, ", "))
}

// MountOptions returns the options that a volume of this type may have, sorted.
func (t Type) MountOptions() (allowed []string) {
	for word, o := range mountOptions {
		if o.types == nil || slices.Contains(o.types, t.Name) {
			allowed = append(allowed, word)
		}
	}
	slices.Sort(allowed)
	return allowed
}

// Mount mounts the filesystem on device at dir: nosuid, nodev and discard unless the options say otherwise. It fails
// with fault.ErrCorrupt if there is no such filesystem or it is damaged, and with fault.ErrInvalid if the kernel does not
// take the options. An XFS whose device fails gets errors after some seconds, instead of none for ever.
func (t Type) Mount(device, dir string, options []string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	discard, data := "discard", []string{}
	for _, word := range options {
		option := mountOptions[word]
		flags = flags&^option.clear | option.set
		switch {
		case word == "discard" || word == "nodiscard":
			discard = word
		case option.data:
			data = append(data, word)
		}
	}
	given := slices.Clone(data)
	data = append(data, t.data, discard)
	err := mount(device, dir, t.Name, flags, strings.Join(data, ","))
	if err == nil && t.Name == "xfs" {
		limitRetries(device)
	}
	if errors.Is(err, unix.EINVAL) && len(given) > 0 && t.looksSound(device) {
		return fault.Errorf(fault.ErrInvalid, "%w: its superblock is sound, so that the kernel may not take mount option %s", err, strings.Join(given, ", "))
	}
	return err
}

// looksSound tells whether the superblock on device can be read and promises no more than there is.
func (t Type) looksSound(device string) bool {
	size, err := t.Size(device)
	if err != nil {
		return false
	}
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	return err == nil && size <= end
}

func mount(device, dir, fstype string, flags uintptr, data string) error {
	err := unix.Mount(device, dir, fstype, flags, data)
	switch {
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.EINVAL):
		return fault.Errorf(fault.ErrCorrupt, "mount %s on %s as %s: %w (see dmesg)", device, dir, fstype, err)
	case err != nil:
		return fmt.Errorf("mount %s on %s as %s: %w", device, dir, fstype, err)
	}
	return nil
}

// MountPool mounts an XFS that holds images: timestamps written lazily, and freed blocks given back at once if
// discard is set.
func MountPool(device, dir string, discard bool) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_LAZYTIME
	data := "nouuid"
	if discard {
		data += ",discard"
	}
	return mount(device, dir, "xfs", flags, data)
}

// Bind shows the directory from at dir too.
func Bind(from, dir string) error {
	if err := unix.Mount(from, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, dir, err)
	}
	return nil
}

// Unmount unmounts what is mounted at dir, never lazily. Nothing mounted there is no error; something in use is
// fault.ErrInUse.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL): // not a mount point
		return nil
	case errors.Is(err, unix.EBUSY):
		return fault.Errorf(fault.ErrInUse, "unmount %s: in use", dir)
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

// An Entry is a mount in the table of this process's mount namespace.
type Entry struct {
	Mountpoint string
	Device     uint64 // as st_dev of the filesystem
	Type       string
	ReadOnly   bool // the filesystem itself, whether by an option or after an error
	Discard    bool // it tells its device at once what it frees
}

// Table returns what is mounted at or below dir in this mount namespace, in mount order.
func Table(dir string) ([]Entry, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Clean(dir)))
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	entries := make([]Entry, 0, len(infos))
	for _, info := range infos {
		device := unix.Mkdev(uint32(info.Major), uint32(info.Minor))
		entries = append(entries, Entry{
			Mountpoint: info.Mountpoint,
			Device:     device,
			Type:       info.FSType,
			ReadOnly:   readOnly(info.VFSOptions) || info.FSType == "ext4" && stopsAtErrors(info.VFSOptions) && hasErrors(device),
			Discard:    slices.Contains(strings.Split(info.VFSOptions, ","), "discard"),
		})
	}
	return entries, nil
}

// readOnly reads the options of a filesystem, as opposed to those of a mount: since Linux 6.15 ext4 shows ro where
// that was asked for, and emergency_ro where an error made it so.
func readOnly(options string) bool {
	words := strings.Split(options, ",")
	return slices.Contains(words, "ro") || slices.Contains(words, "emergency_ro")
}

// stopsAtErrors reports whether an ext4 with these options becomes read-only when the kernel finds an error in it.
func stopsAtErrors(options string) bool {
	return slices.Contains(strings.Split(options, ","), "errors=remount-ro")
}

// hasErrors reports whether the kernel has recorded an error in the mounted ext4 on device, an st_dev. Some
// kernels between 6.1 and 6.15, Debian 12's among them, show no other sign of an ext4 that an error made read-only.
func hasErrors(device uint64) bool {
	disk, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(device), unix.Minor(device)))
	if err != nil {
		return false // just unmounted
	}
	count, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(disk), "errors_count"))
	return err == nil && strings.TrimSpace(string(count)) != "0"
}

// IsMountpoint tells whether something is mounted on dir itself; a dir that does not exist is none.
func IsMountpoint(dir string) (bool, error) {
	mounted, err := mountinfo.Mounted(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a mount at %s: %w", dir, err)
	}
	return mounted, nil
}

// A Process has a filesystem mounted in its mount namespace.
type Process struct {
	PID    int
	Name   string // command name
	Cgroup string // of the process; tells which container it is
}

func (p Process) String() string {
	if p.Cgroup == "" || p.Cgroup == "/" {
		return fmt.Sprintf("pid %d (%s)", p.PID, p.Name)
	}
	return fmt.Sprintf("pid %d (%s, cgroup %s)", p.PID, p.Name, p.Cgroup)
}

// MountedElsewhere lists one process for each other mount namespace in which device, an st_dev, is mounted by itself.
// A mount that only follows one of this namespace, at the same path, does not count: it goes when that goes. The
// services of a systemd host have such mounts in their private namespaces. It reads the mount table of every
// namespace once. Processes that end meanwhile are passed over.
func MountedElsewhere(device uint64) ([]Process, error) {
	found, err := AllMountedElsewhere(device)
	return found[device], err
}

// AllMountedElsewhere is MountedElsewhere for several devices with one look.
func AllMountedElsewhere(devices ...uint64) (map[uint64][]Process, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("look into mount namespaces: %w", err)
	}
	wanted := map[string]uint64{}
	for _, device := range devices {
		wanted[fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))] = device
	}
	here, err := mountsAt("/proc/self/mountinfo", wanted)
	if err != nil {
		return nil, fmt.Errorf("look into mount namespaces: %w", err)
	}
	proc, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look into mount namespaces: %w", err)
	}
	seen := map[string]bool{own: true}
	found := map[uint64][]Process{}
	for _, entry := range proc {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		for _, task := range tasks(pid) {
			namespace, err := os.Readlink(task + "/ns/mnt")
			if err != nil || seen[namespace] {
				continue
			}
			there, err := mountsAt(task+"/mountinfo", wanted)
			if err != nil {
				continue // it ended, and another of its namespace may tell
			}
			for device, mounts := range there {
				if slices.ContainsFunc(mounts, func(m mountLine) bool { return !m.follows(here[device]) }) {
					found[device] = append(found[device], describe(pid))
				}
			}
			seen[namespace] = true
		}
	}
	return found, nil
}

// tasks lists a process's threads in /proc: one of them alone may be in another namespace, as in docker cp.
func tasks(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	paths := make([]string, len(entries))
	for i, entry := range entries {
		paths[i] = dir + "/" + entry.Name()
	}
	return paths
}

// A mountLine is what a line of proc_pid_mountinfo(5) tells of a mount's place and propagation.
type mountLine struct {
	mountpoint string // escaped as the kernel shows it
	shared     string // peer group, or empty
	master     string // peer group from which unmounts come, or empty
}

// follows tells whether m is unmounted together with one of the mounts in here.
func (m mountLine) follows(here []mountLine) bool {
	return slices.ContainsFunc(here, func(h mountLine) bool {
		return h.shared != "" && h.mountpoint == m.mountpoint && (m.master == h.shared || m.shared == h.shared)
	})
}

func mountsAt(path string, wanted map[string]uint64) (map[uint64][]mountLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountsOf(f, wanted)
}

// mountsOf returns the mounts of the wanted devices, by their "major:minor", in a mount table in the format of
// proc_pid_mountinfo(5).
func mountsOf(r io.Reader, wanted map[string]uint64) (map[uint64][]mountLine, error) {
	mounts := map[uint64][]mountLine{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			continue
		}
		device, is := wanted[fields[2]]
		if !is {
			continue
		}
		m := mountLine{mountpoint: fields[4]}
		for _, optional := range fields[6:] {
			if optional == "-" {
				break
			}
			if group, ok := strings.CutPrefix(optional, "shared:"); ok {
				m.shared = group
			}
			if group, ok := strings.CutPrefix(optional, "master:"); ok {
				m.master = group
			}
		}
		mounts[device] = append(mounts[device], m)
	}
	return mounts, lines.Err()
}

func describe(pid int) Process {
	p := Process{PID: pid}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		p.Name = strings.TrimSpace(string(name))
	}
	if cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil {
		p.Cgroup = longestPath(string(cgroups))
	}
	return p
}

// longestPath picks the most telling line of /proc/PID/cgroup: hierarchies that are not used show "/".
func longestPath(cgroups string) string {
	longest := ""
	for line := range strings.Lines(cgroups) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && len(parts[2]) > len(longest) {
			longest = parts[2]
		}
	}
	return longest
}
