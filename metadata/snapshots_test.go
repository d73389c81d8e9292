package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"orlop/internal/fault"
)

func TestOnlyLegalStatesOfASnapshotFollow(t *testing.T) {
	legal := map[[2]State]bool{
		{absent, Creating}: true, {absent, Keeping}: true, {absent, Ready}: true,
		{Creating, Ready}: true, {Creating, Removing}: true, {Creating, absent}: true,
		{Keeping, Ready}: true, {Keeping, Removing}: true,
		{Ready, Ready}: true, {Ready, Removing}: true,
		{Removing, absent}: true,
	}
	ways := map[State][]State{absent: nil, Creating: {Creating}, Keeping: {Keeping}, Ready: {Ready}, Removing: {Ready, Removing}}
	s := opened(t, t.TempDir())
	for from, way := range ways {
		for _, to := range []State{absent, Creating, Keeping, Ready, Removing, "unheard of"} {
			if from == absent && to == absent {
				continue // to forget what is not there is no error
			}
			err := s.Update(t.Context(), func(tx *Tx) error {
				one := Snapshot{ID: "1", Name: "s", Volume: Volume{ID: "v", Name: "a"}}
				for _, one.State = range way {
					if err := tx.PutSnapshot(one); err != nil {
						t.Fatal(err)
					}
				}
				err := error(nil)
				if one.State = to; to == absent {
					err = tx.DeleteSnapshot("1")
				} else {
					err = tx.PutSnapshot(one)
				}
				if ok := err == nil; ok != legal[[2]State{from, to}] {
					t.Errorf("from %q to %q: %v", from, to, err)
				}
				return errUndo
			})
			if !errors.Is(err, errUndo) {
				t.Fatal(err)
			}
		}
	}
}

// puts makes snapshots that are ready, given as ID, volume's ID and name.
func puts(tx *Tx, snapshots ...[3]string) (err error) {
	for _, s := range snapshots {
		err = errors.Join(err, tx.PutSnapshot(Snapshot{ID: s[0], Name: s[2], State: Ready, Volume: Volume{ID: s[1], Name: "name of " + s[1]}}))
	}
	return err
}

func TestNamesOfSnapshotsAreUniqueAmongTheirVolumesOnly(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error { return puts(tx, [3]string{"1", "v", "s"}, [3]string{"2", "w", "s"}) })
	for what, wrong := range map[string][3]string{"the same name again": {"3", "v", "s"}, "the name of another": {"2", "v", "s"}} {
		err := s.Update(t.Context(), func(tx *Tx) error { return puts(tx, wrong) })
		if !fault.Is(err, fault.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, wrong := range map[string][3]string{"renamed": {"1", "v", "t"}, "given to another volume": {"1", "x", "s"}} {
		if err := s.Update(t.Context(), func(tx *Tx) error { return puts(tx, wrong) }); err == nil {
			t.Errorf("a snapshot was %s", what)
		}
	}
	update(t, s, func(tx *Tx) error {
		gone := Snapshot{ID: "1", Name: "s", State: Removing, Volume: Volume{ID: "v"}}
		return errors.Join(tx.PutSnapshot(gone), tx.DeleteSnapshot("1"), tx.DeleteSnapshot("1"), puts(tx, [3]string{"3", "v", "s"}))
	})
	check(t, s, func(tx *Tx) error {
		for volume, want := range map[string]string{"v": "3", "w": "2"} {
			if got, err := tx.SnapshotNamed(volume, "s"); err != nil || got.ID != want {
				t.Errorf("s of %s is %+v, %v", volume, got, err)
			}
		}
		if _, err := tx.SnapshotNamed("x", "s"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("s of a volume that has none: %v", err)
		}
		if _, err := tx.Snapshot("1"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("the deleted snapshot: %v", err)
		}
		return nil
	})
}

// check runs fn on the records as they are.
func check(t *testing.T, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.View(fn); err != nil {
		t.Error(err)
	}
}

// An ID may begin as another one does, as far as this package knows.
func TestSnapshotsOfAVolumeAreItsOwn(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		return puts(tx, [3]string{"22", "v", "b"}, [3]string{"1", "v", "a"}, [3]string{"3", "vv", "a"}, [3]string{"21", "v.", "a"}, [3]string{"4", "w", "a/b"})
	})
	ids := func(all []Snapshot, err error) string {
		text := fmt.Sprint(err)
		for _, one := range all {
			text += " " + one.ID
		}
		return text
	}
	check(t, s, func(tx *Tx) error {
		for volume, want := range map[string]string{"": "<nil> 1 21 22 3 4", "v": "<nil> 1 22", "vv": "<nil> 3", "v.": "<nil> 21", "w": "<nil> 4", "none": "<nil>"} {
			if got := ids(tx.Snapshots(volume)); got != want {
				t.Errorf("snapshots of %q: %s, want %s", volume, got, want)
			}
		}
		for prefix, want := range map[string]string{"2": "<nil> 21 22", "21": "<nil> 21", "9": "<nil>"} {
			if got := ids(tx.SnapshotsWithID(prefix)); got != want {
				t.Errorf("snapshots whose ID begins with %q: %s, want %s", prefix, got, want)
			}
		}
		if got, err := tx.SnapshotNamed("w", "a/b"); err != nil || got.ID != "4" {
			t.Errorf("the name with a slash leads to %+v, %v", got, err)
		}
		return nil
	})
}

