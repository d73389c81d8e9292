package snapshot_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// wantFault fails unless err is of a kind and says the words.
func wantFault(t *testing.T, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%v, want %s", err, kind)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("no word of %q: %v", word, err)
		}
	}
}

func TestTheCostOfASnapshotDoesNotFollowTheirNumber(t *testing.T) {
	many := 150
	if os.Getenv("ORLOP_SOAK") != "" {
		many = 1000
	}
	w := newWorld(t, "data")
	var costs []map[string]int
	for i := range many {
		w.store.reset()
		w.pool.reset()
		w.take(t, "data", fmt.Sprintf("s%d", i))
		cost := w.store.count()
		maps.Copy(cost, w.pool.count())
		costs = append(costs, cost)
	}
	if first, last := costs[1], costs[many-1]; !maps.Equal(first, last) || first["update"] == 0 || first["clone"] != 1 {
		t.Errorf("the second snapshot cost %v, and number %d %v", first, many, last)
	}
	t.Logf("each of %d snapshots cost %v", many, costs[1])
	check(t, w.volumes.Delete(t.Context(), "id-of-data", true))
	if all := w.snapshots(t); len(all) > 0 || w.devices(t) > 0 {
		t.Errorf("%d snapshots and %d devices are left", len(all), w.devices(t))
	}
}

func TestAPinnedSnapshotStaysUntilItIsLetGo(t *testing.T) {
	w := newWorld(t, "data")
	s, other := w.take(t, "data", "s"), w.take(t, "data", "other")
	_, one, err := w.volumes.Pin(s.ID, "a backup")
	check(t, err)
	_, two, err := w.volumes.Pin(s.ID, "a comparison")
	check(t, err)
	wantFault(t, w.Delete(t.Context(), s.ID), fault.ErrInUse, "data@s", "in use by a backup")
	wantFault(t, w.volumes.Delete(t.Context(), "id-of-data", true), fault.ErrInUse, `volume "data"`, `"s"`, "in use by a backup")
	one()
	one() // twice is once
	wantFault(t, w.Delete(t.Context(), s.ID), fault.ErrInUse, "in use by a comparison")
	check(t, w.Delete(t.Context(), other.ID)) // nobody reads that one
	two()
	check(t, w.Delete(t.Context(), s.ID))
	if _, _, err := w.volumes.Pin(s.ID, "a backup"); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("pinned though deleted: %v", err)
	}
	if n := w.devices(t); n != 1 {
		t.Errorf("%d devices, want the volume's", n)
	}
}

func TestWhatReadsASnapshotPinsIt(t *testing.T) {
	w := newWorld(t, "data")
	s := w.take(t, "data", "s")
	err := w.Diff(t.Context(), "", s.ID, func(blockdev.Extent) error { return w.Delete(t.Context(), s.ID) })
	wantFault(t, err, fault.ErrInUse, "in use by a comparison")
	var refusal error
	w.pool.then("clone", func() { refusal = w.Delete(t.Context(), s.ID) })
	_, err = w.Restore(t.Context(), s.ID, true)
	check(t, err)
	wantFault(t, refusal, fault.ErrInUse, "in use by a rollback")
	w.pool.then("clone", nil)
	check(t, w.Delete(t.Context(), s.ID))
}

func TestAGroupOfVolumesInUseIsRefusedByAPoolThatQuiescesByItself(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.pool.quiesces = true
	for _, name := range []string{"a", "b"} {
		_, err := w.memory.Activate(t.Context(), blockdev.ID(w.volume(t, name).Device), blockdev.ReadWrite)
		check(t, err)
	}
	w.store.reset()
	w.pool.reset()
	_, err := w.Create(t.Context(), []string{"id-of-a", "id-of-b", "id-of-c"}, snapshot.Spec{Name: "s"})
	wantFault(t, err, fault.ErrUnsupported, "one by one")
	if count := w.store.count(); count["update"] > 0 || len(w.hooks) > 0 || w.pool.count()["prepare"] > 0 {
		t.Errorf("something happened before: %v, %v, hooks %q", count, w.pool.count(), w.hooks)
	}
	taken, err := w.Create(t.Context(), []string{"id-of-b", "id-of-c"}, snapshot.Spec{Name: "s"})
	check(t, err)
	if taken[0].Consistency != metadata.Quiesced || taken[1].Consistency != metadata.Unmounted {
		t.Errorf("%+v", taken)
	}
}

