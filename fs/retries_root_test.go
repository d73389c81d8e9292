//go:build root

package fs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"orlop/internal/run"
)

// TestAFreezeOfAnXFSWhoseDiskFailsComesToAnEnd: the kernel tried for ever to write out what the disk refused, and nothing
// could end it. When it had an end, the filesystem was frozen, and could not be opened to thaw it.
func TestAFreezeOfAnXFSWhoseDiskFailsComesToAnEnd(t *testing.T) {
	xfs, err := Lookup("xfs")
	check(t, err)
	device, _, below := newFilesystem(t, xfs, 1024*mib)
	mounted(t, xfs, device, below)
	image, dir := filepath.Join(below, "image"), filepath.Join(t.TempDir(), "above")
	check(t, os.WriteFile(image, nil, 0o600))
	check(t, os.Truncate(image, 320*mib))
	check(t, os.Mkdir(dir, 0o700))
	check(t, xfs.Make(t.Context(), run.Runner{}, image, 0, 0))
	above := losetup(t, "--find", "--show", image)
	mounted(t, xfs, above, dir)
	losetup(t, "--detach", above) // with the mount

	setting, err := retriesOf(above)
	check(t, err)
	if limit, err := os.ReadFile(setting); err != nil || strings.TrimSpace(string(limit)) != "3" {
		t.Fatalf("an XFS tries again for %q seconds, want 3: %v: the test would never end", limit, err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	check(t, Sync(dir)) // its journal is written; a freeze empties that, and writes to where things belong
	goDown(t, below)
	if held, err := FreezeHeld(dir); err == nil { // where a filesystem has shut down only what is open can be used
		check(t, held.Thaw())
		check(t, held.Close())
	}
	if err := os.WriteFile(filepath.Join(dir, "another"), nil, 0o600); err == nil {
		t.Error("it does not tell that its disk has failed")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func losetup(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// goDown ends the XFS mounted at dir as a power cut would. See XFS_IOC_GOINGDOWN in the kernel's fs/xfs/libxfs/xfs_fs.h.
func goDown(t *testing.T, dir string) {
	t.Helper()
	const goingDown, noLogFlush = 0x8004587d, 2
	how := uint32(noLogFlush)
	check(t, ioctl(dir, goingDown, unsafe.Pointer(&how)))
}
