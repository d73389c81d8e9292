package repo

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// delete removes the objects whose names contain a text.
func deleteAll(t *testing.T, objects store.Store, part string) {
	t.Helper()
	var names []string
	err := objects.List(t.Context(), "", func(o store.Object) error {
		if strings.Contains(o.Name, part) {
			names = append(names, o.Name)
		}
		return nil
	})
	for _, name := range names {
		if err == nil {
			err = objects.Delete(t.Context(), name)
		}
	}
	if err != nil || len(names) == 0 {
		t.Fatalf("deleted %d objects: %v", len(names), err)
	}
}

// putHead puts a head behind the newest as another program would have written it.
func (s *stock) putHead(lineage string, change func(*Head), alter func([]byte)) {
	s.t.Helper()
	r := s.open()
	h, err := r.Newest(s.t.Context(), lineage)
	if err != nil {
		s.t.Fatal(err)
	}
	next := h.child()
	change(next)
	compressor, err := newCompressor(DefaultChunk)
	if err != nil {
		s.t.Fatal(err)
	}
	data, err := encodeHead(next, compressor)
	if err != nil {
		s.t.Fatal(err)
	}
	alter(data)
	name := HeadName(lineage, next.Number)
	object, err := r.keys.SealObject(name, data)
	if err == nil {
		err = s.objects.Put(s.t.Context(), name, object)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestOldProgramLeavesAloneWhatANewerOneWrote(t *testing.T) {
	newRecord := func(h *Head) {
		last := h.Records[len(h.Records)-1]
		var fields map[string]any
		if err := json.Unmarshal(last.encoded, &fields); err != nil {
			t.Fatal(err)
		}
		fields["min_reader"], fields["record"], fields["sequence"] = 2, strings.Repeat("f", 32), h.Sequence
		encoded, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		h.Records = append(h.Records, Record{last.Backup, encoded})
		h.Sequence++
	}
	for what, put := range map[string]func(*stock){
		"head":   func(s *stock) { s.putHead("lineage-a", func(*Head) {}, func(data []byte) { data[0] = 2 }) },
		"record": func(s *stock) { s.putHead("lineage-a", newRecord, func([]byte) {}) },
	} {
		s := newStock(t, true)
		put(s)
		before := s.objects.Names()
		if _, err := s.open().Verify(t.Context(), VerifyOptions{}); !fault.Is(err, fault.ErrUnsupported) {
			t.Errorf("newer %s: verify: %v", what, err)
		}
		if steps, err := Repair(t.Context(), s.objects, s.key, RepairOptions{DropDamaged: true}); !fault.Is(err, fault.ErrUnsupported) || len(steps) > 0 {
			t.Errorf("newer %s: repair: %v, %v", what, steps, err)
		}
		if _, err := s.open().Collect(t.Context(), "lineage-a", nil); !fault.Is(err, fault.ErrUnsupported) {
			t.Errorf("newer %s: collect: %v", what, err)
		}
		if !slices.Equal(before, s.objects.Names()) {
			t.Errorf("newer %s: the objects are not what they were", what)
		}
	}
}

func TestLineageWithoutHeadsIsNeitherCollectedNorBegunAnew(t *testing.T) {
	s := newStock(t, true)
	s.known = known{}
	deleteAll(t, s.objects, HeadPrefix("lineage-a"))
	before := s.objects.Names()
	r := s.open()
	if _, err := r.Collect(t.Context(), "lineage-a", nil); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), "repair") {
		t.Errorf("collect: %v", err)
	}
	spec := specOf(volumeWith(map[int64]byte{0: 1}), nil, nil)
	spec.Backup.Lineage = "lineage-a"
	if _, err := r.Backup(t.Context(), spec); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("backup: %v", err)
	}
	if !slices.Equal(before, s.objects.Names()) {
		t.Error("something was written or deleted")
	}
	s.repair(RepairOptions{})
	s.wantWhole("after repair")
}

// Nobody remembers the newest heads; the packs tell that there were some.
func TestBackupsNewerThanTheNewestHeadAreFoundAgain(t *testing.T) {
	s := newStock(t, true)
	s.known = known{}
	deleteAll(t, s.objects, HeadName("lineage-a", 3))
	lost := s.backups[2].ID()
	report := s.verify(VerifyOptions{})
	if len(report.Findings) != 1 || !slices.Equal(report.Findings[0].Backups, []string{lost}) {
		t.Fatalf("%+v", report)
	}
	before := s.objects.Names()
	if steps := s.repair(RepairOptions{DryRun: true}); len(steps) != 1 || !slices.Equal(before, s.objects.Names()) {
		t.Errorf("%v", steps)
	}
	s.repair(RepairOptions{})
	s.wantWhole("after repair")
	if steps := s.repair(RepairOptions{}); len(steps) > 0 {
		t.Errorf("a second time: %v", steps)
	}
}

