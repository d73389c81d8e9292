package repo

import (
	"context"
	"slices"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A foundBackup is a backup record in a metadata pack.
type foundBackup struct {
	*Backup

	encoded []byte
	pack    PackName
}

// findBackups reads all of a lineage's metadata packs, whether a head lists them or not, and returns the backup records in
// them, each once, by their sequence. Packs, and records, that are damaged are left out.
func findBackups(ctx context.Context, lineage *Lineage, objects store.Store) (found []foundBackup, err error) {
	err = objects.List(ctx, SessionsPrefix(lineage.Name()), func(o store.Object) error {
		name, err := ParsePackName(o.Name)
		if err != nil || name.Kind != MetaPack {
			return nil
		}
		pack, err := objects.Get(ctx, o.Name)
		if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrCorrupt) {
			return nil
		}
		if err != nil {
			return err
		}
		// A pack with a wrong checksum may hold records that are right. One that says nothing of itself does not matter.
		_, _, _ = lineage.SalvagePack(o.Name, pack, func(e Entry, plaintext []byte, err error) error {
			if err != nil || e.Type != TypeBackup {
				return nil
			}
			b, err := DecodeBackup(plaintext)
			if err == nil && b.Lineage == lineage.Name() {
				found = append(found, foundBackup{b, plaintext, name})
			}
			return nil
		})
		return nil
	})
	slices.SortStableFunc(found, func(a, b foundBackup) int {
		if a.Sequence != b.Sequence {
			if a.Sequence < b.Sequence {
				return -1
			}
			return 1
		}
		return a.Created.Compare(b.Created)
	})
	seen := map[string]bool{}
	found = slices.DeleteFunc(found, func(f foundBackup) bool {
		again := seen[f.Record]
		seen[f.Record] = true
		return again
	})
	return found, err
}
