//go:build root

package dirstore_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"orlop/internal/backup/store/dirstore"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// privately runs the rest of the test on a thread with a mount namespace of its own. The thread ends with the test.
// Other goroutines, and subtests, see nothing that is mounted there: they may only use a Store that is open.
func privately(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems: run it as root (without root: make test-unit)")
	}
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err != nil {
		t.Fatalf("make a mount namespace: %v", err)
	}
}

// mounted mounts a filesystem on a new directory until the test's end.
func mounted(t *testing.T, mount func(dir string) error) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := mount(dir); err != nil {
		t.Fatalf("mount %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func tmpfs(options string) func(dir string) error {
	return func(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, options) }
}

// image makes a file of size bytes with a filesystem in it, to be mounted on a loop device, which goes with the mount.
func image(t *testing.T, size int64, mkfs ...string) func(dir string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", mkfs, err, out)
	}
	return func(dir string) error {
		if out, err := exec.Command("mount", "-o", "loop", path, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

func TestOtherFilesystemsKeepTheContract(t *testing.T) {
	privately(t)
	dir := mounted(t, tmpfs("size=256m"))
	storetest.Run(t, storetest.Harness{Store: open(t, dir), Other: open(t, dir)})
	dir = mounted(t, image(t, 400<<20, "mkfs.xfs", "-q"))
	storetest.Run(t, storetest.Harness{Store: open(t, dir), Other: open(t, dir)})
}

// TestFullDiskIsNoSpaceAndLosesNothing fills filesystems: with data, and with files.
func TestFullDiskIsNoSpaceAndLosesNothing(t *testing.T) {
	privately(t)
	for name, dir := range map[string]string{
		"tmpfs":        mounted(t, tmpfs("size=2m")),
		"tmpfs, files": mounted(t, tmpfs("size=64m,nr_inodes=40")),
		"ext4":         mounted(t, image(t, 4<<20, "mkfs.ext4", "-q", "-F", "-O", "^has_journal")),
		"ext4, files":  mounted(t, image(t, 32<<20, "mkfs.ext4", "-q", "-F", "-N", "64")),
	} {
		fill(t, name, dir) // no subtest: that would be on another thread
	}
}

// enough is more objects than there is room for.
const enough = 200

func fill(t *testing.T, what, dir string) {
	t.Helper()
	s, err := dirstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := []byte(strings.Repeat("data", 16<<10))
	var names []string
	for err == nil && len(names) < enough {
		name := fmt.Sprintf("d/%d/x", len(names))
		if err = s.Put(t.Context(), name, data); err == nil {
			names = append(names, name)
		}
	}
	if !fault.Is(err, fault.ErrNoSpace) || !strings.Contains(err.Error(), dir) || len(names) < 10 {
		t.Fatalf("%s: after %d objects: %v", what, len(names), err)
	}
	if left, err := os.ReadDir(dir + "/tmp~"); err != nil || len(left) > 0 {
		t.Errorf("%s: left %v, %v", what, left, err)
	}
	for _, name := range names {
		if got, err := s.Get(t.Context(), name); err != nil || string(got) != string(data) {
			t.Errorf("%s: %s: %d bytes, %v", what, name, len(got), err)
		}
	}
	if got := listed(t, s); len(got) != len(names) {
		t.Errorf("%s: %d objects put, %d listed", what, len(names), len(got))
	}
	for _, name := range names[:3] {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Put(t.Context(), "again", data); err != nil {
		t.Errorf("%s: with room again: %v", what, err)
	}
}

func TestReadOnlyDirectoryCanBeRead(t *testing.T) {
	privately(t)
	dir := mounted(t, tmpfs("size=1m"))
	if err := open(t, dir).Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if got, err := s.Get(t.Context(), "a/b"); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	if got := listed(t, s); len(got) != 1 {
		t.Errorf("listed %q", got)
	}
	for what, err := range map[string]error{"put": s.Put(t.Context(), "c", nil), "delete": s.Delete(t.Context(), "a/b")} {
		if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// goDown is XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN; noLogFlush loses all that was not flushed, as a power cut does.
const (
	goDown     = 0x8004587d
	noLogFlush = 2
)

// TestPowerCutLosesNoAcknowledgedObject cuts the filesystem off below racing writers that make directories for each
// other.
func TestPowerCutLosesNoAcknowledgedObject(t *testing.T) {
	privately(t)
	for _, mkfs := range [][]string{{"mkfs.ext4", "-q", "-F"}, {"mkfs.xfs", "-q"}} {
		dir, mount := t.TempDir(), image(t, 320<<20, mkfs...)
		if err := mount(dir); err != nil {
			t.Fatal(err)
		}
		acknowledged := putUntilCut(t, dir)
		if err := errors.Join(unix.Unmount(dir, 0), mount(dir)); err != nil {
			t.Fatalf("mount again: %v", err)
		}
		s, err := dirstore.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range acknowledged {
			if got, err := s.Get(t.Context(), name); err != nil || string(got) != name {
				t.Errorf("%s: %s: got %q, %v", mkfs[0], name, got, err)
			}
		}
		// What was not acknowledged is there as a whole, or not at all.
		for _, name := range listed(t, s) {
			if got, err := s.Get(t.Context(), name); err != nil || string(got) != name {
				t.Errorf("%s: %s: got %q, %v", mkfs[0], name, got, err)
			}
		}
		if err := errors.Join(s.Close(), unix.Unmount(dir, 0)); err != nil {
			t.Errorf("unmount: %v", err)
		}
		t.Logf("%s: %d acknowledged objects", mkfs[0], len(acknowledged))
	}
}

// putUntilCut has writers put objects until the filesystem goes down, and returns the names of those that are stored.
func putUntilCut(t *testing.T, dir string) (acknowledged []string) {
	t.Helper()
	const writers, acknowledgements = 4, 200
	stored := make(chan string, 1)
	var g errgroup.Group
	for w := range writers {
		s, err := dirstore.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		g.Go(func() error {
			defer s.Close()
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d/%d/%d/%d", i/16, i/4, i, w)
				err := s.Put(t.Context(), name, []byte(name))
				if errors.Is(err, unix.EIO) || fault.Is(err, fault.ErrUnreachable) || errors.Is(err, unix.EROFS) {
					return nil // cut off
				}
				if err != nil {
					return err
				}
				stored <- name
			}
		})
	}
	ended := make(chan error, 1)
	go func() {
		ended <- g.Wait()
		close(stored)
	}()
	for name := range stored {
		if acknowledged = append(acknowledged, name); len(acknowledged) == acknowledgements {
			cut(t, dir)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return acknowledged
}

func cut(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goDown, noLogFlush); err != nil {
		t.Fatalf("cut off %s: %v", dir, err)
	}
}
