package repo

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// verified is what earlier runs of Verify found, in a local file. Losing it loses only the order in which data is read,
// and what retention and backups know of damage.
type verified struct {
	Packs map[string]time.Time `json:"packs"` // names of objects, and when all of each was last read
	Seen  map[string]time.Time `json:"seen"`  // the others, and when a sample first left them out
	Hurt  []string             `json:"hurt"`  // IDs of backups

	// Damaged are packs, and their records that are lost. Of those that have none listed nothing can be read.
	Damaged map[string][]ChunkID `json:"damaged"`

	path    string
	changes []func(*verified) // since it was read
}

// readVerified reads the file at path; with an empty path nothing is ever remembered. A file that is missing or damaged is
// empty.
func readVerified(path string) (*verified, error) {
	v := &verified{path: path}
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read what was verified: %w", err)
		}
		if json.Unmarshal(text, v) != nil {
			*v = verified{path: path}
		}
	}
	v.Packs, v.Seen, v.Damaged = cloned(v.Packs), cloned(v.Seen), cloned(v.Damaged)
	return v, nil
}

// A Damage is what Verify found in a repository and did not find mended since.
type Damage struct{ found *verified }

// RememberedDamage returns what Verify found, with that file for its memory. What cannot be read is not remembered.
func RememberedDamage(path string) Damage {
	v, err := readVerified(path)
	if err != nil {
		v = &verified{}
	}
	return Damage{v}
}

// Hurts tells whether a backup could not be restored when Verify looked last at what it needs.
func (d Damage) Hurts(b *Backup) bool { return d.found != nil && slices.Contains(d.found.Hurt, b.ID()) }

// of tells whether a copy of a record is lost.
func (d Damage) of(pack PackName, id ChunkID) bool {
	if d.found == nil {
		return false
	}
	lost, damaged := d.found.Damaged[pack.String()]
	return damaged && (len(lost) == 0 || slices.Contains(lost, id))
}

// change makes a change that save will make in the file.
func (v *verified) change(change func(*verified)) {
	change(v)
	v.changes = append(v.changes, change)
}

// save makes the changes in the file, which is replaced as a whole: other runs may have written it since it was read.
func (v *verified) save() error {
	if v.path == "" {
		return nil
	}
	unlock, err := lockFile(v.path + ".lock")
	if err != nil {
		return fmt.Errorf("remember what was verified: %w", err)
	}
	defer unlock()
	now, err := readVerified(v.path)
	if err != nil {
		return err
	}
	for _, change := range v.changes {
		change(now)
	}
	text, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("remember what was verified: %w", err)
	}
	return replaceFile(v.path, text)
}

// oldest sorts packs by when they were last read. Those that never were count from when they were first met: new ones,
// however many, do not keep old ones from their turn.
func (v *verified) oldest(names []PackName, now time.Time) {
	at := make(map[PackName]time.Time, len(names))
	for _, name := range names {
		text := name.String()
		read, there := v.Packs[text]
		if !there {
			if _, met := v.Seen[text]; !met {
				v.change(func(v *verified) { v.Seen[text] = now })
			}
			read = v.Seen[text]
		}
		at[name] = read
	}
	slices.SortFunc(names, func(a, b PackName) int {
		return cmp.Or(at[a].Compare(at[b]), strings.Compare(a.String(), b.String()))
	})
}

// damaged remembers what is wrong with a pack, as far as it was looked at.
func (v *verified) damaged(p *packCheck) {
	name := p.name.String()
	switch {
	case p.missing || !p.known:
		v.Damaged[name] = []ChunkID{}
	case len(p.wrong) > 0:
		v.Damaged[name] = slices.Collect(maps.Keys(p.wrong))
	case p.read:
		delete(v.Damaged, name)
	}
}

func (v *verified) isDamaged(name PackName) bool {
	_, damaged := v.Damaged[name.String()]
	return damaged
}

// judge remembers which of the backups that were looked at are hurt. Packs that were damaged were read again, so who is not hurt
// now is not because of those.
func (v *verified) judge(looked []*Backup, hurt map[string]bool) {
	known := map[string]bool{}
	for _, id := range v.Hurt {
		known[id] = true
	}
	for _, b := range looked {
		if hurt[b.ID()] {
			known[b.ID()] = true
		} else {
			delete(known, b.ID())
		}
	}
	v.Hurt = slices.Sorted(maps.Keys(known))
}

// forget drops what is there no more.
func (v *verified) forget(packs, backups map[string]bool) {
	gone := func(name string, _ time.Time) bool { return !packs[name] }
	maps.DeleteFunc(v.Packs, gone)
	maps.DeleteFunc(v.Seen, func(name string, when time.Time) bool {
		_, read := v.Packs[name]
		return read || gone(name, when)
	})
	maps.DeleteFunc(v.Damaged, func(name string, _ []ChunkID) bool { return !packs[name] })
	v.Hurt = slices.DeleteFunc(v.Hurt, func(id string) bool { return !backups[id] })
}
