package storetest_test

import (
	"errors"
	"slices"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func newFaults() (*storetest.Faults, *storetest.Memory) {
	m := storetest.NewMemory()
	return storetest.NewFaults(m), m
}

func TestTheNthRequestFailsBeforeOrAfterItsEffect(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		effect storetest.Effect
		want   []string
	}{
		{storetest.FailBefore(broken), []string{"h/1", "h/3", "x/1"}},
		{storetest.FailAfter(broken), []string{"h/1", "h/2", "h/3", "x/1"}},
	} {
		f, m := newFaults()
		f.On(storetest.Put, "h/", 2, c.effect)
		must(t, f.Put(t.Context(), "h/1", nil))
		must(t, f.Put(t.Context(), "x/1", nil))
		must(t, f.Delete(t.Context(), "h/none"))
		if f.Pending() != 1 {
			t.Errorf("%d rules are pending", f.Pending())
		}
		if err := f.Put(t.Context(), "h/2", nil); !errors.Is(err, broken) {
			t.Errorf("the second put: %v", err)
		}
		if f.Pending() != 0 {
			t.Errorf("%d rules are pending", f.Pending())
		}
		must(t, f.Put(t.Context(), "h/3", nil))
		if got := m.Names(); !slices.Equal(got, c.want) {
			t.Errorf("want %q, got %q", c.want, got)
		}
	}
}

func TestEveryRequestFailsUntilTheRulesAreCleared(t *testing.T) {
	f, m := newFaults()
	f.On(storetest.Any, "", 0, storetest.FailBefore(nil))
	_, getErr := f.Get(t.Context(), "a")
	_, rangeErr := f.GetRange(t.Context(), "a", 0, 1)
	listErr := f.List(t.Context(), "", func(store.Object) error { return nil })
	for _, err := range []error{f.Put(t.Context(), "a", nil), getErr, rangeErr, listErr, f.Delete(t.Context(), "a")} {
		if !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
	}
	f.Clear()
	must(t, f.Put(t.Context(), "a", nil))
	if got := m.Names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("got %q", got)
	}
}

func TestALostReplyToAPutLooksAsIfTheNameWereTaken(t *testing.T) {
	f, m := newFaults()
	f.On(storetest.Put, "", 1, storetest.LoseReply)
	f.On(storetest.Delete, "", 1, storetest.LoseReply)
	if err := f.Put(t.Context(), "a", []byte("mine")); !fault.Is(err, fault.ErrExists) {
		t.Errorf("put: %v", err)
	}
	if got, err := m.Get(t.Context(), "a"); err != nil || string(got) != "mine" {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, f.Delete(t.Context(), "a"))
}

func TestALatePutArrivesAtDeliver(t *testing.T) {
	f, m := newFaults()
	f.On(storetest.Put, "", 1, f.Late)
	data := []byte("late")
	if err := f.Put(t.Context(), "a", data); !fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("put: %v", err)
	}
	data[0] = 'X'
	if got := m.Names(); len(got) > 0 {
		t.Errorf("before it arrives: %q", got)
	}
	if answers := f.Deliver(t.Context()); len(answers) != 1 || answers[0] != nil {
		t.Errorf("answers: %v", answers)
	}
	if got, err := m.Get(t.Context(), "a"); err != nil || string(got) != "late" {
		t.Errorf("got %q, %v", got, err)
	}
	if answers := f.Deliver(t.Context()); len(answers) > 0 {
		t.Errorf("nothing was under way, and came: %v", answers)
	}
}

func TestARepeatedRequestHappensTwice(t *testing.T) {
	f, m := newFaults()
	f.On(storetest.Put, "", 1, f.Repeat)
	f.On(storetest.Delete, "", 1, f.Repeat)
	must(t, f.Put(t.Context(), "a", nil))
	must(t, f.Delete(t.Context(), "a"))
	answers := f.Deliver(t.Context()) // the put makes it anew, the delete removes it
	if len(answers) != 2 || errors.Join(answers...) != nil {
		t.Errorf("answers: %v", answers)
	}
	if got := m.Names(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

func TestRepliesAreChangedOnTheirWay(t *testing.T) {
	f, m := newFaults()
	must(t, f.Put(t.Context(), "a", []byte("abc")))
	f.On(storetest.Get, "", 1, storetest.ChangeReply(storetest.Flip(-1)))
	f.On(storetest.GetRange, "", 1, storetest.ChangeReply(storetest.Truncate(1)))
	f.On(storetest.List, "", 1, func(r *storetest.Request, do func() error) error {
		err := do()
		r.Objects = nil
		return err
	})
	if got, err := f.Get(t.Context(), "a"); err != nil || string(got) != "abb" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := f.GetRange(t.Context(), "a", 1, 2); err != nil || string(got) != "b" {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, f.List(t.Context(), "", func(o store.Object) error {
		t.Errorf("listed %v", o)
		return nil
	}))
	if got, err := m.Get(t.Context(), "a"); err != nil || string(got) != "abc" {
		t.Errorf("below: %q, %v", got, err)
	}
}

func TestRequestsAndBytesAreCounted(t *testing.T) {
	f, _ := newFaults()
	must(t, f.Put(t.Context(), "a", make([]byte, 100)))
	_ = f.Put(t.Context(), "a", make([]byte, 50)) // refused: a request, but no bytes
	_, err := f.Get(t.Context(), "a")
	must(t, err)
	_, err = f.GetRange(t.Context(), "a", 0, 10)
	must(t, err)
	must(t, f.List(t.Context(), "", func(store.Object) error { return nil }))
	must(t, f.Delete(t.Context(), "a"))
	for op, want := range map[storetest.Op]storetest.Count{
		storetest.Put:      {Requests: 2, Bytes: 100},
		storetest.Get:      {Requests: 1, Bytes: 100},
		storetest.GetRange: {Requests: 1, Bytes: 10},
		storetest.List:     {Requests: 1},
		storetest.Delete:   {Requests: 1},
		storetest.Any:      {Requests: 6, Bytes: 210},
	} {
		if got := f.Count(op); got != want {
			t.Errorf("%q: want %+v, got %+v", op, want, got)
		}
	}
	f.Reset()
	if got := f.Count(storetest.Any); got != (storetest.Count{}) {
		t.Errorf("after the reset: %+v", got)
	}
}
