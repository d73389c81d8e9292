package store_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// lax is a store whose Put looks first and creates afterwards, with all writers of a race in between.
type lax struct {
	*storetest.Memory
	mu      sync.Mutex
	looking map[string]chan struct{}
	count   map[string]int
}

func (l *lax) Put(ctx context.Context, name string, data []byte) error {
	if _, err := l.Get(ctx, name); err == nil || !strings.Contains(name, "race-") {
		return l.Memory.Put(ctx, name, data)
	}
	l.mu.Lock()
	if l.looking[name] == nil {
		l.looking[name] = make(chan struct{})
	}
	all := l.looking[name]
	l.count[name]++
	if l.count[name] == 2 {
		close(all)
	}
	l.mu.Unlock()
	<-all
	err := l.Memory.Put(ctx, name, data)
	if fault.Is(err, fault.ErrExists) && l.second(name) {
		return nil // one more winner
	}
	return err
}

// second reports true once for each name.
func (l *lax) second(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[name] += 100
	return l.count[name] < 200
}

func race(t *testing.T, s store.Store) ([]store.Trial, error) {
	t.Helper()
	var trials []store.Trial
	err := store.Race(t.Context(), []store.Store{s, s}, func(trial store.Trial) { trials = append(trials, trial) })
	return trials, err
}

func TestRaceRefusesStoresThatBreakTheirPromises(t *testing.T) {
	racing := func(effect storetest.Effect) storetest.Effect {
		return func(r *storetest.Request, do func() error) error {
			if strings.Contains(r.Name, "race-") {
				return effect(r, do)
			}
			return do()
		}
	}
	for name, c := range map[string]struct {
		op     storetest.Op
		nth    int
		effect storetest.Effect
		says   string
	}{
		"overwrites":     {storetest.Put, 2, succeed, "overwrites"},
		"forgets":        {storetest.Put, 0, racing(func(*storetest.Request, func() error) error { return fault.Errorf(fault.ErrExists, "taken") }), "each was refused"},
		"changes":        {storetest.Get, 1, storetest.ChangeReply(storetest.Flip(0)), "changes objects"},
		"hides":          {storetest.Get, 1, storetest.FailBefore(fault.ErrNotFound), "does not show"},
		"does not list":  {storetest.List, 2, func(r *storetest.Request, do func() error) error { err := do(); r.Objects = r.Objects[1:]; return err }, "lists 20 of 21"},
		"puts strangely": {storetest.Put, 0, racing(func(r *storetest.Request, do func() error) error { r.Data = []byte("x"); return do() }), "changes objects"},
	} {
		m := storetest.NewMemory()
		f := storetest.NewFaults(m)
		f.On(c.op, "", c.nth, c.effect)
		trials, err := race(t, f)
		if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if last := trials[len(trials)-1]; last.OK || !strings.Contains(last.Saw, c.says) {
			t.Errorf("%s: %+v", name, trials)
		}
		if left := m.Names(); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestRaceRefusesAStoreThatLetsSeveralWin(t *testing.T) {
	for range 20 {
		_, err := race(t, &lax{Memory: storetest.NewMemory(), looking: map[string]chan struct{}{}, count: map[string]int{}})
		if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "2 were told that they had created it") {
			t.Fatal(err)
		}
	}
}

func TestRacePassesASoundStoreAndLeavesNothing(t *testing.T) {
	m := storetest.NewMemory()
	trials, err := race(t, m)
	if err != nil || len(trials) != 3 || len(m.Names()) > 0 {
		t.Errorf("%v, %+v, left %q", err, trials, m.Names())
	}
	f := storetest.NewFaults(m)
	f.On(storetest.Put, "", 40, storetest.LoseReply) // of the winner or of a loser
	f.On(storetest.Put, "", 1, storetest.LoseReply)
	if _, err := race(t, f); err != nil {
		t.Errorf("with lost replies: %v", err)
	}
	f.On(storetest.Put, "", 50, storetest.FailBefore(nil))
	if _, err := race(t, f); !fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("of a store that fails: %v", err)
	}
}
