package store_test

import (
	"context"
	"strings"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func TestCheckNameRefusesBadNames(t *testing.T) {
	for _, name := range storetest.BadNames {
		if err := store.CheckName(name); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
		if err := store.CheckPrefix(name + "/"); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("prefix %q: %v", name+"/", err)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, name := range append(storetest.BadNames, "a", "a/b", "0/a.b-c_d") {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if store.CheckName(name) != nil {
			return
		}
		if name != strings.ToLower(name) || strings.ContainsAny(name, "\x00\\%+~ \n") || len(name) > store.MaxName {
			t.Errorf("%q is accepted", name)
		}
		for segment := range strings.SplitSeq(name, "/") {
			if segment == "" || segment == "." || segment == ".." || len(segment) > store.MaxSegment {
				t.Errorf("%q is accepted", name)
			}
		}
		if err := store.CheckPrefix(name + "/"); err != nil {
			t.Errorf("%q is a name and its directory no prefix: %v", name, err)
		}
	})
}

// faulty is an empty store that answers the nth request of a kind wrongly, and what is below it.
func faulty(op storetest.Op, nth int, effect storetest.Effect) (*storetest.Faults, *storetest.Memory) {
	m := storetest.NewMemory()
	f := storetest.NewFaults(m)
	f.On(op, "", nth, effect)
	return f, m
}

func succeed(*storetest.Request, func() error) error { return nil }

func TestProbeRefusesStoresThatBreakTheirPromises(t *testing.T) {
	empty := func(r *storetest.Request, do func() error) error {
		err := do()
		r.Objects = nil
		return err
	}
	for name, c := range map[string]struct {
		op     storetest.Op
		nth    int
		effect storetest.Effect
		want   string
	}{
		"overwrites":       {storetest.Put, 2, succeed, "overwrites"},
		"changes":          {storetest.Get, 1, storetest.ChangeReply(storetest.Flip(0)), "changes objects"},
		"hides":            {storetest.Get, 1, storetest.FailBefore(fault.ErrNotFound), "does not show"},
		"does not list":    {storetest.List, 1, empty, "does not list"},
		"shows what's not": {storetest.Get, 2, succeed, "was deleted"},
	} {
		f, m := faulty(c.op, c.nth, c.effect)
		err := store.Probe(t.Context(), f)
		if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left := m.Names(); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestProbeTellsOfAStoreThatFails(t *testing.T) {
	for n := 1; ; n++ {
		f, m := faulty(storetest.Any, n, storetest.FailBefore(nil))
		err := store.Probe(t.Context(), f)
		if f.Pending() > 0 { // it made fewer requests
			if err != nil || n != 8 {
				t.Errorf("after %d requests: %v", n-1, err)
			}
			return
		}
		if !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("request %d failed: %v", n, err)
		}
		if left := m.Names(); len(left) > 0 && n < 7 {
			t.Errorf("request %d failed: left %q", n, left)
		}
	}
}

func TestProbeTakesALostReplyForASuccess(t *testing.T) {
	f, m := faulty(storetest.Put, 1, storetest.LoseReply)
	if err := store.Probe(t.Context(), f); err != nil {
		t.Error(err)
	}
	if left := m.Names(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestProbeCleansUpWhenItIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f, m := faulty(storetest.Put, 2, func(_ *storetest.Request, do func() error) error {
		cancel()
		return do()
	})
	if err := store.Probe(ctx, f); err == nil {
		t.Error("it succeeded")
	}
	if left := m.Names(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
