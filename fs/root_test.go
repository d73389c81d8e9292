//go:build root

package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/namespacetest"
	"orlop/internal/run"
)

// unshareThread makes the test binary a process one thread of which, not the first, has a mount namespace of its
// own. It says so on standard output and lives until standard input ends.
const unshareThread = "ORLOP_TEST_UNSHARE_THREAD"

func TestMain(m *testing.M) {
	if os.Getenv(unshareThread) != "" {
		os.Exit(liveWithUnsharedThread())
	}
	os.Exit(namespacetest.Run(m.Run))
}

func liveWithUnsharedThread() int {
	runtime.LockOSThread() // the first thread stays here, and as it is
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		result <- err
		select {}
	}()
	if err := <-result; err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it ends
	return 0
}

// needRoot ends a test that cannot say anything without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
}

// newDevice is a blank loop device of size bytes that is freed at the test's end.
func newDevice(t *testing.T, size int64) (device, image string) {
	t.Helper()
	needRoot(t)
	image = filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for range 100 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		device = fmt.Sprintf("/dev/loop%d", number)
		f, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR // f keeps it, and after it the mount
		copy(config.Info.File_name[:63], image)
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
		if err == nil {
			t.Cleanup(func() { _ = f.Close() })
			return device, image
		}
		_ = f.Close()
		if !errors.Is(err, unix.EBUSY) {
			t.Fatal(err)
		}
	}
	t.Fatal("no free loop device")
	return "", ""
}

// newFilesystem is a device with a filesystem and a directory to mount it on.
func newFilesystem(t *testing.T, kind Type, size int64) (device, image, dir string) {
	t.Helper()
	device, image = newDevice(t, size)
	if err := kind.Make(t.Context(), run.Runner{}, device, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return device, image, dir
}

// mounted mounts until the test's end.
func mounted(t *testing.T, kind Type, device, dir string, options ...string) {
	t.Helper()
	if err := kind.Mount(device, dir, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
}

// eachType runs a test on every kind of filesystem, with a size that suits it.
func eachType(t *testing.T, test func(t *testing.T, kind Type, size int64)) {
	for _, kind := range types {
		t.Run(kind.Name, func(t *testing.T) { test(t, kind, max(kind.MinSize, 64*mib)) })
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

// entry is the mount at dir.
func entry(t *testing.T, dir string) Entry {
	t.Helper()
	table, err := Table(dir)
	if err != nil || len(table) != 1 || table[0].Mountpoint != dir {
		t.Fatalf("mount table at %s: %+v, %v", dir, table, err)
	}
	return table[0]
}

// start starts a command that says "ready" and then lives until end is called, at the latest at the test's end.
func start(t *testing.T, cmd *exec.Cmd) (end func()) {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", cmd, err)
		}
	}
	t.Cleanup(end)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%s: %q, %v", cmd, line, err)
	}
	return end
}
