//go:build root

package loop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	"orlop/internal/fault"
)

// activated makes and activates a device.
func activated(t *testing.T, pool *loop.Pool, id blockdev.ID, size int64) (path string) {
	t.Helper()
	if err := pool.Create(t.Context(), id, size, nil); err != nil {
		t.Fatal(err)
	}
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// xfsPool is a pool in a directory on XFS.
func xfsPool(t *testing.T) *loop.Pool {
	t.Helper()
	return openPool(t, loop.Config{Dir: makeFilesystem(t, "xfs", gib)})
}

func writeDevice(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte(text), 4096), 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// backs fails unless the device has the file.
func backs(t *testing.T, device, path string) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	if info := deviceStatus(t, device); info.Device != stat.Dev || info.Inode != stat.Ino {
		t.Fatalf("%s has inode %d of %#x, want %s, %d of %#x", device, info.Inode, info.Device, path, stat.Ino, stat.Dev)
	}
}

func TestDeactivateNeverDetachesAStranger(t *testing.T) {
	pool := xfsPool(t)
	stranger := filepath.Join(tempDir(t), "stranger")
	if err := os.WriteFile(stranger, make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	id := blockdev.NewID()
	var taken string
	for range 20 { // others on this machine may be faster to take the number
		path := activated(t, pool, id, 8*mib)
		err := pool.Lose(id, func() string {
			if err := attachTo(t, path, stranger); err == nil {
				taken = path
			} else if !errors.Is(err, unix.EBUSY) {
				t.Fatal(err)
			}
			return path
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := pool.Deactivate(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if taken != "" {
			break
		}
		id = blockdev.NewID()
	}
	if taken == "" {
		t.Fatal("could not take the number of a freed loop device")
	}
	backs(t, taken, stranger)
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	backs(t, path, pool.Image(id))
	backs(t, taken, stranger)
}

func TestActivateLeavesADeviceNumberThatAStrangerTook(t *testing.T) {
	pool := xfsPool(t)
	stranger := filepath.Join(tempDir(t), "stranger")
	if err := os.WriteFile(stranger, make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	id, other := blockdev.NewID(), attachFile(t, stranger)
	activated(t, pool, id, 8*mib)
	if err := pool.Lose(id, func() string { return other }); err != nil {
		t.Fatal(err)
	}
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	backs(t, path, pool.Image(id))
	backs(t, other, stranger)
}

func TestActivateReusesALoopDeviceOnTheSameImage(t *testing.T) {
	pool := xfsPool(t)
	id := blockdev.NewID()
	if err := pool.Create(t.Context(), id, 8*mib, nil); err != nil {
		t.Fatal(err)
	}
	existing := attachFile(t, pool.Image(id))
	if err := pool.Remove(t.Context(), id); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("remove of an image attached as %s: %v", existing, err)
	}
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	if err != nil || path != existing {
		t.Fatalf("attached as %s, activated as %s, %v", existing, path, err)
	}
	if err := pool.Deactivate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := devicesBelow(t, pool.Dir()); len(left) > 0 {
		t.Fatalf("left attached: %v", left)
	}
}

func TestParallelActivatesAllSucceed(t *testing.T) {
	pool := xfsPool(t)
	const count = 24
	var ids [count]blockdev.ID
	var paths [count]string
	var errs [count]error
	for i := range ids {
		ids[i] = blockdev.NewID()
		if err := pool.Create(t.Context(), ids[i], 8*mib, nil); err != nil {
			t.Fatal(err)
		}
	}
	var calls sync.WaitGroup
	for i := range ids {
		calls.Go(func() { paths[i], errs[i] = pool.Activate(t.Context(), ids[i], blockdev.ReadWrite) })
	}
	calls.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	for i := range ids {
		backs(t, paths[i], pool.Image(ids[i]))
	}
	if attached := devicesBelow(t, pool.Dir()); len(attached) != count {
		t.Errorf("%d devices active, %d attached: %v", count, len(attached), attached)
	}
	for i := range ids {
		calls.Go(func() { errs[i] = pool.Deactivate(t.Context(), ids[i]) })
	}
	calls.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if left := devicesBelow(t, pool.Dir()); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
}

func TestCloseFreesWhatNobodyHolds(t *testing.T) {
	pool := xfsPool(t)
	for range 3 {
		activated(t, pool, blockdev.NewID(), 8*mib)
	}
	pool.Close()
	if left := devicesBelow(t, pool.Dir()); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
}

func TestDevicesUseDirectIOAndBlocksOf4KiB(t *testing.T) {
	for _, fstype := range []string{"xfs", "btrfs"} {
		pool := openPool(t, loop.Config{Dir: makeFilesystem(t, fstype, gib)})
		id := blockdev.NewID()
		path := activated(t, pool, id, 8*mib)
		if flags := deviceStatus(t, path).Flags; flags&unix.LO_FLAGS_DIRECT_IO == 0 || flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
			t.Errorf("on %s %s has flags %#x", fstype, path, flags)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		block, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		if err := errors.Join(err, f.Close()); err != nil || block != loop.BlockSize {
			t.Errorf("on %s %s has blocks of %d bytes, %v", fstype, path, block, err)
		}
	}
}

func TestBuiltInPoolUsesDirectIOThroughBothLayers(t *testing.T) {
	root := rootWithoutReflink(t)
	pool := openPool(t, loop.Config{Root: root, Size: loop.MinSize})
	activated(t, pool, blockdev.NewID(), 8*mib)
	attached := devicesBelow(t, root)
	if len(attached) != 2 {
		t.Fatalf("attached: %v", attached)
	}
	for device, file := range attached {
		if flags := deviceStatus(t, device).Flags; flags&unix.LO_FLAGS_DIRECT_IO == 0 {
			t.Errorf("%s on %s has flags %#x", device, file, flags)
		}
	}
}

func TestWritesLeaveTheTimesOfAnImageOnXFSAlone(t *testing.T) {
	pool := xfsPool(t)
	long := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	times := func(attach func(id blockdev.ID) string) time.Time {
		id := blockdev.NewID()
		if err := pool.Create(t.Context(), id, 8*mib, nil); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(pool.Image(id), long, long); err != nil {
			t.Fatal(err)
		}
		writeDevice(t, attach(id), "text")
		info, err := os.Stat(pool.Image(id))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	mine := times(func(id blockdev.ID) string {
		path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		return path
	})
	if !mine.Equal(long) {
		t.Errorf("a write through the pool's device set the image's time to %s", mine)
	}
	plain := times(func(id blockdev.ID) string { return attachFile(t, pool.Image(id)) })
	if plain.Equal(long) {
		t.Error("a write through a plain loop device does not show in the image's time either: this test proves nothing")
	}
}

func TestDeactivateCutShortKeepsTheDevice(t *testing.T) {
	pool := xfsPool(t)
	id := blockdev.NewID()
	path := activated(t, pool, id, 8*mib)
	holder, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pool.Deactivate(cancelled, id); err == nil {
		t.Fatal("deactivated a device that is open")
	}
	if info, err := pool.Stat(t.Context(), id); err != nil || info.Path != path {
		t.Fatalf("after the failure: %+v, %v", info, err)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pool.Deactivate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := devicesBelow(t, pool.Dir()); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
}

func TestDeactivateFreesTheDeviceOfADeletedImage(t *testing.T) {
	pool := xfsPool(t)
	id := blockdev.NewID()
	activated(t, pool, id, 8*mib)
	if err := os.Remove(pool.Image(id)); err != nil {
		t.Fatal(err)
	}
	if err := pool.Deactivate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := devicesBelow(t, pool.Dir()); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
	if err := pool.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func TestListNamesStrayImagesAndRecordsAndNoOtherFiles(t *testing.T) {
	pool := xfsPool(t)
	image, record := blockdev.NewID(), blockdev.NewID()
	dir := filepath.Dir(pool.Image(image))
	for name, content := range map[string]string{
		string(image) + ".img": "image without record", string(record) + ".json": `{"volume":"lost"}`,
		string(blockdev.NewID()) + ".json.tmp": "{", "notes.txt": "", "x.img": "", "..img": "", string(blockdev.NewID()): "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := pool.List(t.Context())
	if err != nil || len(infos) != 2 {
		t.Fatalf("%+v, %v", infos, err)
	}
	if infos[0].ID != image || infos[0].Size == 0 || infos[0].Record != nil {
		t.Errorf("stray image: %+v", infos[0])
	}
	if infos[1].ID != record || infos[1].Size != 0 || string(infos[1].Record) != `{"volume":"lost"}` {
		t.Errorf("stray record: %+v", infos[1])
	}
	for _, id := range []blockdev.ID{image, record} {
		if err := pool.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if infos, err := pool.List(t.Context()); err != nil || len(infos) > 0 {
		t.Errorf("after remove: %+v, %v", infos, err)
	}
}

func TestCreateLeavesNoFilesBehindWhenThePoolIsFull(t *testing.T) {
	pool := xfsPool(t)
	fill(t, pool.Dir())
	for i := range 3 {
		err := pool.Create(t.Context(), blockdev.NewID(), 8*mib, blockdev.Record(fmt.Sprintf(`{"n":%d}`, i)))
		if !fault.Is(err, fault.ErrNoSpace) {
			t.Errorf("create: %v", err)
		}
	}
	if files := below(t, filepath.Join(pool.Dir(), "images")); len(files) != 1 {
		t.Errorf("left %q", files)
	}
}
