//go:build root

package fs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

func TestMountIsSafeUnlessOptionsSayOtherwise(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		for _, c := range []struct{ given, wanted, unwanted []string }{
			{nil, []string{"rw", "nosuid", "nodev", "discard"}, []string{"noexec", "ro"}},
			{[]string{"suid", "dev", "nodiscard"}, []string{"rw"}, []string{"nosuid", "nodev", "discard"}},
			{[]string{"noexec", "noatime", "ro"}, []string{"ro", "noexec", "noatime", "nosuid"}, []string{"rw"}},
			{[]string{"ro", "rw", "noexec", "exec"}, []string{"rw"}, []string{"ro", "noexec"}},
		} {
			if err := kind.Mount(device, dir, c.given); err != nil {
				t.Fatal(err)
			}
			infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
			if err := errors.Join(err, Unmount(dir)); err != nil {
				t.Fatal(err)
			}
			if len(infos) != 1 {
				t.Fatalf("%+v", infos)
			}
			words := strings.Split(infos[0].Options+","+infos[0].VFSOptions, ",")
			for _, word := range c.wanted {
				if !slices.Contains(words, word) {
					t.Errorf("with %q: no %s in %q", c.given, word, words)
				}
			}
			for _, word := range c.unwanted {
				if slices.Contains(words, word) {
					t.Errorf("with %q: %s in %q", c.given, word, words)
				}
			}
		}
	})
}

func TestMountTakesEveryAllowedOption(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		for option := range mountOptions {
			if kind.CheckMountOption(option) != nil {
				continue
			}
			if err := errors.Join(kind.Mount(device, dir, []string{option}), Unmount(dir)); err != nil {
				t.Errorf("%s: %v", option, err)
			}
		}
	})
}

// The kernel says EINVAL of both.
func TestMountTellsBadOptionsFromADamagedFilesystem(t *testing.T) {
	ext4, xfs := types[0], types[1]
	for _, c := range []struct {
		name    string
		kind    Type
		damage  func(t *testing.T, device, image string)
		options []string
		want    fault.Kind
	}{
		{"ext4 without a journal and an option that needs one", ext4, dropJournal, []string{"data=journal"}, fault.ErrInvalid},
		{"ext4 without a journal", ext4, dropJournal, nil, ""},
		{"ext4 without superblock", ext4, clearStart, nil, fault.ErrCorrupt},
		{"ext4 without superblock, with options", ext4, clearStart, []string{"data=journal"}, fault.ErrCorrupt},
		{"ext4 cut short", ext4, cutShort, nil, fault.ErrCorrupt},
		{"ext4 cut short, with options", ext4, cutShort, []string{"data=journal"}, fault.ErrCorrupt},
		{"ext4 with a wrong checksum", ext4, changeLabel(ext4Start + 0x78), []string{"acl"}, fault.ErrCorrupt},
		{"xfs without superblock", xfs, clearStart, []string{"inode64"}, fault.ErrCorrupt},
		{"xfs with a wrong checksum", xfs, changeLabel(108), []string{"inode64"}, fault.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			device, image, dir := newFilesystem(t, c.kind, max(c.kind.MinSize, 64*mib))
			c.damage(t, device, image)
			err := c.kind.Mount(device, dir, c.options)
			if err == nil {
				err = Unmount(dir)
			}
			if kind := fault.KindOf(err); kind != c.want {
				t.Errorf("kind %q, want %q: %v", kind, c.want, err)
			}
			if c.want == fault.ErrInvalid && !strings.Contains(err.Error(), c.options[0]) {
				t.Errorf("the option is not named: %v", err)
			}
		})
	}
}

