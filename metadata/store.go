// Package metadata keeps what Orlop knows in one bbolt file: records of volumes, devices, pools, holders and
// freeze intents. It knows which state may follow which and refuses the rest.
//
// A transaction is durable when Update returns, and all or nothing across a crash. View sees one consistent
// state and never waits for Update.
package metadata

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"orlop/internal/fault"
)

const (
	schema    = 3 // of the records that this program writes; 2 added snapshots, 3 restores, jobs and backups
	minReader = 3 // oldest schema whose programs can read what this one writes: an older one would mount half a restore
)

// Names of the files in a root directory.
const (
	FileName = "metadata.db"
	CopyName = "metadata.db.copy" // made at each start, after the check
)

var (
	bucketMeta    = []byte("meta")
	bucketVolumes = []byte("volumes")
	bucketNames   = []byte("names")
	bucketDevices = []byte("devices")
	bucketPools   = []byte("pools")
	bucketHolders = []byte("holders")
	bucketIntents = []byte("intents")

	bucketSnapshots     = []byte("snapshots")
	bucketSnapshotNames = []byte("snapshot_names") // volume's ID/name → snapshot's ID

	bucketJobs    = []byte("jobs")
	bucketBackups = []byte("backups") // volume's ID/destination → BackupStatus

	buckets = [][]byte{
		bucketMeta, bucketVolumes, bucketNames, bucketDevices, bucketPools, bucketHolders, bucketIntents,
		bucketSnapshots, bucketSnapshotNames, bucketJobs, bucketBackups,
	}

	keySchema    = []byte("schema")
	keyMinReader = []byte("min_reader")
	keyRootID    = []byte("root_id")
	keyEpoch     = []byte("epoch")
	keyRebuild   = []byte("rebuilding") // present while a rebuild is not finished
)

const keyCollected = "collected/" // and a destination: when this host freed space there

// A Store is an open metadata file. It is safe for concurrent use. While it is open no other process can open
// the file: that is what keeps a root to one daemon.
type Store struct {
	db        *bolt.DB
	rootID    string
	copyError error

	writing  sync.Mutex // held by the one that writes
	reserved int64      // bytes of the file that are known to be allocated
}

// lockWait is how long Open waits for another process to let go of the file: a daemon that is just stopping.
const lockWait = 2 * time.Second

// Exists tells whether a root directory has metadata, or a copy of it.
func Exists(dir string) bool {
	for _, name := range []string{FileName, CopyName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// Open opens the metadata of the root directory dir, making it if there is none, checks it, and copies it to
// CopyName. It fails with fault.ErrInUse if another daemon has it open, and with fault.ErrCorrupt, changing
// nothing, if it is damaged, gone while its copy is there, or written by a newer Orlop.
func Open(dir string) (*Store, error) {
	path := filepath.Join(dir, FileName)
	if !Exists(dir) {
		if err := create(path); err != nil {
			return nil, err
		}
	}
	s, err := open(path)
	if err != nil {
		return nil, err
	}
	s.copyError = s.copyTo(filepath.Join(dir, CopyName))
	return s, nil
}

// CopyError is why Open could not copy the metadata, on a full disk say, or nil. The copy of an earlier start is
// kept then.
func (s *Store) CopyError() error { return s.copyError }

// Rebuild is Open for metadata that is damaged or gone: the damaged file is kept under the name returned, and the
// new one begins as the copy of the last start, or empty if that is no good either. Holders in it are suspect, and
// Rebuilding tells of it until Tx.FinishRebuild. Sound metadata is opened as it is; lost then tells whether it knows
// no volume, so that those there are must have been lost before, or is still being rebuilt. It fails with
// fault.ErrInUse if another daemon has it open.
func Rebuild(dir string) (s *Store, lost bool, kept string, err error) {
	path := filepath.Join(dir, FileName)
	s, err = open(path)
	if err == nil {
		lost, err = s.empty()
		return s, lost || s.Rebuilding(), "", err
	}
	if fault.Is(err, fault.ErrInUse) {
		return nil, false, "", err
	}
	if err := begin(path+".rebuilt", filepath.Join(dir, CopyName)); err != nil {
		return nil, true, "", err
	}
	kept = path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
	switch err := os.Rename(path, kept); {
	case errors.Is(err, fs.ErrNotExist):
		kept = ""
	case err != nil:
		return nil, true, "", fmt.Errorf("keep damaged metadata: %w", err)
	}
	if err = os.Rename(path+".rebuilt", path); err == nil {
		err = syncPath(dir)
	}
	if err != nil {
		return nil, true, kept, fmt.Errorf("rebuild metadata: %w", err)
	}
	s, err = open(path)
	return s, true, kept, err
}

// begin makes the database at path with which a rebuild begins: the copy if that is sound, else an empty one.
func begin(path, copied string) error {
	good, err := open(copied)
	if err == nil {
		err = errors.Join(good.copyTo(path), good.Close())
	} else {
		err = create(path)
	}
	if err != nil {
		return err
	}
	s, err := open(path)
	if err != nil {
		return err
	}
	err = s.Update(context.Background(), func(tx *Tx) error {
		return errors.Join(tx.PutEpoch(tx.Epoch()+1), tx.tx.Bucket(bucketMeta).Put(keyRebuild, []byte{1}))
	})
	return errors.Join(err, s.Close())
}

// Rebuilding tells whether a rebuild has begun and not been finished.
func (s *Store) Rebuilding() (unfinished bool) {
	_ = s.db.View(func(tx *bolt.Tx) error { // which fails only if fn does, or after Close
		unfinished = tx.Bucket(bucketMeta).Get(keyRebuild) != nil
		return nil
	})
	return unfinished
}

// empty tells whether no volume is known.
func (s *Store) empty() (empty bool, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		key, _ := tx.Bucket(bucketVolumes).Cursor().First()
		empty = key == nil
		return nil
	})
	return empty, err
}

