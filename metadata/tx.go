package metadata

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"orlop/internal/fault"
)

// A Tx is a transaction. It is valid inside the function given to View or Update only.
type Tx struct {
	tx *bolt.Tx
}

// Volume returns the volume with this ID, or fault.ErrNotFound.
func (t *Tx) Volume(id string) (Volume, error) {
	volume, ok, err := read[Volume](t, bucketVolumes, id)
	if err == nil && !ok {
		err = fault.Errorf(fault.ErrNotFound, "volume %q: not found", id)
	}
	return volume, err
}

// VolumeNamed returns the volume with this name, or fault.ErrNotFound.
func (t *Tx) VolumeNamed(name string) (Volume, error) {
	if id := t.tx.Bucket(bucketNames).Get([]byte(name)); id != nil {
		return t.Volume(string(id))
	}
	return Volume{}, fault.Errorf(fault.ErrNotFound, "volume %q: not found", name)
}

// Volumes returns every volume, sorted by ID and so by age.
func (t *Tx) Volumes() ([]Volume, error) { return readAll[Volume](t, bucketVolumes, "") }

// VolumesWithID returns the volumes whose ID begins with prefix.
func (t *Tx) VolumesWithID(prefix string) ([]Volume, error) {
	return readAll[Volume](t, bucketVolumes, prefix)
}

// Names calls fn with the name of every volume in alphabetical order. It reads no records.
func (t *Tx) Names(fn func(name string) error) error {
	return t.tx.Bucket(bucketNames).ForEach(func(name, _ []byte) error { return fn(string(name)) })
}

// PutVolume makes or replaces a volume's record. It fails with fault.ErrExists if another volume has the name,
// and refuses a state that may not follow the present one.
func (t *Tx) PutVolume(v Volume) error {
	old, existed, err := read[Volume](t, bucketVolumes, v.ID)
	if err != nil {
		return err
	}
	if err := follow(v.Name, old.State, v.State); err != nil {
		return err
	}
	names := t.tx.Bucket(bucketNames)
	if owner := names.Get([]byte(v.Name)); owner != nil && string(owner) != v.ID {
		return fault.Errorf(fault.ErrExists, "volume %q: already exists", v.Name)
	}
	if existed && old.Name != v.Name {
		return fmt.Errorf("volume %q: cannot be renamed to %q", old.Name, v.Name)
	}
	if err := names.Put([]byte(v.Name), []byte(v.ID)); err != nil {
		return fmt.Errorf("record volume %q: %w", v.Name, err)
	}
	return write(t, bucketVolumes, v.ID, v)
}

// DeleteVolume forgets a volume, its holders and what is known of its backups. It refuses one whose device may still be there, or that has
// snapshots.
func (t *Tx) DeleteVolume(id string) error {
	v, err := t.Volume(id)
	if err != nil {
		return err
	}
	if err := follow(v.Name, v.State, absent); err != nil {
		return err
	}
	if key, _ := t.tx.Bucket(bucketSnapshotNames).Cursor().Seek([]byte(id + "/")); hasPrefix(key, id+"/") {
		return fmt.Errorf("volume %q: still has snapshots", v.Name)
	}
	holders, err := t.Holders(id)
	if err != nil {
		return err
	}
	for _, holder := range holders {
		if err := t.DeleteHolder(id, holder.ID); err != nil {
			return err
		}
	}
	backups, err := t.Backups(id)
	if err != nil {
		return err
	}
	for _, b := range backups {
		if err := remove(t, bucketBackups, id+"/"+b.Destination); err != nil {
			return err
		}
	}
	if err := t.tx.Bucket(bucketNames).Delete([]byte(v.Name)); err != nil {
		return fmt.Errorf("forget volume %q: %w", v.Name, err)
	}
	return remove(t, bucketVolumes, id)
}

// follow fails unless state next may come after state now.
func follow(name string, now, next State) error {
	if slices.Contains(transitions[now], next) {
		return nil
	}
	return fmt.Errorf("volume %q: state %q may not become %q", name, now, next)
}

