package repo

import (
	"slices"
	"testing"
	"time"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// plannedPrune backs a volume up three times, an hour apart, and plans to keep only the newest.
func plannedPrune(t *testing.T) (r *Repository, backups []*Backup, plan *PrunePlan) {
	t.Helper()
	r = newTestRepository(t, storetest.NewMemory(), nil)
	for i := range 3 {
		spec := specOf(volumeWith(map[int64]byte{int64(i): 7}), nil, nil)
		spec.Backup.Created = time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC)
		backups = append(backups, mustBackup(t, r, spec).Backup)
	}
	plan, err := r.PlanPrune(t.Context(), PruneOptions{Policy: Policy{Last: 1}})
	if err != nil || plan.Err != nil {
		t.Fatal(err, plan.Err)
	}
	return r, backups, plan
}

func wantRecords(t *testing.T, what string, got []*Backup, want ...*Backup) {
	t.Helper()
	if !slices.Equal(records(got), records(want)) {
		t.Errorf("%s: %v, want %v", what, records(got), records(want))
	}
}

func left(t *testing.T, r *Repository) []*Backup {
	t.Helper()
	backups, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return backups
}

func TestThePlanOfAPruneIsWhatItsExecutionDoes(t *testing.T) {
	r, backups, plan := plannedPrune(t)
	wantRecords(t, "planned", plan.Remove, backups[:2]...)
	wantRecords(t, "after the plan", left(t, r), backups...)
	done, err := plan.Execute(t.Context())
	if err != nil || done.Kept != 1 || plan.Kept != 1 || done.Freed == 0 {
		t.Errorf("%+v, %v; planned to keep %d", done, err, plan.Kept)
	}
	wantRecords(t, "removed", done.Removed, plan.Remove...)
	wantRecords(t, "left", left(t, r), backups[2])
}

// A backup that is made after the plan makes more of them old: those that were not in the plan stay.
func TestNothingIsPrunedThatWasNotPlanned(t *testing.T) {
	r, backups, plan := plannedPrune(t)
	newer := mustBackup(t, r, specOf(volumeWith(map[int64]byte{9: 9}), nil, nil)).Backup
	done, err := plan.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, "removed", done.Removed, backups[:2]...)
	wantRecords(t, "left", left(t, r), backups[2], newer)
}

// The newest is deleted after the plan: what was to go is the newest now.
func TestAPlanThatIsOldRemovesNoNewestBackup(t *testing.T) {
	r, backups, plan := plannedPrune(t)
	if _, err := r.Forget(t.Context(), testLineage, []string{backups[2].Record}); err != nil {
		t.Fatal(err)
	}
	done, err := plan.Execute(t.Context())
	if err != nil || done.Kept != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	wantRecords(t, "left", left(t, r), backups[1])
}

func TestAPruneThatOnlyForgetsFreesNothing(t *testing.T) {
	r, backups, _ := plannedPrune(t)
	plan, err := r.PlanPrune(t.Context(), PruneOptions{
		Policy: Policy{Last: 1}, ForgetOnly: true, Lineages: []string{testLineage},
		Match: func(b *Backup) bool { return b.Record != backups[0].Record },
	})
	if err != nil {
		t.Fatal(err)
	}
	done, err := plan.Execute(t.Context())
	if err != nil || done.Freed != 0 {
		t.Errorf("%+v, %v", done, err)
	}
	wantRecords(t, "left", left(t, r), backups[0], backups[2])
	if freed, err := r.Free(t.Context(), testLineage, nil); err != nil || freed == 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
}

func TestAPlanTellsWhatIsMissing(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{0: 7}), nil, nil))
	old := objects.Clone()
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 8}), nil, nil))
	for _, name := range objects.Names() {
		if pack, err := ParsePackName(name); err == nil && pack.Kind == DataPack && !slices.Contains(old.Names(), name) {
			if err := objects.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	plan, err := r.PlanPrune(t.Context(), PruneOptions{Policy: Policy{Last: 1}})
	if err != nil || !fault.Is(plan.Err, fault.ErrCorrupt) || len(plan.Remove) > 0 {
		t.Errorf("%+v, %v", plan, err)
	}
	if done, err := plan.Execute(t.Context()); !fault.Is(err, fault.ErrCorrupt) || len(done.Removed) > 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if n := len(left(t, r)); n != 2 {
		t.Errorf("%d backups are left", n)
	}
}
