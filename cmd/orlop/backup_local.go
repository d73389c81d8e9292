package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

// A localState is what this user's commands keep of one destination: which repository it is and its newest heads, so that
// nobody can put another or an older one in its place; lists of what packs hold; and what was verified when. Deleting it
// loses the protection and costs time, no more. So does a directory that cannot be used, of which lose tells the user.
//
// It is the repo.Memory of the repository: one that fails only if what it kept is damaged.
type localState struct {
	dir  string           // empty if there is no place for it; made when there is something to keep
	file *repo.MemoryFile // nil likewise
	lose func(dir string, err error)
}

// local finds the directory, in the user's cache, and makes nothing.
func (d destination) local(lose func(dir string, err error)) localState {
	cache, err := os.UserCacheDir()
	if err != nil {
		lose(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "orlop", "backup"), err)
		return localState{lose: lose}
	}
	sum := sha256.Sum256([]byte(d.String()))
	dir := filepath.Join(cache, "orlop", "backup", hex.EncodeToString(sum[:16]))
	return localState{dir, repo.NewMemoryFile(filepath.Join(dir, "known.json")), lose}
}

// memory is nil if there is no place for it.
func (l localState) memory() repo.Memory {
	if l.dir == "" {
		return nil
	}
	return l
}

// Recall reads the file. One that cannot be read is none. It fails with fault.ErrCorrupt if what is in it is damaged.
func (l localState) Recall() (repo.Known, error) {
	if l.dir == "" {
		return repo.Known{}, nil
	}
	known, err := l.file.Recall()
	return known, l.judged(err) // the zero Known with every error
}

// Change replaces the file. It fails as Recall does.
func (l localState) Change(change func(*repo.Known)) error {
	err := os.MkdirAll(l.dir, 0o700)
	if err == nil {
		err = l.file.Change(change)
	}
	return l.judged(err)
}

// judged returns only the error that must not be passed over, and tells of others.
func (l localState) judged(err error) error {
	if fault.Is(err, fault.ErrCorrupt) {
		return fault.Errorf(fault.ErrCorrupt, "%w: this file is what this host remembers, and no part of the repository: "+
			"delete it; the repository loses nothing by that, but the next command takes it as it finds it", err)
	}
	if err != nil {
		l.lose(l.dir, err)
	}
	return nil
}

// forget makes the host know no repository here. Unlike Change it fails if it cannot.
func (l localState) forget() error {
	return l.file.Change(func(k *repo.Known) { *k = repo.Known{} })
}

// verified is the file in which verify remembers; empty if there is no place for it.
func (l localState) verified() string {
	if l.dir == "" {
		return ""
	}
	return filepath.Join(l.dir, "verified.json")
}

// verifiable is verified where that can be written, as far as can be told, and else empty.
func (l localState) verifiable() string {
	if l.dir == "" {
		return ""
	}
	if err := tryFiles(l.dir, l.verified()); err != nil {
		l.lose(l.dir, err)
		return ""
	}
	return l.verified()
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

// options are those of repo.Open.
func (l localState) options(at destination) ([]repo.Option, error) {
	origin, err := repo.LocalOrigin()
	if err != nil {
		return nil, err
	}
	options := []repo.Option{repo.At(at.quoted()), repo.From(origin)}
	if l.dir != "" {
		options = append(options, repo.RememberedBy(l.memory()), repo.CacheIn(l.dir))
	}
	return options, nil
}

// initRepository makes a repository, or opens the one that is there. Where this host knows one that is gone, a disk may not be
// mounted: then it makes another only if a new one is asked for. If nothing is made, nothing is forgotten.
func initRepository(ctx context.Context, at destination, key *repo.Key, local localState, anew bool) (*repo.Repository, error) {
	known, err := local.Recall()
	if err != nil {
		return nil, err
	}
	there, stranger, err := lookInto(at.dir)
	if err != nil {
		return nil, err
	}
	switch {
	case there:
	case known.Repository != repo.ID{} && !anew:
		return nil, errGone(at, known)
	case stranger != "":
		return nil, fault.Errorf(fault.ErrExists, "make a repository: the place is not empty: %q is in the way", stranger)
	}
	if err := dirstore.Make(at.dir); err != nil {
		return nil, err
	}
	objects, err := dirstore.Open(at.dir)
	if err != nil {
		return nil, err
	}
	defer objects.Close()
	if anew {
		r, err := repo.Init(ctx, objects, key, repo.At(at.quoted()))
		if err == nil && known.Repository != (repo.ID{}) && known.Repository != r.ID() {
			if err = local.forget(); err != nil {
				err = fmt.Errorf("the repository is made, but this host still knows %s there; run the command again: %w", known.Repository, err)
			}
		}
		return r, err
	}
	options, err := local.options(at)
	if err != nil {
		return nil, err
	}
	return repo.Init(ctx, objects, key, options...)
}

// errGone is what init says where a repository was that this host knows.
func errGone(at destination, known repo.Known) error {
	how := "--unencrypted"
	if known.Encrypted {
		how = "--key-file FILE"
	}
	return fault.Errorf(fault.ErrCorrupt, "repository %s, which this host knows, is not there: is the disk mounted? To make a new one in its place: orlop backup init %s --new %s",
		known.Repository, at.quoted(), how)
}

// harmless are the names that may be in a place before there is a repository: what filesystems, the store and a probe of it
// leave there.
var harmless = []string{"lost+found", "tmp~", "probe"}

// lookInto tells whether a repository is in a directory, or what is left of one, and names something else that is, if there
// is anything: also what the store does not take for an object. A directory that is not there is empty.
func lookInto(dir string) (repository bool, stranger string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return false, "", fmt.Errorf("make a repository: %w", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == repo.ConfigName && e.Type().IsRegular(), name == "lineages":
			repository = true
		case stranger == "" && !slices.Contains(harmless, name):
			stranger = name
		}
	}
	return repository, stranger, nil
}
