package repo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func TestSamplesReachEveryPack(t *testing.T) {
	s := newStock(t, true)
	packs := s.packsOf("lineage-a")
	slices.SortFunc(packs, func(a, b LivePack) int { return int(b.Size - a.Size) })
	hurt := s.hurt(packs[0].Name.String(), storetest.Flip(int(packs[0].Size/2)))
	memory := filepath.Join(t.TempDir(), "verified.json")
	read := map[string]bool{}
	for range 40 {
		hurt.verify(VerifyOptions{Sample: 0.05, Memory: memory})
		v, err := readVerified(memory)
		if err != nil {
			t.Fatal(err)
		}
		for name := range v.Packs {
			read[name] = true
		}
	}
	for _, p := range packs {
		if !read[p.Name.String()] {
			t.Errorf("%s of %d bytes was never read", p.Name, p.Size)
		}
	}
}

// Verify, then a backup of the same volume: what was lost is uploaded again, for the older backup too.
func TestNextBackupMendsWhatVerifyFoundLost(t *testing.T) {
	for what, harm := range map[string]func([]byte) []byte{"flipped": storetest.Flip(345), "missing": nil} {
		objects, key := storetest.NewMemory(), newTestKey(t)
		memory, cache := filepath.Join(t.TempDir(), "verified.json"), t.TempDir()
		newTestRepository(t, objects, key)
		open := func() *Repository { return openCached(t, objects, key, cache) }
		v := volumeWith(map[int64]byte{0: 1, 1: 2, 299: 3})
		first := mustBackup(t, open(), specOf(v, nil, nil))
		for _, name := range objects.Names() {
			if strings.HasSuffix(name, ".data") && harm == nil {
				deleteAll(t, objects, name)
			} else if strings.HasSuffix(name, ".data") {
				storetest.Tamper(t, objects, name, harm)
			}
		}
		verify := func(o VerifyOptions) []Finding {
			o.Memory = memory
			report, err := open().Verify(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return report.Findings
		}
		if found := verify(VerifyOptions{Data: true}); len(found) != 1 || len(found[0].Backups) != 1 {
			t.Fatalf("%s: %+v", what, found)
		}
		if found := verify(VerifyOptions{}); len(found) != 1 {
			t.Errorf("%s: what was found is forgotten: %+v", what, found)
		}
		spec := specOf(v, first, v)
		spec.Damage = RememberedDamage(memory)
		second := mustBackup(t, open(), spec)
		if second.Parent != "" || second.Stats.New == 0 {
			t.Errorf("%s: built on %q, %d bytes new", what, second.Parent, second.Stats.New)
		}
		r := open()
		for range 2 { // neither collection nor compaction takes the good copy away
			for _, b := range []*Written{first, second} {
				if err := restoresTo(t, r, b.Backup, v); err != nil {
					t.Errorf("%s: backup %d: %v", what, b.Sequence, err)
				}
			}
			if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
				t.Error(err)
			}
			if _, err := r.Compact(t.Context(), testLineage, 0); err != nil && harm != nil {
				t.Error(err)
			}
		}
		if _, err := Repair(t.Context(), objects, key, RepairOptions{}); err != nil {
			t.Fatal(err)
		}
		if found := verify(VerifyOptions{Data: true}); len(found) > 0 {
			t.Errorf("%s: after repair: %+v", what, found)
		}
	}
}

func openCached(t *testing.T, objects store.Store, key *Key, cache string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), objects, key, From(testOrigin("h", "1:0")), CacheIn(cache))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// restoresTo restores a backup to a file and compares that with the volume.
func restoresTo(t *testing.T, r *Repository, b *Backup, v *sparse) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if _, err := r.RestoreFile(t.Context(), b, path, nil); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want := make([]byte, v.size)
	if _, err := v.ReadAt(want, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("it is not what was backed up")
	}
	return nil
}

