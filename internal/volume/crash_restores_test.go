//go:build root

package volume_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// What the crash tests do with restores from backups. A backup is here the image of a volume as it was.

// restoredName is the beginning of the names of the managed snapshots of restored volumes; the time follows.
const restoredName = "restored"

// A backedUp is a backup, and how a world restores it.
type backedUp struct {
	image   []byte // without the zeroes behind its end
	of      metadata.Volume
	clone   string // ID of a snapshot to begin with; empty for none
	waiting bool   // the repository is away: no life resumes restores
}

// errAway is why a restore failed.
var errAway = errors.New("the repository is away")

// backUp has a backup of the volume, other content in the volume since, and the volume called name to be restored from it.
func backUp(of, name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		v := w.volume(t, of)
		image, err := os.ReadFile(w.image(v))
		check(t, err)
		w.backup = backedUp{image: image, of: v}
		text := w.content[contentKey(v)]
		w.write(t, of)
		keeps(kept, of)(t, w) // by a restore in place, from here on
		next := w.volume(t, of)
		next.Rollbacks++
		w.content[contentKey(next)], w.content[name], w.held[name+"@"+restoredName] = text, text, text
	}
}

// nearby has a snapshot of the volume that the restore begins with a copy of.
func nearby(of string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		keeps(taken, of)(t, w)
		check(t, snapshotOf(taken, of)(t.Context(), w))
		w.backup.clone = w.snapshot(of, taken)
	}
}

// away has no life resume restores from here on.
func away(_ testing.TB, w *world) { w.backup.waiting = true }

// back has lives resume restores again.
func back(_ testing.TB, w *world) { w.backup.waiting = false }

// contents is what fills a device with the backup.
func (w *world) contents(tx func(context.Context, metadata.Volume) (func(*metadata.Tx) error, error)) volume.Contents {
	c := volume.Contents{Keep: tx, Write: func(_ context.Context, device *os.File, _ bool) error {
		w.hold(device)
		half := len(w.backup.image) / 2
		for i, part := range [][]byte{w.backup.image[:half], w.backup.image[half:]} {
			err := w.effect("contents.Write", func() error {
				_, err := device.WriteAt(part, int64(i*half))
				return errors.Join(err, device.Sync())
			})
			if err != nil {
				return err
			}
		}
		return nil
	}}
	if w.backup.clone != "" {
		c.Clone = func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
			var s metadata.Snapshot
			if err := w.store.View(func(tx *metadata.Tx) (err error) { s, err = tx.Snapshot(w.backup.clone); return err }); err != nil {
				return err
			}
			return cutPool{w.pool, w.cut}.Clone(ctx, dst, blockdev.ID(s.Device), record)
		}
	}
	return c
}

// announce records the volume that is to be restored.
func announce(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		spec := specOf(name)
		spec.Size, spec.Filesystem, spec.Lineage = w.backup.of.Size, w.backup.of.Filesystem, w.backup.of.Lineage
		spec.Restore = &metadata.Restore{URL: "file:///backups?backup=l.r", Backup: "l.r"}
		_, err := w.AnnounceRestore(ctx, spec)
		return err
	}
}

// fillRestored restores a volume that was announced.
func (w *world) fillRestored(ctx context.Context, id string) error {
	_, err := w.Fill(ctx, id, w.contents(func(ctx context.Context, v metadata.Volume) (func(*metadata.Tx) error, error) {
		return w.snaps.KeepRestored(ctx, v, "repository", "l.r")
	}))
	return err
}

// restoreNew restores the backup to a new volume.
func restoreNew(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		if err := announce(name)(ctx, w); err != nil {
			return err
		}
		return w.fillRestored(ctx, w.named(name))
	}
}

