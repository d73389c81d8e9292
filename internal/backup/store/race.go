package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"

	"orlop/internal/fault"
)

// RaceWriters and RaceKeys are how many writers race for each name, and for how many names.
const (
	RaceWriters = 16
	RaceKeys    = 20
)

// A Leaver is a Store that can leave a Put in its middle.
type Leaver interface {
	// PutAndLeave sends the request of a Put and leaves without waiting for the reply. Whether the object is there or will
	// come to be there is open.
	PutAndLeave(ctx context.Context, name string, data []byte) error
}

// A Trial is one thing that Race tried.
type Trial struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Saw  string `json:"saw"`
}

// Race finds out by trying whether a store creates objects exclusively also when writers race. Ways are ways to the same objects,
// as over several addresses of a server; writers take them by turns. Each trial is told when it has ended. Race fails with
// fault.ErrUnsupported and what it saw if the store overwrites, lets several writers win, or forgets; and with what the store
// returned if that failed. It needs no permission to delete, and without it leaves its objects behind, below probe/.
func Race(ctx context.Context, ways []Store, tell func(Trial)) error {
	r := &race{ways: ways, tell: tell, dir: probePrefix + strings.ToLower(rand.Text())}
	defer r.clean(context.WithoutCancel(ctx))
	for _, trial := range []func(context.Context) error{r.inSequence, r.atOnce, r.left, r.listed} {
		if err := trial(ctx); err != nil {
			return err
		}
	}
	return nil
}

type race struct {
	ways []Store
	tell func(Trial)
	dir  string

	mu    sync.Mutex
	names []string // of all objects that may be there
}

// name returns a new one.
func (r *race) name(kind string, i int) string {
	name := fmt.Sprintf("%s/%s-%02d", r.dir, kind, i)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, name)
	return name
}

func (r *race) way(i int) Store { return r.ways[i%len(r.ways)] }

// body is what a writer puts. No other one has the same.
func body(name string, writer int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%s written by %02d\n", name, writer), 16)
}

// ended tells of a trial. Saw is what was wrong, or nil with what was seen.
func (r *race) ended(what, saw string, wrong error) error {
	trial := Trial{What: what, OK: wrong == nil, Saw: saw}
	if wrong != nil {
		trial.Saw = wrong.Error()
	}
	r.tell(trial)
	if wrong != nil && fault.Is(wrong, fault.ErrUnsupported) {
		return unfit(wrong.Error())
	}
	if wrong != nil {
		return fmt.Errorf("probe the store: %s: %w", what, wrong)
	}
	return nil
}

// broken is what a trial saw of a store that breaks a promise.
func broken(format string, args ...any) error {
	return fault.Errorf(fault.ErrUnsupported, format, args...)
}

func (r *race) inSequence(ctx context.Context) error {
	const what = "one writer after the other"
	name := r.name("sequence", 0)
	if err := r.way(0).Put(ctx, name, body(name, 0)); err != nil && !fault.Is(err, fault.ErrExists) {
		return r.ended(what, "", err)
	}
	for i := range 2 * len(r.ways) {
		switch err := r.way(i).Put(ctx, name, body(name, i+1)); {
		case err == nil:
			return r.ended(what, "", broken("it overwrites objects that exist"))
		case !fault.Is(err, fault.ErrExists):
			return r.ended(what, "", err)
		}
	}
	if err := r.holds(ctx, name, body(name, 0)); err != nil {
		return r.ended(what, "", err)
	}
	return r.ended(what, "the second was refused", nil)
}

// holds fails unless an object is what is wanted, over each way.
func (r *race) holds(ctx context.Context, name string, want []byte) error {
	for _, way := range r.ways {
		got, err := way.Get(ctx, name)
		switch {
		case fault.Is(err, fault.ErrNotFound):
			return broken("it does not show an object that was just put")
		case err != nil:
			return err
		case !bytes.Equal(got, want):
			return broken("it changes objects that exist")
		}
	}
	return nil
}

func (r *race) atOnce(ctx context.Context) error {
	what := fmt.Sprintf("%d writers at once, %d times, over %d ways", RaceWriters, RaceKeys, len(r.ways))
	for i := range RaceKeys {
		if err := r.once(ctx, r.name("race", i)); err != nil {
			return r.ended(what, "", err)
		}
	}
	return r.ended(what, "one of them won each time, and its object is there", nil)
}

// once lets writers race for a name.
func (r *race) once(ctx context.Context, name string) error {
	results := make([]error, RaceWriters)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range RaceWriters {
		ready.Add(1)
		done.Go(func() {
			_, _ = r.way(i).Get(ctx, name) // opens a connection: nothing is there yet
			data := body(name, i)
			ready.Done()
			<-start
			results[i] = r.way(i).Put(ctx, name, data)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	var winners []int
	for i, err := range results {
		switch {
		case err == nil:
			winners = append(winners, i)
		case !fault.Is(err, fault.ErrExists):
			return err
		}
	}
	switch {
	case len(winners) > 1:
		return broken("of %d writers that raced for one name, %d were told that they had created it", RaceWriters, len(winners))
	case len(winners) == 1:
		return r.holds(ctx, name, body(name, winners[0]))
	}
	// The reply to the winner was lost, and its second attempt was refused.
	got, err := r.way(0).Get(ctx, name)
	if fault.Is(err, fault.ErrNotFound) {
		return broken("of %d writers that raced for one name, each was refused, and there is no object", RaceWriters)
	}
	if err != nil {
		return err
	}
	for i := range RaceWriters {
		if bytes.Equal(got, body(name, i)) {
			return r.holds(ctx, name, got)
		}
	}
	return broken("after a race there is an object that no writer has put")
}

// left leaves a Put in its middle, and looks what became of it.
func (r *race) left(ctx context.Context) error {
	const what = "a writer that leaves before the reply"
	leaver, ok := r.way(0).(Leaver)
	if !ok {
		return nil
	}
	name := r.name("left", 0)
	first, second := body(name, 0), body(name, 1)
	if err := leaver.PutAndLeave(ctx, name, first); err != nil {
		return r.ended(what, "", err)
	}
	err := r.way(1).Put(ctx, name, second)
	if err != nil && !fault.Is(err, fault.ErrExists) {
		return r.ended(what, "", err)
	}
	want, saw := first, "its object was created"
	if err == nil {
		want, saw = second, "its object was not created, and another one could be"
	}
	if err := r.holds(ctx, name, want); err != nil {
		return r.ended(what, "", err)
	}
	if err := r.way(0).Put(ctx, name, body(name, 2)); err == nil {
		return r.ended(what, "", broken("it overwrites objects that exist"))
	} else if !fault.Is(err, fault.ErrExists) {
		return r.ended(what, "", err)
	}
	return r.ended(what, saw, nil)
}

func (r *race) listed(ctx context.Context) error {
	const what = "a listing after that"
	r.mu.Lock()
	want := slices.Clone(r.names)
	r.mu.Unlock()
	slices.Sort(want)
	for _, way := range r.ways {
		var names []string
		err := way.List(ctx, r.dir+"/", func(o Object) error {
			names = append(names, o.Name)
			return nil
		})
		if err != nil {
			return r.ended(what, "", err)
		}
		if !slices.Equal(names, want) {
			return r.ended(what, "", broken("it lists %d of %d objects that were just put", len(names), len(want)))
		}
	}
	return r.ended(what, fmt.Sprintf("all %d objects are listed", len(want)), nil)
}

// clean deletes what it can.
func (r *race) clean(ctx context.Context) {
	_ = DeleteAll(ctx, r.ways[0], r.names, 8) // those that may not delete leave small objects, which nothing minds
}
