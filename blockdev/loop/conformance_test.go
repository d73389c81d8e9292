//go:build root

package loop_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/blockdev/loop"
)

func TestDirectoryOnXFSKeepsTheContract(t *testing.T) {
	dir := makeFilesystem(t, "xfs", 1*gib)
	runSuite(t, loop.Config{Dir: dir})
}

func TestDirectoryOnBtrfsKeepsTheContract(t *testing.T) {
	dir := makeFilesystem(t, "btrfs", 1*gib)
	runSuite(t, loop.Config{Dir: dir})
}

func TestBuiltInPoolKeepsTheContract(t *testing.T) {
	runSuite(t, loop.Config{Root: rootWithoutReflink(t), Size: loop.MinSize})
}

// runSuite runs the conformance suite on a new pool, which the test can open as often as it likes.
func runSuite(t *testing.T, c loop.Config) {
	pool := openPool(t, c)
	c.UUID = pool.UUID()
	blockdevtest.Run(t, blockdevtest.Harness{
		Pool: pool,
		Reopen: func(t *testing.T) blockdev.Pool {
			pool.Close()
			next, err := loop.Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if next.UUID() != pool.UUID() || next.Dir() != pool.Dir() {
				t.Fatalf("opened pool %s at %s again: now %s at %s", pool.UUID(), pool.Dir(), next.UUID(), next.Dir())
			}
			pool = next
			return pool
		},
		Full: func(t *testing.T) blockdev.Pool {
			fill(t, pool.Dir())
			return pool
		},
	})
	if err := pool.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool.Close()
}

// fill leaves no room in dir's filesystem until the test's end.
func fill(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
	defer f.Close()
	offset := int64(0)
	for step := 64 * mib; step >= 4096; {
		switch err := unix.Fallocate(int(f.Fd()), 0, offset, step); {
		case err == nil:
			offset += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			t.Fatalf("fill %s: %v", dir, err)
		}
	}
	// What is left are inodes that have their place already, and blocks held back for them.
	for i := range 100_000 {
		small := filepath.Join(dir, "filler"+string(blockdev.NewID()))
		err := os.WriteFile(small, make([]byte, 4096), 0o600)
		t.Cleanup(func() { _ = os.Remove(small) })
		if err != nil {
			t.Logf("filled %s with %d bytes and %d small files", dir, offset, i)
			return
		}
	}
	t.Fatalf("%s does not fill up", dir)
}
