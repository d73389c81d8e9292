//go:build root

package volume_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// Two volumes on one device are two writers on one filesystem, and a deletion may take what has just become a volume's.
func TestOnlyOneOfManyGetsAnUnknownDevice(t *testing.T) {
	w := newSite(t).newWorld(t, false)
	forget(subject)(t, w)
	device := w.unknownDevice()
	var all sync.WaitGroup
	const tries = 8
	errs := make([]error, tries)
	for i := range tries {
		all.Go(func() { _, errs[i] = w.Adopt(t.Context(), device, fmt.Sprintf("adopted-%d", i)) })
	}
	deleted := error(nil)
	all.Go(func() { deleted = w.DeleteUnknown(t.Context(), device) })
	all.Wait()
	got := 0
	for _, err := range append(errs, deleted) {
		if err == nil {
			got++
		} else if !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("too late, and: %v", err)
		}
	}
	var on []string
	for _, v := range w.volumes(t) {
		if v.Device == device {
			on = append(on, v.Name)
		}
	}
	if got != 1 || len(on) > 1 || (deleted == nil) != (len(on) == 0) {
		t.Fatalf("%d got the device; volumes on it: %q; deletion: %v", got, on, deleted)
	}
	if len(on) == 1 {
		w.content[on[0]] = w.content[subject]
		w.with(t, on[0], func(dir string) { w.wantFiles(t, w.volume(t, on[0]), dir) })
	}
}

// hooked gives the subject commands to run around its snapshots.
func (w *world) hooked(t *testing.T) metadata.Volume {
	t.Helper()
	pre, post := []string{"/bin/pre", "argument"}, []string{"/bin/post"}
	v, err := w.Set(t.Context(), w.id(t, subject), volume.Change{PreSnapshot: &pre, PostSnapshot: &post})
	check(t, err)
	return v
}

// They run as root, and whoever made the device need not be root here.
func TestAdoptionTakesNoCommandsFromTheDevice(t *testing.T) {
	s := newSite(t)
	for _, what := range []string{"volume", "snapshot"} {
		t.Run(what, func(t *testing.T) {
			w := s.newWorld(t, false)
			w.hooked(t)
			if what == "snapshot" {
				allow := func(context.Context, []string, []string) error { return nil }
				w.snaps = snapshot.New(snapshot.Config{Store: w.store, Volumes: w.Manager, RunHook: allow, Log: quiet()})
				check(t, snapshotOf(taken, subject)(t.Context(), w))
				forgetSnapshot(subject)(t, w)
			} else {
				forget(subject)(t, w)
			}
			v, err := w.Adopt(t.Context(), w.unknownDevice(), created)
			check(t, err)
			for _, v := range []metadata.Volume{v, w.volume(t, created)} {
				if len(v.PreSnapshot)+len(v.PostSnapshot) > 0 {
					t.Errorf("adopted with the commands %q and %q", v.PreSnapshot, v.PostSnapshot)
				}
			}
			devices, err := w.pool.List(t.Context())
			check(t, err)
			i := slices.IndexFunc(devices, func(d blockdev.Info) bool { return string(d.ID) == v.Device })
			carried, _, err := w.Carried("loop", devices[i])
			if check(t, err); len(carried.PreSnapshot)+len(carried.PostSnapshot) > 0 {
				t.Errorf("the device carries %q and %q", carried.PreSnapshot, carried.PostSnapshot)
			}
		})
	}
}

func TestRebuildTakesCommandsOnlyFromDevicesOfItsOwnRoot(t *testing.T) {
	s := newSite(t)
	for _, copyLost := range []bool{false, true} { // with its copy the database loses the root's ID
		t.Run(fmt.Sprintf("copy lost %t", copyLost), func(t *testing.T) {
			w := s.newWorld(t, false)
			had := w.hooked(t)
			w.die(t)
			check(t, os.Remove(w.database()))
			if copyLost {
				check(t, os.Remove(w.database()+".copy"))
			}
			w.rebuild = true
			w.begin(t)
			v := w.volume(t, subject)
			kept := slices.Equal(v.PreSnapshot, had.PreSnapshot) && slices.Equal(v.PostSnapshot, had.PostSnapshot)
			if kept == copyLost || !kept && len(v.PreSnapshot)+len(v.PostSnapshot) > 0 {
				t.Errorf("after the rebuild the commands are %q and %q", v.PreSnapshot, v.PostSnapshot)
			}
			w.wantContent(t)
		})
	}
}

// The name of an unnamed snapshot is made when it is recorded, and its device had none until it was sealed.
func TestRebuildUndoesAnUnnamedSnapshotThatWasCutShort(t *testing.T) {
	s := newSite(t)
	for _, effect := range []string{"pool.Prepare", "pool.Clone", "pool.Sync", "pool.Seal"} {
		t.Run(effect, func(t *testing.T) {
			w := s.newWorld(t, false)
			w.cutOn(t, effect, snapshotOf("", subject))
			w.die(t)
			check(t, errors.Join(os.Remove(w.database()), os.Remove(w.database()+".copy")))
			w.rebuild = true
			w.begin(t)
			if unknown, err := w.Unknowns(t.Context()); err != nil || len(unknown) > 0 {
				t.Errorf("unknown: %v, %v", unknown, err)
			}
			check(t, w.store.View(func(tx *metadata.Tx) error {
				left, err := tx.Snapshots("")
				if len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				return err
			}))
			w.wantSound(t)
			w.wantContent(t)
		})
	}
}
