package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"orlop/internal/fault"
)

func TestOnlyLegalStatesFollow(t *testing.T) {
	legal := map[[2]State]bool{
		{absent, Creating}: true, {absent, Ready}: true,
		{Creating, Ready}: true, {Creating, Removing}: true, {Creating, absent}: true,
		{Ready, Ready}: true, {Ready, Removing}: true,
		{Removing, absent}: true,
	}
	s := opened(t, t.TempDir())
	states := []State{absent, Creating, Ready, Removing, "unheard of"}
	for _, from := range states[:4] {
		for _, to := range states {
			err := s.Update(t.Context(), func(tx *Tx) error {
				for _, state := range map[State][]State{absent: nil, Creating: {Creating}, Ready: {Ready}, Removing: {Ready, Removing}}[from] {
					if err := tx.PutVolume(Volume{ID: "1", Name: "a", State: state}); err != nil {
						t.Fatal(err)
					}
				}
				var err error
				if to == absent {
					err = tx.DeleteVolume("1")
				} else {
					err = tx.PutVolume(Volume{ID: "1", Name: "a", State: to})
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

// errUndo ends a transaction that shall leave nothing.
var errUndo = errors.New("undo")

func TestNamesAreUnique(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error { return tx.PutVolume(Volume{ID: "1", Name: "a", State: Ready}) })
	err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutVolume(Volume{ID: "2", Name: "a", State: Creating}) })
	if !fault.Is(err, fault.ErrExists) {
		t.Errorf("the same name again: %v", err)
	}
	err = s.Update(t.Context(), func(tx *Tx) error { return tx.PutVolume(Volume{ID: "1", Name: "b", State: Ready}) })
	if err == nil {
		t.Error("a volume was renamed")
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutVolume(Volume{ID: "1", Name: "a", State: Removing}), tx.DeleteVolume("1"),
			tx.PutVolume(Volume{ID: "2", Name: "a", State: Creating}))
	})
	if err := s.View(func(tx *Tx) error {
		v, err := tx.VolumeNamed("a")
		if err == nil && v.ID != "2" {
			err = errors.New("the name leads to " + v.ID)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestDeletedVolumeTakesItsHoldersAlong(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		var err error
		for _, id := range []string{"1", "10", "2"} { // one ID begins like another
			err = errors.Join(err, tx.PutVolume(Volume{ID: id, Name: "name " + id, State: Ready}),
				tx.PutHolder(Holder{Volume: id, ID: "x"}), tx.PutHolder(Holder{Volume: id, ID: "y"}))
		}
		return errors.Join(err, tx.PutVolume(Volume{ID: "1", Name: "name 1", State: Removing}), tx.DeleteVolume("1"))
	})
	if err := s.View(func(tx *Tx) error {
		for id, wanted := range map[string]int{"": 4, "1": 0, "10": 2, "2": 2} {
			holders, err := tx.Holders(id)
			if err != nil || len(holders) != wanted {
				t.Errorf("holders of %q: %v, %v", id, holders, err)
			}
		}
		if _, err := tx.Volume("1"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("the deleted volume: %v", err)
		}
		if _, err := tx.VolumeNamed("name 1"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("the deleted name: %v", err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteVolume("1") }); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
}

func TestFailedUpdateHasNoEffect(t *testing.T) {
	s := opened(t, t.TempDir())
	err := s.Update(t.Context(), func(tx *Tx) error {
		return errors.Join(tx.PutVolume(Volume{ID: "1", Name: "a", State: Ready}), tx.PutEpoch(9), errUndo)
	})
	if !errors.Is(err, errUndo) {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(cancelled, func(tx *Tx) error { return tx.PutEpoch(9) }); !errors.Is(err, context.Canceled) {
		t.Errorf("update after cancel: %v", err)
	}
	if err := s.View(func(tx *Tx) error {
		if _, err := tx.Volume("1"); !fault.Is(err, fault.ErrNotFound) || tx.Epoch() != 0 {
			t.Errorf("left volume %v and epoch %d", err, tx.Epoch())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestViewSeesOneState(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error { return tx.PutEpoch(1) })
	if err := s.View(func(tx *Tx) error {
		update(t, s, func(tx *Tx) error { return tx.PutEpoch(2) })
		if tx.Epoch() != 1 {
			t.Errorf("the view's epoch became %d", tx.Epoch())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	s := opened(t, t.TempDir())
	now := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	volume := Volume{
		ID: "1", Name: "a", Lineage: "l", Device: "d", Pool: "p", PoolUUID: "u", Size: 1 << 40, Filesystem: "ext4",
		MkfsParams: []string{"-q"}, BlockSize: 4096, UID: 1, GID: 2, Mode: 0o2775, MountOptions: []string{"noatime"},
		Labels: map[string]string{"ü": ""}, Protected: true, State: Creating, Created: now,
	}
	device := Device{ID: "d", Pool: "p", Parent: "c", Kind: KindVolume, Size: 7}
	pool := Pool{Name: "p", UUID: "u", Spec: "loop:/x", Created: now}
	holder := Holder{Volume: "1", ID: "h/with/slashes", Mountpoint: "/m", User: true, Boot: "b", Epoch: 3, Since: now}
	intent := Intent{Volume: "1", Boot: "b", Device: 1 << 33}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutVolume(volume), tx.PutDevice(device), tx.PutPool(pool), tx.PutHolder(holder), tx.PutIntent(intent))
	})
	if err := s.View(func(tx *Tx) error {
		v, volumeErr := tx.Volume("1")
		d, deviceErr := tx.Device("d")
		p, known, poolErr := tx.Pool("p")
		hs, holdersErr := tx.Holders("1")
		is, intentsErr := tx.Intents()
		got := []any{v, d, p, known, hs, is}
		if wanted := []any{volume, device, pool, true, []Holder{holder}, []Intent{intent}}; !reflect.DeepEqual(got, wanted) {
			t.Errorf("put %+v\ngot %+v", wanted, got)
		}
		if _, known, err := tx.Pool("q"); known || err != nil {
			t.Errorf("an unknown pool: %t, %v", known, err)
		}
		if _, err := tx.Device("e"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("an unknown device: %v", err)
		}
		return errors.Join(volumeErr, deviceErr, poolErr, holdersErr, intentsErr)
	}); err != nil {
		t.Error(err)
	}
	update(t, s, func(tx *Tx) error {
		for range 2 { // the second finds nothing
			if err := errors.Join(tx.DeleteDevice("d"), tx.DeleteHolder("1", holder.ID), tx.DeleteIntent("1")); err != nil {
				return err
			}
		}
		devices, devicesErr := tx.Devices()
		holders, holdersErr := tx.Holders("")
		intents, intentsErr := tx.Intents()
		if len(devices)+len(holders)+len(intents) > 0 {
			t.Errorf("left %v, %v, %v", devices, holders, intents)
		}
		return errors.Join(devicesErr, holdersErr, intentsErr)
	})
}

func TestNamesComeInAlphabeticalOrder(t *testing.T) {
	s := opened(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutVolume(Volume{ID: "1", Name: "b", State: Ready}), tx.PutVolume(Volume{ID: "2", Name: "a", State: Ready}))
	})
	var names, ids []string
	if err := s.View(func(tx *Tx) error {
		volumes, err := tx.Volumes()
		for _, v := range volumes {
			ids = append(ids, v.ID)
		}
		return errors.Join(err, tx.Names(func(name string) error {
			names = append(names, name)
			return nil
		}))
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(names, []string{"a", "b"}) || !slices.Equal(ids, []string{"1", "2"}) {
		t.Errorf("names %q, ids %q", names, ids)
	}
}

// FuzzRecords puts raw in the place of each kind of record: it is read, or refused as corrupt.
func FuzzRecords(f *testing.F) {
	s, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	for _, record := range []any{Volume{ID: "1", Name: "a", State: Ready}, Snapshot{ID: "1", Name: "s", State: Ready}, Device{}, Pool{}, Holder{}, Intent{}, 1, "x", nil, []int{}} {
		raw, err := json.Marshal(record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte("{"))
	f.Add([]byte{0xff})
	f.Add([]byte(`{"size":1e99,"labels":{"a":null}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		err := s.db.Update(func(tx *bolt.Tx) error {
			for _, bucket := range [][]byte{bucketVolumes, bucketSnapshots, bucketDevices, bucketPools, bucketHolders, bucketIntents} {
				if err := tx.Bucket(bucket).Put([]byte("key"), raw); err != nil {
					t.Fatal(err)
				}
			}
			decode(t, &Tx{tx})
			return errUndo
		})
		if !errors.Is(err, errUndo) {
			t.Fatal(err)
		}
	})
}

func decode(t *testing.T, tx *Tx) {
	_, volumeErr := tx.Volume("key")
	_, volumesErr := tx.Volumes()
	_, deviceErr := tx.Device("key")
	_, devicesErr := tx.Devices()
	_, _, poolErr := tx.Pool("key")
	_, poolsErr := tx.Pools()
	_, holdersErr := tx.Holders("")
	_, intentsErr := tx.Intents()
	_, snapshotErr := tx.Snapshot("key")
	_, snapshotsErr := tx.Snapshots("")
	for _, err := range []error{snapshotErr, snapshotsErr, volumeErr, volumesErr, deviceErr, devicesErr, poolErr, poolsErr, holdersErr, intentsErr} {
		if err != nil && !fault.Is(err, fault.ErrCorrupt) {
			t.Error(err)
		}
	}
	if volumeErr != nil {
		if err := tx.PutVolume(Volume{ID: "key", Name: "n", State: Ready}); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("put over an unreadable record: %v", err)
		}
	}
	if snapshotErr != nil {
		put := tx.PutSnapshot(Snapshot{ID: "key", Name: "n", State: Ready})
		if forget := tx.DeleteSnapshot("key"); !fault.Is(put, fault.ErrCorrupt) || !fault.Is(forget, fault.ErrCorrupt) {
			t.Errorf("put over an unreadable snapshot: %v; forget it: %v", put, forget)
		}
	}
}
