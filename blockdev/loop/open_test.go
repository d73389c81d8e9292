//go:build root

package loop_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/internal/fault"
)

// below lists all that is in a directory.
func below(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// refuses fails unless Open fails with the kind and changes nothing below dir.
func refuses(t *testing.T, c loop.Config, kind fault.Kind, dir string) {
	t.Helper()
	before, attached := below(t, dir), devicesBelow(t, dir)
	pool, err := loop.Open(t.Context(), c)
	if err == nil {
		pool.Close()
	}
	if !fault.Is(err, kind) {
		t.Errorf("want an error of kind %s, got %v", kind, err)
	}
	if after := below(t, dir); !slices.Equal(before, after) {
		t.Errorf("the refused open changed %q to %q", before, after)
	}
	if now := devicesBelow(t, dir); len(now) != len(attached) {
		t.Errorf("the refused open left loop devices: %v, then %v", attached, now)
	}
}

func TestDirectoryThatCannotReflinkIsUnsupported(t *testing.T) {
	dir := makeFilesystem(t, "ext4", 64*mib)
	refuses(t, loop.Config{Dir: dir}, fault.ErrUnsupported, dir)
}

func TestDirectoryThatIsMissingIsNotFound(t *testing.T) {
	dir := tempDir(t)
	refuses(t, loop.Config{Dir: filepath.Join(dir, "unplugged")}, fault.ErrNotFound, dir)
}

func TestKnownPoolWithoutMarkerIsNotFoundAndNotMade(t *testing.T) {
	dir := makeFilesystem(t, "xfs", 512*mib)
	pool := openPool(t, loop.Config{Dir: dir})
	pool.Close()
	marker := filepath.Join(dir, "orlop-pool.json")
	saved, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Dir: dir, UUID: pool.UUID()}, fault.ErrNotFound, dir)
	if err := os.WriteFile(marker, saved[:len(saved)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Dir: dir, UUID: pool.UUID()}, fault.ErrCorrupt, dir)
	if err := os.WriteFile(marker, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Dir: dir, UUID: string(blockdev.NewID())}, fault.ErrCorrupt, dir)
	again, err := loop.Open(t.Context(), loop.Config{Dir: dir, UUID: pool.UUID()})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestKnownBuiltInPoolWithoutFileOrMarkerIsNotFoundAndNotMade(t *testing.T) {
	root := rootWithoutReflink(t)
	pool := openPool(t, loop.Config{Root: root, Size: loop.MinSize})
	known := loop.Config{Root: root, Size: loop.MinSize, UUID: pool.UUID()}
	marker := filepath.Join(pool.Dir(), "orlop-pool.json")
	if err := os.Rename(marker, marker+".away"); err != nil {
		t.Fatal(err)
	}
	if err := pool.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	refuses(t, known, fault.ErrNotFound, root)
	file := filepath.Join(root, "pool.xfs")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	refuses(t, known, fault.ErrNotFound, root)
}

func TestRootThatCannotReflinkWithoutPoolIsNotFound(t *testing.T) {
	root := rootWithoutReflink(t)
	refuses(t, loop.Config{Root: root, UUID: string(blockdev.NewID())}, fault.ErrNotFound, root)
}

func TestRootThatCanReflinkGetsNoPoolFile(t *testing.T) {
	root := makeFilesystem(t, "xfs", 512*mib)
	pool := openPool(t, loop.Config{Root: root})
	if pool.Dir() != filepath.Join(root, "pool") || len(devicesBelow(t, root)) > 0 {
		t.Fatalf("pool is at %s with devices %v", pool.Dir(), devicesBelow(t, root))
	}
	again, err := loop.Open(t.Context(), loop.Config{Root: root, UUID: pool.UUID()})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := os.RemoveAll(pool.Dir()); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Root: root, UUID: pool.UUID()}, fault.ErrNotFound, root)
	openPool(t, loop.Config{Root: root}) // for the cleanup of the first
}

func TestImagesThatNoMetadataKnowsAreRefused(t *testing.T) {
	dir := makeFilesystem(t, "xfs", 512*mib)
	pool := openPool(t, loop.Config{Dir: dir})
	if err := pool.Create(t.Context(), blockdev.NewID(), 8*mib, nil); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Dir: dir}, fault.ErrCorrupt, dir)
	if err := os.Remove(filepath.Join(dir, "orlop-pool.json")); err != nil {
		t.Fatal(err)
	}
	refuses(t, loop.Config{Dir: dir}, fault.ErrCorrupt, dir)
}