// create makes an empty database. It appears under its name only when it is whole.
func create(path string) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make metadata: %w", err)
	}
	db, err := bolt.Open(temp, 0o600, &bolt.Options{Timeout: lockWait})
	if err != nil {
		return fmt.Errorf("make metadata: %w", err)
	}
	err = (&Store{db: db}).initialise()
	if err = errors.Join(err, db.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = syncPath(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("make metadata: %w", err)
	}
	return nil
}

// open opens and checks an existing database.
func open(path string) (store *Store, err error) {
	if _, err := os.Stat(path); err != nil {
		return nil, damaged(path, err)
	}
	// A damaged page can show as a panic in bbolt or as a fault in its mapping.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			store, err = nil, damaged(path, fmt.Errorf("%v", p))
		}
	}()
	// Opened to be read, bbolt takes the lock and looks at the meta pages only, and writes nothing.
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, ReadOnly: true})
	if err == nil {
		err = errors.Join(checkShape(path, db.Info().PageSize), db.Close())
	}
	if err == nil {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: lockWait, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
		})
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fault.Errorf(fault.ErrInUse, "open %s: another orlop daemon uses this root", path)
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	s := &Store{db: db}
	old, err := s.verify(path)
	if err == nil && old < schema {
		err = s.upgrade(path, old)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.reserve()
	return s, nil
}

// upgrade brings a file of an older schema to the present one, after copying it.
func (s *Store) upgrade(path string, old uint64) error {
	if err := s.copyTo(fmt.Sprintf("%s.schema-%d", path, old)); err != nil {
		return err
	}
	return s.db.Update(prepareBuckets)
}

// prepareBuckets makes the buckets that are not there and notes the schema.
func prepareBuckets(tx *bolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("prepare metadata: %w", err)
		}
	}
	meta := tx.Bucket(bucketMeta)
	return errors.Join(meta.Put(keySchema, number(schema)), meta.Put(keyMinReader, number(minReader)))
}

func damaged(path string, cause error) error {
	if errors.Is(cause, fs.ErrPermission) {
		return fmt.Errorf("open %s: %w", path, cause)
	}
	what := fmt.Sprintf("damaged (%v)", cause)
	if errors.Is(cause, fs.ErrNotExist) {
		what = "gone, though its copy is there"
	}
	return fault.Errorf(fault.ErrCorrupt, "open %s: %s: 'orlop daemon --rebuild-metadata' rebuilds it from the copy %s and from what the devices carry, and keeps the old file", path, what, CopyName)
}

// Close lets go of the file.
func (s *Store) Close() error { return s.db.Close() }

// RootID is a random ID of this root, made with the file.
func (s *Store) RootID() string { return s.rootID }

func (s *Store) initialise() error {
	s.rootID = uuid.Must(uuid.NewV7()).String()
	return s.db.Update(func(tx *bolt.Tx) error {
		if err := prepareBuckets(tx); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keyRootID, []byte(s.rootID))
	})
}

// verify checks every page, and that this program may read and write the file, and returns the file's schema.
func (s *Store) verify(path string) (written uint64, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		var found error
		for err := range tx.Check() { // to its end, or its goroutine would wait for ever
			found = cmp.Or(found, err)
		}
		if found != nil {
			return damaged(path, found)
		}
		meta := tx.Bucket(bucketMeta)
		if meta == nil || len(meta.Get(keyMinReader)) != 8 || len(meta.Get(keySchema)) != 8 {
			return damaged(path, errors.New("no schema version"))
		}
		if needed := binary.BigEndian.Uint64(meta.Get(keyMinReader)); needed > schema {
			return fault.Errorf(fault.ErrCorrupt, "open %s: written by a newer orlop (schema %d, this one reads %d): install that version again, or use the copy %s",
				path, needed, schema, CopyName)
		}
		written = binary.BigEndian.Uint64(meta.Get(keySchema))
		for _, name := range buckets {
			if tx.Bucket(name) == nil && written >= schema {
				return damaged(path, fmt.Errorf("no bucket %q", name))
			}
		}
		s.rootID = string(meta.Get(keyRootID))
		return nil
	})
	return written, err
}

// copyTo writes the database's present state to path, by rename.
func (s *Store) copyTo(path string) error {
	temp := path + ".tmp"
	err := s.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(temp, 0o600) })
	if err == nil {
		err = syncPath(temp)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = syncPath(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(temp) // a part of a copy helps nobody, and takes space
		return fmt.Errorf("copy metadata to %s: %w", path, err)
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// View runs fn in a read transaction, one consistent state.
func (s *Store) View(fn func(*Tx) error) error {
	return s.db.View(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}

// Update runs fn in a write transaction, durable when Update returns nil and without effect otherwise. It does
// not start after ctx is done. A full disk does not stop it, up to some hundred changes.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update metadata: %w", err)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.reserve()
	return s.db.Update(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}
