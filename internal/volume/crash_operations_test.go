//go:build root

package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
)

// An operation is a row of the crash matrix.
type operation struct {
	name  string
	alone bool // nobody uses the witness meanwhile: the operation settles every volume, or loses the holders
	apart bool // no other operation is tried meanwhile: it begins a namespace, which has what others have mounted
	setup func(t testing.TB, w *world)
	run   func(ctx context.Context, w *world) error
	again fault.Kind // what a repetition answers when all is done already
	// silent tells that the operation logs its failures and answers nothing.
	silent bool
	// counts tells that a repetition may begin another epoch.
	counts bool
	// between returns what may be seen besides before and after.
	between func(before, after picture) []picture
}

var operations = []operation{
	{name: "create ext4", run: create(created), again: fault.ErrExists},
	{name: "create xfs", run: create(created + "-xfs"), again: fault.ErrExists},
	{name: "delete", run: remove(subject), again: fault.ErrNotFound},
	{name: "delete xfs", run: remove(subjectXFS), again: fault.ErrNotFound},
	{name: "delete a volume that was kept", setup: keep(subject), run: remove(subject), again: fault.ErrNotFound},
	{name: "mount", run: mount(subject, "docker")},
	{name: "mount xfs", run: mount(subjectXFS, "docker")},
	{name: "mount again", setup: mounted(subject), run: mount(subject, "another")},
	{name: "mount what is to grow", setup: halfResized(subject), run: mount(subject, "docker")},
	{name: "mount xfs what is to grow", setup: halfResized(subjectXFS), run: mount(subjectXFS, "docker")},
	{name: "mount for a user", run: mountUser("")},
	{name: "mount for a user at a directory", run: mountUser("user"), between: func(_, after picture) []picture {
		// The holder is recorded before the mount that it is for; 'orlop umount' drops it.
		after.Mounts = without(after.Mounts, "USER")
		return []picture{after}
	}},
	{name: "unmount", setup: mounted(subject), run: unmount(subject, "docker")},
	{name: "unmount xfs", setup: mounted(subjectXFS), run: unmount(subjectXFS, "docker")},
	{name: "unmount one of two", setup: func(t testing.TB, w *world) {
		mounted(subject)(t, w)
		check(t, mount(subject, "another")(t.Context(), w))
	}, run: unmount(subject, "docker")},
	{name: "unmount for a user", setup: func(t testing.TB, w *world) {
		check(t, mountUser("")(t.Context(), w))
		check(t, mountUser("user")(t.Context(), w))
	}, run: func(ctx context.Context, w *world) error { return unmountUser(ctx, w, w.named(subject)) }, between: func(before, _ picture) []picture {
		// Each of the user's mounts goes by itself.
		before.Holders = without(before.Holders, subject+" "+volume.UserHolder)
		less := before
		less.Mounts = without(before.Mounts, "USER")
		return []picture{before, less}
	}},
	{name: "resize", run: resize(subject, 2*sizeExt4)},
	{name: "resize xfs", run: resize(subjectXFS, 2*sizeXFS)},
	{name: "resize mounted", setup: mountedLongAgo(subject), run: resize(subject, 2*sizeExt4)},
	{name: "resize mounted xfs", setup: mounted(subjectXFS), run: resize(subjectXFS, 2*sizeXFS)},
	{name: "set", run: set(subject)},
	{name: "adopt", setup: func(t testing.TB, w *world) {
		forget(subject)(t, w)
		w.content[created] = w.content[subject]
	}, run: func(ctx context.Context, w *world) error {
		_, err := w.Adopt(ctx, w.unknownDevice(), created)
		return err
	}, again: fault.ErrNotFound},
	{name: "delete an unknown device", setup: forget(subject), run: func(ctx context.Context, w *world) error {
		return w.DeleteUnknown(ctx, w.unknownDevice())
	}, again: fault.ErrNotFound},
	{name: "trim", run: trim(subject)},
	{name: "trim mounted xfs", setup: mounted(subjectXFS), run: trim(subjectXFS)},
	{name: "rebuild from nothing", alone: true, setup: func(t testing.TB, w *world) {
		w.die(t)
		check(t, errors.Join(os.Remove(w.database()), os.Remove(w.database()+".copy")))
		w.beginRebuild(t)
	}, run: func(ctx context.Context, w *world) error { return w.Rebuild(ctx) }},
	{name: "rebuild from an old copy", alone: true, setup: func(t testing.TB, w *world) {
		check(t, create(created)(t.Context(), w))
		check(t, set(witness)(t.Context(), w))
		check(t, remove(subject)(t.Context(), w))
		w.die(t)
		check(t, os.WriteFile(w.database(), []byte("damaged"), 0o600))
		w.beginRebuild(t)
	}, run: func(ctx context.Context, w *world) error { return w.Rebuild(ctx) }},
	{name: "recover", silent: true, setup: halfCreated, run: func(ctx context.Context, w *world) error { return w.Recover(ctx) }},
	{name: "tidy", silent: true, setup: halfDeleted, run: func(ctx context.Context, w *world) error { w.Tidy(ctx); return nil }},
	{name: "tidy what was kept", silent: true, setup: keep(subject), run: func(ctx context.Context, w *world) error { w.Tidy(ctx); return nil }},
	{name: "settle all", alone: true, setup: keep(subject), run: func(ctx context.Context, w *world) error { return w.SettleAll(ctx) }},
	{name: "new epoch", counts: true, run: func(ctx context.Context, w *world) error { return w.NewEpoch(ctx) }},

	{name: "snapshot", setup: keeps(taken, subject), run: snapshotOf(taken, subject), again: fault.ErrExists},
	{name: "snapshot mounted", setup: inTurn(mounted(subject), keeps(taken, subject)), run: snapshotOf(taken, subject), again: fault.ErrExists},
	{name: "snapshot mounted xfs", setup: inTurn(mounted(subjectXFS), keeps(taken, subjectXFS)), run: snapshotOf(taken, subjectXFS), again: fault.ErrExists},
	{name: "snapshot mounted elsewhere", apart: true, setup: inTurn(usedElsewhere(subject), keeps(taken, subject)), run: snapshotOf(taken, subject), again: fault.ErrExists},
	{name: "snapshot a group of ext4 and xfs", setup: inTurn(mounted(subject), mounted(subjectXFS), keeps(taken, subject, subjectXFS)),
		run: snapshotOf(taken, subject, subjectXFS), again: fault.ErrExists},
	{name: "delete a snapshot", setup: take(subject), run: deleteSnapshot(subject, taken), again: fault.ErrNotFound},
	{name: "restore", setup: take(subject), run: restore(subject, false)},
	{name: "restore xfs", setup: take(subjectXFS), run: restore(subjectXFS, false)},
	{name: "restore and discard", setup: take(subject), run: restore(subject, true)},
	{name: "restore across a resize", setup: inTurn(take(subject), func(t testing.TB, w *world) {
		check(t, resize(subject, 2*sizeExt4)(t.Context(), w))
	}), run: restore(subject, false)},
	{name: "create from a snapshot", setup: copied(subject, created), run: copySnapshot(subject, created, nil), again: fault.ErrExists},
	{name: "create larger from a snapshot", setup: copied(subject, created), run: copySnapshot(subject, created, func(s *volume.Spec) {
		s.Size = 2 * sizeExt4
	}), again: fault.ErrExists},
	{name: "create larger from a snapshot of xfs", setup: copied(subjectXFS, created+"-xfs"), run: copySnapshot(subjectXFS, created+"-xfs", func(s *volume.Spec) {
		s.Size = 2 * sizeXFS
	}), again: fault.ErrExists},
	{name: "create for another owner from a snapshot", setup: copied(subject, created), run: copySnapshot(subject, created, func(s *volume.Spec) {
		s.UID, s.GID, s.Mode, s.Copy.SetOwner = 2000, 2001, 0o700, true
	}), again: fault.ErrExists},
	{name: "create from a volume", setup: func(t testing.TB, w *world) {
		w.content[created] = w.content[subject]
	}, run: copyVolume(subject, created), again: fault.ErrExists},
	{name: "create from a mounted volume", setup: inTurn(mounted(subject), func(t testing.TB, w *world) {
		w.content[created] = w.content[subject]
	}), run: copyVolume(subject, created), again: fault.ErrExists},
	{name: "delete with snapshots", setup: inTurn(take(subject), func(t testing.TB, w *world) {
		check(t, snapshotOf("more", subject)(t.Context(), w))
		keeps("more", subject)(t, w)
	}), run: func(ctx context.Context, w *world) error { return w.Delete(ctx, w.named(subject), true) }, again: fault.ErrNotFound},
	{name: "adopt a snapshot", setup: inTurn(copied(subject, created), forgetSnapshot(subject)), run: func(ctx context.Context, w *world) error {
		_, err := w.Adopt(ctx, w.unknownDevice(), created)
		return err
	}, again: fault.ErrNotFound},
	{name: "rebuild snapshots from nothing", alone: true, setup: func(t testing.TB, w *world) {
		take(subject)(t, w)
		check(t, restore(subject, false)(t.Context(), w))
		w.die(t)
		check(t, errors.Join(os.Remove(w.database()), os.Remove(w.database()+".copy")))
		w.beginRebuild(t)
	}, run: func(ctx context.Context, w *world) error { return w.Rebuild(ctx) }},
	{name: "rebuild snapshots from an old copy", alone: true, setup: func(t testing.TB, w *world) {
		check(t, snapshotOf("deleted-since", subject)(t.Context(), w))
		w.die(t)
		w.begin(t) // makes the copy
		take(subject)(t, w)
		check(t, deleteSnapshot(subject, "deleted-since")(t.Context(), w))
		check(t, restore(subject, true)(t.Context(), w))
		w.die(t)
		check(t, os.WriteFile(w.database(), []byte("damaged"), 0o600))
		w.beginRebuild(t)
	}, run: func(ctx context.Context, w *world) error { return w.Rebuild(ctx) }},
	{name: "recover what was frozen for a snapshot", silent: true, setup: inTurn(mounted(subject), cutShort("host.Freeze", snapshotOf(taken, subject))), run: recoverAll},
	{name: "recover a snapshot that was sealed", silent: true, setup: cutShort("pool.Seal", snapshotOf(taken, subject)), run: recoverAll},
	{name: "recover a rollback before its swap", silent: true, setup: inTurn(take(subject), cutShort("pool.Clone", restore(subject, false))), run: recoverAll},
	{name: "recover a rollback after its swap", silent: true, setup: inTurn(take(subject), cutShort("pool.Seal", restore(subject, false))), run: recoverAll},
	{name: "tidy what a rollback replaced", silent: true, setup: inTurn(take(subject), cutShort("pool.Deactivate", restore(subject, true))), run: tidyAll},
	{name: "tidy a deleted snapshot", silent: true, setup: inTurn(take(subject), cutShort("pool.Deactivate", deleteSnapshot(subject, taken))), run: tidyAll},
}

