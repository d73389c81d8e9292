package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"orlop/internal/fault"
)

// probePrefix is where Probe puts its objects.
const probePrefix = "probe/"

// Probe finds out by trying whether s keeps the promises that can be tried from one host: exclusive creation, and
// reading, listing and absence at once. It fails with fault.ErrUnsupported if not, and with what s returned if s
// failed. It leaves no object behind, unless it cannot delete its own. A store that passes may still break its
// promises under a race: Probe is there to refuse the servers that ignore the condition on a request.
func Probe(ctx context.Context, s Store) (err error) {
	name := probePrefix + strings.ToLower(rand.Text())
	first, second := []byte("first"), []byte("second")
	defer func() {
		if removed := s.Delete(context.WithoutCancel(ctx), name); removed != nil && err == nil {
			err = fmt.Errorf("probe the store: %w", removed)
		}
	}()
	// The name is new: if it is taken, an attempt that was thought lost has taken it.
	if err := s.Put(ctx, name, first); err != nil && !fault.Is(err, fault.ErrExists) {
		return fmt.Errorf("probe the store: %w", err)
	}
	switch err := s.Put(ctx, name, second); {
	case err == nil:
		return unfit("it overwrites objects that exist")
	case !fault.Is(err, fault.ErrExists):
		return fmt.Errorf("probe the store: %w", err)
	}
	if err := probeReading(ctx, s, name, first); err != nil {
		return err
	}
	if err := s.Delete(ctx, name); err != nil {
		return fmt.Errorf("probe the store: %w", err)
	}
	switch _, err := s.Get(ctx, name); {
	case err == nil:
		return unfit("it shows an object that was deleted")
	case !fault.Is(err, fault.ErrNotFound):
		return fmt.Errorf("probe the store: %w", err)
	}
	return nil
}

// probeReading looks for the object in every way.
func probeReading(ctx context.Context, s Store, name string, want []byte) error {
	got, err := s.Get(ctx, name)
	switch {
	case fault.Is(err, fault.ErrNotFound):
		return unfit("it does not show an object that was just put")
	case err != nil:
		return fmt.Errorf("probe the store: %w", err)
	case !bytes.Equal(got, want):
		return unfit("it changes objects that exist")
	}
	found := errors.New("found")
	err = s.List(ctx, probePrefix, func(o Object) error {
		if o == (Object{Name: name, Size: int64(len(want))}) {
			return found
		}
		return nil
	})
	switch {
	case errors.Is(err, found):
		return nil
	case err != nil:
		return fmt.Errorf("probe the store: %w", err)
	}
	return unfit("it does not list an object that was just put")
}

func unfit(why string) error {
	return fault.Errorf(fault.ErrUnsupported, "this store cannot hold backups: %s; concurrent backups would lose data", why)
}
