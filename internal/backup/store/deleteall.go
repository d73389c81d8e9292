package store

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// A Batcher is a Store that deletes many objects with one request.
type Batcher interface {
	// DeleteAll deletes objects, as if by Delete for each. If it fails, some are deleted.
	DeleteAll(ctx context.Context, names []string) error
}

// DeleteAll deletes objects from s, by batches if s can, and else so many at once. If it fails, some are deleted.
func DeleteAll(ctx context.Context, s Store, names []string, atOnce int) error {
	if b, ok := s.(Batcher); ok && len(names) > 1 {
		return b.DeleteAll(ctx, names)
	}
	group, deleting := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, name := range names {
		if deleting.Err() != nil {
			break
		}
		group.Go(func() error { return s.Delete(deleting, name) })
	}
	return errors.Join(group.Wait(), ctx.Err())
}
