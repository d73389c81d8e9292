//go:build root

package loop_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/freddierice/go-losetup/v2"
	"golang.org/x/sys/unix"

	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/internal/namespacetest"
)

func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// needRoot ends a test that cannot say anything without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
}

// tempDir is a directory for one test. A loop device that is left on a file in it fails the test, once every
// cleanup registered later has run.
func tempDir(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		if left := devicesBelow(t, dir); len(left) > 0 {
			t.Errorf("left attached: %v", left)
		}
	})
	return dir
}

// makeFilesystem mounts a new filesystem in a sparse file of size bytes until the test's end.
func makeFilesystem(t *testing.T, fstype string, size int64) (dir string) {
	t.Helper()
	home := tempDir(t)
	image, dir := filepath.Join(home, fstype+".fs"), filepath.Join(home, fstype)
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	mkfs := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", image},
		"xfs":   {"mkfs.xfs", "-q", "-m", "reflink=1", image},
		"btrfs": {"mkfs.btrfs", "-q", image},
	}[fstype]
	if out, err := exec.Command(mkfs[0], mkfs[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(mkfs, " "), err, out)
	}
	device := attachFile(t, image)
	if err := unix.Mount(device, dir, fstype, 0, ""); err != nil {
		t.Fatalf("mount %s on %s as %s: %v", device, dir, fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// attachFile attaches a file to a loop device until the test's end, as losetup(8) would: no matter who has it open.
func attachFile(t *testing.T, path string) (device string) {
	t.Helper()
	for range 100 {
		free, err := losetup.GetFree()
		if err != nil {
			t.Fatal(err)
		}
		switch err := attachTo(t, free.Path(), path); {
		case err == nil:
			return free.Path()
		case !errors.Is(err, unix.EBUSY):
			t.Fatalf("attach %s to %s: %v", path, free.Path(), err)
		}
	}
	t.Fatalf("attach %s: no free loop device", path)
	return ""
}

// attachTo attaches a file to one loop device until the test's end.
func attachTo(t *testing.T, device, path string) error {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	d, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	config := unix.LoopConfig{Fd: uint32(f.Fd())}
	copy(config.Info.File_name[:63], path)
	if err := unix.IoctlLoopConfigure(int(d.Fd()), &config); err != nil {
		return err
	}
	t.Cleanup(func() { detachFrom(t, device, stat.Dev, stat.Ino) })
	return nil
}

// detachFrom frees a loop device if it still has this file.
func detachFrom(t *testing.T, device string, dev, ino uint64) {
	t.Helper()
	d, err := os.Open(device)
	if err != nil {
		return // removed
	}
	defer d.Close()
	info, err := unix.IoctlLoopGetStatus64(int(d.Fd()))
	if err != nil || info.Device != dev || info.Inode != ino {
		return
	}
	if err := unix.IoctlSetInt(int(d.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Errorf("detach %s: %v", device, err)
	}
}

// rootWithoutReflink is a data root on a filesystem that cannot reflink.
func rootWithoutReflink(t *testing.T) string {
	t.Helper()
	root := tempDir(t)
	reflink, err := loop.CanReflink(root)
	if err != nil {
		t.Fatal(err)
	}
	if reflink {
		root = makeFilesystem(t, "ext4", 6*gib)
	}
	return root
}

// openPool opens a pool that is gone after the test, in however many lives it was opened.
func openPool(t *testing.T, c loop.Config) *loop.Pool {
	t.Helper()
	needRoot(t)
	pool, err := loop.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.UUID = pool.UUID()
	t.Cleanup(func() {
		pool.Close()
		dismantle(t, c, pool.Dir())
	})
	return pool
}

// dismantle frees every device of a pool and detaches it, also after a failure half-way.
func dismantle(t *testing.T, c loop.Config, dir string) {
	t.Helper()
	ctx := context.Background()
	if pool, err := loop.Open(ctx, c); err == nil {
		infos, err := pool.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, info := range infos {
			if err := pool.Deactivate(ctx, info.ID); err != nil {
				t.Error(err)
			}
		}
		if err := pool.Detach(ctx); err != nil {
			t.Error(err)
		}
		pool.Close()
	}
	if c.Dir != "" {
		return
	}
	// A root that can reflink has the images themselves there, and no mount point.
	err := errors.Join(fs.Unmount(dir), fs.RemoveMountpoint(dir))
	if err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		t.Error(err)
	}
}

// backingFiles are the attached loop devices and their files.
func backingFiles(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil {
			files["/dev/"+strings.Split(path, "/")[3]] = strings.TrimSpace(string(text))
		}
	}
	return files
}

// devicesBelow are the loop devices whose file is below dir.
func devicesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := backingFiles(t)
	maps.DeleteFunc(files, func(_, name string) bool { return !strings.HasPrefix(name, dir+"/") })
	return files
}

// deviceStatus is what the kernel tells of an attached loop device.
func deviceStatus(t *testing.T, device string) *unix.LoopInfo64 {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		t.Fatal(fmt.Errorf("status of %s: %w", device, err))
	}
	return info
}
