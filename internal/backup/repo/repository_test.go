package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func TestInitWantsAnEmptyPlaceAndSucceedsAgain(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	first := newTestRepository(t, objects, key)
	if again := newTestRepository(t, objects, key); again.ID() != first.ID() {
		t.Error("init made another repository")
	}
	for name, other := range map[string]struct {
		key  *Key
		want fault.Kind
	}{"another key": {newTestKey(t), fault.ErrCorrupt}, "no key": {nil, fault.ErrInvalid}} {
		if _, err := Init(t.Context(), objects, other.key); !fault.Is(err, other.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := objects.Names(); !slices.Equal(got, []string{ConfigName}) {
		t.Errorf("the store holds %q", got)
	}
	foreign := storetest.NewMemory()
	if err := foreign.Put(t.Context(), "photos/1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), foreign, key); !fault.Is(err, fault.ErrExists) || !strings.Contains(err.Error(), "photos/1") {
		t.Errorf("a place that holds other things: %v", err)
	}
	headless := storetest.NewMemory()
	if err := headless.Put(t.Context(), HeadName("l", 1), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), headless, key); !fault.Is(err, fault.ErrExists) || !strings.Contains(err.Error(), "delete lineages/") {
		t.Errorf("a repository without its config and packs: %v", err)
	}
	pack := PackName{Lineage: "l", Session: ID{}.String(), Kind: DataPack}
	if err := headless.Put(t.Context(), pack.String(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), headless, key); !fault.Is(err, fault.ErrExists) || !strings.Contains(err.Error(), "repair") {
		t.Errorf("a repository without its config: %v", err)
	}
}

func TestInitRefusesAStoreThatOverwrites(t *testing.T) {
	faults := storetest.NewFaults(storetest.NewMemory())
	faults.On(storetest.Put, "probe/", 0, func(_ *storetest.Request, do func() error) error {
		_ = do()
		return nil
	})
	if _, err := Init(t.Context(), faults, nil); !fault.Is(err, fault.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

func TestEveryRequestOfInitMayFail(t *testing.T) {
	key := newTestKey(t)
	for what, effect := range map[string]storetest.Effect{"before": storetest.FailBefore(nil), "after": storetest.FailAfter(nil), "lost": storetest.LoseReply} {
		for n := 1; ; n++ {
			objects := storetest.NewMemory()
			faults := storetest.NewFaults(objects)
			faults.On(storetest.Any, "", n, effect)
			_, err := Init(t.Context(), faults, key)
			if faults.Pending() > 0 {
				break
			}
			if err != nil && !fault.Is(err, fault.ErrUnreachable) {
				t.Errorf("request %d fails %s: %v", n, what, err)
			}
			if _, err := Init(t.Context(), objects, key); err != nil {
				t.Errorf("again after request %d failed %s: %v", n, what, err)
			}
		}
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	key := newTestKey(t)
	made := storetest.NewMemory()
	r := newTestRepository(t, made, key)
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	for name, c := range map[string]struct {
		key    *Key
		change func(t *testing.T, objects *storetest.Memory)
		want   fault.Kind
		text   string
	}{
		"not a repository": {key, func(t *testing.T, objects *storetest.Memory) {
			for _, name := range objects.Names() {
				if err := objects.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}, fault.ErrNotFound, "no repository"},
		"wrong key":   {newTestKey(t), nil, fault.ErrCorrupt, key.ID()},
		"no key":      {nil, nil, fault.ErrInvalid, "encrypted"},
		"new version": {key, changeConfig(`"min_reader":1`, `"min_reader":2`), fault.ErrUnsupported, "format 2"},
		"new feature": {key, changeConfig(`"features":[]`, `"features":["dream"]`), fault.ErrUnsupported, "dream"},
		"wrong key, config lost": {newTestKey(t), func(t *testing.T, objects *storetest.Memory) {
			if err := objects.Delete(t.Context(), ConfigName); err != nil {
				t.Fatal(err)
			}
		}, fault.ErrCorrupt, key.ID()},
	} {
		t.Run(name, func(t *testing.T) {
			objects := made.Clone()
			if c.change != nil {
				c.change(t, objects)
			}
			_, err := Open(t.Context(), objects, c.key)
			if !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v", err)
			}
		})
	}
	plain := storetest.NewMemory()
	newTestRepository(t, plain, nil)
	if _, err := Open(t.Context(), plain, key); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("a key for an unencrypted repository: %v", err)
	}
}

// changeConfig changes what the config says as a later version of the program would have written it.
func changeConfig(from, to string) func(t *testing.T, objects *storetest.Memory) {
	return func(t *testing.T, objects *storetest.Memory) {
		storetest.Tamper(t, objects, ConfigName, func(object []byte) []byte {
			first, _, _ := strings.Cut(string(object), "\n")
			changed := strings.Replace(first, from, to, 1)
			if changed == first {
				t.Fatalf("%q is not in %s", from, first)
			}
			signed := changed + "\n" + strings.SplitAfter(string(object), "\n")[1]
			return fmt.Appendf([]byte(signed), "sha-256 %x\n", sha256.Sum256([]byte(signed)))
		})
	}
}

func TestRepositoryWithoutItsConfigIsReadAndNotWritten(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		var key *Key
		if encrypted {
			key = newTestKey(t)
		}
		for what, damage := range map[string]func(objects *storetest.Memory) error{
			"lost": func(objects *storetest.Memory) error { return objects.Delete(t.Context(), ConfigName) },
			"damaged": func(objects *storetest.Memory) error {
				storetest.Tamper(t, objects, ConfigName, storetest.Flip(20))
				return nil
			},
		} {
			objects := storetest.NewMemory()
			v := volumeWith(map[int64]byte{1: 1, 2: 2})
			w := mustBackup(t, newTestRepository(t, objects, key), specOf(v, nil, nil))
			if err := damage(objects); err != nil {
				t.Fatal(err)
			}
			r, err := Open(t.Context(), objects, key, At("/mnt/nas"))
			if err != nil {
				t.Fatalf("config %s: %v", what, err)
			}
			if !fault.Is(r.Damage(), fault.ErrCorrupt) || !strings.Contains(r.Damage().Error(), "orlop backup repair /mnt/nas") {
				t.Errorf("config %s: %v", what, r.Damage())
			}
			if err := checkContent(t.Context(), r, w.Backup, v); err != nil {
				t.Error(err)
			}
			if _, err := r.Backup(t.Context(), specOf(v, nil, nil)); !errors.Is(err, r.Damage()) {
				t.Errorf("config %s: a backup: %v", what, err)
			}
			if _, err := r.Collect(t.Context(), testLineage, nil); !errors.Is(err, r.Damage()) {
				t.Errorf("config %s: a collection: %v", what, err)
			}
		}
	}
}

func TestHostRefusesWhatIsNotWhatItRemembers(t *testing.T) {
	dir, key := t.TempDir(), newTestKey(t)
	memory := NewMemoryFile(filepath.Join(dir, "known"))
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, key, RememberedBy(memory))
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	older := objects.Clone()
	mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 2}), nil, nil))
	mustNewest(t, r)
	open := func(objects store.Store, key *Key) error {
		r, err := Open(t.Context(), objects, key, RememberedBy(NewMemoryFile(memory.path)))
		if err == nil {
			_, err = r.Newest(t.Context(), testLineage)
		}
		return err
	}
	if err := open(objects, key); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if err := open(older, key); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), "set back") {
		t.Errorf("set back by its host: %v", err)
	}
	again, err := Open(t.Context(), older, key, RememberedBy(memory))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Backup(t.Context(), specOf(volumeWith(map[int64]byte{1: 1}), nil, nil)); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("a backup to it: %v", err)
	}
	if _, err := again.Collect(t.Context(), testLineage, nil); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("a collection in it: %v", err)
	}
	another := storetest.NewMemory()
	newTestRepository(t, another, key)
	if err := open(another, key); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), r.ID().String()) {
		t.Errorf("another repository: %v", err)
	}
	if err := open(storetest.NewMemory(), key); !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), r.ID().String()) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(memory.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(objects, key); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("memory damaged: %v", err)
	}
}

