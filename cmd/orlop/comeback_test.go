//go:build root

package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// allocated returns the bytes that a file takes on its disk.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// fillWithGibibyte mounts a volume, writes a file of random data into it, synced, and returns the file's path.
func fillWithGibibyte(t *testing.T, h *host, name string) string {
	t.Helper()
	file, err := os.Create(filepath.Join(h.must(t, "mount", name), "random"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.CopyN(file, rand.NewChaCha8([32]byte{}), 1<<30)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// awaitBack syncs, and waits until the pool's file takes no more than it did before, but for 64 MiB. It looks at the
// file and not at the disk, which others use too.
func awaitBack(t *testing.T, pool string, before int64) {
	t.Helper()
	full := allocated(t, pool)
	unix.Sync()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(crashLimit)
	for {
		now := allocated(t, pool)
		if now <= before+64<<20 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the pool still takes %d bytes: it was %d before, and %d after deleting", now, before, full)
		}
	}
}

// poolWithVolume starts a daemon on a built-in pool with one empty volume, a.
func poolWithVolume(t *testing.T) (h *host, pool string, before int64) {
	t.Helper()
	h = onExt4(t, "--pool-size", "4G")
	h.start(t)
	h.must(t, "create", "a", "--size", "2G")
	pool = filepath.Join(h.root, "pool.xfs")
	return h, pool, allocated(t, pool)
}

// TestSpaceComesBack: what a deleted volume took is free on the host's disk again.
func TestSpaceComesBack(t *testing.T) {
	h, pool, before := poolWithVolume(t)
	fillWithGibibyte(t, h, "a")
	if full := allocated(t, pool); full < before+1<<30 {
		t.Fatalf("the pool takes %d bytes with a gibibyte in it, and %d without", full, before)
	}
	h.must(t, "umount", "a")
	h.must(t, "delete", "a")
	awaitBack(t, pool, before)
}

// TestTrimGivesBackWhatWasJustDeleted: also what the filesystem's journal has not yet let go of.
func TestTrimGivesBackWhatWasJustDeleted(t *testing.T) {
	h, pool, before := poolWithVolume(t)
	if err := os.Remove(fillWithGibibyte(t, h, "a")); err != nil {
		t.Fatal(err)
	}
	h.must(t, "trim", "a")
	h.must(t, "umount", "a")
	awaitBack(t, pool, before)
}