// Snapshot returns the snapshot with this ID, or fault.ErrNotFound.
func (t *Tx) Snapshot(id string) (Snapshot, error) {
	snapshot, ok, err := read[Snapshot](t, bucketSnapshots, id)
	if err == nil && !ok {
		err = fault.Errorf(fault.ErrNotFound, "snapshot %q: not found", id)
	}
	return snapshot, err
}

// SnapshotNamed returns the snapshot of a volume, given by its ID, that has this name, or fault.ErrNotFound.
func (t *Tx) SnapshotNamed(volume, name string) (Snapshot, error) {
	if id := t.tx.Bucket(bucketSnapshotNames).Get([]byte(volume + "/" + name)); id != nil {
		return t.Snapshot(string(id))
	}
	return Snapshot{}, fault.Errorf(fault.ErrNotFound, "snapshot %q: not found", name)
}

// Snapshots returns a volume's snapshots, or everybody's if volume is empty, sorted by ID and so by age.
func (t *Tx) Snapshots(volume string) ([]Snapshot, error) {
	if volume == "" {
		return readAll[Snapshot](t, bucketSnapshots, "")
	}
	var snapshots []Snapshot
	cursor := t.tx.Bucket(bucketSnapshotNames).Cursor()
	for key, id := cursor.Seek([]byte(volume + "/")); hasPrefix(key, volume+"/"); key, id = cursor.Next() {
		snapshot, err := t.Snapshot(string(id))
		if err != nil {
			return nil, err
		}
		snapshots = append(snapshots, snapshot)
	}
	slices.SortFunc(snapshots, func(a, b Snapshot) int { return strings.Compare(a.ID, b.ID) })
	return snapshots, nil
}

// SnapshotsWithID returns the snapshots whose ID begins with prefix.
func (t *Tx) SnapshotsWithID(prefix string) ([]Snapshot, error) {
	return readAll[Snapshot](t, bucketSnapshots, prefix)
}

// PutSnapshot makes or replaces a snapshot's record, and gives a new one its sequence number. It fails with fault.ErrExists if another snapshot of its volume
// has the name, and refuses a state that may not follow the present one.
func (t *Tx) PutSnapshot(s Snapshot) error {
	old, existed, err := read[Snapshot](t, bucketSnapshots, s.ID)
	if err != nil {
		return err
	}
	if !slices.Contains(snapshotTransitions[old.State], s.State) {
		return fmt.Errorf("snapshot %q: state %q may not become %q", s.Name, old.State, s.State)
	}
	if s.Sequence = old.Sequence; !existed {
		if s.Sequence, err = t.tx.Bucket(bucketSnapshots).NextSequence(); err != nil {
			return fmt.Errorf("record snapshot %q: %w", s.Name, err)
		}
	}
	names, key := t.tx.Bucket(bucketSnapshotNames), []byte(s.Volume.ID+"/"+s.Name)
	if owner := names.Get(key); owner != nil && string(owner) != s.ID {
		return fault.Errorf(fault.ErrExists, "snapshot %s@%s: already exists", s.Volume.Name, s.Name)
	}
	if existed && (old.Name != s.Name || old.Volume.ID != s.Volume.ID) {
		return fmt.Errorf("snapshot %s: cannot be renamed", s.ID)
	}
	if err := names.Put(key, []byte(s.ID)); err != nil {
		return fmt.Errorf("record snapshot %q: %w", s.Name, err)
	}
	return write(t, bucketSnapshots, s.ID, s)
}

// DeleteSnapshot forgets a snapshot; one that is not there is no error. It refuses one whose device may still be
// there.
func (t *Tx) DeleteSnapshot(id string) error {
	s, existed, err := read[Snapshot](t, bucketSnapshots, id)
	if err != nil || !existed {
		return err
	}
	if !slices.Contains(snapshotTransitions[s.State], absent) {
		return fmt.Errorf("snapshot %q: cannot be forgotten in state %q", s.Name, s.State)
	}
	if err := t.tx.Bucket(bucketSnapshotNames).Delete([]byte(s.Volume.ID + "/" + s.Name)); err != nil {
		return fmt.Errorf("forget snapshot %q: %w", s.Name, err)
	}
	return remove(t, bucketSnapshots, id)
}

