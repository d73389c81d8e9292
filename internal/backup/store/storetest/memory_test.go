package storetest_test

import (
	"bytes"
	"slices"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	storetest.Run(t, storetest.Harness{Store: storetest.NewMemory()})
}

func TestFaultsWithoutRulesKeepTheContract(t *testing.T) {
	storetest.Run(t, storetest.Harness{Store: storetest.NewFaults(storetest.NewMemory())})
}

func TestMemoryRefusesNamesWithinNames(t *testing.T) {
	m := storetest.NewMemory()
	must(t, m.Put(t.Context(), "a/b/c", nil))
	for _, name := range []string{"a", "a/b", "a/b/c/d"} {
		if err := m.Put(t.Context(), name, nil); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, m.Delete(t.Context(), "a/b/c"))
	must(t, m.Delete(t.Context(), "a/b/c"))
	must(t, m.Put(t.Context(), "a", nil))
}

func TestClonesAreIndependent(t *testing.T) {
	m := storetest.NewMemory()
	must(t, m.Put(t.Context(), "both", []byte("1")))
	clone := m.Clone()
	must(t, m.Put(t.Context(), "mine", nil))
	must(t, m.Delete(t.Context(), "both"))
	must(t, clone.Put(t.Context(), "its", nil))
	if got := m.Names(); !slices.Equal(got, []string{"mine"}) {
		t.Errorf("the original has %q", got)
	}
	if got := clone.Names(); !slices.Equal(got, []string{"both", "its"}) {
		t.Errorf("the clone has %q", got)
	}
}

func TestTamperedObjectsDifferAsTold(t *testing.T) {
	m := storetest.NewMemory()
	for _, c := range []struct {
		change func([]byte) []byte
		want   string
	}{
		{storetest.Flip(0), "`bc"},
		{storetest.Flip(-1), "abb"},
		{storetest.Truncate(2), "ab"},
		{storetest.Truncate(0), ""},
	} {
		must(t, m.Put(t.Context(), "x", []byte("abc")))
		storetest.Tamper(t, m, "x", c.change)
		if got, err := m.Get(t.Context(), "x"); err != nil || !bytes.Equal(got, []byte(c.want)) {
			t.Errorf("want %q, got %q, %v", c.want, got, err)
		}
		must(t, m.Delete(t.Context(), "x"))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
