package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"orlop/blockdev"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// TestDeletionTakesManagedSnapshotsAlongAndStopsForTheUsers at both front doors.
func TestDeletionTakesManagedSnapshotsAlongAndStopsForTheUsers(t *testing.T) {
	for door, remove := range map[string]func(h *house, name string) error{
		"docker":  func(h *house, name string) error { return h.RemoveDocker(t.Context(), name) },
		"control": func(h *house, name string) error { return h.Delete(t.Context(), name, false) },
	} {
		h := newHouse(t)
		v := h.put(t, "db")
		h.take(t, v, snapshot.Spec{Name: "base-1", Managed: true})
		h.take(t, v, snapshot.Spec{Name: "mine"})
		before := h.everything(t)
		if err := remove(h, "db"); !fault.Is(err, fault.ErrProtected) || !strings.Contains(err.Error(), "has 1 snapshot (mine)") || strings.Contains(err.Error(), "base-1") {
			t.Errorf("%s: with a snapshot of the user's: %v", door, err)
		}
		if after := h.everything(t); after != before {
			t.Errorf("%s: the refusal changed\n%s\nto\n%s", door, before, after)
		}
		check(t, h.DeleteSnapshot(t.Context(), "db@mine"))
		_, unpin, err := h.volumes.Pin(h.first(t, "db").ID, "a backup")
		check(t, err)
		if err := remove(h, "db"); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "a backup") {
			t.Errorf("%s: while it is read: %v", door, err)
		}
		unpin()
		if err := remove(h, "db"); err != nil {
			t.Errorf("%s: with a managed snapshot only: %v", door, err)
		}
		if left := h.everything(t); left != h.nothing() {
			t.Errorf("%s: left: %s", door, left)
		}
	}
}

// everything is all records and devices.
func (h *house) everything(t *testing.T) (text string) {
	t.Helper()
	check(t, h.store.View(func(tx *metadata.Tx) error {
		volumes, err := tx.Volumes()
		snapshots, snapshotsErr := tx.Snapshots("")
		devices, devicesErr := tx.Devices()
		text = fmt.Sprintf("%+v %+v %+v", volumes, snapshots, devices)
		return errors.Join(err, snapshotsErr, devicesErr)
	}))
	infos, err := h.pool.List(t.Context())
	check(t, err)
	for _, info := range infos {
		text += " " + string(info.ID)
	}
	return text
}

// nothing is what everything is without a volume.
func (h *house) nothing() string { return "[] [] []" }

// first is the oldest snapshot of a volume.
func (h *house) first(t *testing.T, name string) daemon.SnapshotView {
	t.Helper()
	views, err := h.Snapshots(t.Context(), name)
	check(t, err)
	if len(views) == 0 {
		t.Fatalf("volume %s has no snapshot", name)
	}
	return views[0]
}

func TestAPinnedSnapshotShowsWhyAndStays(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	h.take(t, v, snapshot.Spec{Name: "s"})
	_, unpin, err := h.volumes.Pin(h.first(t, "db").ID, "a backup")
	check(t, err)
	if view := h.first(t, "db"); len(view.Pins) != 1 || view.Pins[0] != "a backup" {
		t.Errorf("%+v", view)
	}
	if err := h.DeleteSnapshot(t.Context(), "db@s"); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "a backup") {
		t.Errorf("deleted: %v", err)
	}
	if err := h.Delete(t.Context(), "db", true); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "a backup") {
		t.Errorf("deleted with its volume: %v", err)
	}
	unpin()
	if view := h.first(t, "db"); len(view.Pins) > 0 || view.State != "ready" {
		t.Errorf("%+v", view)
	}
	check(t, h.DeleteSnapshot(t.Context(), "db@s"))
}

// TestNothingIsDoneToAVolumeThatIsBeingDeleted, as a deletion leaves it that could not be finished.
func TestNothingIsDoneToAVolumeThatIsBeingDeleted(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	h.take(t, v, snapshot.Spec{Name: "s"})
	s := h.first(t, "db")
	h.update(t, func(tx *metadata.Tx) error {
		record, err := tx.Snapshot(s.ID)
		record.State, v.State = metadata.Removing, metadata.Removing
		return errors.Join(err, tx.PutSnapshot(record), tx.PutVolume(v))
	})
	before := h.everything(t)
	for what, do := range map[string]func() error{
		"snapshot": func() error {
			_, err := h.CreateSnapshots(t.Context(), []string{"db"}, "x", nil)
			return err
		},
		"copy": func() error {
			_, err := h.Create(t.Context(), "x", []daemon.Option{{Key: "from", Value: "db"}})
			return err
		},
		"copy of its snapshot": func() error {
			_, err := h.Create(t.Context(), "x", []daemon.Option{{Key: "from", Value: "db@s"}})
			return err
		},
		"rollback": func() error {
			_, err := h.RestoreSnapshot(t.Context(), "db@s", false)
			return err
		},
		"comparison": func() error {
			return h.DiffSnapshots(t.Context(), []string{"db@s"}, func(daemon.ExtentView) error { return nil })
		},
	} {
		if err := do(); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "deleted") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if after := h.everything(t); after != before {
		t.Errorf("changed\n%s\nto\n%s", before, after)
	}
	check(t, h.Delete(t.Context(), "db", false)) // finishes what was decided
	if left := h.everything(t); left != h.nothing() {
		t.Errorf("left: %s", left)
	}
}