// allOperations are the rows of the crash matrix.
func allOperations() []operation { return slices.Concat(operations, restoreOperations()) }

func recoverAll(ctx context.Context, w *world) error { return w.recoverAll(ctx) }

func tidyAll(ctx context.Context, w *world) error {
	w.tidyAll(ctx)
	return nil
}

// named returns the ID of a volume, or what is nobody's.
func (w *world) named(name string) (id string) {
	_ = w.store.View(func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed(name)
		id = v.ID
		return err
	})
	return id
}

// unknownDevice returns the ID of the device that the metadata does not know, or what is nobody's.
func (w *world) unknownDevice() string {
	if unknown, err := w.Unknowns(context.Background()); err == nil && len(unknown) == 1 {
		return string(unknown[0].ID)
	}
	return "none"
}

func create(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.Create(ctx, specOf(name))
		return err
	}
}

func remove(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.Delete(ctx, w.named(name), false) }
}

func mount(name, holder string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.Mount(ctx, w.named(name), holder)
		return err
	}
}

// mountUser mounts the subject at the user's directory, or at its own mount point if dir is empty.
func mountUser(dir string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		if dir != "" {
			dir = w.user
		}
		_, err := w.MountUser(ctx, w.named(subject), dir)
		return err
	}
}

func unmount(name, holder string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error { return w.Unmount(ctx, w.named(name), holder) }
}

