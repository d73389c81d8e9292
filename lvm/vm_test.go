//go:build vm

package lvm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/lvm"
)

// These tests run in the virtual machine of tools/vm: LVM on a real device-mapper. The groups that they make are on files
// of the machine, which are gone with it.

// ctx is for what is cleaned up after a test.
var ctx = context.Background()

// chunk is the size in bytes of what the thin pools of these tests allocate.
const chunk = 64 << 10

func TestMain(m *testing.M) {
	if os.Getenv("ORLOP_VM_DISK") == "" {
		fmt.Fprintln(os.Stderr, "these tests change LVM's groups: run them in the virtual machine: make test-vm")
		os.Exit(1)
	}
	if vg, uuid, is := strings.Cut(os.Getenv("ORLOP_CRASH_LIFE"), " "); is {
		if err := live(vg, uuid); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "lvm")
	if err == nil {
		memory = dir // a tmpfs, since a flush of an emulated disk takes long
		err = unix.Mount("tmpfs", memory, "tmpfs", 0, "size=2g")
	}
	if err == nil {
		err = os.WriteFile(dir+"/lvm.conf", []byte(lean), 0o600)
	}
	if err == nil {
		err = os.Setenv("LVM_SYSTEM_DIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// lean is an lvm.conf without what costs time in an emulated machine and changes nothing that is tested here.
const lean = `
backup { backup = 0 archive = 0 }
activation { monitoring = 0 }
global { thin_check_executable = "" use_lvmpolld = 0 notify_dbus = 0 event_activation = 0 }
devices { use_devicesfile = 0 filter = [ "a|^/dev/loop|", "r|.*|" ] }
`

// command runs a command of LVM's as its user would.
func command(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := try(argv...)
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return out
}

func try(argv ...string) (string, error) {
	switch argv[0] {
	case "dmsetup", "losetup", "truncate", "blockdev":
	default:
		argv = append([]string{"lvm", argv[0], "--config", "activation{udev_sync=0 udev_rules=0}"}, argv[1:]...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var (
	groups, disks atomic.Int32
	memory        string // directory of the disks' files
)

// disk makes a disk of a sparse file.
func disk(t *testing.T, size string) (device string) {
	t.Helper()
	file := fmt.Sprintf("%s/disk%d", memory, disks.Add(1))
	command(t, "truncate", "--size", size, file)
	device = strings.TrimSpace(command(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() { _, _ = try("losetup", "--detach", device) })
	return device
}

// group makes a volume group of its own, with dashes in its name, of 4 GiB.
func group(t *testing.T) string {
	t.Helper()
	vg := fmt.Sprintf("test-vg--%d", groups.Add(1))
	command(t, "vgcreate", vg, disk(t, "4G"))
	t.Cleanup(func() {
		if out, err := try("vgremove", "--force", "--yes", vg); err != nil {
			t.Errorf("remove group: %v: %s", err, out)
		}
	})
	return vg
}

// thinPool makes a thin pool that fails writes when it is full, and does not queue them.
func thinPool(t *testing.T, vg, name, size string) {
	t.Helper()
	command(t, "lvcreate", "--type", "thin-pool", "--size", size, "--poolmetadatasize", "8M", "--chunksize", "64k", "--yes", "--name", name, vg)
	command(t, "lvchange", "--errorwhenfull", "y", vg+"/"+name)
}

func openPool(t *testing.T, c lvm.Config) *lvm.Pool {
	t.Helper()
	pool, err := lvm.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// ioctlPointer makes an ioctl with a pointer to what it reads.
func ioctlPointer[T any](f *os.File, request uint, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}
