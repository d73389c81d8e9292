package repo

import (
	"cmp"
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
// them, each as it was written last, by their sequence. Packs, and records, that are damaged are left out. It fails with
// fault.ErrUnsupported if this program is too old for one of the records.
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
		_, _, err = lineage.SalvagePack(o.Name, pack, func(e Entry, plaintext []byte, err error) error {
			if err != nil || e.Type != TypeBackup {
				return nil
			}
			b, err := DecodeBackup(plaintext)
			if err == nil && b.Lineage == lineage.Name() {
				found = append(found, foundBackup{b, plaintext, name})
			}
			return unsupported(err)
		})
		return unsupported(err)
	})
	return latest(found), err
}

func unencoded(found []foundBackup) []*Backup {
	backups := make([]*Backup, len(found))
	for i, f := range found {
		backups[i] = f.Backup
	}
	return backups
}

// latest returns each backup as it was written last, by their sequence: a writer that others were faster than writes its
// record anew, with a higher sequence number.
func latest(found []foundBackup) []foundBackup {
	slices.SortStableFunc(found, func(a, b foundBackup) int {
		return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), a.Created.Compare(b.Created), cmp.Compare(a.Record, b.Record))
	})
	last := map[string]uint64{}
	for _, f := range found {
		last[f.Record] = f.Sequence
	}
	return slices.DeleteFunc(found, func(f foundBackup) bool {
		if last[f.Record] != f.Sequence {
			return true
		}
		delete(last, f.Record) // copies of it are left out
		return false
	})
}

// unsupported returns an error if it is one of a program that is too old.
func unsupported(err error) error {
	if fault.Is(err, fault.ErrUnsupported) {
		return err
	}
	return nil
}

// unrecorded returns the backups of a head whose records no pack holds as they were written.
func (c *lineageCheck) unrecorded(h *Head) (lost []Record) {
	hasher := c.lineage.Hasher()
	for _, r := range h.Records {
		id, good := hasher.Sum(TypeBackup, 0, r.encoded), false
		c.index.FindAll(id, func(ref PackRef, e Entry) bool {
			good = e.Type == TypeBackup && c.packs[ref.Name].bad(id) == nil
			return !good
		})
		if !good {
			lost = append(lost, r)
		}
	}
	return lost
}

// wholeNewer returns the whole backups in listed packs that belong neither to h nor to a session in it, and are newer than
// all of h, or hidden: what deleted backups leave behind is older. It returns too those of the packs of which these, and the backups of h,
// need what no live pack holds. It reads the footers of packs that no head lists, and of those that hold records these.
func (c *chain) wholeNewer(ctx context.Context, h *Head, listed map[string]int64, hidden map[string]bool) (whole []foundBackup, needed []LivePack, err error) {
	beside := loose(h, listed)
	if len(beside) == 0 {
		return nil, nil, nil
	}
	found, err := c.newerThan(ctx, h, listed, hidden)
	if err != nil {
		return nil, nil, err
	}
	check, err := newLineageCheck(ctx, c, h.Backups(), append(slices.Clone(h.Live), beside...))
	if err != nil {
		return nil, nil, err
	}
	needs := map[PackName]bool{}
	for _, f := range found {
		damage, err := check.treeOf(ctx, f.Backup)
		if err != nil {
			return nil, nil, err
		}
		if len(damage) > 0 {
			continue
		}
		whole = append(whole, f)
		check.backups = append(check.backups, f.Backup)
		needs[f.pack] = true
	}
	below, err := check.neededBeside(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range beside {
		if needs[p.Name] || below[p.Name] {
			needed = append(needed, p)
		}
	}
	return whole, needed, nil
}

// newerThan returns the backups in listed packs that belong neither to h nor to a session in it, and are newer than all of h,
// or whose records are hidden.
func (c *chain) newerThan(ctx context.Context, h *Head, listed map[string]int64, hidden map[string]bool) (found []foundBackup, err error) {
	for _, p := range loose(h, listed) {
		if p.Name.Kind != MetaPack {
			continue
		}
		backups, err := c.backupsIn(ctx, p.Name, p.Size)
		if err != nil {
			return nil, err
		}
		for _, f := range backups {
			if _, there := h.Backup(f.Record); !there && (f.Sequence >= h.Sequence || hidden[f.Record]) {
				found = append(found, f)
			}
		}
	}
	return latest(found), nil
}

// loose returns the listed packs that belong neither to h nor to a session in it.
func loose(h *Head, listed map[string]int64) (packs []LivePack) {
	live := make(map[PackName]bool, len(h.Live))
	for _, p := range h.Live {
		live[p.Name] = true
	}
	for object, size := range listed {
		name, err := ParsePackName(object)
		var session ID
		if err == nil && session.UnmarshalText([]byte(name.Session)) == nil && !live[name] && !h.runs(name.Session) {
			packs = append(packs, LivePack{name, size})
		}
	}
	return packs
}

// backupsIn returns the backup records of a pack. Those that are damaged are left out.
func (c *chain) backupsIn(ctx context.Context, name PackName, size int64) (found []foundBackup, err error) {
	damaged := func(err error) bool { return fault.Is(err, fault.ErrCorrupt) || fault.Is(err, fault.ErrNotFound) }
	ref, entries, err := c.lineage.ReadFooter(ctx, c.repository.objects, name.String(), size)
	if err != nil && !damaged(err) {
		return nil, err
	}
	for _, e := range entries {
		if e.Type != TypeBackup {
			continue
		}
		data, err := c.lineage.ReadRecord(ctx, c.repository.objects, ref, e)
		if err == nil {
			var b *Backup
			if b, err = DecodeBackup(data); err == nil {
				found = append(found, foundBackup{b, data, name})
			}
		}
		if err != nil && !damaged(err) {
			return nil, err
		}
	}
	return found, nil
}
