package repo

import (
	"math/rand/v2"
	"os"
	"testing"
)

// soaking reports whether tests try all cases instead of a sample.
func soaking() bool { return os.Getenv("ORLOP_SOAK") != "" }

// newTestKeys returns the keyring of an encrypted repository whose randomness repeats.
func newTestKeys(t testing.TB, encrypted bool) *Keyring {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	var key *Key
	if encrypted {
		var err error
		if key, err = NewKey(random); err != nil {
			t.Fatal(err)
		}
	}
	_, _, keys, err := NewRepository(key, random)
	if err != nil {
		t.Fatal(err)
	}
	keys.Random = nil
	return keys
}

func newTestLineage(t testing.TB) *Lineage {
	t.Helper()
	lineage, err := newTestKeys(t, true).Lineage("0190-a")
	if err != nil {
		t.Fatal(err)
	}
	return lineage
}
