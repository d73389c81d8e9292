//go:build root

package namespacetest_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/namespacetest"
)

func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

// TestMountsAreSeenByNoOtherProgram looks into the namespace of the process that started this one, which is the one of
// other programs on the machine.
func TestMountsAreSeenByNoOtherProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems: run it as root (without root: make test-unit)")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	for path, want := range map[string]bool{"/proc/self/mountinfo": true, fmt.Sprintf("/proc/%d/mountinfo", os.Getppid()): false} {
		table, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(table), " "+dir+" "); got != want {
			t.Errorf("%s shows the mount: %t, want %t", path, got, want)
		}
	}
}

// TestEveryThreadIsInTheNamespace matters to a program whose goroutines run on any thread.
func TestEveryThreadIsInTheNamespace(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if namespace, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/mnt"); err != nil || namespace != own {
			t.Errorf("thread %s is in %s, the process in %s: %v", thread.Name(), namespace, own, err)
		}
	}
}
