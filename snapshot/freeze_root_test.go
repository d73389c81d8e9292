//go:build root

package snapshot_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/namespacetest"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

// A mountedWorld is a Manager on a real pool, with one real volume that is mounted.
type mountedWorld struct {
	*snapshot.Manager
	volumes *volume.Manager
	store   *metadata.Store
	pool    *watchedPool
	volume  metadata.Volume
	dir     string // where it is mounted
}

func newMountedWorld(t *testing.T, filesystem string) *mountedWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
	root := t.TempDir()
	store, err := metadata.Open(root)
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	images, err := loop.Open(t.Context(), loop.Config{Root: root, Size: loop.MinSize})
	check(t, err)
	t.Cleanup(func() { check(t, images.Detach(context.Background())) })
	w := &mountedWorld{store: store, pool: &watchedPool{Pool: images, watch: newWatch()}}
	check(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.PutPool(metadata.Pool{Name: "pool", UUID: images.UUID()})
	}))
	w.volumes, err = volume.New(volume.Config{
		Root: root, Store: store, Boot: "boot", Log: quiet(), Pools: []volume.Pool{{Name: "pool", UUID: images.UUID(), Pool: w.pool}},
	})
	check(t, err)
	w.Manager = snapshot.New(snapshot.Config{Store: store, Volumes: w.volumes, Log: quiet()})
	w.volume, err = w.volumes.Create(t.Context(), volume.Spec{
		Name: "data", Pool: "pool", Size: 320 * mebibyte, Filesystem: filesystem, Mode: 0o755, BlockSize: loop.BlockSize,
	})
	check(t, err)
	t.Cleanup(func() { check(t, w.volumes.Delete(context.Background(), w.volume.ID, true)) })
	w.dir, err = w.volumes.MountUser(t.Context(), w.volume.ID, "")
	check(t, err)
	t.Cleanup(func() {
		check(t, fs.Thaw(w.dir))
		_, err := w.volumes.UnmountUser(context.Background(), w.volume.ID, false)
		check(t, err)
	})
	return w
}

// write writes a file to the volume, synced: it waits as long as the volume is frozen.
func (w *mountedWorld) write(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(filepath.Join(w.dir, name))
	check(t, err)
	_, err = f.WriteString(name)
	check(t, errors.Join(err, f.Sync(), f.Close()))
}

// wantUntouched fails unless the volume is not frozen, nothing says that it is, and nothing is left of a copy.
func (w *mountedWorld) wantUntouched(t *testing.T) {
	t.Helper()
	if err := fs.Freeze(w.dir); err != nil {
		t.Errorf("frozen still: %v", err)
	}
	check(t, fs.Thaw(w.dir))
	w.write(t, "afterwards")
	check(t, w.store.View(func(tx *metadata.Tx) error {
		intents, err1 := tx.Intents()
		snapshots, err2 := tx.Snapshots("")
		devices, err3 := tx.Devices()
		if len(intents) > 0 || len(snapshots) > 0 || len(devices) != 1 {
			t.Errorf("left in the metadata: %+v, %+v, %+v", intents, snapshots, devices)
		}
		return errors.Join(err1, err2, err3)
	}))
	if list, err := w.pool.Pool.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("left in the pool: %+v, %v", list, err)
	}
}

// TestAFreezeThatLastsTooLongEndsAtOnceAndTheCopyIsDiscarded: the copying goes on, and writers do not wait for it.
func TestAFreezeThatLastsTooLongEndsAtOnceAndTheCopyIsDiscarded(t *testing.T) {
	for _, end := range []struct {
		name, filesystem, says string
		giveUp                 bool
	}{
		{"the limit is over", "ext4", "freeze exceeded its limit of " + volume.FreezeLimit.String(), false},
		{"the caller gives up", "xfs", context.Canceled.Error(), true},
	} {
		t.Run(end.name, func(t *testing.T) {
			w := newMountedWorld(t, end.filesystem)
			w.write(t, "before")
			ctx, cancel := context.WithTimeout(t.Context(), 10*volume.FreezeLimit)
			defer cancel()
			held := false
			w.pool.then("clone", func() {
				held = fault.Is(tryFreeze(w.dir), fault.ErrInUse)
				if end.giveUp {
					cancel()
				}
				w.write(t, "meanwhile") // returns when the freeze has ended, and before the copying does
			})
			_, err := w.Create(ctx, []string{w.volume.ID}, snapshot.Spec{Name: "s"})
			if err == nil || !strings.Contains(err.Error(), end.says) || end.giveUp == strings.Contains(err.Error(), "freeze exceeded") {
				t.Errorf("%v, want %q", err, end.says)
			}
			if !held {
				t.Error("the volume was not frozen when it was copied")
			}
			w.pool.then("clone", nil)
			w.wantUntouched(t)
			taken, err := w.Create(t.Context(), []string{w.volume.ID}, snapshot.Spec{Name: "s"})
			check(t, err)
			if taken[0].Consistency != metadata.Frozen || taken[0].State != metadata.Ready {
				t.Errorf("%+v", taken)
			}
		})
	}
}

// tryFreeze freezes what is mounted at dir; if it could, it thaws it again.
func tryFreeze(dir string) error {
	err := fs.Freeze(dir)
	if err == nil {
		err = fs.Thaw(dir)
	}
	return err
}

// TestAPoolThatIsFullInTheMiddleOfACopyCostsTheSnapshotOnly fails when the volume is frozen and half of the copy is there.
func TestAPoolThatIsFullInTheMiddleOfACopyCostsTheSnapshotOnly(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			w := newMountedWorld(t, filesystem)
			for _, call := range []string{"clone", "sync", "seal"} {
				w.pool.fail(call, &os.PathError{Op: "clone", Path: "image", Err: syscall.ENOSPC})
				_, err := w.Create(t.Context(), []string{w.volume.ID}, snapshot.Spec{Name: "s"})
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("%s: %v", call, err)
				}
				_, err = w.CopyVolume(t.Context(), w.volume.ID, volume.Spec{
					Name: "copy", Pool: "pool", Size: w.volume.Size, Filesystem: filesystem, Copy: &volume.Copy{},
				})
				if call != "seal" && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("%s: %v", call, err)
				}
				w.pool.fail(call, nil)
				if call == "seal" { // a volume is not sealed
					w.deleteNamed(t, "copy")
				}
				w.wantUntouched(t)
			}
		})
	}
}

func (w *mountedWorld) deleteNamed(t *testing.T, name string) {
	t.Helper()
	var v metadata.Volume
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.VolumeNamed(name)
		return err
	}))
	check(t, w.volumes.Delete(t.Context(), v.ID, false))
}
