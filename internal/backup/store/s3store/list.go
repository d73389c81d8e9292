package s3store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// page is how many objects a server lists at once, and deletes at once, at most.
const page = 1000

// List reads pages of 1,000 objects. A request that fails is repeated from the last name that was listed. Since some servers end
// a listing at a full page and say that this was all, it asks once more behind a last page that is full. Keys that no Put of this
// package makes are left out.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	l := &listing{store: s, prefix: s.key(prefix), fn: fn}
	for more := true; more; {
		if err := l.run(ctx, prefix); err != nil {
			return err
		}
		more = l.full()
		l.count = 0
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return nil
}

// A listing is one run of List.
type listing struct {
	store  *Store
	prefix string // of keys
	fn     func(store.Object) error
	last   string // key that was seen last
	count  int    // keys seen since the last request that named a key to start after
}

// full reports whether the last page may have been cut off at its limit.
func (l *listing) full() bool { return l.count > 0 && l.count%page == 0 }

// run lists what is behind the last key.
func (l *listing) run(ctx context.Context, what string) error {
	var stopped error
	err := l.store.try(ctx, "list", what, func(ctx context.Context) error {
		l.count = 0
		noOwner := false
		opts := minio.ListObjectsOptions{Prefix: l.prefix, Recursive: true, StartAfter: l.last, MaxKeys: page, FetchOwner: &noOwner}
		for o := range l.store.core.ListObjectsIter(ctx, l.store.place.Bucket, opts) {
			if o.Err != nil {
				return o.Err
			}
			if stopped = l.see(ctx, o); stopped != nil {
				return nil
			}
		}
		return ctx.Err()
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// see passes an object on. Its error is that of fn, or ctx's, or that of a server which breaks the order.
func (l *listing) see(ctx context.Context, o minio.ObjectInfo) error {
	l.count++
	if o.Key <= l.last || !strings.HasPrefix(o.Key, l.prefix) {
		return fault.Errorf(fault.ErrUnsupported, "the server lists keys out of order, or some that were not asked for: it cannot hold backups")
	}
	l.last = o.Key
	name := strings.TrimPrefix(o.Key, l.store.key(""))
	if store.CheckName(name) != nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %s: %w", name, err)
	}
	return l.fn(store.Object{Name: name, Size: o.Size})
}

// Top calls fn with what stands directly below the prefix: names of objects, and of directories with a slash at their end.
// Those that are no names of objects are among them. It fails as List does.
func (s *Store) Top(ctx context.Context, fn func(name string) error) error {
	var stopped error
	err := s.try(ctx, "list", s.place.Prefix, func(ctx context.Context) error {
		noOwner := false
		opts := minio.ListObjectsOptions{Prefix: s.key(""), MaxKeys: page, FetchOwner: &noOwner}
		for o := range s.core.ListObjectsIter(ctx, s.place.Bucket, opts) {
			if o.Err != nil {
				return o.Err
			}
			name := strings.TrimPrefix(o.Key, s.key(""))
			if name == "" { // an object that stands for a directory
				continue
			}
			if stopped = fn(name); stopped != nil {
				return nil
			}
		}
		return ctx.Err()
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// DeleteAll deletes objects, 1,000 with one request. Those that are not there do not matter. If it fails, some are deleted.
func (s *Store) DeleteAll(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := store.CheckName(name); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(names, page) {
		what := fmt.Sprintf("%s and %d others", batch[0], len(batch)-1)
		if err := s.try(ctx, "delete", what, func(ctx context.Context) error { return s.deleteBatch(ctx, batch) }); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *Store) deleteBatch(ctx context.Context, names []string) (failed error) {
	objects := func(yield func(minio.ObjectInfo) bool) {
		for _, name := range names {
			if !yield(minio.ObjectInfo{Key: s.key(name)}) {
				return
			}
		}
	}
	results, err := s.core.RemoveObjectsWithIter(ctx, s.place.Bucket, objects, minio.RemoveObjectsOptions{})
	if err != nil {
		return err
	}
	for result := range results { // all of them: the iterator cannot be left early
		if result.Err != nil && failed == nil && responseOf(result.Err).Code != minio.NoSuchKey {
			failed = result.Err
		}
	}
	if failed == nil {
		return ctx.Err()
	}
	return failed
}