// TestAFullPoolInTheMiddleOfACopyLeavesNothingHalfDone: the pool has room when it is asked, and none when it copies.
func TestAFullPoolInTheMiddleOfACopyLeavesNothingHalfDone(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	h.take(t, v, snapshot.Spec{Name: "s"})
	h.pool.SetFull(true)
	before := h.everything(t)
	for what, do := range map[string]func() error{
		"snapshot": func() error {
			_, err := h.CreateSnapshots(t.Context(), []string{"db"}, "x", nil)
			return err
		},
		"copy": func() error {
			_, err := h.Create(t.Context(), "x", []daemon.Option{{Key: "from", Value: "db"}})
			return err
		},
		"copy of a snapshot": func() error {
			_, err := h.Create(t.Context(), "x", []daemon.Option{{Key: "from", Value: "db@s"}})
			return err
		},
		"rollback": func() error {
			_, err := h.RestoreSnapshot(t.Context(), "db@s", false)
			return err
		},
	} {
		if err := do(); !fault.Is(err, fault.ErrNoSpace) {
			t.Errorf("%s: %v", what, err)
		}
		if after := h.everything(t); after != before {
			t.Fatalf("%s: changed\n%s\nto\n%s", what, before, after)
		}
	}
	h.findsNothing(t)
	h.pool.SetFull(false)
	if _, err := h.RestoreSnapshot(t.Context(), "db@s", true); err != nil {
		t.Error(err)
	}
}

// TestACopyInheritsFromTheStateThatItCopies, and what is asked for goes before that.
func TestACopyInheritsFromTheStateThatItCopies(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	v.Labels, v.MountOptions, v.UID, v.GID, v.Mode = map[string]string{"app": "shop", "tier": "gold"}, []string{"noatime"}, 7, 8, 0o750
	v.Protected = true
	h.update(t, func(tx *metadata.Tx) error { return tx.PutVolume(v) })
	h.take(t, v, snapshot.Spec{Name: "s", Labels: map[string]string{"of": "the snapshot"}})
	tier := ""
	_, err := h.volumes.Set(t.Context(), v.ID, volume.Change{Labels: map[string]string{"tier": tier, "now": "yes"}})
	check(t, err)
	for _, test := range []struct {
		name, from, labels string
		more               []daemon.Option
	}{
		{"of-snapshot", "db@s", "map[app:shop tier:gold]", nil},
		{"of-volume", "db", "map[app:shop now:yes]", nil},
		{"with-label", "db@s", "map[app:bank tier:gold x:y]", []daemon.Option{{Key: "label", Value: "app=bank"}, {Key: "label.x", Value: "y"}}},
	} {
		view, err := h.Create(t.Context(), test.name, append([]daemon.Option{{Key: "from", Value: test.from}}, test.more...))
		check(t, err)
		var copied metadata.Volume
		check(t, h.store.View(func(tx *metadata.Tx) error {
			copied, err = tx.VolumeNamed(test.name)
			return err
		}))
		if got := fmt.Sprint(view.Labels); got != test.labels {
			t.Errorf("%s: labels %s, want %s", test.name, got, test.labels)
		}
		if copied.Lineage != v.Lineage || copied.ID == v.ID || copied.Device == v.Device || copied.Filesystem != v.Filesystem || copied.Size != v.Size ||
			fmt.Sprint(copied.MountOptions) != "[noatime]" || copied.UID != 7 || copied.GID != 8 || copied.Mode != 0o750 || copied.Protected {
			t.Errorf("%s: %+v", test.name, copied)
		}
		_, err = h.pool.Stat(t.Context(), blockdev.ID(copied.Device))
		check(t, err)
		check(t, h.Delete(t.Context(), test.name, false)) // its mount point is immutable
	}
}

func TestAVolumeWhereASnapshotIsWantedIsAnsweredWithItsSnapshots(t *testing.T) {
	h := newHouse(t)
	h.put(t, "empty")
	for _, name := range []string{"pg", "other"} {
		h.take(t, h.put(t, name), snapshot.Spec{Name: "of-" + name})
	}
	for ref, wanted := range map[string]string{"pg": "it is a volume: say which snapshot: pg@of-pg", "empty": `volume "empty" has no snapshots`} {
		_, err := h.RestoreSnapshot(t.Context(), ref, false)
		if !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), wanted) || strings.Contains(err.Error(), "other") {
			t.Errorf("restore %s: %v", ref, err)
		}
	}
}

// The clock was set back between two snapshots: the newer one has the lower ID.
func TestADiffIsFromTheOlderSnapshotWhateverTheClockSaid(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	old := h.take(t, v, snapshot.Spec{Name: "old"})
	newer := old
	newer.ID, newer.Name, newer.Device = "00000000-0000-7000-8000-000000000000", "new", string(blockdev.NewID())
	check(t, h.pool.Create(t.Context(), blockdev.ID(newer.Device), newer.Size, nil))
	path, err := h.pool.Activate(t.Context(), blockdev.ID(newer.Device), blockdev.ReadWrite)
	check(t, err)
	device, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = device.WriteAt([]byte("data"), 4096)
	check(t, errors.Join(err, device.Close(), h.pool.Deactivate(t.Context(), blockdev.ID(newer.Device))))
	h.update(t, func(tx *metadata.Tx) error {
		return errors.Join(tx.PutDevice(metadata.Device{ID: newer.Device, Pool: v.Pool, Kind: metadata.KindSnapshot, Size: newer.Size}), tx.PutSnapshot(newer))
	})
	for _, refs := range [][]string{{"db@old", "db@new"}, {"db@new", "db@old"}} {
		var kinds []string
		check(t, h.DiffSnapshots(t.Context(), refs, func(e daemon.ExtentView) error { kinds = append(kinds, e.Kind); return nil }))
		if len(kinds) != 1 || kinds[0] != "data" {
			t.Errorf("%q: %q", refs, kinds)
		}
	}
}
