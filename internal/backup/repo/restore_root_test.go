//go:build root

package repo

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// Where a file server gives root's files to nobody, what a restore left is recognized by the owner that it has there, and
// root's own file is a stranger's.
func TestPartsBelongToWhomTheFilesystemSays(t *testing.T) {
	const nobody = 65534
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if err := dir.Chown(nobody, -1); err != nil {
		t.Fatal(err)
	}
	// Nobody may not search the directories above this one.
	part := fmt.Sprintf("/proc/self/fd/%d/part", dir.Fd())
	open := func(as int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(as); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Setfsuid(0); err != nil {
				panic(err)
			}
		}()
		file, err := openPart(part)
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &stat); err != nil || int(stat.Uid) != as || stat.Mode != unix.S_IFREG|0o600 {
			t.Errorf("owner %d, mode %o, %v", stat.Uid, stat.Mode, err)
		}
		return file.Close()
	}
	for _, when := range []string{"new", "left"} {
		if err := open(nobody); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	if err := open(0); !fault.Is(err, fault.ErrExists) {
		t.Errorf("nobody's part for root: %v", err)
	}
	left, err := os.ReadDir(dir.Name())
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
