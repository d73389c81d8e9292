package repo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// repair repairs the stock.
func (s *stock) repair(o RepairOptions) []Step {
	s.t.Helper()
	steps, err := Repair(s.t.Context(), s.objects, s.key, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return steps
}

// ids are the backups in the repository now.
func (s *stock) ids() (ids []string) {
	s.t.Helper()
	backups, err := s.open().Backups(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, b := range backups {
		ids = append(ids, b.ID())
	}
	return ids
}

// wantWhole makes sure that nothing is wrong and everything is there.
func (s *stock) wantWhole(what string) {
	s.t.Helper()
	if report := s.verify(VerifyOptions{Data: true}); len(report.Findings) > 0 || report.Backups != len(s.backups) {
		s.t.Errorf("%s: %+v", what, report)
	}
	s.restores(what, nil)
}

func TestRepairOfAGoodRepositoryDoesNothing(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		before := s.objects.Names()
		if steps := s.repair(RepairOptions{Memory: s.known}); len(steps) > 0 || !slices.Equal(before, s.objects.Names()) {
			t.Errorf("%+v", steps)
		}
	}
}

func TestRepairMakesALostConfigAnew(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		for what, change := range map[string]func([]byte) []byte{"missing": nil, "flipped": storetest.Flip(30), "cut": storetest.Truncate(100)} {
			s := newStock(t, encrypted).hurt(ConfigName, change)
			s.restores("without a config", nil)
			before := s.objects.Names()
			if steps := s.repair(RepairOptions{DryRun: true}); len(steps) != 1 || steps[0].Object != ConfigName || steps[0].Done || !slices.Equal(before, s.objects.Names()) {
				t.Errorf("%s, dry run: %+v", what, steps)
			}
			if steps := s.repair(RepairOptions{}); len(steps) != 1 || !steps[0].Done {
				t.Errorf("%s: %+v", what, steps)
			}
			if r := s.open(); r.Damage() != nil || r.Encrypted() != encrypted {
				t.Errorf("%s: still %v", what, r.Damage())
			}
			s.wantWhole("config " + what)
		}
	}
}

// The newest head tells of the newest backup. If it is lost, the backup is found in its packs.
func TestRepairMakesTheChainAnewFromPacks(t *testing.T) {
	s := newStock(t, true)
	newest := HeadName("lineage-a", 3)
	for what, lose := range map[string]func() *stock{
		"newest head flipped": func() *stock { return s.hurt(newest, storetest.Flip(70)) },
		"newest head cut":     func() *stock { return s.hurt(newest, storetest.Truncate(40)) },
		"newest head missing": func() *stock { return s.hurt(newest, nil) },
		"two heads missing":   func() *stock { return s.hurt(newest, nil).hurt(HeadName("lineage-a", 2), nil) },
		"all heads missing": func() *stock {
			return s.hurt(newest, nil).hurt(HeadName("lineage-a", 2), nil).hurt(HeadName("lineage-a", 1), nil)
		},
		"all heads damaged": func() *stock {
			return s.hurt(newest, storetest.Flip(70)).hurt(HeadName("lineage-a", 2), storetest.Flip(70)).hurt(HeadName("lineage-a", 1), storetest.Flip(70))
		},
	} {
		hurt := lose()
		steps := hurt.repair(RepairOptions{DryRun: true, Memory: s.known})
		if len(steps) != 1 || len(steps[0].Backups) == 0 || steps[0].Done {
			t.Errorf("%s, dry run: %+v", what, steps)
		}
		steps = hurt.repair(RepairOptions{Memory: s.known})
		if len(steps) != 1 || !strings.HasPrefix(steps[0].Object, HeadPrefix("lineage-a")) || !slices.Contains(steps[0].Backups, s.backups[2].ID()) || !steps[0].Done {
			t.Errorf("%s: %+v", what, steps)
		}
		hurt.wantWhole(what)
	}
}

// An older head that is damaged hurts nobody. It must not be deleted while its number could be used again.
func TestRepairLeavesOlderHeadsBehind(t *testing.T) {
	for what, change := range map[string]func([]byte) []byte{"flipped": storetest.Flip(70), "missing": nil} {
		s := newStock(t, true).hurt(HeadName("lineage-a", 2), change)
		if steps := s.repair(RepairOptions{Memory: s.known}); len(steps) != 1 || !steps[0].Done || len(steps[0].Backups) != 0 {
			t.Errorf("%s: %+v", what, steps)
		}
		h, err := s.open().Newest(t.Context(), "lineage-a")
		if err != nil || h.Number != 2+Kept {
			t.Errorf("%s: head %d, %v", what, h.Number, err)
		}
		s.wantWhole("older head " + what)
	}
}

func TestRepairGoesOnFromAnOlderStateWhenItIsToldTo(t *testing.T) {
	s := newStock(t, true)
	s.known.Heads = map[string]uint64{"lineage-a": 9, "lineage-b": 3}
	if _, err := s.open().Newest(t.Context(), "lineage-a"); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), "repair") {
		t.Errorf("set back: %v", err)
	}
	report := s.verify(VerifyOptions{})
	if len(report.Findings) != 1 || len(report.Findings[0].Backups) != 3 {
		t.Errorf("set back: %+v", report)
	}
	if steps := s.repair(RepairOptions{Memory: s.known}); len(steps) != 1 || !steps[0].Done {
		t.Errorf("%+v", steps)
	}
	s.restores("set back and repaired", nil)
	if h, err := s.open().Newest(t.Context(), "lineage-a"); err != nil || h.Number < 10 {
		t.Errorf("head %d, %v", h.Number, err)
	}
}

