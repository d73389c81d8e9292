package repo

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// hurtNewest makes two backups, hurts the data packs of the second, and returns the first.
func hurtNewest(t *testing.T, open func() *Repository, objects *storetest.Memory, hurt func(pack string)) *Written {
	t.Helper()
	good := mustBackup(t, open(), specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	before := objects.Names()
	mustBackup(t, open(), specOf(volumeWith(map[int64]byte{2: 2}), nil, nil))
	for _, name := range objects.Names() {
		if !slices.Contains(before, name) && strings.HasSuffix(name, ".data") {
			hurt(name)
		}
	}
	return good
}

// A rule may name the last backup that is good, where the newer one has lost its data and nobody knows.
func TestRulesForgetNothingWhereWhatStaysIsDamaged(t *testing.T) {
	for _, options := range [][]Option{nil, {CacheIn(t.TempDir())}} {
		objects := storetest.NewMemory()
		newTestRepository(t, objects, nil)
		open := func() *Repository {
			r, err := Open(t.Context(), objects, nil, options...)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		good := hurtNewest(t, open, objects, func(pack string) { deleteAll(t, objects, pack) })
		removed, err := open().Thin(t.Context(), testLineage, func([]*Backup) []string { return []string{good.Record} })
		if !fault.Is(err, fault.ErrCorrupt) || len(removed) > 0 {
			t.Errorf("%d options: removed %v, %v", len(options), removed, err)
		}
		if backups, err := open().Backups(t.Context()); err != nil || len(backups) != 2 {
			t.Errorf("%d options: %v, %v", len(options), backups, err)
		}
	}
}

// headList does something once, before or after a listing of heads, which leaves out the hidden one, as a listing may leave out what
// is put while it runs.
type headList struct {
	store.Store

	before, after func()
	hidden        string
}

func (s *headList) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	before, after := s.before, s.after
	if !strings.HasSuffix(prefix, "/heads/") || before == nil && after == nil {
		return s.Store.List(ctx, prefix, fn)
	}
	s.before, s.after = nil, nil
	if before != nil {
		before()
	}
	var found []store.Object
	err := s.Store.List(ctx, prefix, func(o store.Object) error {
		if o.Name != s.hidden {
			found = append(found, o)
		}
		return nil
	})
	if after != nil {
		after()
	}
	for _, o := range found {
		if err == nil {
			err = fn(o)
		}
	}
	return err
}

func TestListingThatAnswersLateIsNoOlderState(t *testing.T) {
	objects := &headList{Store: storetest.NewMemory()}
	r := newTestRepository(t, objects, nil)
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	objects.after = func() { mustBackup(t, r, specOf(volumeWith(map[int64]byte{2: 1}), nil, nil)) }
	if _, err := r.Newest(t.Context(), testLineage); err != nil {
		t.Error(err)
	}
}

func TestWhoNeverCollectsKeepsFewHeads(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	for n := range int64(80) {
		mustBackup(t, r, specOf(volumeWith(map[int64]byte{n: 1}), nil, nil))
	}
	heads := 0
	for _, name := range objects.Names() {
		if strings.Contains(name, "/heads/") {
			heads++
		}
	}
	if heads > 2*Kept+2 || heads < Kept {
		t.Errorf("%d heads after 80 backups", heads)
	}
	if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestVerifiesAtOnceForgetNothingOfEachOthersFindings(t *testing.T) {
	s := newStock(t, true)
	memory := filepath.Join(t.TempDir(), "verified.json")
	early, err := readVerified(memory)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.packsOf("lineage-a") {
		s.hurt(p.Name.String(), nil).verify(VerifyOptions{Data: true, Memory: memory})
	}
	early.change(func(v *verified) { v.Packs["another"] = time.Now() })
	if err := early.save(); err != nil {
		t.Fatal(err)
	}
	if v, err := readVerified(memory); err != nil || len(v.Damaged) == 0 || v.Packs["another"].IsZero() {
		t.Errorf("%+v, %v", v, err)
	}
}

// Compaction must look again at what is needed in the packs that it replaces.
func TestCompactionKeepsWhatHasComeToBeNeeded(t *testing.T) {
	objects := storetest.NewMemory()
	other := newTestRepository(t, objects, nil)
	a := mustBackup(t, other, specOf(volumeWith(map[int64]byte{0: 1, 1: 2, 2: 3}), nil, nil))
	mustBackup(t, other, specOf(volumeWith(map[int64]byte{0: 1, 7: 7}), nil, nil)) // needs one chunk of a's pack
	if _, err := other.Forget(t.Context(), testLineage, []string{a.Record}); err != nil {
		t.Fatal(err)
	}
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, nil)
	if err != nil {
		t.Fatal(err)
	}
	again := volumeWith(map[int64]byte{1: 2, 9: 9}) // needs what is dead in it
	var late *Written
	meanwhile(faults, 2, func() { late = mustBackup(t, other, specOf(again, nil, nil)) })
	if done, err := r.Compact(t.Context(), testLineage, 0.1); err != nil || done.Replaced == 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := restoresTo(t, other, late.Backup, again); err != nil {
		t.Error(err)
	}
}

// All nodes of the new backup are its own, but two of its chunks are in a pack that is collected before it commits.
func TestWriterLooksAgainForChunksToo(t *testing.T) {
	objects := storetest.NewMemory()
	other := newTestRepository(t, objects, nil)
	shared := mustBackup(t, other, specOf(volumeWith(map[int64]byte{0: 1, 1: 2}), nil, nil))
	mustBackup(t, other, specOf(volumeWith(map[int64]byte{7: 7}), nil, nil))
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, nil)
	if err != nil {
		t.Fatal(err)
	}
	meanwhile(faults, 2, func() {
		if _, err := other.Forget(t.Context(), testLineage, []string{shared.Record}); err != nil {
			t.Error(err)
		}
		if _, err := other.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
	})
	again := volumeWith(map[int64]byte{0: 1, 1: 2, 5: 5})
	w := mustBackup(t, r, specOf(again, nil, nil))
	if err := restoresTo(t, other, w.Backup, again); err != nil {
		t.Error(err)
	}
}

