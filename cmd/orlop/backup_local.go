package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

// A localState is what this user's commands keep of one destination: which repository it is and its newest heads, so that
// nobody can put another or an older one in its place; lists of what packs hold; and what was verified when. Deleting it
// loses the protection and costs time, no more.
type localState struct {
	dir string // empty if there is no place for it
}

// local makes the directory, in the user's cache.
func (d destination) local() (localState, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return localState{}, nil // neither HOME nor XDG_CACHE_HOME is set
	}
	sum := sha256.Sum256([]byte(d.String()))
	dir := filepath.Join(cache, "orlop", "backup", hex.EncodeToString(sum[:16]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return localState{}, fmt.Errorf("remember destination %s: %w", d, err)
	}
	return localState{dir}, nil
}

// memory is nil if there is no place for it.
func (l localState) memory() repo.Memory {
	if l.dir == "" {
		return nil
	}
	return repo.NewMemoryFile(filepath.Join(l.dir, "known.json"))
}

// verified is the file in which verify remembers; empty if there is no place for it.
func (l localState) verified() string {
	if l.dir == "" {
		return ""
	}
	return filepath.Join(l.dir, "verified.json")
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

// initRepository makes a repository, or opens the one that is there.
func initRepository(ctx context.Context, at destination, key *repo.Key) (*repo.Repository, error) {
	if err := dirstore.Make(at.dir); err != nil {
		return nil, err
	}
	objects, err := at.open()
	if err != nil {
		return nil, err
	}
	defer objects.Close()
	local, err := at.local()
	if err != nil {
		return nil, err
	}
	options, err := local.options(at)
	if err != nil {
		return nil, err
	}
	if _, err := objects.Get(ctx, repo.ConfigName); fault.Is(err, fault.ErrNotFound) && local.dir != "" {
		// Whoever makes a new repository knows that the one that was there is gone. If nothing is made, nothing is forgotten.
		r, err := repo.Init(ctx, objects, key, repo.At(at.quoted()))
		if err != nil {
			return nil, err
		}
		if err := local.memory().Change(func(k *repo.Known) { *k = repo.Known{} }); err != nil {
			return nil, err
		}
		return r, nil
	}
	return repo.Init(ctx, objects, key, options...)
}