func resize(name string, size int64) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.Resize(ctx, w.named(name), size)
		return err
	}
}

func trim(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		_, err := w.Trim(ctx, w.named(name))
		return err
	}
}

// mounted has a volume mounted by Docker.
func mounted(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		check(t, mount(name, "docker")(t.Context(), w))
		w.content[name] = writeSynced(t, w.Mountpoint(name))
	}
}

// mountedLongAgo is mounted with a holder whose container cannot be just starting.
func mountedLongAgo(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		mounted(name)(t, w)
		old := metadata.Holder{Volume: w.id(t, name), ID: "docker", Boot: w.boot, Since: time.Now().Add(-volume.SuspectAge)}
		check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutHolder(old) }))
	}
}

// keep has a volume mounted that nobody holds any more, as after a container whose namespace died slowly.
func keep(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		mounted(name)(t, w)
		check(t, w.DropHolder(t.Context(), metadata.Holder{Volume: w.id(t, name), ID: "docker"}))
	}
}

// halfResized has a volume whose new size is recorded, and nothing grown.
func halfResized(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		w.cutOn(t, "records.Update", resize(name, 2*w.volume(t, name).Size))
		w.begin(t)
	}
}

// halfCreated has a volume whose creation was cut short while it was mounted to be finished, and no life after that
// yet; a holder is left of another boot.
func halfCreated(t testing.TB, w *world) {
	other := metadata.Holder{Volume: w.id(t, subject), ID: "long ago", Boot: "another"}
	check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutHolder(other) }))
	w.cutOn(t, "host.FinishRoot", create(created))
	w.open(t)
}

