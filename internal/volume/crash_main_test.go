//go:build root

package volume

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/internal/namespacetest"
)

// The tests of this package run in a mount namespace of their own: whatever else happens on the machine, no other
// process gets copies of their mounts, which would keep volumes busy, and with the last process of the namespace
// every mount, loop device and file of theirs is gone. Their files are in memory: what a disk makes of a sync is not
// what they are about.
func TestMain(m *testing.M) {
	if !namespacetest.Inside() {
		os.Exit(runInNamespace())
	}
	if err := unix.Mount("orlop-test", os.TempDir(), "tmpfs", 0, "mode=0711,size=8g"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runInNamespace runs this program again in a new mount namespace and removes what it leaves.
func runInNamespace() (code int) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests attach loop devices and mount filesystems: run them as root (without root: make test-unit)")
		return 1
	}
	dir, err := os.MkdirTemp("", "orlop-volume-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code = namespacetest.Enter("TMPDIR=" + dir)
	if err := removeLeft(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// removeLeft removes the directory that the tests had, once the kernel has freed what was attached in it.
func removeLeft(dir string) error {
	if !within(func() bool { return len(attachedBelow(dir)) == 0 }) {
		return fmt.Errorf("left attached: %v", attachedBelow(dir))
	}
	return os.Remove(dir)
}

// waitLimit is how long a state may take to come about on a machine that is busy otherwise.
const waitLimit = 2 * time.Minute

// within polls until a condition holds, and tells whether it did before waitLimit ended.
func within(holds func() bool) bool {
	for deadline := time.Now().Add(waitLimit); !holds(); {
		if time.Now().After(deadline) {
			return false
		}
		<-time.After(time.Millisecond)
	}
	return true
}

// attachedBelow lists the loop devices whose file is below dir, with the file as the kernel shows it.
func attachedBelow(dir string) map[string]string {
	paths, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is sound
	found := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if name := strings.TrimSpace(string(text)); err == nil && strings.HasPrefix(name, dir+"/") {
			found["/dev/"+strings.Split(path, "/")[3]] = name
		}
	}
	return found
}

// check ends a test that cannot go on after an error.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratchDir is a directory of one test. Unlike that of t.TempDir it may keep closed mount points: it goes with the
// namespace.
func scratchDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t-")
	check(t, err)
	return dir
}

// quiet is where the Manager's log goes, which tells of the failures that the tests make.
func quiet() *slog.Logger {
	if testing.Verbose() && os.Getenv("ORLOP_TEST_LOG") != "" {
		return slog.Default()
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}
