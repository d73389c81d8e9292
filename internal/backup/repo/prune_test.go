package repo

import (
	"context"
	"strings"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func openFrom(t *testing.T, objects store.Store, host string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), objects, nil, From(testOrigin(host, "1:0")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Its record was uploaded, its commit failed, and the collection that swept it was cut short.
func TestHalfSweptBackupIsNoBackup(t *testing.T) {
	objects := storetest.NewMemory()
	other := newTestRepository(t, objects, nil, From(testOrigin("other", "1:0")))
	first := mustBackup(t, other, specOf(volumeWith(map[int64]byte{0: 7}), nil, nil))
	mustBackup(t, other, specOf(volumeWith(map[int64]byte{0: 8}), nil, nil))
	faults := storetest.NewFaults(objects)
	faults.On(storetest.Put, HeadPrefix(testLineage), 2, storetest.FailBefore(fault.ErrNoSpace)) // the commit
	if _, err := openFrom(t, faults, "h").Backup(t.Context(), specOf(volumeWith(map[int64]byte{0: 1, 299: 2}), nil, nil)); !fault.Is(err, fault.ErrNoSpace) {
		t.Fatal(err)
	}
	for nth := range 3 {
		cut := objects.Clone()
		faults := storetest.NewFaults(cut)
		faults.On(storetest.Delete, SessionsPrefix(testLineage), nth+1, storetest.FailBefore(fault.ErrUnreachable))
		pruning := openFrom(t, faults, "h")
		pruning.serial = true
		_, _ = pruning.Collect(t.Context(), testLineage, nil)
		r := openFrom(t, cut, "other")
		if nth > 0 {
			if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
				t.Errorf("cut short at delete %d: verify: %+v, %v", nth+1, report.Findings, err)
			}
		}
		if _, err := Repair(t.Context(), cut, nil, RepairOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := r.Thin(t.Context(), testLineage, func([]*Backup) []string { return []string{first.Record} }); err != nil {
			t.Errorf("cut short at delete %d: thin: %v", nth+1, err)
		}
		if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
			t.Errorf("cut short at delete %d: collect: %v", nth+1, err)
		}
	}
}

func TestWriterBesideARepairThatDropsItsBaseBeginsAnew(t *testing.T) {
	objects := storetest.NewMemory()
	faults := storetest.NewFaults(objects)
	r := newTestRepository(t, faults, nil, From(testOrigin("a", "1:0")))
	before := volumeWith(map[int64]byte{1: 1, 299: 3})
	base := mustBackup(t, r, specOf(before, nil, nil))
	of := objects.Names()
	other := openFrom(t, objects, "b")
	mustBackup(t, other, specOf(volumeWith(map[int64]byte{9: 9}), nil, nil))
	after := before.clone()
	after.blocks[100] = filled(MinChunk, 77)
	meanwhile(faults, 2, func() {
		for _, name := range of {
			if strings.HasSuffix(name, ".data") {
				deleteAll(t, objects, name)
			}
		}
		if _, err := Repair(t.Context(), objects, nil, RepairOptions{DropDamaged: true}); err != nil {
			t.Error(err)
		}
	})
	w := mustBackup(t, r, specOf(after, base, before))
	if err := restoresTo(t, other, w.Backup, after); err != nil {
		t.Errorf("told committed, and: %v", err)
	}
}

func TestSessionOfAnotherHostOnADroppedBaseHoldsUpNoRule(t *testing.T) {
	objects := storetest.NewMemory()
	a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
	base := mustBackup(t, a, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	of := objects.Names()
	b := openFrom(t, objects, "b")
	old := mustBackup(t, b, specOf(volumeWith(map[int64]byte{9: 9}), nil, nil))
	mustBackup(t, b, specOf(volumeWith(map[int64]byte{8: 8}), nil, nil))
	c, err := a.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.register(t.Context(), BackupSession, nil, func(*Head) *Backup { return base.Backup }); err != nil {
		t.Fatal(err)
	}
	for _, name := range of {
		if strings.HasSuffix(name, ".data") {
			deleteAll(t, objects, name)
		}
	}
	if _, err := Repair(t.Context(), objects, nil, RepairOptions{DropDamaged: true}); err != nil {
		t.Fatal(err)
	}
	b = openFrom(t, objects, "b")
	if removed, err := b.Thin(t.Context(), testLineage, func([]*Backup) []string { return []string{old.Record} }); err != nil || len(removed) != 1 {
		t.Errorf("thin: %v, %v", removed, err)
	}
	if _, err := b.Collect(t.Context(), testLineage, nil); err != nil {
		t.Errorf("collect: %v", err)
	}
}

// countedLists counts listings.
type countedLists struct {
	store.Store

	n int
}

func (s *countedLists) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	s.n++
	return s.Store.List(ctx, prefix, fn)
}

func TestShortPackIsDamageAtOnce(t *testing.T) {
	for _, options := range [][]Option{nil, {CacheIn(t.TempDir())}} {
		objects := storetest.NewMemory()
		newTestRepository(t, objects, nil)
		lists := &countedLists{Store: objects}
		open := func() *Repository {
			r, err := Open(t.Context(), lists, nil, options...)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		good := hurtNewest(t, open, objects, func(pack string) { storetest.Tamper(t, objects, pack, storetest.Truncate(120)) })
		lists.n = 0
		_, err := open().Thin(t.Context(), testLineage, func([]*Backup) []string { return []string{good.Record} })
		if !fault.Is(err, fault.ErrCorrupt) || lists.n > 10 {
			t.Errorf("%d options: %d listings, %v", len(options), lists.n, err)
		}
	}
}

func TestCompactionsAtOnceStoreNothingTwice(t *testing.T) {
	objects, a, kept, after := wastedStock(t)
	faults := storetest.NewFaults(objects)
	b := openFrom(t, faults, "b")
	meanwhile(faults, 2, func() {
		if done, err := a.Compact(t.Context(), testLineage, 0.25); err != nil || done.Replaced == 0 {
			t.Errorf("%+v, %v", done, err)
		}
		if _, err := a.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
	})
	if done, err := b.Compact(t.Context(), testLineage, 0.25); err != nil || done != (Compacted{}) {
		t.Errorf("who was late: %+v, %v", done, err)
	}
	if _, err := b.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
	_, index, err := b.NewestIndexed(t.Context(), testLineage)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	if copies := index.places(c.lineage.Hasher().Sum(TypeChunk, 0, filled(after.block, 2))); len(copies) != 1 {
		t.Errorf("%d copies", len(copies))
	}
	if err := restoresTo(t, b, kept.Backup, after); err != nil {
		t.Error(err)
	}
}

func TestHeadThatAListingLeftOutIsNotMissing(t *testing.T) {
	objects := &headList{Store: storetest.NewMemory(), hidden: HeadName(testLineage, 3)}
	r := newTestRepository(t, objects, nil)
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	other := openFrom(t, objects.Store, "other")
	objects.before = func() { mustBackup(t, other, specOf(volumeWith(map[int64]byte{2: 1}), nil, nil)) }
	if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report.Findings, err)
	}
}
