package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// An Op is a method of a store.
type Op string

// The methods of a store. Any stands for every one of them in a rule.
const (
	Any      Op = ""
	Put      Op = "put"
	Get      Op = "get"
	GetRange Op = "get range"
	List     Op = "list"
	Delete   Op = "delete"
)

// A Request is one call of a store's method and, once it was done, its answer.
type Request struct {
	Op             Op
	Name           string // or prefix
	Offset, Length int64  // of GetRange

	Data    []byte         // what Put stores, or what Get and GetRange return; an effect may replace it, not write to it
	Objects []store.Object // what List shows; an effect may change it
}

// An Effect is what becomes of a request. do sends it to the store below, as often as the effect likes; what the effect
// returns is what the caller gets. It may wait, look at other things or panic. It must not call Faults.On.
type Effect func(r *Request, do func() error) error

// A Count is how many requests there were, and how many bytes of objects went with them.
type Count struct {
	Requests int
	Bytes    int64
}

// Faults is a store whose requests go wrong as its rules say, and which counts them. With one caller at a time, all of
// it is deterministic. It is safe for concurrent use, effects aside.
type Faults struct {
	below store.Store

	mu      sync.Mutex
	rules   []*rule
	counts  map[Op]Count
	delayed []func(context.Context) error
}

var _ store.Store = (*Faults)(nil)

type rule struct {
	op     Op
	prefix string
	nth    int // requests still to come, this one included; 0 for every one
	spent  bool
	effect Effect
}

// NewFaults decorates a store. Without rules it only counts.
func NewFaults(below store.Store) *Faults { return &Faults{below: below, counts: map[Op]Count{}} }

// On adds a rule: the nth request from here on, 1 being the first, whose method is op and whose name begins with
// prefix, has the effect; with nth 0 every one. Each rule counts for itself. Of several that meet, the one added first
// acts, and the others have counted the request.
func (f *Faults) On(op Op, prefix string, nth int, effect Effect) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &rule{op: op, prefix: prefix, nth: nth, effect: effect})
}

// Clear forgets all rules. Delayed requests stay under way.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Pending is how many rules for one request have not met it yet.
func (f *Faults) Pending() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if r.nth > 0 && !r.spent {
			n++
		}
	}
	return n
}

// Count tells what was counted for op since the last Reset, for all methods together if op is Any. A request counts
// once, whatever its effect; delayed ones that arrive do not count again.
func (f *Faults) Count(op Op) (count Count) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other, c := range f.counts {
		if op == Any || op == other {
			count.Requests += c.Requests
			count.Bytes += c.Bytes
		}
	}
	return count
}

// Reset sets all counts to zero.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.counts)
}

// FailBefore makes a request fail before it has any effect. A nil err stands for a fault.ErrUnreachable.
func FailBefore(err error) Effect {
	return func(r *Request, _ func() error) error { return orUnreachable(err, r) }
}

// FailAfter makes a request fail that has had its effect. A nil err stands for a fault.ErrUnreachable.
func FailAfter(err error) Effect {
	return func(r *Request, do func() error) error {
		_ = do() // the caller does not learn of it
		return orUnreachable(err, r)
	}
}

// LoseReply loses the reply to a request, which is then sent again, as a client library does: the caller gets the
// second answer. A Put that succeeded is then told that the object exists.
func LoseReply(_ *Request, do func() error) error {
	_ = do() // lost
	return do()
}

// ChangeReply changes what Get or GetRange returned, given a copy of it.
func ChangeReply(change func([]byte) []byte) Effect {
	return func(r *Request, do func() error) error {
		err := do()
		if err == nil {
			r.Data = change(slices.Clone(r.Data))
		}
		return err
	}
}

func orUnreachable(err error, r *Request) error {
	if err == nil {
		return fault.Errorf(fault.ErrUnreachable, "%s %s: no answer", r.Op, r.Name)
	}
	return err
}

