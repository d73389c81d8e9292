package destination

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

// OpenOrInit makes a repository in an empty or absent place, or opens the one that is there; with a nil o.Key the new one is
// not encrypted. Where this host knows a repository that is gone, a disk may not be mounted: then it fails with
// fault.ErrCorrupt (an Error, ReplaceRepository), unless replace is true. With replace the host also takes a repository that
// is there for the right one. It fails with fault.ErrExists if something else is there, and otherwise as repo.Init does. If
// nothing is made, nothing is forgotten; interrupted, it can be run again. The caller closes the repository.
func OpenOrInit(ctx context.Context, at Destination, o Options, replace bool) (*Repository, error) {
	r, err := openOrInit(ctx, at, o, replace)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return r, nil
}

func openOrInit(ctx context.Context, at Destination, o Options, replace bool) (_ *Repository, err error) {
	state := at.state(o)
	known, err := state.Recall()
	if err != nil {
		return nil, err
	}
	objects, err := openFree(ctx, at, known, o, replace)
	if err != nil {
		return nil, missingBucket(err)
	}
	defer func() {
		if err != nil {
			_ = objects.Close() // the error says more
		}
	}()
	if replace {
		if err := initAnother(ctx, at, objects, o.Key, state, known); err != nil {
			return nil, err
		}
	}
	options, err := state.options(at)
	if err != nil {
		return nil, err
	}
	made, err := repo.Init(ctx, objects, o.Key, options...)
	if err != nil {
		return nil, err
	}
	return &Repository{made, at, state, objects, o.warn}, nil
}

// openFree opens the store of a place in which a repository may be made or is, and makes a directory. A bucket in which none is it
// probes.
func openFree(ctx context.Context, at Destination, known repo.Known, o Options, replace bool) (objects, error) {
	if at.IsBucket() {
		bucket, err := openBucket(at, o.Credentials)
		if err != nil {
			return nil, err
		}
		there, stranger, err := lookIntoBucket(ctx, bucket)
		if err == nil && !there {
			err = checkFree(at, known, stranger, replace)
		}
		if err == nil && !there {
			report := ProbeReport{Destination: at.String(), Time: time.Now().UTC()}
			err = probeBucket(ctx, bucket, at.state(o), &report)
		}
		if err != nil {
			_ = bucket.Close() // the error says more
			return nil, err
		}
		return bucket, nil
	}
	there, stranger, err := lookInto(at.dir)
	if err == nil && !there {
		err = checkFree(at, known, stranger, replace)
	}
	if err != nil {
		return nil, err
	}
	if err := dirstore.Make(at.dir); err != nil {
		return nil, err
	}
	dir, err := dirstore.Open(at.dir)
	if err != nil {
		return nil, err
	}
	return dir, nil
}

// initAnother makes a repository whatever this host knows of the destination, and makes it forget one that it is not.
func initAnother(ctx context.Context, at Destination, objects objects, key *repo.Key, state *State, known repo.Known) error {
	r, err := repo.Init(ctx, objects, key, repo.At(at.Quoted()))
	if err != nil || !isKnown(known) || known.Repository == r.ID() {
		return err
	}
	if err := state.forget(); err != nil {
		return fmt.Errorf("the repository is made, but this host still knows %s there; run the command again: %w", known.Repository, err)
	}
	return nil
}

// checkFree fails if a repository must not be made where none is. Stranger is something else that is there, empty for nothing.
func checkFree(at Destination, known repo.Known, stranger string, replace bool) error {
	switch {
	case isKnown(known) && !replace:
		return &Error{Destination: at, Remedy: ReplaceRepository, Encrypted: known.Encrypted,
			err: fault.Errorf(fault.ErrCorrupt, "repository %s, which this host knows, is not there: %s", known.Repository, at.doubt())}
	case stranger != "":
		return fault.Errorf(fault.ErrExists, "make a repository: the place is not empty: %q is in the way", stranger)
	}
	return nil
}

// harmless are the names that may be in a place before there is a repository: what filesystems, the store and a probe of it
// leave there.
var harmless = []string{"lost+found", "tmp~", "probe"}

// lineages is the directory of a repository's objects, the config aside.
const lineages = "lineages"

// lookInto reports whether a repository is in a directory, or what is left of one, and names something else that is, if there
// is anything: also what the store does not take for an object. A directory that does not exist is empty.
func lookInto(dir string) (repository bool, stranger string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return false, "", fmt.Errorf("make a repository: %w", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == repo.ConfigName && e.Type().IsRegular(), name == lineages:
			repository = true
		case stranger == "" && !slices.Contains(harmless, name):
			stranger = name
		}
	}
	return repository, stranger, nil
}