func dropJournal(t *testing.T, device, _ string) {
	t.Helper()
	if out, err := exec.Command("tune2fs", "-O", "^has_journal", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func clearStart(t *testing.T, device, _ string) {
	t.Helper()
	writeAt(t, device, 0, make([]byte, 64*kib))
}

// changeLabel changes a byte of the superblock that means nothing.
func changeLabel(offset int64) func(t *testing.T, device, image string) {
	return func(t *testing.T, device, _ string) {
		t.Helper()
		writeAt(t, device, offset, []byte{'x'})
	}
}

// cutShort halves the device.
func cutShort(t *testing.T, device, image string) {
	t.Helper()
	info, err := os.Stat(image)
	if err == nil {
		err = os.Truncate(image, info.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
}

func TestCloneOfAMountedXFSMountsBesideIt(t *testing.T) {
	kind, err := Lookup("xfs")
	if err != nil {
		t.Fatal(err)
	}
	device, image, dir := newFilesystem(t, kind, kind.MinSize)
	copied, twin := newDevice(t, kind.MinSize)
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(twin, content, 0o600); err != nil {
		t.Fatal(err)
	}
	mounted(t, kind, device, dir)
	mounted(t, kind, copied, t.TempDir())
}

func TestUnmountRefusesWhatIsInUse(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir)
		f, err := os.Create(filepath.Join(dir, "open"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := Unmount(dir); !fault.Is(err, fault.ErrInUse) {
			t.Fatalf("unmount with an open file: %v", err)
		}
		if is, err := IsMountpoint(dir); !is || err != nil {
			t.Fatalf("refused, but mounted is %t, %v", is, err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Errorf("write after the refused unmount: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second has nothing left to do
			if err := Unmount(dir); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestUnmountOfNothingSucceeds(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "missing"), filepath.Join(dir, "missing", "too")} {
		if err := Unmount(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestUnmountFollowsNoLink(t *testing.T) {
	kind := types[0]
	device, _, dir := newFilesystem(t, kind, 64*mib)
	mounted(t, kind, device, dir)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	_ = Unmount(link) // whatever it says
	if is, err := IsMountpoint(dir); !is || err != nil {
		t.Errorf("mounted is %t, %v", is, err)
	}
}

func TestTableShowsMountsInOrder(t *testing.T) {
	kind := types[0]
	device, _, dir := newFilesystem(t, kind, 64*mib)
	mounted(t, kind, device, dir, "ro")
	other := t.TempDir()
	if err := Bind(dir, other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(other); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{dir, other} {
		if is, err := IsMountpoint(d); !is || err != nil {
			t.Errorf("%s: %t, %v", d, is, err)
		}
		if e := entry(t, d); e.Device != stat(t, device).Rdev || e.Type != kind.Name || !e.ReadOnly {
			t.Errorf("%s: %+v", d, e)
		}
	}
	if is, err := IsMountpoint(filepath.Join(dir, "missing")); is || err != nil {
		t.Errorf("a missing directory: %t, %v", is, err)
	}
	if table, err := Table(filepath.Dir(dir) + "/."); err != nil || len(table) != 1 {
		t.Errorf("%+v, %v", table, err)
	}
}

func TestThawEndsAFreeze(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir)
		if err := Thaw(dir); err != nil {
			t.Fatalf("of what is not frozen: %v", err)
		}
		const fifreeze = 0xc0045877
		var arg uint32
		if err := ioctl(dir, fifreeze, unsafe.Pointer(&arg)); err != nil {
			t.Fatal(err)
		}
		if err := Thaw(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			t.Error(err)
		}
	})
}

// TestFrozenTellsAFreezeAndDisturbsNothing: neither the freeze, nor who waits for its end, nor the mount's options.
func TestFrozenTellsAFreezeAndDisturbsNothing(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir, "noatime")
		before := entry(t, dir)
		want := func(frozen bool) {
			t.Helper()
			for range 20 {
				if got, err := kind.Frozen(dir); err != nil || got != frozen {
					t.Fatalf("frozen %v, %v, want %v", got, err, frozen)
				}
			}
			if now := entry(t, dir); now != before {
				t.Errorf("mounted as %+v, was %+v", now, before)
			}
		}
		want(false)
		if err := Freeze(dir); err != nil {
			t.Fatal(err)
		}
		waiting, written := make(chan struct{}), make(chan error)
		go func() {
			close(waiting)
			written <- os.WriteFile(filepath.Join(dir, "file"), []byte("late"), 0o600)
		}()
		<-waiting
		want(true)
		if err := Freeze(dir); !fault.Is(err, fault.ErrInUse) {
			t.Errorf("not frozen any more: %v", err)
		}
		select {
		case err := <-written:
			t.Errorf("written while frozen: %v", err)
		default:
		}
		if err := Thaw(dir); err != nil {
			t.Fatal(err)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
		want(false)
	})
}

func TestFrozenFailsWhereItCannotTell(t *testing.T) {
	kind, err := Lookup("ext4")
	if err != nil {
		t.Fatal(err)
	}
	needRoot(t)
	if frozen, err := kind.Frozen(filepath.Join(t.TempDir(), "nothing")); err == nil || frozen {
		t.Errorf("of what is not there: %v, %v", frozen, err)
	}
	if frozen, err := (Type{Name: "vfat"}).Frozen(t.TempDir()); !fault.Is(err, fault.ErrUnsupported) || frozen {
		t.Errorf("of another type: %v, %v", frozen, err)
	}
}

// flags are the inode flags of lsattr(1).
func flags(t *testing.T, dir string) uint32 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	value, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestMountPointIsClosedUntilItIsRemoved(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, home := newFilesystem(t, kind, size)
		mounted(t, kind, device, home)
		dir := filepath.Join(home, "mountpoint")
		for _, prepare := range []func() error{
			func() error { return nil }, // new
			func() error { return nil }, // as it should be
			func() error { return errors.Join(setImmutable(dir, false), os.Chmod(dir, 0)) }, // cut short
			func() error {
				return errors.Join(setImmutable(dir, false), os.Chmod(dir, 0o755), setImmutable(dir, true))
			},
		} {
			if err := prepare(); err != nil {
				t.Fatal(err)
			}
			if err := MakeMountpoint(dir); err != nil {
				t.Fatal(err)
			}
			if mode := stat(t, dir).Mode & 0o7777; mode != 0 {
				t.Errorf("mode is %o", mode)
			}
			if f := flags(t, dir); f&0x10 == 0 {
				t.Errorf("not immutable: flags %#x", f)
			}
			if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err == nil {
				t.Error("somebody can write into it")
			}
		}
		for range 2 { // the second has nothing left to do
			if err := RemoveMountpoint(dir); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("removed, but: %v", err)
		}
	})
}

func TestMountPointInUseIsLeftAlone(t *testing.T) {
	kind := types[0]
	device, _, _ := newFilesystem(t, kind, 64*mib)
	dir := filepath.Join(t.TempDir(), "mountpoint")
	if err := MakeMountpoint(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveMountpoint(dir); err != nil {
			t.Error(err)
		}
	})
	mounted(t, kind, device, dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := stat(t, dir)
	if err := MakeMountpoint(dir); err != nil {
		t.Error(err)
	}
	if err := RemoveMountpoint(dir); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("remove: %v", err)
	}
	if after := stat(t, dir); after.Mode != before.Mode || after.Ino != before.Ino {
		t.Errorf("was %+v, is %+v", before, after)
	}
	if content, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestRemoveMountpointRefusesADirectoryWithFiles(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveMountpoint(dir); err == nil {
		t.Error("removed")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if err := MakeMountpoint(file); err == nil {
		t.Error("made a mount point of a file")
	}
}

func TestMountedElsewhereFindsAProcessInAnotherNamespace(t *testing.T) {
	testMountedElsewhere(t, exec.Command("unshare", "-m", "sh", "-c", "echo ready; read end || exit 0"))
}

func TestMountedElsewhereFindsAProcessOfWhichOneThreadIsInAnotherNamespace(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), unshareThread+"=1")
	testMountedElsewhere(t, cmd)
}

func TestMountedElsewherePassesOverMountsThatFollowOurs(t *testing.T) {
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Unmount(base) })
	if err := unix.Mount("", base, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	dir := base + "/volume"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kind := types[0]
	device, _, _ := newFilesystem(t, kind, 64*mib)
	mounted(t, kind, device, dir)
	number := stat(t, dir).Dev
	// As systemd makes the namespaces of services.
	start(t, exec.Command("unshare", "-m", "--propagation", "slave", "sh", "-c", "echo ready; read end || exit 0"))
	if found, err := MountedElsewhere(number); err != nil || len(found) > 0 {
		t.Errorf("a slave of our mount counts: %v, %v", found, err)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatalf("the device is still in use: %v", err)
	}
	_ = f.Close()
}

// testMountedElsewhere expects that cmd alone keeps a filesystem mounted that is unmounted here.
func testMountedElsewhere(t *testing.T, cmd *exec.Cmd) {
	kind := types[0]
	device, _, dir := newFilesystem(t, kind, 64*mib)
	mounted(t, kind, device, dir)
	number := stat(t, dir).Dev
	if found, err := MountedElsewhere(number); err != nil || len(found) > 0 {
		t.Fatalf("before: %v, %v", found, err)
	}
	end := start(t, cmd)
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	found, err := MountedElsewhere(number)
	if err != nil || len(found) != 1 || found[0].PID != cmd.Process.Pid || found[0].Name == "" {
		t.Errorf("pid %d has it mounted, found %v, %v", cmd.Process.Pid, found, err)
	}
	if _, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the device is not in use (%v): this test proves nothing", err)
	}
	end()
	if found, err := MountedElsewhere(number); err != nil || len(found) > 0 {
		t.Errorf("after its end: %v, %v", found, err)
	}
}