// Device returns a device's record, or fault.ErrNotFound.
func (t *Tx) Device(id string) (Device, error) {
	device, ok, err := read[Device](t, bucketDevices, id)
	if err == nil && !ok {
		err = fault.Errorf(fault.ErrNotFound, "device %q: not found", id)
	}
	return device, err
}

// Devices returns every device's record.
func (t *Tx) Devices() ([]Device, error) { return readAll[Device](t, bucketDevices, "") }

// PutDevice makes or replaces a device's record.
func (t *Tx) PutDevice(d Device) error { return write(t, bucketDevices, d.ID, d) }

// DeleteDevice forgets a device.
func (t *Tx) DeleteDevice(id string) error { return remove(t, bucketDevices, id) }

// Pool returns the pool known by this name; ok is false if there is none.
func (t *Tx) Pool(name string) (pool Pool, ok bool, err error) {
	return read[Pool](t, bucketPools, name)
}

// Pools returns every pool that was ever known.
func (t *Tx) Pools() ([]Pool, error) { return readAll[Pool](t, bucketPools, "") }

// PutPool makes or replaces a pool's record.
func (t *Tx) PutPool(p Pool) error { return write(t, bucketPools, p.Name, p) }

// Holders returns a volume's holders, or everybody's if volume is empty.
func (t *Tx) Holders(volume string) ([]Holder, error) {
	if volume == "" {
		return readAll[Holder](t, bucketHolders, "")
	}
	return readAll[Holder](t, bucketHolders, volume+"/")
}

// PutHolder records a holder; the same volume and ID replace the former record.
func (t *Tx) PutHolder(h Holder) error { return write(t, bucketHolders, h.Volume+"/"+h.ID, h) }

// DeleteHolder forgets a holder; one that is not there is no error.
func (t *Tx) DeleteHolder(volume, id string) error { return remove(t, bucketHolders, volume+"/"+id) }

// Intents returns every announced freeze.
func (t *Tx) Intents() ([]Intent, error) { return readAll[Intent](t, bucketIntents, "") }

// Intent returns the announced freeze of a volume; ok is false if there is none.
func (t *Tx) Intent(volume string) (intent Intent, ok bool, err error) {
	return read[Intent](t, bucketIntents, volume)
}

// PutIntent announces a freeze.
func (t *Tx) PutIntent(i Intent) error { return write(t, bucketIntents, i.Volume, i) }

// DeleteIntent withdraws the announcement of a volume's freeze.
func (t *Tx) DeleteIntent(volume string) error { return remove(t, bucketIntents, volume) }

// Job returns the job with this ID, or fault.ErrNotFound.
func (t *Tx) Job(id string) (Job, error) {
	job, ok, err := read[Job](t, bucketJobs, id)
	if err == nil && !ok {
		err = fault.Errorf(fault.ErrNotFound, "job %q: not found", id)
	}
	return job, err
}

// Jobs returns the jobs whose ID begins with prefix, sorted by ID and so by age.
func (t *Tx) Jobs(prefix string) ([]Job, error) { return readAll[Job](t, bucketJobs, prefix) }

// PutJob makes or replaces a job's record. It refuses to change one that has ended.
func (t *Tx) PutJob(j Job) error {
	old, existed, err := read[Job](t, bucketJobs, j.ID)
	if err != nil {
		return err
	}
	if existed && old.State != JobRunning {
		return fmt.Errorf("job %q: has ended already", j.ID)
	}
	return write(t, bucketJobs, j.ID, j)
}

// DeleteJob forgets a job.
func (t *Tx) DeleteJob(id string) error { return remove(t, bucketJobs, id) }