// A list of what packs hold, from this host's cache, says nothing of whether they are there.
func TestFullBackupDoesNotBuildOnAMissingPack(t *testing.T) {
	objects, key, cache := storetest.NewMemory(), newTestKey(t), t.TempDir()
	newTestRepository(t, objects, key)
	open := func() *Repository { return openCached(t, objects, key, cache) }
	v := volumeWith(map[int64]byte{0: 1, 1: 2, 299: 3})
	mustBackup(t, open(), specOf(v, nil, nil))
	deleteAll(t, objects, ".data")
	w := mustBackup(t, open(), specOf(v, nil, nil))
	if err := restoresTo(t, open(), w.Backup, v); err != nil {
		t.Error(err)
	}
}

func TestRestoreToFileTouchesNobodysFile(t *testing.T) {
	s := newStock(t, true)
	for what, place := range map[string]func(dir, part string) error{
		"a link":      func(dir, part string) error { return os.Symlink(filepath.Join(dir, "theirs"), part) },
		"a hard link": func(dir, part string) error { return os.Link(filepath.Join(dir, "theirs"), part) },
		"a directory": func(_, part string) error { return os.Mkdir(part, 0o700) },
	} {
		dir := t.TempDir()
		path, theirs := filepath.Join(dir, "image"), filepath.Join(dir, "theirs")
		if err := os.WriteFile(theirs, []byte("precious"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := place(dir, path+partSuffix); err != nil {
			t.Fatal(err)
		}
		if _, err := s.open().RestoreFile(t.Context(), s.backups[0], path, nil); !fault.Is(err, fault.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
		if text, err := os.ReadFile(theirs); err != nil || string(text) != "precious" {
			t.Errorf("%s: %q, %v", what, text, err)
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path+partSuffix, []byte("of an earlier restore"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path+partSuffix, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open().RestoreFile(t.Context(), s.backups[0], path, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// The medium cannot give an object back.
func TestUnreadableObjectIsDamageOfThatObject(t *testing.T) {
	s := newStock(t, true)
	names := []string{ConfigName, HeadName("lineage-a", 3), HeadName("lineage-a", 2)}
	for _, p := range s.packsOf("lineage-a") {
		names = append(names, p.Name.String())
	}
	for _, name := range names {
		faults := storetest.NewFaults(s.objects.Clone())
		unreadable := func(*storetest.Request, func() error) error {
			return fault.Errorf(fault.ErrCorrupt, "get %s: cannot be read: input/output error", name)
		}
		faults.On(storetest.Get, name, 0, unreadable)
		faults.On(storetest.GetRange, name, 0, unreadable)
		r, err := Open(t.Context(), faults, s.key)
		if err != nil {
			t.Errorf("%s: open: %v", name, err)
			continue
		}
		report, err := r.Verify(t.Context(), VerifyOptions{Data: true})
		if err != nil || !slices.ContainsFunc(report.Findings, func(f Finding) bool { return f.Object == name }) {
			t.Errorf("%s: verify: %+v, %v", name, report.Findings, err)
		}
		if steps, err := Repair(t.Context(), faults, s.key, RepairOptions{DryRun: true}); err != nil || len(steps) == 0 {
			t.Errorf("%s: repair: %v, %v", name, steps, err)
		}
	}
}

// A sector in the middle of a pack cannot be read: one record is lost, and the others are there.
func TestUnreadablePartOfAPackHurtsWhatIsInItOnly(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	before := newSparse(300*MinChunk, MinChunk)
	before.blocks[0], before.blocks[5] = noise(MinChunk, 1), noise(MinChunk, 2)
	v := before.clone()
	v.blocks[7] = noise(MinChunk, 3)
	w := mustBackup(t, r, specOf(v, nil, nil))
	other := mustBackup(t, r, specOf(before, w, v))
	pack, entries := dataPack(t, r)
	bad := entries[slices.IndexFunc(entries, func(e Entry) bool {
		return e.ID == r.chains[testLineage].lineage.Hasher().Sum(TypeChunk, 0, v.blocks[7])
	})]
	faults := storetest.NewFaults(objects)
	unreadable := func(*storetest.Request, func() error) error {
		return fault.Errorf(fault.ErrCorrupt, "get %s: cannot be read: input/output error", pack)
	}
	faults.On(storetest.Get, pack, 0, unreadable)
	faults.On(storetest.GetRange, pack, 0, func(q *storetest.Request, do func() error) error {
		if q.Offset < int64(bad.Offset+bad.Sealed) && int64(bad.Offset) < q.Offset+q.Length {
			return unreadable(q, do)
		}
		return do()
	})
	report, err := openFrom(t, faults, "b").Verify(t.Context(), VerifyOptions{Data: true})
	if err != nil || len(report.Findings) != 1 || !slices.Equal(report.Findings[0].Backups, []string{w.ID()}) {
		t.Errorf("%+v, %v", report.Findings, err)
	}
	steps, err := Repair(t.Context(), faults, nil, RepairOptions{DropDamaged: true})
	if err != nil || len(steps) != 1 || !steps[0].Done {
		t.Errorf("%v, %v", steps, err)
	}
	if backups, err := openFrom(t, objects, "b").Backups(t.Context()); err != nil || len(backups) != 1 {
		t.Errorf("%v, %v", backups, err)
	}
	if err := restoresTo(t, openFrom(t, objects, "b"), other.Backup, before); err != nil {
		t.Error(err)
	}
}

func TestLostConfigOfANewerRepositoryIsNotMadeByAnOldProgram(t *testing.T) {
	s := newStock(t, true)
	packs := s.packsOf("lineage-b")
	newer := s.hurt(ConfigName, nil).hurt(packs[len(packs)-1].Name.String(), func(pack []byte) []byte {
		pack[14] = 1
		sum := sha256.Sum256(pack[:len(pack)-sha256.Size])
		return append(pack[:len(pack)-sha256.Size], sum[:]...)
	})
	before := newer.objects.Names()
	if steps, err := Repair(t.Context(), newer.objects, s.key, RepairOptions{}); !fault.Is(err, fault.ErrUnsupported) || len(steps) > 0 {
		t.Errorf("%v, %v", steps, err)
	}
	if !slices.Equal(before, newer.objects.Names()) {
		t.Error("something was written")
	}
}

// A pack's end is gone, and with it the list of what the pack holds; this host knows the list.
func TestRepairSavesRecordsOfAPackWithoutItsEnd(t *testing.T) {
	objects, key, cache := storetest.NewMemory(), newTestKey(t), t.TempDir()
	newTestRepository(t, objects, key)
	v := volumeWith(map[int64]byte{0: 1, 1: 2, 299: 3})
	w := mustBackup(t, openCached(t, objects, key, cache), specOf(v, nil, nil))
	for _, name := range objects.Names() {
		if strings.Contains(name, "/sessions/") {
			storetest.Tamper(t, objects, name, func(data []byte) []byte { return data[:len(data)-3*trailerSize] })
		}
	}
	verify := func() []Finding {
		report, err := openCached(t, objects, key, cache).Verify(t.Context(), VerifyOptions{Data: true})
		if err != nil {
			t.Fatal(err)
		}
		return report.Findings
	}
	for _, f := range verify() {
		if len(f.Backups) > 0 {
			t.Errorf("%+v", f)
		}
	}
	if steps, err := Repair(t.Context(), objects, key, RepairOptions{Cache: cache}); err != nil || len(steps) != 2 {
		t.Errorf("%v, %v", steps, err)
	}
	if found := verify(); len(found) > 0 {
		t.Errorf("after repair: %+v", found)
	}
	if err := restoresTo(t, openCached(t, objects, key, t.TempDir()), w.Backup, v); err != nil { // as another host
		t.Error(err)
	}
}
