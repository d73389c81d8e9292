package daemon_test

import (
	"strings"
	"testing"
	"time"

	"orlop/blockdev"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/metadata"
	"orlop/snapshot"
)

// findings is what doctor finds of snapshots and freezes: this machine may lack tools, or have a full disk.
func (h *house) findings(t *testing.T) (found []daemon.Finding) {
	t.Helper()
	all, err := h.Doctor(t.Context(), 0)
	check(t, err)
	for _, f := range all {
		for _, subject := range []string{"volume ", "snapshot ", "device ", "doctor"} {
			if strings.HasPrefix(f.Subject, subject) {
				found = append(found, f)
			}
		}
	}
	return found
}

// finds fails unless doctor finds one thing, which is this.
func (h *house) finds(t *testing.T, subject, problem, command string) {
	t.Helper()
	all := h.findings(t)
	if len(all) != 1 || all[0].Subject != subject || !strings.Contains(all[0].Problem, problem) || !strings.Contains(all[0].Command, command) {
		t.Errorf("doctor finds %+v, want %q %q %q", all, subject, problem, command)
	}
}

func (h *house) findsNothing(t *testing.T) {
	t.Helper()
	if all := h.findings(t); len(all) > 0 {
		t.Errorf("doctor finds %+v", all)
	}
}

func TestDoctorFindsAFreezeThatWasNotEndedAndPassesOverOneUnderWay(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	h.findsNothing(t)
	h.update(t, func(tx *metadata.Tx) error {
		return tx.PutIntent(metadata.Intent{Volume: v.ID, Boot: "boot", Device: 1 << 40})
	})
	h.finds(t, "volume db", "announced and not ended", "systemctl restart orlop")
	_, release, err := h.volumes.Lock(t.Context(), v.ID)
	check(t, err)
	h.findsNothing(t)
	release()
	h.update(t, func(tx *metadata.Tx) error {
		return tx.PutIntent(metadata.Intent{Volume: v.ID, Boot: "another", Device: 1 << 40})
	})
	h.findsNothing(t) // it ended with that boot; the next start forgets it
}

func TestDoctorFindsDevicesOfRollbacksThatCannotBeRemoved(t *testing.T) {
	for kind, problem := range map[string]string{
		metadata.KindTrash: "what a rollback replaced is not removed", metadata.KindIncoming: "a rollback that did not happen is not removed",
	} {
		h := newHouse(t)
		id := blockdev.NewID()
		check(t, h.pool.Create(t.Context(), id, mib, nil))
		h.update(t, func(tx *metadata.Tx) error {
			return tx.PutDevice(metadata.Device{ID: string(id), Pool: "fast", Kind: kind, Size: mib})
		})
		h.finds(t, "device "+string(id), problem, "journalctl -u orlop -g "+string(id))
		path, err := h.pool.Activate(t.Context(), id, blockdev.ReadWrite)
		check(t, err)
		h.finds(t, "device "+string(id), "something uses "+path, "losetup -d "+path)
		check(t, h.pool.Deactivate(t.Context(), id))
		h.update(t, func(tx *metadata.Tx) error { return tx.PutPool(metadata.Pool{Name: "fast", UUID: poolID}) })
		h.snapshots.Tidy(t.Context())
		h.findsNothing(t)
	}
}

func TestDoctorFindsSnapshotsWhoseDevicesAreGoneAndTheyCanBeDeleted(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	s := h.take(t, v, snapshot.Spec{Name: "s"})
	h.findsNothing(t)
	check(t, h.pool.Remove(t.Context(), blockdev.ID(s.Device)))
	h.finds(t, "snapshot db@s", "cannot be used", "orlop snapshot delete db@s")
	if view, err := h.InspectSnapshot(t.Context(), "db@s"); err != nil || view.State != "degraded" || view.Problem == "" {
		t.Errorf("%+v, %v", view, err)
	}
	check(t, h.DeleteSnapshot(t.Context(), "db@s"))
	h.findsNothing(t)
}

// TestAReplacedStateThatCannotBeKeptIsFoundAndCanBeDeleted: nothing else would ever end that state, and the volume
// could not be deleted for it.
func TestAReplacedStateThatCannotBeKeptIsFoundAndCanBeDeleted(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	h.update(t, func(tx *metadata.Tx) error {
		return tx.PutSnapshot(metadata.Snapshot{
			ID: string(blockdev.NewID()), Name: "before", Device: string(blockdev.NewID()), Size: mib, State: metadata.Keeping, Created: time.Now(), Volume: v,
		})
	})
	h.snapshots.Tidy(t.Context())
	h.finds(t, "snapshot db@before", "cannot be kept", "orlop snapshot delete db@before")
	if err := h.Delete(t.Context(), "db", true); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("deleted with it: %v", err)
	}
	check(t, h.DeleteSnapshot(t.Context(), "db@before"))
	h.findsNothing(t)
}

func TestDoctorFindsDeletionsThatAreNotFinished(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	s := h.take(t, v, snapshot.Spec{Name: "s"})
	s.State = metadata.Removing
	h.update(t, func(tx *metadata.Tx) error { return tx.PutSnapshot(s) })
	h.finds(t, "snapshot db@s", "deletion is not finished", "orlop snapshot delete db@s")
	check(t, h.DeleteSnapshot(t.Context(), "db@s"))
	h.findsNothing(t)
}

func TestVolumeThatCouldNotBeGrownSaysSoAndKeepsItsSize(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "db")
	v.Size = 64 * mib
	h.update(t, func(tx *metadata.Tx) error {
		device, err := tx.Device(v.Device)
		check(t, err)
		device.FailedGrowth = &metadata.FailedGrowth{Wanted: v.Size, Size: 16 * mib, Problem: "resize2fs gave up"}
		check(t, tx.PutDevice(device))
		return tx.PutVolume(v)
	})
	views, err := h.List(t.Context(), nil)
	check(t, err)
	view, err := h.Inspect(t.Context(), "db")
	check(t, err)
	got, _ := h.Get(t.Context(), "db")
	for _, view := range append(views, view, got) {
		if view.Size != 16*mib || view.WantedSize != 64*mib || view.State != "degraded" || !strings.Contains(view.Problem, "resize2fs gave up") {
			t.Errorf("%+v", view)
		}
	}
	h.finds(t, "volume db", "--size 67108864' tries again", "orlop resize db --size 16777216")
}