func TestDeletedBackupsAreNotFoundAgain(t *testing.T) {
	s := newStock(t, true)
	if _, err := s.open().Forget(t.Context(), "lineage-a", []string{s.backups[2].Record}); err != nil {
		t.Fatal(err)
	}
	if report := s.verify(VerifyOptions{}); len(report.Findings) > 0 {
		t.Errorf("%+v", report)
	}
	if steps := s.repair(RepairOptions{}); len(steps) > 0 {
		t.Errorf("%v", steps)
	}
}

// A record that was stored with two sequence numbers, since somebody else was faster, counts with the one it was committed
// with.
func TestRebuiltChainHasTheSequenceNumbersThatWereCommitted(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	other := newTestRepository(t, objects, key, From(testOrigin("other", "1:0")))
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, key, From(testOrigin("h", "1:0")))
	if err != nil {
		t.Fatal(err)
	}
	meanwhile(faults, 2, func() { mustBackup(t, other, specOf(volumeWith(map[int64]byte{5: 9}), nil, nil)) })
	mine := mustBackup(t, r, specOf(volumeWith(map[int64]byte{0: 1, 299: 2}), nil, nil))
	deleteAll(t, objects, "/heads/")
	if _, err := Repair(t.Context(), objects, key, RepairOptions{}); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), objects, key)
	if err != nil {
		t.Fatal(err)
	}
	backups, err := again.Backups(t.Context())
	if err != nil || len(backups) != 2 || mine.Sequence != 2 || backups[1].Record != mine.Record || backups[1].Sequence != 2 || backups[0].Sequence != 1 {
		t.Errorf("%+v, %v", backups, err)
	}
}

func TestRebuiltChainNamesDamagedBackupsAndKeepsThem(t *testing.T) {
	s := newStock(t, true)
	h, err := s.open().Newest(t.Context(), "lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.open().chain("lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.get(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	lost := s.backups[2].ID()
	tried := 0
	for _, p := range h.Live {
		if before.IsLive(p.Name) || p.Name.Kind != DataPack {
			continue
		}
		tried++
		hurt := s.hurt(HeadName("lineage-a", 3), storetest.Flip(70)).hurt(p.Name.String(), nil)
		named := func(steps []Step) bool {
			return slices.ContainsFunc(steps, func(s Step) bool { return !s.Done && slices.Contains(s.Backups, lost) })
		}
		if steps := hurt.repair(RepairOptions{DryRun: true}); !named(steps) {
			t.Errorf("in a dry run: %v", steps)
		}
		if steps := hurt.repair(RepairOptions{}); !named(steps) || !slices.Contains(hurt.ids(), lost) {
			t.Errorf("left: %v, %v", hurt.ids(), steps)
		}
		hurt.repair(RepairOptions{DropDamaged: true})
		if slices.Contains(hurt.ids(), lost) {
			t.Error("not dropped")
		}
	}
	if tried == 0 {
		t.Fatal("the newest backup has no pack of its own")
	}
}

func TestRepairRefusesAnotherRepositorysConfig(t *testing.T) {
	s, other := newStock(t, true), makeStock(t, true) // of one key
	good, err := s.objects.Get(t.Context(), ConfigName)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.objects.Get(t.Context(), ConfigName)
	if err != nil {
		t.Fatal(err)
	}
	for _, lost := range []string{"", "/heads/"} {
		mixed := s.hurt(ConfigName, func([]byte) []byte { return foreign })
		mixed.known = known{}
		if lost != "" {
			deleteAll(t, mixed.objects, lost)
		}
		before := mixed.objects.Names()
		steps, err := Repair(t.Context(), mixed.objects, s.key, RepairOptions{DropDamaged: true})
		if !fault.Is(err, fault.ErrCorrupt) || len(steps) > 0 || !slices.Equal(before, mixed.objects.Names()) {
			t.Errorf("%v, %v", steps, err)
		}
		mended := mixed.hurt(ConfigName, func([]byte) []byte { return good })
		mended.repair(RepairOptions{})
		mended.wantWhole("with its own config")
	}
}

func TestHostNoticesThatItsOwnLastBackupIsGone(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	memory := NewMemoryFile(filepath.Join(t.TempDir(), "known.json"))
	open := func(objects store.Store) *Repository {
		r, err := Open(t.Context(), objects, key, From(testOrigin("h", "1:0")), RememberedBy(memory))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	newTestRepository(t, objects, key)
	mustBackup(t, open(objects), specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	older := objects.Clone()
	mustBackup(t, open(objects), specOf(volumeWith(map[int64]byte{0: 2}), nil, nil))
	if _, err := open(older).Newest(t.Context(), testLineage); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("set back by one backup: %v", err)
	}
	deleteAll(t, older, lineagesPrefix)
	r := open(older)
	if _, err := r.Backups(t.Context()); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("without the lineage: %v", err)
	}
	if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) != 1 {
		t.Errorf("without the lineage: %+v, %v", report, err)
	}
	for _, give := range []bool{false, true} {
		steps, err := Repair(t.Context(), older, key, RepairOptions{Memory: memory, DropDamaged: give})
		if err != nil || len(steps) != 1 || steps[0].Done != give || steps[0].Lost == give {
			t.Errorf("without the lineage: %v, %v", steps, err)
		}
	}
	if backups, err := open(older).Backups(t.Context()); err != nil || len(backups) > 0 {
		t.Errorf("after repair: %v, %v", backups, err)
	}
}

// What has only the name of a head is neither remembered nor in the way when it is gone again.
func TestStrayNameAmongTheHeadsIsNotRemembered(t *testing.T) {
	for number, taken := range map[string]bool{"9999999999999999": true, "10000000000000000": false, "18446744073709551615": false} {
		s := newStock(t, true)
		memory := NewMemoryFile(filepath.Join(t.TempDir(), "known.json"))
		stray := HeadPrefix("lineage-a") + number
		if err := s.objects.Put(t.Context(), stray, []byte("x")); err != nil {
			t.Fatal(err)
		}
		newest := func() error {
			r, err := Open(t.Context(), s.objects, s.key, RememberedBy(memory))
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Newest(t.Context(), "lineage-a")
			return err
		}
		if err := newest(); fault.Is(err, fault.ErrCorrupt) != taken {
			t.Errorf("%s: %v", number, err)
		}
		if taken {
			if _, err := Repair(t.Context(), s.objects, s.key, RepairOptions{Memory: memory}); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("%s: repair: %v", number, err)
			}
		}
		if err := s.objects.Delete(t.Context(), stray); err != nil {
			t.Fatal(err)
		}
		if err := newest(); err != nil {
			t.Errorf("%s, removed again: %v", number, err)
		}
	}
}

