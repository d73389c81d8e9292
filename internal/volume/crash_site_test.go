//go:build root

package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/run"
)

const (
	mebibyte = int64(1) << 20
	gibibyte = int64(1) << 30
)

// A site is an XFS that can reflink, in an image on a loop device of its own. The pools of many worlds share it.
type site struct {
	dir     string // on the host's filesystem
	pools   string // where the XFS is mounted
	image   string
	plain   *template // witness and subject
	withXFS *template // and subject-xfs
	worlds  atomic.Int64

	rehearsals sync.Map // by the operations' names
}

// newSite makes a site that is gone after the test.
func newSite(t *testing.T) *site {
	t.Helper()
	dir := scratchDir(t)
	s := &site{dir: dir, pools: filepath.Join(dir, "pools"), image: filepath.Join(dir, "pools.xfs")}
	check(t, errors.Join(os.WriteFile(s.image, nil, 0o600), os.Truncate(s.image, 16*gibibyte), os.Mkdir(s.pools, 0o700)))
	kind, err := fs.Lookup("xfs")
	check(t, err)
	check(t, kind.Make(t.Context(), run.Runner{}, s.image, 0, 0))
	s.mount(t)
	t.Cleanup(func() { s.unmount(t) })
	s.plain = s.makeTemplate(t, witness, subject)
	s.withXFS = s.makeTemplate(t, witness, subject, subjectXFS)
	return s
}

func (s *site) mount(t testing.TB) {
	t.Helper()
	device := attachFile(t, s.image)
	check(t, fs.MountPool(device.Name(), s.pools, true))
	check(t, device.Close()) // the mount keeps it
}

// unmount waits for the loop devices in it, which the kernel frees a moment after their last user.
func (s *site) unmount(t testing.TB) {
	t.Helper()
	var err error
	if !within(func() bool { err = fs.Unmount(s.pools); return err == nil }) {
		t.Fatalf("%v; attached: %v", err, attachedBelow(s.dir))
	}
	if !within(func() bool { return len(attachedBelow(s.dir)) == 0 }) {
		t.Fatalf("attached: %v", attachedBelow(s.dir))
	}
}

// goDown ends the XFS as a power cut would: what its journal has not written is lost. See XFS_IOC_GOINGDOWN in the
// kernel's fs/xfs/libxfs/xfs_fs.h.
func (s *site) goDown(t testing.TB) {
	t.Helper()
	const goingDown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(s.pools)
	check(t, err)
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), goingDown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		t.Fatalf("shut the pools' filesystem down: %v", errno)
	}
}

// attachFile attaches a file to a loop device, which is free again when it is closed and nothing is mounted from it.
func attachFile(t testing.TB, path string) *os.File {
	t.Helper()
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	check(t, err)
	defer control.Close()
	for range 100 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		check(t, err)
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		check(t, err)
		err = attachTo(device, backing)
		if err == nil {
			return device
		}
		check(t, device.Close())
		if !errors.Is(err, unix.EBUSY) { // another process was faster
			t.Fatalf("attach %s to %s: %v", path, device.Name(), err)
		}
	}
	t.Fatalf("attach %s: no free loop device", path)
	return nil
}

func attachTo(device, backing *os.File) error {
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:63], backing.Name())
	return unix.IoctlLoopConfigure(int(device.Fd()), &config)
}

// cloneDir makes a directory with the files of another one, which share their blocks.
func cloneDir(t testing.TB, from, to string) {
	t.Helper()
	check(t, os.MkdirAll(to, 0o700))
	entries, err := os.ReadDir(from)
	check(t, err)
	for _, entry := range entries {
		source, target := filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())
		if entry.IsDir() {
			cloneDir(t, source, target)
			continue
		}
		src, err := os.Open(source)
		check(t, err)
		dst, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		check(t, err)
		check(t, unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())))
		info, err := src.Stat()
		check(t, err)
		check(t, errors.Join(dst.Chmod(info.Mode()), src.Close(), dst.Close()))
		setImmutable(t, target, isImmutable(t, source))
	}
}

const immutable = 0x10 // FS_IMMUTABLE_FL

func isImmutable(t testing.TB, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	return flagsOf(t, f)&immutable != 0
}

func setImmutable(t testing.TB, path string, on bool) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	if flags := flagsOf(t, f); flags&immutable != 0 != on {
		check(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags^immutable)))
	}
}

func flagsOf(t testing.TB, f *os.File) uint32 {
	t.Helper()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	check(t, err)
	return flags
}

func syncFilesystem(t testing.TB, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	check(t, err)
	check(t, errors.Join(unix.Syncfs(int(f.Fd())), f.Close()))
}
