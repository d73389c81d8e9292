package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// verified is what earlier runs of Verify found, in a local file. Losing it loses only the order in which data is read,
// and what retention knows of damaged backups.
type verified struct {
	Packs map[string]time.Time `json:"packs"` // names of objects, and when all of each was last found right
	Hurt  []string             `json:"hurt"`  // IDs of backups

	path string
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
	if v.Packs == nil {
		v.Packs = map[string]time.Time{}
	}
	return v, nil
}

// RememberedHurt tells which backups Verify found damaged when it last looked at them, with that file for its memory.
func RememberedHurt(path string) func(*Backup) bool {
	v, err := readVerified(path)
	if err != nil {
		v = &verified{}
	}
	return func(b *Backup) bool { return slices.Contains(v.Hurt, b.ID()) }
}

// save replaces the file.
func (v *verified) save() error {
	if v.path == "" {
		return nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("remember what was verified: %w", err)
	}
	return replaceFile(v.path, text)
}

// oldest sorts packs by when they were last found right, never first.
func (v *verified) oldest(names []PackName) {
	slices.SortFunc(names, func(a, b PackName) int {
		x, y := a.String(), b.String()
		if order := v.Packs[x].Compare(v.Packs[y]); order != 0 {
			return order
		}
		if x < y {
			return -1
		}
		return 1
	})
}

// found remembers a pack that was read.
func (v *verified) found(p *packCheck, now time.Time) {
	if p.problem == nil && p.read {
		v.Packs[p.name.String()] = now
	} else {
		delete(v.Packs, p.name.String())
	}
}

// judge remembers which of the backups that were looked at are hurt. Who was hurt before stays so unless all of the data
// was read.
func (v *verified) judge(looked []*Backup, hurt map[string]bool, complete bool) {
	known := map[string]bool{}
	for _, id := range v.Hurt {
		known[id] = true
	}
	for _, b := range looked {
		if hurt[b.ID()] {
			known[b.ID()] = true
		} else if complete {
			delete(known, b.ID())
		}
	}
	v.Hurt = slices.Sorted(maps.Keys(known))
}

// forget drops what is there no more.
func (v *verified) forget(packs, backups map[string]bool) {
	maps.DeleteFunc(v.Packs, func(name string, _ time.Time) bool { return !packs[name] })
	v.Hurt = slices.DeleteFunc(v.Hurt, func(id string) bool { return !backups[id] })
}