// restoreInPlace replaces a volume's content by the backup's, unless that has been done.
func restoreInPlace(name string, discard bool) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		var v metadata.Volume
		err := w.store.View(func(tx *metadata.Tx) (err error) { v, err = tx.VolumeNamed(name); return err })
		if err != nil || v.Rollbacks > 0 {
			return err
		}
		_, _, err = w.snaps.Replace(ctx, snapshot.Replacement{
			Volume: v.ID, Size: w.backup.of.Size,
			Fill: func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
				return volume.FillDevice(ctx, volume.Device{
					Pool: cutPool{w.pool, w.cut}, PoolName: "loop", ID: dst, Size: w.backup.of.Size, Record: record,
				}, w.contents(nil))
			},
			Change: func(v *metadata.Volume) {
				v.Restore = &metadata.Restore{URL: "file:///backups?backup=l.r", Backup: "l.r"}
			},
		}, discard)
		return err
	}
}

// begun has a restore that a crash cut short while it wrote, and a life after that in which the repository is away.
func begun(name string) func(testing.TB, *world) {
	return inTurn(away, func(t testing.TB, w *world) {
		w.cutOn(t, "contents.Write", restoreNew(name))
		w.begin(t)
	})
}

// failedRestore has a volume whose restore has failed.
func failedRestore(name string) func(testing.TB, *world) {
	return inTurn(begun(name), func(t testing.TB, w *world) { check(t, w.FailRestore(t.Context(), w.named(name), errAway)) })
}

func failRestore(name string, why error) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.FailRestore(ctx, w.named(name), why) }
}

// restoreAgain restores a volume whose restore failed, unless that has been done.
func restoreAgain(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		var v metadata.Volume
		err := w.store.View(func(tx *metadata.Tx) (err error) { v, err = tx.VolumeNamed(name); return err })
		if err != nil || v.State == metadata.Ready {
			return err
		}
		if v.State == metadata.Failed {
			if _, err := w.RestoreAgain(ctx, v.ID, metadata.Restore{URL: "file:///backups?backup=l.r", Backup: "l.r"}); err != nil {
				return err
			}
		}
		return w.fillRestored(ctx, v.ID)
	}
}

// restoring reports whether a volume's content is not whole.
func restoring(v metadata.Volume) bool {
	return v.State == metadata.Restoring || v.State == metadata.Failed
}

// resume checks that what is not restored cannot be used, and resumes restores as the daemon does.
func (w *world) resume(t testing.TB) {
	t.Helper()
	for _, v := range w.volumes(t) {
		if !restoring(v) {
			continue
		}
		w.wantUnusable(t, v)
		if v.State == metadata.Restoring && !w.backup.waiting {
			check(t, w.fillRestored(t.Context(), v.ID))
		}
	}
}

// wantUnusable checks that a volume that is not whole cannot be mounted, copied or changed, and has no device attached.
func (w *world) wantUnusable(t testing.TB, v metadata.Volume) {
	t.Helper()
	ctx := t.Context()
	_, mountErr := w.Mount(ctx, v.ID, "probe")
	_, userErr := w.MountUser(ctx, v.ID, "")
	_, copyErr := w.snaps.CopyVolume(ctx, v.ID, copySpec(probe, nil))
	_, takeErr := w.snaps.Create(ctx, []string{v.ID}, snapshot.Spec{Name: "half"})
	_, sizeErr := w.Resize(ctx, v.ID, 2*v.Size)
	for what, err := range map[string]error{"mount": mountErr, "mount for a user": userErr, "copy": copyErr, "snapshot": takeErr, "resize": sizeErr} {
		if !fault.Is(err, fault.ErrInUse) {
			t.Errorf("%s of %s volume %s: %v", what, v.State, v.Name, err)
		}
	}
	for device, file := range attachedBelow(w.dir) {
		if file == w.image(v) {
			t.Errorf("%s volume %s is attached to %s", v.State, v.Name, device)
		}
	}
}