func TestAVolumeWithSnapshotsIsNotForgotten(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		var err error
		for _, id := range []string{"v", "v2"} { // the other one's snapshots do not count
			err = errors.Join(err, tx.PutVolume(Volume{ID: id, Name: "name of " + id, State: Ready}), tx.PutVolume(Volume{ID: id, Name: "name of " + id, State: Removing}))
		}
		return errors.Join(err, puts(tx, [3]string{"1", "v2", "s"}), tx.DeleteVolume("v"))
	})
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteVolume("v2") }); err == nil {
		t.Error("forgotten, though it has a snapshot")
	}
	update(t, s, func(tx *Tx) error {
		gone := Snapshot{ID: "1", Name: "s", State: Removing, Volume: Volume{ID: "v2"}}
		return errors.Join(tx.PutSnapshot(gone), tx.DeleteSnapshot("1"), tx.DeleteVolume("v2"))
	})
}

func TestSnapshotsComeBackAsTheyWere(t *testing.T) {
	s := opened(t, t.TempDir())
	now := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	want := Snapshot{
		ID: "1", Name: "s", Device: "d", Size: 1 << 40, Labels: map[string]string{"ü": ""}, Managed: true, Group: "g",
		Consistency: Frozen, State: Keeping, Created: now,
		Volume: Volume{ID: "v", Name: "a", Lineage: "l", Device: "e", Size: 7, Rollbacks: 3, State: Ready, Created: now},
	}
	update(t, s, func(tx *Tx) error { return tx.PutSnapshot(want) })
	want.Sequence = 1
	check(t, s, func(tx *Tx) error {
		if got, err := tx.Snapshot("1"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("put %+v\ngot %+v, %v", want, got, err)
		}
		return nil
	})
}

// IDs are of the clock, which may be set back. Sequence numbers are not, and no later record of a snapshot changes its own.
func TestSnapshotsAreNumberedAsTheyAreMade(t *testing.T) {
	s := opened(t, t.TempDir())
	ids := []string{"3", "1", "2"}
	for range 2 {
		for _, id := range ids {
			update(t, s, func(tx *Tx) error {
				return tx.PutSnapshot(Snapshot{ID: id, Name: id, State: Ready, Sequence: 77, Volume: Volume{ID: "v"}})
			})
		}
	}
	check(t, s, func(tx *Tx) error {
		for i, id := range ids {
			if got, err := tx.Snapshot(id); err != nil || got.Sequence != uint64(i+1) {
				t.Errorf("snapshot %s has the number %d, %v", id, got.Sequence, err)
			}
		}
		return nil
	})
}

// firstSchema makes of a file what an orlop without snapshots wrote.
func firstSchema(t *testing.T, dir string) {
	t.Helper()
	change(t, filepath.Join(dir, FileName), func(meta *bolt.Bucket) error {
		return errors.Join(meta.Put(keySchema, number(1)), meta.Put(keyMinReader, number(1)),
			meta.Tx().DeleteBucket(bucketSnapshots), meta.Tx().DeleteBucket(bucketSnapshotNames))
	})
}

