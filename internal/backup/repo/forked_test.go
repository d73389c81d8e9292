package repo

import (
	"path/filepath"
	"slices"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// openKnowing opens a repository as a host that remembers.
func openKnowing(t *testing.T, objects store.Store, memory Memory) *Repository {
	t.Helper()
	r, err := Open(t.Context(), objects, nil, From(testOrigin("a", "1:0")), RememberedBy(memory))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// newKnowing makes a repository, and opens it so.
func newKnowing(t *testing.T) (*storetest.Memory, *MemoryFile, *Repository) {
	t.Helper()
	objects, memory := storetest.NewMemory(), NewMemoryFile(filepath.Join(t.TempDir(), "known.json"))
	newTestRepository(t, objects, nil)
	return objects, memory, openKnowing(t, objects, memory)
}

// A place was set back to an older state, and other hosts wrote to it before those that had seen the newer one looked.
func TestWriterToAnOlderStateDoesNotHideThatItIsOlder(t *testing.T) {
	for heads := range 5 { // that the other host writes beyond the lost ones
		objects, memory, a := newKnowing(t)
		mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
		v := volumeWith(map[int64]byte{0: 1, 5: 9})
		h, _ := mustNewest(t, a)
		lost := mustBackup(t, a, specOf(v, nil, nil))
		seen, _ := mustNewest(t, a)
		for n := h.Number + 1; n <= seen.Number; n++ {
			deleteAll(t, objects, HeadName(testLineage, n))
		}
		b := openFrom(t, objects, "b")
		var others []*Written
		for n := 0; n < 1+heads/2; n++ { // two heads each
			others = append(others, mustBackup(t, b, specOf(volumeWith(map[int64]byte{0: 1, 7: byte(n + 1)}), nil, nil)))
		}
		for range heads % 2 {
			if _, err := b.Forget(t.Context(), testLineage, []string{others[0].Record}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := openKnowing(t, objects, memory).Backups(t.Context()); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%d heads: %v", heads, err)
		}
		if w, err := openKnowing(t, objects, memory).Backup(t.Context(), specOf(v, nil, nil)); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%d heads: backup %v, %v", heads, w, err)
		}
		if report, err := openKnowing(t, objects, memory).Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) != 1 {
			t.Errorf("%d heads: %+v, %v", heads, report, err)
		}
		for _, dry := range []bool{true, false} {
			steps, err := Repair(t.Context(), objects, nil, RepairOptions{Memory: memory, DryRun: dry})
			if err != nil || len(steps) != 1 || steps[0].Done == dry || !slices.Contains(steps[0].Backups, lost.ID()) {
				t.Errorf("%d heads: %v, %v", heads, steps, err)
			}
		}
		a = openKnowing(t, objects, memory)
		if err := restoresTo(t, a, lost.Backup, v); err != nil {
			t.Errorf("%d heads: %v", heads, err)
		}
		if report, err := a.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
			t.Errorf("%d heads, repaired: %+v, %v", heads, report, err)
		}
	}
}

// Heads that other hosts add are no other chain, however many there are.
func TestHeadsOfOtherHostsFollow(t *testing.T) {
	objects := storetest.NewMemory()
	newTestRepository(t, objects, nil)
	memory := NewMemoryFile(filepath.Join(t.TempDir(), "known.json"))
	knowing := func() *Repository {
		r := openKnowing(t, objects, memory)
		r.kept = 8
		return r
	}
	mustBackup(t, knowing(), specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	b := openFrom(t, objects, "b")
	b.kept = 8
	for n := range int64(16) {
		w := mustBackup(t, b, specOf(volumeWith(map[int64]byte{n: 2}), nil, nil))
		if n%3 == 0 {
			if _, err := b.Forget(t.Context(), testLineage, []string{w.Record}); err != nil {
				t.Fatal(err)
			}
		}
		if n%8 > 2 { // five backups, ten heads
			continue
		}
		if _, err := knowing().Backups(t.Context()); err != nil {
			t.Errorf("%d: %v", n, err)
		}
		if report, err := knowing().Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
			t.Errorf("%d: %+v, %v", n, report.Findings, err)
		}
	}
}