// packsOf are the live packs of a lineage.
func (s *stock) packsOf(lineage string) []LivePack {
	s.t.Helper()
	h, err := s.open().Newest(s.t.Context(), lineage)
	if err != nil {
		s.t.Fatal(err)
	}
	return h.Live
}

// What is good in a damaged pack is saved. Backups whose data is lost stay until somebody says that they may go.
func TestRepairSavesWhatIsGoodInDamagedPacks(t *testing.T) {
	t.Parallel()
	s, start := newStock(t, true), newRandom(t).IntN(5)
	damages := map[string]func([]byte) []byte{
		"checksum": storetest.Flip(-1), "last record": storetest.Flip(-int(trailerSize) - 200), "missing": nil, "cut": storetest.Truncate(200),
		"header": storetest.Flip(60),
	}
	for i, p := range s.packsOf("lineage-a") {
		name := p.Name.String()
		chosen := slices.Sorted(maps.Keys(damages))
		if !soaking() { // two, so that each has its turn
			first := (2*i + start) % len(chosen)
			chosen = []string{chosen[first], chosen[(first+1)%len(chosen)]}
		}
		for _, what := range chosen {
			change := damages[what]
			hurt := s.hurt(name, change)
			lost := hurt.verify(VerifyOptions{Data: true}).Findings[0].Backups
			before := hurt.objects.Names()
			if steps := hurt.repair(RepairOptions{DryRun: true}); len(steps) != 1 || steps[0].Object != name || steps[0].Done || !slices.Equal(before, hurt.objects.Names()) {
				t.Errorf("%s of %s, dry run: %+v", what, name, steps)
			}
			steps := hurt.repair(RepairOptions{})
			if len(steps) != 1 || steps[0].Done != (len(lost) == 0) || !slices.Equal(steps[0].Backups, lost) {
				t.Errorf("%s of %s: %+v", what, name, steps)
			}
			if what == "checksum" && len(lost) > 0 {
				t.Errorf("a checksum hurts %v", lost)
			}
			hurt.restores(what+" repaired", lost)
			if len(lost) == 0 {
				hurt.wantWhole(what + " repaired")
				continue
			}
			if steps := hurt.repair(RepairOptions{DropDamaged: true}); len(steps) != 1 || !steps[0].Done {
				t.Errorf("%s of %s, dropping: %+v", what, name, steps)
			}
			var left []*Backup
			for _, b := range s.backups {
				if !slices.Contains(lost, b.ID()) {
					left = append(left, b)
				}
			}
			hurt.backups = left
			hurt.wantWhole(what + " repaired, and the damaged dropped")
			if ids := hurt.ids(); slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(lost, id) }) {
				t.Errorf("%v are left of %v", ids, lost)
			}
		}
	}
}

// A repair that is cut short at any request is done by the next one. Only soak tries them all.
func TestRepairCutShortIsDoneByTheNext(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	good := newStock(t, true)
	pack := good.packsOf("lineage-a")[0].Name.String()
	for what, hurt := range map[string]*stock{
		"config":     good.hurt(ConfigName, storetest.Flip(30)),
		"chain":      good.hurt(HeadName("lineage-a", 3), storetest.Flip(70)),
		"older head": good.hurt(HeadName("lineage-a", 2), storetest.Flip(70)),
		"pack":       good.hurt(pack, storetest.Flip(-1)),
	} {
		effects := []storetest.Effect{storetest.FailBefore(nil), storetest.FailAfter(nil)}
		for i := range effects {
			if i > 0 && !soaking() {
				break // each request was met by one of the two, at random
			}
			for n := 1; ; n++ {
				effect := effects[i]
				if !soaking() {
					n, effect = n+random.IntN(1+n), effects[random.IntN(len(effects))]
				}
				try := *hurt
				try.objects = hurt.objects.Clone()
				faults := storetest.NewFaults(try.objects)
				faults.On(storetest.Any, "", n, effect)
				_, err := Repair(t.Context(), faults, try.key, RepairOptions{Memory: try.known})
				met := faults.Pending() == 0
				try.repair(RepairOptions{Memory: try.known})
				try.wantWhole(fmt.Sprintf("%s, cut short at request %d (%v)", what, n, err))
				if !met {
					break
				}
			}
		}
	}
}

func TestRepairIsRefusedWhereItCannotHelp(t *testing.T) {
	s := newStock(t, true)
	other, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		key    *Key
		memory Memory
		kind   fault.Kind
	}{
		"wrong key":          {other, nil, fault.ErrCorrupt},
		"no key":             {nil, nil, fault.ErrInvalid},
		"another repository": {s.key, known{Repository: ID{1}}, fault.ErrCorrupt},
	} {
		if _, err := Repair(t.Context(), s.objects, test.key, RepairOptions{Memory: test.memory}); !fault.Is(err, test.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Repair(t.Context(), storetest.NewMemory(), s.key, RepairOptions{}); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
}
