package metadata

import (
	"errors"
	"os"

	bolt "go.etcd.io/bbolt"
)

// minReserve is the least that is kept allocated beyond what the database uses, in bytes. A transaction on one
// volume rewrites a few pages, and freed pages wait for the readers that still see them.
const minReserve = int64(1) << 20

// reserve keeps the file ahead of what the database uses, so that a full disk never stops an update: by minReserve,
// or a quarter of a large database. Where the disk has no room for that, what was reserved before is left, and the
// next update tries again. The caller holds s.writing: nobody else extends the database meanwhile.
//
// The reserve is zeroes, written and synced: to write into blocks that are merely allocated, a filesystem may need
// further ones. bbolt grows its file only when it is too short, and ignores what is behind its last page; a crash
// leaves a file that is longer or shorter, and the same database.
func (s *Store) reserve() {
	var used int64
	if s.db.View(func(tx *bolt.Tx) error { used = tx.Size(); return nil }) != nil {
		return // the update will say why
	}
	ahead := max(minReserve, used/4)
	if s.reserved >= used+ahead/2 {
		return
	}
	if zeroTo(s.db.Path(), max(s.reserved, used), used+ahead) == nil {
		s.reserved = used + ahead
	}
}

// zeroTo writes zeroes to the file at path, from one offset to another, and syncs them.
func zeroTo(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, to-from), from)
	return errors.Join(err, f.Sync(), f.Close())
}