// everything is every key and value in a file but those of the schema, as text.
func everything(t *testing.T, path string) (text string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(key, value []byte) error {
				if !bytes.Equal(key, keySchema) && !bytes.Equal(key, keyMinReader) {
					text += fmt.Sprintf("%s/%q=%q\n", name, key, value)
				}
				return nil
			})
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAFileOfTheFirstSchemaIsCopiedAndUpgraded(t *testing.T) {
	dir := sample(t)
	firstSchema(t, dir)
	path := filepath.Join(dir, FileName)
	before := everything(t, path)
	s := opened(t, dir)
	update(t, s, func(tx *Tx) error { return puts(tx, [3]string{"1", "volume-001", "s"}) })
	update(t, s, func(tx *Tx) error {
		gone := Snapshot{ID: "1", Name: "s", State: Removing, Volume: Volume{ID: "volume-001"}}
		return errors.Join(tx.PutSnapshot(gone), tx.DeleteSnapshot("1"))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if after := everything(t, path); after != before {
		t.Errorf("the upgrade changed the records:\n%s\nwere\n%s", after, before)
	}
	copied := path + ".schema-1"
	if kept := everything(t, copied); kept != before {
		t.Errorf("the copy holds\n%s\nwant\n%s", kept, before)
	}
	if schema, minReader := versions(t, copied); schema != 1 || minReader != 1 {
		t.Errorf("the copy has schema %d for readers of %d: an older program does not take it", schema, minReader)
	}
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	if err := opened(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(copied); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("upgraded twice: %v", err)
	}
}

func versions(t *testing.T, path string) (written, needed uint64) {
	t.Helper()
	change(t, path, func(meta *bolt.Bucket) error {
		written, needed = asNumber(meta.Get(keySchema)), asNumber(meta.Get(keyMinReader))
		return nil
	})
	return written, needed
}

func asNumber(raw []byte) (n uint64) {
	for _, b := range raw {
		n = n<<8 | uint64(b)
	}
	return n
}

// An orlop without snapshots reads files whose min_reader is 1 at most. Were this one's not above that, it would leak every
// snapshot, and remove volumes from under them.
func TestAProgramWithoutSnapshotsRefusesTheFile(t *testing.T) {
	dir := sample(t)
	path := filepath.Join(dir, FileName)
	for _, old := range []bool{false, true} {
		if old {
			firstSchema(t, dir)
		}
		if err := opened(t, dir).Close(); err != nil {
			t.Fatal(err)
		}
		if written, needed := versions(t, path); written != schema || needed < 2 {
			t.Errorf("of the first schema before: %t: schema %d, for readers of %d", old, written, needed)
		}
	}
}

// A rebuild may begin with a copy that an orlop without snapshots made.
func TestRebuildTakesACopyOfTheFirstSchema(t *testing.T) {
	dir := sample(t)
	firstSchema(t, dir)
	path := filepath.Join(dir, FileName)
	if err := errors.Join(os.Rename(path, filepath.Join(dir, CopyName)), os.WriteFile(path, []byte("damaged"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s, lost, _, err := Rebuild(dir)
	if err != nil || !lost {
		t.Fatalf("lost %t, %v", lost, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check(t, s, func(tx *Tx) error {
		volumes, err := tx.Volumes()
		if len(volumes) != 60 {
			t.Errorf("%d volumes", len(volumes))
		}
		return errors.Join(err, puts(tx))
	})
	update(t, s, func(tx *Tx) error { return puts(tx, [3]string{"1", "volume-001", "s"}) })
}

func TestAnUpgradeThatCannotCopyChangesNothing(t *testing.T) {
	dir := sample(t)
	firstSchema(t, dir)
	path := filepath.Join(dir, FileName)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".schema-1", 0o700); err != nil { // in the place of the copy
		t.Fatal(err)
	}
	if s, err := Open(dir); err == nil {
		_ = s.Close()
		t.Error("upgraded without a copy")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the failed upgrade changed the file (%v)", err)
	}
	if err := os.Remove(path + ".schema-1"); err != nil {
		t.Fatal(err)
	}
	opened(t, dir)
}