func TestDamagedOrMissingHeadIsToldWithTheRemedy(t *testing.T) {
	made, key := storetest.NewMemory(), newTestKey(t)
	v := volumeWith(map[int64]byte{1: 1})
	mustBackup(t, newTestRepository(t, made, key), specOf(v, nil, nil))
	name := HeadName(testLineage, 2)
	for what, damage := range map[string]func([]byte) []byte{
		"flipped": storetest.Flip(70), "truncated": storetest.Truncate(50), "empty": storetest.Truncate(0),
	} {
		objects := made.Clone()
		storetest.Tamper(t, objects, name, damage)
		r, err := Open(t.Context(), objects, key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Newest(t.Context(), testLineage)
		if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "orlop backup repair") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := r.Backup(t.Context(), specOf(v, nil, nil)); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: a backup: %v", what, err)
		}
	}
}

// A collection or a compaction that misses something must not conclude that the rest is not needed.
func TestNothingIsCollectedWhereSomethingIsDamaged(t *testing.T) {
	scene := newScene(t)
	r, made, _ := scene.open(t)
	h, _ := mustNewest(t, r)
	for _, p := range h.Live {
		for what, damage := range map[string]func(*storetest.Memory) error{
			"missing": func(objects *storetest.Memory) error { return objects.Delete(context.Background(), p.Name.String()) },
			"truncated": func(objects *storetest.Memory) error {
				storetest.Tamper(t, objects, p.Name.String(), storetest.Truncate(int(p.Size)-1))
				return nil
			},
		} {
			objects := made.Clone()
			if err := damage(objects); err != nil {
				t.Fatal(err)
			}
			before := objects.Names()
			damaged, err := Open(t.Context(), objects, scene.key, From(testOrigin("h", "999999999:1")))
			if err != nil {
				t.Fatal(err)
			}
			for operation, do := range map[string]func() error{
				"collect": func() error { _, err := damaged.Collect(t.Context(), testLineage, nil); return err },
				"compact": func() error { _, err := damaged.Compact(t.Context(), testLineage, 0); return err },
			} {
				err := do()
				if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), p.Name.String()) {
					t.Errorf("%s with %s %s: %v", operation, p.Name, what, err)
				}
				if after := objects.Names(); !slices.Equal(after, before) {
					t.Errorf("%s with %s %s left %q of %q", operation, p.Name, what, after, before)
				}
			}
		}
	}
}