// Late makes a Put or Delete fail with fault.ErrUnreachable; it arrives at the next Deliver.
func (f *Faults) Late(r *Request, _ func() error) error {
	f.delay(r)
	return orUnreachable(nil, r)
}

// Repeat makes a Put or Delete happen as it should, and arrive once more at the next Deliver.
func (f *Faults) Repeat(r *Request, do func() error) error {
	f.delay(r)
	return do()
}

func (f *Faults) delay(r *Request) {
	name, data := r.Name, slices.Clone(r.Data)
	send := func(ctx context.Context) error { return f.below.Delete(ctx, name) }
	switch r.Op {
	case Put:
		send = func(ctx context.Context) error { return f.below.Put(ctx, name, data) }
	case Delete:
	default:
		panic("storetest: only puts and deletes can be delayed, not " + string(r.Op))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delayed = append(f.delayed, send)
}

// Deliver lets all delayed requests arrive, in their order, and returns the answers that nobody else will get.
func (f *Faults) Deliver(ctx context.Context) (answers []error) {
	f.mu.Lock()
	delayed := f.delayed
	f.delayed = nil
	f.mu.Unlock()
	for _, send := range delayed {
		answers = append(answers, send(ctx))
	}
	return answers
}

// next counts a request and returns its effect, or nil if it has none.
func (f *Faults) next(r *Request) (effect Effect) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[r.Op] = Count{f.counts[r.Op].Requests + 1, f.counts[r.Op].Bytes}
	for _, rule := range f.rules {
		if rule.spent || rule.op != Any && rule.op != r.Op || !strings.HasPrefix(r.Name, rule.prefix) {
			continue
		}
		acts := rule.nth == 0
		if rule.nth > 0 {
			rule.nth--
			acts = rule.nth == 0
			rule.spent = acts
		}
		if acts && effect == nil {
			effect = rule.effect
		}
	}
	return effect
}

// pass sends a request through the rules to the store below.
func (f *Faults) pass(r *Request, do func() error) error {
	effect := f.next(r)
	counted := func() error {
		err := do()
		if err == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.counts[r.Op] = Count{f.counts[r.Op].Requests, f.counts[r.Op].Bytes + int64(len(r.Data))}
		}
		return err
	}
	if effect == nil {
		return counted()
	}
	return effect(r, counted)
}

// Put passes the request on.
func (f *Faults) Put(ctx context.Context, name string, data []byte) error {
	r := &Request{Op: Put, Name: name, Data: data}
	return f.pass(r, func() error { return f.below.Put(ctx, name, r.Data) })
}

// Get passes the request on.
func (f *Faults) Get(ctx context.Context, name string) ([]byte, error) {
	r := &Request{Op: Get, Name: name}
	return f.reply(r, func() (err error) {
		r.Data, err = f.below.Get(ctx, name)
		return err
	})
}

// GetRange passes the request on.
func (f *Faults) GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	r := &Request{Op: GetRange, Name: name, Offset: offset, Length: length}
	return f.reply(r, func() (err error) {
		r.Data, err = f.below.GetRange(ctx, name, offset, length)
		return err
	})
}

func (f *Faults) reply(r *Request, do func() error) ([]byte, error) {
	if err := f.pass(r, do); err != nil {
		return nil, err
	}
	return r.Data, nil
}

// List passes the request on, and shows its answer once it is whole.
func (f *Faults) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	r := &Request{Op: List, Name: prefix}
	err := f.pass(r, func() error {
		r.Objects = nil
		return f.below.List(ctx, prefix, func(o store.Object) error {
			r.Objects = append(r.Objects, o)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, o := range r.Objects {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// Delete passes the request on.
func (f *Faults) Delete(ctx context.Context, name string) error {
	r := &Request{Op: Delete, Name: name}
	return f.pass(r, func() error { return f.below.Delete(ctx, name) })
}