// wantRestored checks that a backup restores as a volume.
func wantRestored(t *testing.T, when string, r *Repository, b *Backup, v *sparse) {
	t.Helper()
	if err := restoresTo(t, r, b, v); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

// loseHeads deletes the heads above a number.
func loseHeads(t *testing.T, r *Repository, objects *storetest.Memory, above uint64) {
	t.Helper()
	h, _ := mustNewest(t, r)
	for n := above + 1; n <= h.Number; n++ {
		deleteAll(t, objects, HeadName(testLineage, n))
	}
}

// The others wrote less than was lost, but backups.
func TestRepairFindsAllThatAnOlderStateLacks(t *testing.T) {
	objects, memory, a := newKnowing(t)
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	h, _ := mustNewest(t, a)
	v1, v2, v3 := volumeWith(map[int64]byte{0: 1, 5: 9}), volumeWith(map[int64]byte{0: 1, 6: 9}), volumeWith(map[int64]byte{0: 1, 7: 3})
	lost1, lost2 := mustBackup(t, a, specOf(v1, nil, nil)), mustBackup(t, a, specOf(v2, nil, nil))
	loseHeads(t, a, objects, h.Number)
	there := mustBackup(t, openFrom(t, objects, "b"), specOf(v3, nil, nil))
	if steps, err := Repair(t.Context(), objects, nil, RepairOptions{Memory: memory}); err != nil || len(steps) != 1 || len(steps[0].Backups) != 2 {
		t.Errorf("%v, %v", steps, err)
	}
	a = openKnowing(t, objects, memory)
	if _, err := a.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
	wantRestored(t, "the first", a, lost1.Backup, v1)
	wantRestored(t, "the second", a, lost2.Backup, v2)
	wantRestored(t, "the others'", a, there.Backup, v3)
}

// A place is set back while a backup is written, and others commit to the older state.
func TestCommitOnAStateThatIsGoneIsRefused(t *testing.T) {
	objects, memory, a := newKnowing(t)
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	h, _ := mustNewest(t, a)
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 2}), nil, nil))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 3}), nil, nil))
	v := volumeWith(map[int64]byte{0: 1, 7: 3})
	var there *Written
	faults := storetest.NewFaults(objects)
	faults.On(storetest.Put, SessionsPrefix(testLineage), 1, func(_ *storetest.Request, do func() error) error {
		loseHeads(t, openFrom(t, objects, "c"), objects, h.Number)
		there = mustBackup(t, openFrom(t, objects, "b"), specOf(v, nil, nil))
		return do()
	})
	if w, err := openKnowing(t, faults, memory).Backup(t.Context(), specOf(volumeWith(map[int64]byte{9: 9}), nil, nil)); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%v, %v", w, err)
	}
	wantRestored(t, "the others'", openFrom(t, objects, "b"), there.Backup, v)
	if _, err := Repair(t.Context(), objects, nil, RepairOptions{Memory: memory}); err != nil {
		t.Error(err)
	}
	wantRestored(t, "the others', after a repair", openKnowing(t, objects, memory), there.Backup, v)
}

// The newest head is lost, and a host that never saw it repairs: who wrote it goes on without an alarm.
func TestWriterGoesOnAfterAnothersRepair(t *testing.T) {
	for _, cut := range []bool{false, true} { // the repair is cut short after its first head
		objects, memory, a := newKnowing(t)
		mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
		v := volumeWith(map[int64]byte{0: 1, 5: 9})
		w := mustBackup(t, a, specOf(v, nil, nil))
		seen, _ := mustNewest(t, a)
		faults := storetest.NewFaults(objects)
		if cut {
			storetest.Tamper(t, objects, HeadName(testLineage, seen.Number), storetest.Flip(100))
			faults.On(storetest.Put, HeadPrefix(testLineage), 2, storetest.FailBefore(nil))
		} else {
			deleteAll(t, objects, HeadName(testLineage, seen.Number))
		}
		if _, err := Repair(t.Context(), faults, nil, RepairOptions{}); (err != nil) != cut {
			t.Errorf("cut short: %t: %v", cut, err)
		}
		wantRestored(t, "the repairer", openFrom(t, objects, "b"), w.Backup, v)
		wantRestored(t, "the writer", openKnowing(t, objects, memory), w.Backup, v)
		if _, err := openKnowing(t, objects, memory).Verify(t.Context(), VerifyOptions{}); err != nil {
			t.Error(err)
		}
		wantRestored(t, "the writer, after verify", openKnowing(t, objects, memory), w.Backup, v)
	}
}

// A listing that lacks the head before is no proof that it is gone: what is committed stays.
func TestCommitIsNotTakenBackForOneListing(t *testing.T) {
	for n := 1; ; n++ {
		objects, _, a := newKnowing(t)
		mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
		faults := storetest.NewFaults(objects)
		faults.On(storetest.List, HeadPrefix(testLineage), n, func(r *storetest.Request, do func() error) error {
			err := do()
			if i := len(r.Objects) - 2; i >= 0 {
				r.Objects = slices.Delete(slices.Clone(r.Objects), i, i+1)
			}
			return err
		})
		b, v := openFrom(t, faults, "b"), volumeWith(map[int64]byte{0: 2})
		w, err := b.Backup(t.Context(), specOf(v, nil, nil))
		if faults.Pending() > 0 {
			if n < 4 {
				t.Errorf("only %d listings", n-1)
			}
			break
		}
		if err != nil {
			t.Errorf("listing %d: %v", n, err)
			continue
		}
		wantRestored(t, "after all", openFrom(t, objects, "c"), w.Backup, v)
	}
}