func TestForgetRefusesWhatIsNotThere(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	w := mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil))
	if _, err := r.Forget(t.Context(), testLineage, []string{w.Record, "nobody"}); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("%v", err)
	}
	h, _ := mustNewest(t, r)
	if len(h.Records) != 1 {
		t.Error("it forgot the other one")
	}
	removed, err := r.Forget(t.Context(), testLineage, []string{w.Record})
	if err != nil || len(removed) != 1 || removed[0].Record != w.Record {
		t.Errorf("forgot %v, %v", removed, err)
	}
	if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
	if err := checkSettled(t.Context(), r, objects, testLineage); err != nil {
		t.Error(err)
	}
	if again := mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: 1}), nil, nil)); again.Sequence != w.Sequence+1 {
		t.Errorf("sequence number %d after %d", again.Sequence, w.Sequence)
	}
}

func TestLocalCacheSavesRequestsAndIsMadeAnewWhenItIsStale(t *testing.T) {
	faults, dir := storetest.NewFaults(storetest.NewMemory()), t.TempDir()
	open := func() *Repository {
		return newTestRepository(t, faults, nil, CacheIn(dir))
	}
	v := volumeWith(map[int64]byte{1: 1})
	var last *Written
	for generation := range 80 {
		v = v.clone()
		v.blocks[1] = filled(MinChunk, byte(generation+2))
		last = mustBackup(t, open(), specOf(v, nil, nil))
	}
	faults.Reset()
	r := open()
	mustNewest(t, r)
	if n := faults.Count(storetest.GetRange).Requests; n != 0 {
		t.Errorf("%d requests for what packs hold", n)
	}
	file := filepath.Join(dir, testLineage+".index")
	full, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Thin(t.Context(), testLineage, func(backups []*Backup) (records []string) {
		for _, b := range backups[:len(backups)-1] {
			records = append(records, b.Record)
		}
		return records
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
		t.Fatal(err)
	}
	mustNewest(t, open())
	if small, err := os.Stat(file); err != nil || small.Size() > full.Size()/10 {
		t.Errorf("the cache has %d bytes of %d, %v", small.Size(), full.Size(), err)
	}
	if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkContent(t.Context(), open(), last.Backup, v); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	mustBackup(t, open(), specOf(v, nil, nil)) // no cache can be written, and none is needed
}

func TestManyHeadsAreCleanedUpToThoseThatAreKept(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	for i := range 40 {
		mustBackup(t, r, specOf(volumeWith(map[int64]byte{1: byte(i + 1)}), nil, nil))
	}
	if _, err := r.Compact(t.Context(), testLineage, 0.5); err != nil {
		t.Error(err)
	}
	if done, err := r.Collect(t.Context(), testLineage, nil); err != nil || done.Heads != 82-Kept {
		t.Errorf("collected %+v, %v", done, err)
	}
	if err := checkSettled(t.Context(), r, objects, testLineage); err != nil {
		t.Error(err)
	}
	if h, _ := mustNewest(t, r); len(h.Live) != 2 || len(h.Records) != 40 {
		t.Errorf("40 small backups in %d packs after a compaction", len(h.Live))
	}
}
