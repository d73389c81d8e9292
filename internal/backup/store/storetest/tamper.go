package storetest

import (
	"context"
	"testing"

	"orlop/internal/backup/store"
)

// Tamper replaces an object by what change makes of it, as a damaged disk or a malicious host could.
func Tamper(t testing.TB, s store.Store, name string, change func([]byte) []byte) {
	t.Helper()
	ctx := context.Background()
	data, err := s.Get(ctx, name)
	if err == nil {
		err = s.Delete(ctx, name)
	}
	if err == nil {
		err = s.Put(ctx, name, change(data))
	}
	if err != nil {
		t.Fatalf("tamper with %s: %v", name, err)
	}
}

// Flip is a change that inverts one bit of the byte at offset, or counted from the end if it is negative.
func Flip(offset int) func([]byte) []byte {
	return func(b []byte) []byte {
		if offset < 0 {
			b[len(b)+offset] ^= 1
		} else {
			b[offset] ^= 1
		}
		return b
	}
}

// Truncate is a change that leaves the first size bytes.
func Truncate(size int) func([]byte) []byte {
	return func(b []byte) []byte { return b[:size] }
}
