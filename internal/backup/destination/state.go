package destination

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

// A State is what a host remembers of one destination: which repository it is and its newest heads, so that another or an
// older one in its place is noticed; lists of what packs hold; and what was verified when. Deleting it loses that
// protection and costs time, no more. Where it cannot be kept, Options.Warn is told a StateError and work continues.
//
// It is the repo.Memory of the repository, which fails only if what it kept is damaged. It is safe for concurrent use, also
// by several processes.
type State struct {
	dir  string           // empty if nothing is to be remembered; made when there is something to keep
	file *repo.MemoryFile // nil likewise
	warn func(error)
}

var _ repo.Memory = (*State)(nil)

// state finds the directory, and makes nothing.
func (d Destination) state(o Options) *State {
	if o.StateDir == "" {
		return &State{warn: o.warn}
	}
	sum := sha256.Sum256([]byte(d.String()))
	dir := filepath.Join(o.StateDir, hex.EncodeToString(sum[:16]))
	return &State{dir, repo.NewMemoryFile(filepath.Join(dir, "known.json")), o.warn}
}

// memory is nil if nothing is to be remembered.
func (s *State) memory() repo.Memory {
	if s.dir == "" {
		return nil
	}
	return s
}

// Recall reads the file. One that cannot be read is none. It fails with fault.ErrCorrupt if its content is damaged.
func (s *State) Recall() (repo.Known, error) {
	if s.dir == "" {
		return repo.Known{}, nil
	}
	known, err := s.file.Recall()
	return known, s.judged(err) // the zero Known with every error
}

// Change replaces the file. It fails as Recall does.
func (s *State) Change(change func(*repo.Known)) error {
	if s.dir == "" {
		return nil
	}
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = s.file.Change(change)
	}
	return s.judged(err)
}

// judged returns only the error that must not be passed over, and warns of others.
func (s *State) judged(err error) error {
	if fault.Is(err, fault.ErrCorrupt) {
		return fault.Errorf(fault.ErrCorrupt, "%w: this file is what this host remembers, and no part of the repository: "+
			"delete it; the repository loses nothing by that, but the next command takes it as it finds it", err)
	}
	if err != nil {
		s.warn(&StateError{s.dir, err})
	}
	return nil
}

// forget makes the host know no repository here. Unlike Change it fails if it cannot.
func (s *State) forget() error {
	return s.file.Change(func(k *repo.Known) { *k = repo.Known{} })
}

// verified is the file in which Verify remembers; empty if nothing is to be remembered.
func (s *State) verified() string {
	if s.dir == "" {
		return ""
	}
	return filepath.Join(s.dir, "verified.json")
}

// verifiable is verified where that can be written, as far as can be told, and else empty.
func (s *State) verifiable() string {
	if s.dir == "" {
		return ""
	}
	if err := tryFiles(s.dir, s.verified()); err != nil {
		s.warn(&StateError{s.dir, err})
		return ""
	}
	return s.verified()
}

// tryFiles writes a file in a directory, which it makes, and reads another, which need not be there.
func tryFiles(dir, read string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.ReadFile(read); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.CreateTemp(dir, "try.*.tmp")
	if err != nil {
		return err
	}
	_, err = file.WriteString("orlop\n")
	return errors.Join(err, file.Close(), os.Remove(file.Name()))
}

// options are those of repo.Open and repo.Init.
func (s *State) options(d Destination) ([]repo.Option, error) {
	origin, err := repo.LocalOrigin()
	if err != nil {
		return nil, err
	}
	options := []repo.Option{repo.At(d.Quoted()), repo.From(origin)}
	if s.dir != "" {
		options = append(options, repo.RememberedBy(s), repo.CacheIn(s.dir))
	}
	return options, nil
}
