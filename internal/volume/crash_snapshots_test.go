//go:build root

package volume_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// What the crash tests do with snapshots, and what must be so of them.

// Names of snapshots. A rollback names what it keeps after the time.
const (
	taken = "s"
	kept  = "before-restore"
)

// probe is the volume that is made of a snapshot to look at it.
const probe = "probe"

// snapshotKey names a snapshot by its volume's name and its own, without the time.
func snapshotKey(s metadata.Snapshot) string {
	return s.Volume.Name + "@" + withoutTime(s.Name)
}

func (w *world) snapshots(t testing.TB) (all []metadata.Snapshot) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		all, err = tx.Snapshots("")
		return err
	}))
	return all
}

// snapshot returns the ID of a volume's snapshot, or what is nobody's.
func (w *world) snapshot(volume, name string) (id string) {
	_ = w.store.View(func(tx *metadata.Tx) error {
		s, err := tx.SnapshotNamed(w.named(volume), name)
		id = s.ID
		return err
	})
	return id
}

// snapshotOf takes a snapshot of each of the volumes.
func snapshotOf(name string, volumes ...string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		var ids []string
		for _, v := range volumes {
			ids = append(ids, w.named(v))
		}
		_, err := w.snaps.Create(ctx, ids, snapshot.Spec{Name: name, Labels: map[string]string{"of": name}})
		return err
	}
}

func deleteSnapshot(volume, name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.snaps.Delete(ctx, w.snapshot(volume, name)) }
}

// restore rolls the volume back to the snapshot, unless that has been done.
func restore(name string, discard bool) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		var v metadata.Volume
		err := w.store.View(func(tx *metadata.Tx) (err error) {
			v, err = tx.VolumeNamed(name)
			return err
		})
		if err != nil || v.Rollbacks > 0 {
			return err
		}
		_, err = w.snaps.Restore(ctx, w.snapshot(name, taken), discard)
		return err
	}
}

// copySnapshot makes the volume called name of the snapshot of another one.
func copySnapshot(of, name string, change func(*volume.Spec)) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.snaps.CopySnapshot(ctx, w.snapshot(of, taken), copySpec(name, change))
		return err
	}
}

// copyVolume makes the volume called name of another one.
func copyVolume(of, name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.snaps.CopyVolume(ctx, w.named(of), copySpec(name, nil))
		return err
	}
}

func copySpec(name string, change func(*volume.Spec)) volume.Spec {
	spec := specOf(name)
	spec.Copy = &volume.Copy{}
	if change != nil {
		change(&spec)
	}
	return spec
}

// keeps tells the tests what snapshots called name of the volumes hold, or will hold when they are taken.
func keeps(name string, volumes ...string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		for _, v := range volumes {
			w.held[v+"@"+name] = w.content[contentKey(w.volume(t, v))]
		}
	}
}

// take has a snapshot of the volume, and other content in it since.
func take(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		keeps(taken, name)(t, w)
		check(t, snapshotOf(taken, name)(t.Context(), w))
		id := w.snapshot(name, taken)
		w.sums[id] = w.sum(t, id)
		w.write(t, name)
		keeps(kept, name)(t, w) // by a rollback, from here on
		rolledBack := w.volume(t, name)
		rolledBack.Rollbacks++
		w.content[contentKey(rolledBack)] = w.held[name+"@"+taken]
	}
}

// copied is take for a volume that is to be made of the snapshot.
func copied(of, name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		take(of)(t, w)
		w.content[name] = w.held[of+"@"+taken]
	}
}

// usedElsewhere has a volume that only a container has mounted.
func usedElsewhere(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		mounted(name)(t, w)
		c := startContainer(t)
		w.container = &c
		check(t, unix.Unmount(w.Mountpoint(name), 0))
	}
}

// forgetSnapshot has a snapshot's device that the metadata does not know.
func forgetSnapshot(volume string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
			s, err := tx.Snapshot(w.snapshot(volume, taken))
			if err != nil {
				return err
			}
			s.State = metadata.Removing
			return errors.Join(tx.PutSnapshot(s), tx.DeleteDevice(s.Device), tx.DeleteSnapshot(s.ID))
		}))
	}
}

// inTurn does one setup after another.
func inTurn(setups ...func(testing.TB, *world)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		for _, setup := range setups {
			setup(t, w)
		}
	}
}

// cutShort ends a life in an operation, after its first effect of this name, and begins another up to where recovery
// begins.
func cutShort(effect string, run func(context.Context, *world) error) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		w.cutOn(t, effect, run)
		w.open(t)
	}
}

// sum is a checksum of a snapshot's image: of its blocks that hold anything but zeroes, and where they are.
func (w *world) sum(t testing.TB, id string) string {
	t.Helper()
	var s metadata.Snapshot
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		s, err = tx.Snapshot(id)
		return err
	}))
	f, err := os.Open(w.imageOf(s.Device))
	check(t, err)
	defer f.Close()
	hash := sha256.New()
	block, zeroes := make([]byte, 64<<10), make([]byte, 64<<10)
	for offset := int64(0); ; offset += int64(len(block)) {
		data, err := f.Seek(offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		check(t, err)
		offset = data / int64(len(block)) * int64(len(block))
		n, err := f.ReadAt(block, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(block[:n], zeroes[:n]) {
			_, _ = fmt.Fprintf(hash, "%d\n%s", offset, block[:n]) // never fails
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

// wantSnapshots checks that each snapshot is ready and holds what it held: one that was acknowledged has the bytes that
// it had then, any other shows its content in a volume that is made of it.
func (w *world) wantSnapshots(t *testing.T) {
	t.Helper()
	for _, s := range w.snapshots(t) {
		key := snapshotKey(s)
		if s.State != metadata.Ready {
			t.Errorf("snapshot %s is left %s", key, s.State)
			continue
		}
		if sum, known := w.sums[s.ID]; known {
			if w.sum(t, s.ID) != sum {
				t.Errorf("snapshot %s has other bytes than when it was taken", key)
			}
			continue
		}
		w.content[probe] = w.held[key]
		w.lookInto(t, s)
	}
}

// lookInto makes a volume of a snapshot, checks its files and its filesystem, and deletes it again.
func (w *world) lookInto(t *testing.T, s metadata.Snapshot) {
	t.Helper()
	spec := volume.Spec{
		Name: probe, Pool: "loop", Size: s.Size, Filesystem: s.Volume.Filesystem, BlockSize: s.Volume.BlockSize,
		UID: s.Volume.UID, GID: s.Volume.GID, Mode: s.Volume.Mode, Copy: &volume.Copy{},
	}
	v, err := w.snaps.CopySnapshot(t.Context(), s.ID, spec)
	check(t, err)
	w.with(t, probe, func(dir string) { w.wantFiles(t, v, dir) })
	wantClean(t, probe, v.Filesystem, w.image(v))
	check(t, w.Delete(t.Context(), v.ID, false))
}
