package protocoltest

import (
	"fmt"
	"iter"
	"slices"

	"orlop/internal/fault"
)

// A Host runs one process after another; when a process dies, the next begins with the job that was cut short.
type Host struct {
	ID   int
	Jobs []Job

	// Memory is the engine's: what the host keeps across a crash.
	Memory any
}

// A Process sends requests to the store, one at a time. Its methods return when the schedule has decided what
// becomes of the request; they fail with
//
//   - fault.ErrExists (Put): the name is there, perhaps because this very request was delivered twice; or it is not
//     there, and nothing was done (an S3 server answers 409 when requests for one name meet),
//   - fault.ErrNotFound (Get): the name is not there,
//   - fault.ErrUnreachable: the answer is lost; the request was done, or never will be, or will be done later.
type Process struct {
	World *World
	Host  *Host

	id       int
	at       int  // the job it is at
	replaced bool // its host has started another: it ends after its job
	wakes    int  // the step at which it goes on
	pending  request
	reply    reply
	next     func() (request, bool)
	stop     func()
	yield    func(request) bool
}

// The errors are shared: making one anew for each request took most of the time.
var (
	errExists      = fault.Errorf(fault.ErrExists, "object exists")
	errNotFound    = fault.Errorf(fault.ErrNotFound, "no such object")
	errUnreachable = fault.Errorf(fault.ErrUnreachable, "answer lost")
)

type verb string

const (
	put    verb = "put"
	get    verb = "get"
	list   verb = "list"
	remove verb = "delete"
)

type request struct {
	verb   verb
	name   string // of list, the prefix
	after  string
	object any
}

func (r request) is(v verb, name string) bool { return r.verb == v && r.name == name }

func (r request) String() string { return string(r.verb) + " " + r.name }

type reply struct {
	object any
	names  []string
	more   bool
	err    error
}

// crashed unwinds a process that has crashed.
type crashed struct{}

// Put creates an object exclusively.
func (p *Process) Put(name string, object any) error {
	return p.do(request{verb: put, name: name, object: object}).err
}

// Get returns the object called name.
func (p *Process) Get(name string) (any, error) {
	r := p.do(request{verb: get, name: name})
	return r.object, r.err
}

// List returns the names that begin with prefix and come after after, in order, as of one instant. More tells that
// this is only a page of them.
func (p *Process) List(prefix, after string) (names []string, more bool, err error) {
	r := p.do(request{verb: list, name: prefix, after: after})
	return r.names, r.more, r.err
}

// Delete deletes the object called name; it is no error if there is none.
func (p *Process) Delete(name string) error { return p.do(request{verb: remove, name: name}).err }

func (p *Process) do(r request) reply {
	if !p.yield(r) {
		panic(crashed{})
	}
	return p.reply
}

func (p *Process) String() string { return fmt.Sprintf("process %d of host %d", p.id, p.Host.ID) }

// start runs the jobs of host from at on.
func (w *World) start(host *Host, at int) {
	p := &Process{World: w, Host: host, id: w.started, at: at}
	w.started++
	w.launch(p, func() {
		for ; p.at < len(host.Jobs) && !p.replaced; p.at++ {
			w.tracef("%s begins to %s", p, host.Jobs[p.at])
			w.engine.Perform(p, host.Jobs[p.at])
		}
	})
}

// launch makes p a coroutine that runs body and stops at each request.
func (w *World) launch(p *Process, body func()) {
	p.next, p.stop = iter.Pull(func(yield func(request) bool) {
		defer func() {
			if r := recover(); r != nil && r != any(crashed{}) {
				panic(r)
			}
		}()
		p.yield = yield
		body()
	})
	w.processes = append(w.processes, p)
	w.resume(p, reply{})
}

// resume answers p's request and lets it run up to the next.
func (w *World) resume(p *Process, answer reply) {
	p.reply = answer
	pending, alive := p.next()
	if !alive {
		w.end(p)
		return
	}
	p.pending = pending
}

// end takes p off the schedule.
func (w *World) end(p *Process) {
	p.stop()
	w.processes = slices.DeleteFunc(w.processes, func(other *Process) bool { return other == p })
}