// Backups returns what is known of the backups of a volume, given by its ID, or of all volumes if that is empty.
func (t *Tx) Backups(volume string) ([]BackupStatus, error) {
	if volume != "" {
		volume += "/"
	}
	return readAll[BackupStatus](t, bucketBackups, volume)
}

// ChangeBackups records what change makes of what is known of a volume's backups at one destination.
func (t *Tx) ChangeBackups(volume, destination string, change func(*BackupStatus)) error {
	key := volume + "/" + destination
	status, _, err := read[BackupStatus](t, bucketBackups, key)
	if err != nil {
		return err
	}
	status.Volume, status.Destination = volume, destination
	change(&status)
	return write(t, bucketBackups, key, status)
}

// Collected returns when this host last freed space at a destination, the zero time if it never did.
func (t *Tx) Collected(destination string) (at time.Time, err error) {
	if raw := t.tx.Bucket(bucketMeta).Get([]byte(keyCollected + destination)); raw != nil {
		err = at.UnmarshalText(raw)
	}
	return at, err
}

// PutCollected records when this host freed space at a destination.
func (t *Tx) PutCollected(destination string, at time.Time) error {
	raw, err := at.MarshalText()
	if err != nil {
		return err
	}
	return t.tx.Bucket(bucketMeta).Put([]byte(keyCollected+destination), raw)
}

// Epoch returns the number of the present Docker epoch.
func (t *Tx) Epoch() uint64 {
	if raw := t.tx.Bucket(bucketMeta).Get(keyEpoch); len(raw) == 8 {
		return binary.BigEndian.Uint64(raw)
	}
	return 0
}

// FinishRebuild notes that a rebuild, if there was one, is done.
func (t *Tx) FinishRebuild() error { return t.tx.Bucket(bucketMeta).Delete(keyRebuild) }

// PutEpoch records the number of the present Docker epoch.
func (t *Tx) PutEpoch(n uint64) error { return t.tx.Bucket(bucketMeta).Put(keyEpoch, number(n)) }

func read[T any](t *Tx, bucket []byte, key string) (record T, ok bool, err error) {
	raw := t.tx.Bucket(bucket).Get([]byte(key))
	if raw == nil {
		return record, false, nil
	}
	if err := json.Unmarshal(raw, &record); err != nil {
		return record, false, fault.Errorf(fault.ErrCorrupt, "metadata %s/%s: %w", bucket, key, err)
	}
	return record, true, nil
}

func readAll[T any](t *Tx, bucket []byte, prefix string) ([]T, error) {
	var records []T
	cursor := t.tx.Bucket(bucket).Cursor()
	for key, raw := cursor.Seek([]byte(prefix)); key != nil && hasPrefix(key, prefix); key, raw = cursor.Next() {
		var record T
		if err := json.Unmarshal(raw, &record); err != nil {
			return nil, fault.Errorf(fault.ErrCorrupt, "metadata %s/%s: %w", bucket, key, err)
		}
		records = append(records, record)
	}
	return records, nil
}

func hasPrefix(key []byte, prefix string) bool {
	return len(key) >= len(prefix) && string(key[:len(prefix)]) == prefix
}

func write(t *Tx, bucket []byte, key string, record any) error {
	var raw bytes.Buffer
	encoder := json.NewEncoder(&raw)
	encoder.SetEscapeHTML(false) // the result of a job is shown as it is, URLs included
	if err := encoder.Encode(record); err != nil {
		return fmt.Errorf("metadata %s/%s: %w", bucket, key, err)
	}
	if err := t.tx.Bucket(bucket).Put([]byte(key), bytes.TrimSpace(raw.Bytes())); err != nil {
		return fmt.Errorf("metadata %s/%s: %w", bucket, key, err)
	}
	return nil
}

func remove(t *Tx, bucket []byte, key string) error {
	if err := t.tx.Bucket(bucket).Delete([]byte(key)); err != nil {
		return fmt.Errorf("metadata %s/%s: %w", bucket, key, err)
	}
	return nil
}