func TestCompactionKeepsTheGoodOneOfTwoCopies(t *testing.T) {
	objects := storetest.NewMemory()
	other := newTestRepository(t, objects, nil)
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs := volumeWith(map[int64]byte{0: 1, 5: 5})
	mine := volumeWith(map[int64]byte{0: 1, 1: 2, 2: 3, 3: 4})
	var their *Written
	meanwhile(faults, 2, func() { their = mustBackup(t, other, specOf(theirs, nil, nil)) })
	w := mustBackup(t, r, specOf(mine, nil, nil)) // uploads chunk 0 too
	kept := volumeWith(map[int64]byte{0: 1, 1: 2})
	keeps := mustBackup(t, other, specOf(kept, nil, nil))
	if _, err := other.Forget(t.Context(), testLineage, []string{w.Record}); err != nil {
		t.Fatal(err)
	}
	_, index, err := other.NewestIndexed(t.Context(), testLineage)
	if err != nil {
		t.Fatal(err)
	}
	c, err := other.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	copies := index.places(c.lineage.Hasher().Sum(TypeChunk, 0, filled(theirs.block, 1)))
	if len(copies) != 2 {
		t.Fatalf("%d copies", len(copies))
	}
	for _, damaged := range copies {
		hurt := objects.Clone()
		storetest.Tamper(t, hurt, damaged.ref.Name.String(), storetest.Flip(int(damaged.entry.Offset)+3))
		r, err := Open(t.Context(), hurt, nil)
		if err != nil {
			t.Fatal(err)
		}
		// It may refuse, since a pack to be replaced is damaged; it must not lose the good copy.
		if _, err := r.Compact(t.Context(), testLineage, 0.1); err != nil && !fault.Is(err, fault.ErrCorrupt) {
			t.Error(err)
		}
		if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
		for b, v := range map[*Written]*sparse{their: theirs, keeps: kept} {
			if err := restoresTo(t, r, b.Backup, v); err != nil {
				t.Errorf("damaged in %s: %v", damaged.ref.Name, err)
			}
		}
	}
}

