package repo

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// Packs may hold as many records as they can and few bytes: then none is small.
func TestCompactionOfPacksFullOfRecordsEnds(t *testing.T) {
	r := newTestRepository(t, storetest.NewMemory(), nil, From(testOrigin("a", "1:0")))
	c, err := r.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	index, random := NewIndex(), rand.NewChaCha8([32]byte{})
	for range smallMany {
		var pack Pack
		if err := fill(nil, pack.Ref.Name.ID[:]); err != nil {
			t.Fatal(err)
		}
		pack.Ref.Name.Lineage, pack.Ref.Name.Session, pack.Ref.Name.Kind = testLineage, "s", DataPack
		pack.Ref.Size = 1 << 20
		for i := range maxEntries {
			e := Entry{Type: TypeChunk, Ordinal: uint32(i + 1), Length: MinChunk, Sealed: 64}
			_, _ = random.Read(e.ID[:]) // never fails
			pack.Entries = append(pack.Entries, e)
		}
		index.Add(pack.Ref, pack.Entries)
	}
	m, err := c.mark(t.Context(), &Head{Lineage: testLineage}, index)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(index.count) {
		if _, err := m.set(index.at(n).entry().ID); err != nil {
			t.Fatal(err)
		}
	}
	if packs := wasteful(m, 0.25); len(packs) > 0 {
		t.Errorf("%d packs are to be written anew", len(packs))
	}
}

// leftBehind counts the packs that belong to nobody.
func leftBehind(t *testing.T, r *Repository, objects store.Store) int {
	t.Helper()
	h, _ := mustNewest(t, r)
	listed := map[string]int64{}
	err := objects.List(t.Context(), SessionsPrefix(testLineage), func(o store.Object) error {
		listed[o.Name] = o.Size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	alone := *h
	alone.Sessions = nil
	return len(loose(&alone, listed))
}

func TestCompactionThatWasLateTakesBackWhatItWrote(t *testing.T) {
	objects, a, _, _ := wastedStock(t)
	faults := storetest.NewFaults(objects)
	b := openFrom(t, faults, "b")
	meanwhile(faults, 2, func() { mustTidy(t, a) })
	if done, err := b.Compact(t.Context(), testLineage, 0.25); err != nil || done.Replaced != 0 {
		t.Fatal(done, err)
	}
	if n := leftBehind(t, b, objects); n > 0 {
		t.Errorf("%d packs are nobody's", n)
	}
}

func TestCompactionWithoutRoomTakesBackWhatItWrote(t *testing.T) {
	objects, _, _, _ := wastedStock(t)
	hurt := 0
	for n := 1; ; n++ {
		try := objects.Clone()
		faults := storetest.NewFaults(try)
		faults.On(storetest.Put, SessionsPrefix(testLineage), n, storetest.FailBefore(fault.ErrNoSpace))
		_, err := openFrom(t, faults, "b").Compact(t.Context(), testLineage, 0)
		if faults.Pending() > 0 {
			break
		}
		hurt++
		if left := leftBehind(t, openFrom(t, try, "b"), try); !fault.Is(err, fault.ErrNoSpace) || left > 0 {
			t.Errorf("no room for pack %d: %d are left, %v", n, left, err)
		}
	}
	if hurt < 2 {
		t.Errorf("%d packs were written", hurt)
	}
}

// full is a store in which heads find room only once something was deleted.
type full struct {
	store.Store

	deleted bool
}

func (f *full) Put(ctx context.Context, name string, data []byte) error {
	if !f.deleted {
		return fault.Errorf(fault.ErrNoSpace, "put %s: full", name)
	}
	return f.Store.Put(ctx, name, data)
}

func (f *full) Delete(ctx context.Context, name string) error {
	f.deleted = true
	return f.Store.Delete(ctx, name)
}

// A full place must not be full for ever because of what is dead in it.
func TestWhatIsDeadMakesRoomForAHead(t *testing.T) {
	objects, a, _, _ := wastedStock(t)
	cut := storetest.NewFaults(objects)
	cut.On(storetest.Delete, SessionsPrefix(testLineage), 1, storetest.FailBefore(fault.ErrUnreachable))
	if _, err := openFrom(t, cut, "a").Compact(t.Context(), testLineage, 0.25); err != nil {
		t.Fatal(err)
	}
	h, _ := mustNewest(t, a)
	records := []string{h.Records[0].Record}
	if _, err := openFrom(t, &full{Store: objects.Clone()}, "a").Forget(t.Context(), testLineage, records); err != nil {
		t.Error(err)
	}
	if _, err := a.Collect(t.Context(), testLineage, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := openFrom(t, &full{Store: objects.Clone()}, "a").Forget(t.Context(), testLineage, records); !fault.Is(err, fault.ErrNoSpace) {
		t.Errorf("nothing is dead: %v", err)
	}
}

func TestDryRunOfAThinningBesideAPruneBeginsAnew(t *testing.T) {
	for _, dry := range []bool{false, true} {
		objects, a, _, _ := wastedStock(t)
		mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1, 290: 7}), nil, nil))
		faults := storetest.NewFaults(objects)
		b := openFrom(t, faults, "b")
		faults.On(storetest.List, SessionsPrefix(testLineage), 1, func(_ *storetest.Request, do func() error) error {
			mustTidy(t, a)
			return do()
		})
		thin := b.Thin
		if dry {
			thin = b.WouldThin
		}
		removed, err := thin(t.Context(), testLineage, func(all []*Backup) []string { return []string{all[0].Record} })
		if err != nil || len(removed) != 1 || faults.Pending() > 0 {
			t.Errorf("dry %t: %v, %v", dry, removed, err)
		}
	}
}

// The store says that there is no room for a compaction's head, which arrives all the same: what it lists must be there.
func TestCompactionWhoseHeadComesLateHasWhatItLists(t *testing.T) {
	objects, _, kept, after := wastedStock(t)
	faults := storetest.NewFaults(objects)
	faults.On(storetest.Put, HeadPrefix(testLineage), 2, func(r *storetest.Request, do func() error) error {
		_ = faults.Late(r, do)
		return fault.Errorf(fault.ErrNoSpace, "put %s: full", r.Name)
	})
	if _, err := openFrom(t, faults, "b").Compact(t.Context(), testLineage, 0.25); !fault.Is(err, fault.ErrNoSpace) {
		t.Errorf("%v", err)
	}
	faults.Deliver(t.Context())
	c := openFrom(t, objects, "c")
	if _, err := c.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
	wantRestored(t, "late", c, kept.Backup, after)
}

func TestNoRoomIsMadeWhereAllHeadsAreLost(t *testing.T) {
	objects, _, _, _ := wastedStock(t)
	deleteAll(t, objects, "/heads/")
	before := objects.Names()
	b := openFrom(t, objects, "b")
	c, err := b.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	if c.makeRoom(t.Context()) || !slices.Equal(before, objects.Names()) {
		t.Errorf("%d of %d objects are left", len(objects.Names()), len(before))
	}
}
