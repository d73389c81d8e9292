package repo

import (
	"path/filepath"
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

// A place was set back to an older state, and other hosts wrote to it before those that had seen the newer one looked.
func TestWriterToAnOlderStateDoesNotHideThatItIsOlder(t *testing.T) {
	for heads := range 5 { // that the other host writes beyond the lost ones
		objects := storetest.NewMemory()
		newTestRepository(t, objects, nil)
		memory := NewMemoryFile(filepath.Join(t.TempDir(), "known.json"))
		a := openKnowing(t, objects, memory)
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
			if err != nil || len(steps) != 1 || steps[0].Done == dry || len(steps[0].Backups) == 0 || steps[0].Backups[0] != lost.ID() {
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
	mustBackup(t, openKnowing(t, objects, memory), specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	b := openFrom(t, objects, "b")
	for n := range int64(50) {
		w := mustBackup(t, b, specOf(volumeWith(map[int64]byte{n: 2}), nil, nil))
		if n%7 == 0 {
			if _, err := b.Forget(t.Context(), testLineage, []string{w.Record}); err != nil {
				t.Fatal(err)
			}
		}
		if n%20 > 8 {
			continue
		}
		if _, err := openKnowing(t, objects, memory).Backups(t.Context()); err != nil {
			t.Errorf("%d: %v", n, err)
		}
		if report, err := openKnowing(t, objects, memory).Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
			t.Errorf("%d: %+v, %v", n, report.Findings, err)
		}
	}
}
