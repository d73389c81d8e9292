// Package metadata keeps what Orlop knows in one bbolt file: records of volumes, devices, pools, holders and
// freeze intents. It knows which state may follow which and refuses the rest.
//
// A transaction is durable when Update returns, and all or nothing across a crash. View sees one consistent
// state and never waits for Update.
package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"orlop/internal/fault"
)

const (
	schema    = 1 // of the records that this program writes
	minReader = 1 // oldest schema whose programs can read what this one writes
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
	buckets       = [][]byte{bucketMeta, bucketVolumes, bucketNames, bucketDevices, bucketPools, bucketHolders, bucketIntents}

	keySchema    = []byte("schema")
	keyMinReader = []byte("min_reader")
	keyRootID    = []byte("root_id")
	keyEpoch     = []byte("epoch")
)

// A Store is an open metadata file. It is safe for concurrent use. While it is open no other process can open
// the file: that is what keeps a root to one daemon.
type Store struct {
	db     *bolt.DB
	rootID string
}

// lockWait is how long Open waits for another process to let go of the file: a daemon that is just stopping.
const lockWait = 2 * time.Second

// Open opens the metadata of the root directory dir, making it if there is none, checks it, and copies it to
// CopyName. It fails with fault.ErrInUse if another daemon has it open, and with fault.ErrCorrupt, changing
// nothing, if it is damaged or was written by a newer Orlop.
func Open(dir string) (store *Store, err error) {
	path := filepath.Join(dir, FileName)
	_, statErr := os.Stat(path)
	fresh := errors.Is(statErr, fs.ErrNotExist)
	// A damaged page can show as a panic in bbolt or as a fault in its mapping.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			store, err = nil, damaged(path, fmt.Errorf("%v", p))
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: lockWait, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fault.Errorf(fault.ErrInUse, "open %s: another orlop daemon uses this root", path)
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	s := &Store{db: db}
	if fresh {
		err = s.initialise()
	} else {
		err = s.verify(path)
	}
	if err == nil {
		err = s.copyTo(filepath.Join(dir, CopyName))
	}
	if err != nil {
		_ = db.Close() // the error already says what is wrong
		return nil, err
	}
	return s, nil
}

func damaged(path string, cause error) error {
	if errors.Is(cause, fs.ErrPermission) || errors.Is(cause, fs.ErrNotExist) {
		return fmt.Errorf("open %s: %w", path, cause)
	}
	return fault.Errorf(fault.ErrCorrupt, "open %s: damaged (%v); a copy of the last start is %s beside it", path, cause, CopyName)
}

// Close lets go of the file.
func (s *Store) Close() error { return s.db.Close() }

// RootID is a random ID of this root, made with the file.
func (s *Store) RootID() string { return s.rootID }

func (s *Store) initialise() error {
	s.rootID = uuid.Must(uuid.NewV7()).String()
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("initialise metadata: %w", err)
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(
			meta.Put(keySchema, number(schema)), meta.Put(keyMinReader, number(minReader)), meta.Put(keyRootID, []byte(s.rootID)))
	})
}

// verify checks every page, and that this program may read and write the file.
func (s *Store) verify(path string) error {
	return s.db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return damaged(path, err)
		}
		meta := tx.Bucket(bucketMeta)
		if meta == nil || len(meta.Get(keyMinReader)) != 8 {
			return damaged(path, errors.New("no schema version"))
		}
		if needed := binary.BigEndian.Uint64(meta.Get(keyMinReader)); needed > schema {
			return fault.Errorf(fault.ErrCorrupt, "open %s: written by a newer orlop (schema %d, this one reads %d): install that version again, or use the copy %s",
				path, needed, schema, CopyName)
		}
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return damaged(path, fmt.Errorf("no bucket %q", name))
			}
		}
		s.rootID = string(meta.Get(keyRootID))
		return nil
	})
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
// not start after ctx is done.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update metadata: %w", err)
	}
	return s.db.Update(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}