func TestNothingIsCollectedWhereANodeIsInNoPack(t *testing.T) {
	s := newStock(t, true)
	h, index, err := s.open().NewestIndexed(t.Context(), "lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	ref, _, _ := index.Find(h.Records[0].Tree.Root)
	s.putHead("lineage-a", func(h *Head) { h.drop(map[PackName]bool{ref.Name: true}) }, func([]byte) {})
	before := s.objects.Names()
	if _, err := s.open().Collect(t.Context(), "lineage-a", nil); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if !slices.Equal(before, s.objects.Names()) {
		t.Error("something was deleted")
	}
}

func TestBackupsAreInTheOrderOfTheirSequenceWhateverTheClocksSaid(t *testing.T) {
	r := newTestRepository(t, storetest.NewMemory(), nil)
	var want, got []string
	for n := range 4 {
		spec := specOf(volumeWith(map[int64]byte{int64(n): 1}), nil, nil)
		spec.Backup.Created = time.Date(2030-n, 1, 1, 0, 0, 0, 0, time.UTC)
		want = append(want, mustBackup(t, r, spec).Record)
	}
	backups, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		got = append(got, b.Record)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestBackupWhoseRecordCannotBeStoredUploadsNothing(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	before := objects.Names()
	spec := specOf(volumeWith(map[int64]byte{0: 1}), nil, nil)
	spec.Backup.Labels = map[string]string{"a": strings.Repeat("x", maxBackup)}
	if _, err := r.Backup(t.Context(), spec); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if !slices.Equal(before, objects.Names()) {
		t.Error("something was uploaded")
	}
}

// slowSource takes days for its first chunk.
type slowSource struct {
	*sparse

	once sync.Once
}

func (s *slowSource) ReadAt(p []byte, offset int64) (int, error) {
	s.once.Do(func() { time.Sleep(50 * time.Hour) })
	return s.sparse.ReadAt(p, offset)
}

func TestWriterThatUploadsNothingShowsThatItIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		objects := storetest.NewMemory()
		r := newTestRepository(t, objects, nil)
		v := volumeWith(map[int64]byte{0: 1})
		spec := specOf(v, nil, nil)
		spec.Source = &slowSource{sparse: v}
		w := mustBackup(t, r, spec)
		beats := 0
		for _, name := range objects.Names() {
			if strings.HasSuffix(name, ".beat") {
				beats++
			}
		}
		if beats != 8 {
			t.Errorf("%d beats in 50 hours", beats)
		}
		if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
		if left := slices.ContainsFunc(objects.Names(), func(name string) bool { return strings.HasSuffix(name, ".beat") }); left {
			t.Error("beats are left when the session is over")
		}
		if err := restoresTo(t, r, w.Backup, v); err != nil {
			t.Error(err)
		}
	})
}

func TestVerifyLooksPastALineageThatItCannotLookAt(t *testing.T) {
	s := newStock(t, true)
	bad := s.packsOf("lineage-b")[0].Name.String()
	hurt := s.hurt(bad, storetest.Flip(40))
	faults := storetest.NewFaults(hurt.objects)
	faults.On(storetest.Any, s.packsOf("lineage-a")[0].Name.String(), 0, storetest.FailBefore(fault.ErrUnreachable))
	r, err := Open(t.Context(), faults, s.key)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Verify(t.Context(), VerifyOptions{Data: true})
	if !fault.Is(err, fault.ErrUnreachable) || len(report.Findings) != 1 || report.Findings[0].Object != bad {
		t.Errorf("%+v, %v", report.Findings, err)
	}
}