func TestCleaningUpHeadsIsNoDamage(t *testing.T) {
	s := newStock(t, true)
	c, err := s.open().chain("lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	for range 70 {
		if _, _, err := c.change(t.Context(), nil, func(h *Head) (*Head, error) { return h.child(), nil }); err != nil {
			t.Fatal(err)
		}
	}
	cut := s.hurt(HeadName("lineage-a", 2), nil).hurt(HeadName("lineage-a", 3), nil).hurt(HeadName("lineage-a", 5), nil)
	if report := cut.verify(VerifyOptions{}); len(report.Findings) > 0 {
		t.Errorf("cut short: %+v", report.Findings)
	}
	if report := s.hurt(HeadName("lineage-a", 20), nil).verify(VerifyOptions{}); len(report.Findings) != 1 {
		t.Errorf("without a head that is kept: %+v", report.Findings)
	}
	faults := storetest.NewFaults(s.objects)
	faults.On(storetest.Get, HeadName("lineage-a", 2), 1, func(_ *storetest.Request, do func() error) error {
		if err := c.cleanHeads(t.Context(), &Collected{}); err != nil {
			t.Error(err)
		}
		return do()
	})
	r, err := Open(t.Context(), faults, s.key)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
		t.Errorf("meanwhile: %+v, %v", report.Findings, err)
	}
}

func TestBytesBehindAPackHurtNobody(t *testing.T) {
	s := newStock(t, true)
	for _, p := range s.packsOf("lineage-a") {
		longer := s.hurt(p.Name.String(), func(data []byte) []byte { return append(data, make([]byte, 512)...) })
		report := longer.verify(VerifyOptions{Data: true})
		if len(report.Findings) != 1 || len(report.Findings[0].Backups) > 0 {
			t.Errorf("%s: %+v", p.Name, report.Findings)
		}
		longer.restores("with bytes behind a pack", nil)
		longer.repair(RepairOptions{})
		longer.wantWhole("after repair")
	}
}

func TestBackupRecordThatNoPackHoldsIsStoredAgain(t *testing.T) {
	s := newStock(t, true)
	h, index, err := s.open().NewestIndexed(t.Context(), "lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.open().chain("lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	ref, e, _ := index.Find(c.lineage.Hasher().Sum(TypeBackup, 0, h.Records[2].encoded))
	hurt := s.hurt(ref.Name.String(), storetest.Flip(int(e.Offset)+3))
	hurt.repair(RepairOptions{})
	hurt.wantWhole("after repair")
	deleteAll(t, hurt.objects, "/heads/")
	hurt.known = known{}
	hurt.repair(RepairOptions{})
	hurt.wantWhole("without heads")
}