// halfDeleted has a volume whose deletion was cut short, and no life after that yet.
func halfDeleted(t testing.TB, w *world) {
	w.cutOn(t, "records.Update", remove(subject))
	w.open(t)
}

// cutOn lets an operation die after its first effect of this name, and ends that life.
func (w *world) cutOn(t testing.TB, effect string, run func(context.Context, *world) error) {
	t.Helper()
	w.cut.on = effect
	w.cut.arm(0, true, nil)
	if died, err := w.cut.run(func() error { return run(t.Context(), w) }); !died {
		t.Fatalf("no effect %s: %v", effect, err)
	}
	w.die(t)
}

// forget has a device that the metadata does not know.
func forget(name string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		v := w.volume(t, name)
		v.State = metadata.Removing
		check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
			return errors.Join(tx.PutVolume(v), tx.DeleteDevice(v.Device), tx.DeleteVolume(v.ID))
		}))
	}
}

// database is the path of the metadata.
func (w *world) database() string { return filepath.Join(w.root, metadata.FileName) }

// beginRebuild begins a life with lost metadata up to where it is rebuilt.
func (w *world) beginRebuild(t testing.TB) {
	t.Helper()
	w.rebuild = true
	if lost, err := w.prepare(t.Context()); err != nil || !lost {
		t.Fatalf("metadata lost: %t, %v", lost, err)
	}
}

// without is a list without one of its elements.
func without(list []string, element string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == element })
}

func set(name string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		on := true
		_, err := w.Set(ctx, w.named(name), volume.Change{Labels: map[string]string{"of": "", "new": "label"}, Protected: &on})
		return err
	}
}