func TestBuiltInPoolThatCannotGrowIsOpenedAtItsPresentSize(t *testing.T) {
	root := rootWithoutReflink(t)
	pool := openPool(t, loop.Config{Root: root, Size: loop.MinSize})
	id := blockdev.NewID()
	path := activated(t, pool, id, 8*mib)
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", pool.Dir(), "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.Deactivate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	remount(unix.MS_RDONLY) // the kernel grows nothing then
	next, err := loop.Open(t.Context(), loop.Config{Root: root, Size: loop.MinSize + gib, UUID: pool.UUID()})
	remount(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Close)
	if next.GrowthError() == nil || pool.GrowthError() != nil {
		t.Errorf("growth: %v, before: %v", next.GrowthError(), pool.GrowthError())
	}
	if again, err := next.Activate(t.Context(), id, blockdev.ReadWrite); err != nil || again == "" {
		t.Errorf("a device active as %s before: %s, %v", path, again, err)
	}
}

func TestBuiltInPoolIsKnownByItsMarkerAndGrowsWhileInUse(t *testing.T) {
	root := rootWithoutReflink(t)
	pool := openPool(t, loop.Config{Root: root, Size: loop.MinSize})
	var marker struct{ UUID string }
	raw, err := os.ReadFile(filepath.Join(root, "pool", "orlop-pool.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &marker); err != nil || marker.UUID != pool.UUID() || marker.UUID == "" {
		t.Fatalf("pool %q has the marker %s, %v", pool.UUID(), raw, err)
	}
	id := blockdev.NewID()
	path := activated(t, pool, id, 8*mib)
	for _, c := range []struct{ asked, wanted int64 }{
		{loop.MinSize, loop.MinSize}, {loop.MinSize + gib, loop.MinSize + gib}, {loop.MinSize, loop.MinSize + gib},
		{0, loop.MinSize + gib}, {loop.MinSize + gib + 4096, loop.MinSize + gib}, {loop.MinSize + gib + 4096, loop.MinSize + gib},
	} {
		next, err := loop.Open(t.Context(), loop.Config{Root: root, Size: c.asked, UUID: pool.UUID()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(next.Close)
		var stat unix.Statfs_t
		if err := unix.Statfs(pool.Dir(), &stat); err != nil {
			t.Fatal(err)
		}
		// XFS keeps its log and headers to itself.
		if size := int64(stat.Blocks) * stat.Bsize; size > c.wanted || size < c.wanted/10*9 {
			t.Errorf("asked for %d bytes: the pool has %d, want about %d", c.asked, size, c.wanted)
		}
		if again, err := next.Activate(t.Context(), id, blockdev.ReadWrite); err != nil || again != path {
			t.Errorf("active as %s, in the next life as %s, %v", path, again, err)
		}
	}
	if attached := devicesBelow(t, root); len(attached) != 2 {
		t.Errorf("one device in one pool, attached: %v", attached)
	}
	info, err := os.Stat(filepath.Join(root, "pool.xfs"))
	if err != nil || info.Size() != loop.MinSize+gib+4096 {
		t.Errorf("pool file: %+v, %v", info, err)
	}
}

func TestBuiltInPoolRefusesAnotherMountInItsPlace(t *testing.T) {
	root := rootWithoutReflink(t)
	pool := openPool(t, loop.Config{Root: root, Size: loop.MinSize})
	if err := pool.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(pool.Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := fs.MakeMountpoint(pool.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("stranger", pool.Dir(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // only after a failure is it still there
		if err := fs.Unmount(pool.Dir()); err != nil {
			t.Error(err)
		}
	})
	refuses(t, loop.Config{Root: root, UUID: pool.UUID()}, fault.ErrInUse, root)
	if err := fs.Unmount(pool.Dir()); err != nil {
		t.Fatal(err)
	}
}

func TestDetachRefusesAPoolWithActiveDevices(t *testing.T) {
	pool := openPool(t, loop.Config{Root: rootWithoutReflink(t), Size: loop.MinSize})
	id := blockdev.NewID()
	path := activated(t, pool, id, 8*mib)
	if err := pool.Detach(t.Context()); !fault.Is(err, fault.ErrInUse) {
		t.Fatalf("detach with %s active: %v", path, err)
	}
	if err := pool.Deactivate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := pool.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(pool.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("detached, but its mount point is still there: %v", err)
	}
}