func restoreOperations() []operation {
	ofFailed := func(why error) operation {
		return operation{setup: inTurn(backUp(subject, created), begun(created)), run: failRestore(created, why)}
	}
	fail, fullFail := ofFailed(errAway), ofFailed(fault.Errorf(fault.ErrNoSpace, "full"))
	fail.name, fullFail.name = "fail a restore", "fail a restore for want of space"
	drop := func(ctx context.Context, w *world) error { return w.DropRestore(ctx, w.named(created)) }
	return []operation{
		{name: "restore a backup", setup: backUp(subject, created), run: restoreNew(created), again: fault.ErrExists},
		{name: "restore a backup of xfs", setup: backUp(subjectXFS, created+"-xfs"), run: restoreNew(created + "-xfs"), again: fault.ErrExists},
		{name: "restore a backup that is like a snapshot", setup: inTurn(backUp(subject, created), nearby(subject)), run: restoreNew(created), again: fault.ErrExists},
		fail, fullFail,
		{name: "restore again", setup: inTurn(backUp(subject, created), failedRestore(created), back), run: restoreAgain(created)},
		{name: "restore again from nothing", setup: inTurn(backUp(subject, created), begun(created), func(t testing.TB, w *world) {
			check(t, failRestore(created, fault.Errorf(fault.ErrNoSpace, "full"))(t.Context(), w))
		}, back), run: restoreAgain(created)},
		{name: "drop a restore", setup: inTurn(backUp(subject, created), begun(created)), run: drop, again: fault.ErrNotFound},
		{name: "drop a failed restore", setup: inTurn(backUp(subject, created), failedRestore(created)), run: drop, again: fault.ErrNotFound},
		{name: "delete what is being restored", setup: inTurn(backUp(subject, created), begun(created)), run: remove(created), again: fault.ErrNotFound},
		{name: "delete a restored volume", setup: func(t testing.TB, w *world) {
			backUp(subject, created)(t, w)
			check(t, restoreNew(created)(t.Context(), w))
		}, run: remove(created), again: fault.ErrNotFound},
		{name: "restore in place", setup: backUp(subject, created), run: restoreInPlace(subject, false)},
		{name: "restore in place xfs", setup: backUp(subjectXFS, created), run: restoreInPlace(subjectXFS, false)},
		{name: "restore in place and discard", setup: backUp(subject, created), run: restoreInPlace(subject, true)},
		{name: "restore in place from what is like a snapshot", setup: inTurn(backUp(subject, created), nearby(subject)), run: restoreInPlace(subject, false)},
		{name: "restore in place a smaller state", setup: inTurn(backUp(subject, created), func(t testing.TB, w *world) {
			check(t, resize(subject, 2*sizeExt4)(t.Context(), w))
		}), run: restoreInPlace(subject, false)},
		{name: "recover a restore that was cut short", silent: true, setup: inTurn(backUp(subject, created), away,
			cutShort("contents.Write", restoreNew(created)), back), run: recoverAll},
		{name: "recover a restored volume before it is ready", silent: true, setup: inTurn(backUp(subject, created),
			cutShort("pool.Seal", restoreNew(created))), run: recoverAll},
		{name: "recover a restore in place while it wrote", silent: true, setup: inTurn(backUp(subject, created),
			cutShort("contents.Write", restoreInPlace(subject, false))), run: recoverAll},
		{name: "recover a restore in place after its swap", silent: true, setup: inTurn(backUp(subject, created),
			cutShort("pool.Seal", restoreInPlace(subject, false))), run: recoverAll},
		{name: "rebuild while restores wait", alone: true, setup: inTurn(backUp(subject, created), begun(created), func(t testing.TB, w *world) {
			w.die(t)
			check(t, errors.Join(os.Remove(w.database()), os.Remove(w.database()+".copy")))
			w.beginRebuild(t)
		}), run: func(ctx context.Context, w *world) error { return w.Rebuild(ctx) }},
	}
}

// withoutTime is the name of a snapshot without the time in it.
func withoutTime(name string) string {
	for _, prefix := range []string{kept, restoredName} {
		if strings.HasPrefix(name, prefix) {
			return prefix
		}
	}
	return name
}