func TestAVolumeThatIsBeingDeletedCanNeitherBeCopiedNorRolledBack(t *testing.T) {
	w := newWorld(t, "data")
	s := w.take(t, "data", "s")
	w.pool.fail("remove", errors.New("the disk is slow"))
	if err := w.volumes.Delete(t.Context(), "id-of-data", true); err == nil {
		t.Fatal("deleted though its devices could not be removed")
	}
	_, err := w.Create(t.Context(), []string{"id-of-data"}, snapshot.Spec{Name: "late"})
	wantFault(t, err, fault.ErrInUse, `volume "data"`, "being deleted")
	_, err = w.CopyVolume(t.Context(), "id-of-data", volume.Spec{Name: "copy", Pool: "pool", Filesystem: "ext4", Copy: &volume.Copy{}})
	wantFault(t, err, fault.ErrInUse, `volume "data"`, "being deleted")
	_, err = w.CopySnapshot(t.Context(), s.ID, volume.Spec{Name: "copy", Pool: "pool", Filesystem: "ext4", Copy: &volume.Copy{}})
	wantFault(t, err, fault.ErrInUse, "data@s", "being deleted")
	_, err = w.Restore(t.Context(), s.ID, false)
	wantFault(t, err, fault.ErrInUse, "data@s", "being deleted")
	w.pool.fail("remove", nil)
	w.volumes.Tidy(t.Context()) // finishes what was begun
	if n := w.devices(t); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

// TestASnapshotThatFailsLeavesNothing has each call to the pool fail in turn, as on a disk that is full.
func TestASnapshotThatFailsLeavesNothing(t *testing.T) {
	full := fmt.Errorf("clone: %w", syscall.ENOSPC)
	for _, call := range []string{"prepare", "clone", "sync", "stat", "seal", "describe"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			s := w.take(t, "b", "kept")
			w.hooks = nil
			w.pool.fail(call, full)
			_, err := w.Create(t.Context(), []string{"id-of-a", "id-of-b"}, snapshot.Spec{Name: "s"})
			wantFault(t, err, fault.ErrNoSpace)
			if call != "prepare" && call != "stat" && !slices.Equal(w.hooks, []string{"before a", "before b", "after a", "after b"}) {
				t.Errorf("hooks that have run: %q", w.hooks)
			}
			if call != "seal" { // a rollback is done by the time that the old state is sealed
				_, err = w.Restore(t.Context(), s.ID, false)
				wantFault(t, err, fault.ErrNoSpace)
			}
			if all, n := w.snapshots(t), w.devices(t); len(all) != 1 || n != 3 {
				t.Errorf("left: %d devices and %+v", n, all)
			}
			w.pool.fail(call, nil)
			w.take(t, "a", "s")
			_, err = w.Restore(t.Context(), s.ID, false)
			check(t, err)
		})
	}
}

func TestARollbackKeepsWhatItReplacesUnlessToldNotTo(t *testing.T) {
	w := newWorld(t, "data")
	w.write(t, "data", "then")
	s := w.take(t, "data", "s")
	w.write(t, "data", "now")
	v, err := w.Restore(t.Context(), s.ID, false)
	check(t, err)
	if got := w.read(t, v.Device); got != "then" || w.volume(t, "data").Device != v.Device {
		t.Errorf("rolled back, it reads %q", got)
	}
	all := w.snapshots(t)
	if len(all) != 2 || !strings.HasPrefix(all[1].Name, "before-restore-") || w.read(t, all[1].Device) != "now" {
		t.Fatalf("%+v", all)
	}
	w.write(t, "data", "later")
	if v, err = w.Restore(t.Context(), all[1].ID, true); err != nil || w.read(t, v.Device) != "now" {
		t.Errorf("%q, %v", w.read(t, v.Device), err)
	}
	if all := w.snapshots(t); len(all) != 2 || w.devices(t) != 3 {
		t.Errorf("left: %d devices and %+v", w.devices(t), all)
	}
}

func TestARollbackAndASnapshotOfOneVolumeDoNotMeet(t *testing.T) {
	w := newWorld(t, "data")
	s := w.take(t, "data", "s")
	w.write(t, "data", "now")
	var refusal error
	w.pool.then("prepare", func() { // the snapshot is announced, and the volume not locked
		w.pool.then("prepare", nil)
		_, refusal = w.Restore(t.Context(), s.ID, false)
	})
	taken := w.take(t, "data", "meanwhile")
	wantFault(t, refusal, fault.ErrInUse, `"meanwhile"`, "being taken")
	if got := w.read(t, taken.Device); got != "now" {
		t.Errorf("the snapshot reads %q", got)
	}
	w.pool.then("sync", func() { // the copy for the rollback is made
		w.pool.then("sync", nil)
		w.take(t, "data", "first")
	})
	_, err := w.Restore(t.Context(), s.ID, true)
	check(t, err)
	if all := w.snapshots(t); len(all) != 3 || w.devices(t) != 4 {
		t.Errorf("%d devices and %+v", w.devices(t), all)
	}
}
