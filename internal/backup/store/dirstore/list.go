package dirstore

import (
	"context"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// List reads directories, not files. It keeps what it has read of the directory it is in and of those above, no more.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	var stopped error
	err := s.listBelow(ctx, prefix, func(o store.Object) error {
		stopped = fn(o)
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return judged("list", s.root.Name()+"/"+prefix, err)
}

func (s *Store) listBelow(ctx context.Context, prefix string, fn func(store.Object) error) error {
	w, err := s.walk(strings.TrimSuffix(prefix, "/"))
	if fault.Is(err, fault.ErrNotFound) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	defer w.close()
	if err := s.present(); err != nil {
		return err
	}
	dir, err := s.kernel.open(w.last(), ".", openDirectory) // the root's position is shared by all
	if err != nil {
		return s.unlessGone(err)
	}
	defer dir.Close()
	return s.list(ctx, dir, prefix, fn)
}

// list lists what is in dir, which nobody has read yet, and below it. Objects' names begin with prefix.
func (s *Store) list(ctx context.Context, dir *os.File, prefix string, fn func(store.Object) error) error {
	entries, err := s.entries(ctx, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.directory() {
			if err := fn(store.Object{Name: prefix + e.key, Size: e.size}); err != nil {
				return err
			}
			continue
		}
		if err := s.listDirectory(ctx, dir, e, prefix, fn); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) listDirectory(ctx context.Context, parent *os.File, e entry, prefix string, fn func(store.Object) error) error {
	dir, err := s.kernel.open(parent, strings.TrimSuffix(e.key, "/"), openDirectory)
	if isAny(err, unix.ENOTDIR, unix.ELOOP) { // a Delete has removed it, and a Put has taken its name
		return nil
	}
	if err != nil {
		return s.unlessGone(err)
	}
	defer dir.Close()
	return s.list(ctx, dir, prefix+e.key, fn)
}

// An entry is a file or directory. A directory's key ends with a slash, so that the order of the keys is that of the
// objects' names: a-1 before a/1.
type entry struct {
	key  string
	size int64
}

func (e entry) directory() bool { return strings.HasSuffix(e.key, "/") }

// entries returns what is in a directory, in order, leaving out what cannot be an object or hold any.
func (s *Store) entries(ctx context.Context, dir *os.File) ([]entry, error) {
	names, err := s.kernel.names(dir)
	if err := s.unlessGone(err); err != nil {
		return nil, err
	}
	var entries []entry
	for i, name := range names {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !store.IsSegment(name) {
			continue
		}
		stat, err := lstat(dir, name)
		switch {
		case err != nil:
			if err := s.unlessGone(err); err != nil {
				return nil, err
			}
		case stat.Mode&unix.S_IFMT == unix.S_IFREG:
			entries = append(entries, entry{name, stat.Size})
		case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
			entries = append(entries, entry{name + "/", 0})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	// A network filesystem may show a name twice while others come and go.
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.key == b.key }), nil
}
