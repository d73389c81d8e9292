package protocoltest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// An Engine is what the histories drive: the model of this package, or an adapter to a real implementation over
// the same Store. Its methods run one at a time, and use no randomness but the World's, so that a seed repeats a
// history.
type Engine interface {
	// Perform does one job in the name of p, with p's requests, which have to come from the goroutine that
	// called it. If p crashes, the request panics and must not be recovered. What must not happen is reported
	// with World.Fail.
	Perform(p *Process, job Job)

	// Applied looks at an effect that a request just had on the store.
	Applied(effect Effect)

	// Settle runs in the name of p, undisturbed, after everything else ended and every late request arrived:
	// it ends all sessions, collects once, and then checks that nothing superfluous is left.
	Settle(p *Process)
}

// An Effect is a change of the store: Name was created as Object, or, if Object is nil, deleted.
type Effect struct {
	Name   string
	Object any
}

// A World is one history: a store, the processes of some hosts that use it, and a schedule drawn from a seed that
// decides whose request comes next and what becomes of it. There is no time, only order.
type World struct {
	Store

	// Seen counts the steps worth reaching, by name.
	Seen map[string]int

	// Trace, if set, is told every step.
	Trace func(step string)

	random    *rand.Rand
	engine    Engine
	processes []*Process // those that run
	late      []request  // given up by who sent them, not yet arrived
	overwrite bool       // the store is broken: a put replaces what is there
	temper    temper
	steps     int
	started   int // processes
	crashes   int
	contents  []Content // that were ever chosen
	failure   error
}

// A temper is what differs between histories besides the dice.
type temper struct {
	paged     bool // listings come page by page
	sleepy    int  // one request in so many is slept before
	drowsy    int  // the same for requests that touch heads, where sleep is most dangerous
	deep      int  // the longest sleep, in steps
	suspicion int  // one look at a session in so many finds it stalled
}

const (
	stepLimit  = 6000 // after so many steps whoever is left crashes
	crashLimit = 10
	pageSize   = 5
)

// NewWorld returns the history with a number, of those that seed stands for. It is run once.
func NewWorld(seed uint64, history int) *World {
	w := &World{
		Store:  Store{objects: map[string]any{}},
		Seen:   map[string]int{},
		random: rand.New(rand.NewPCG(seed, uint64(history))),
	}
	w.temper = temper{
		paged:     w.Choose(2) == 0,
		sleepy:    20 + w.Choose(80),
		drowsy:    3 + w.Choose(20),
		deep:      100 + w.Choose(900),
		suspicion: 2 + w.Choose(20),
	}
	return w
}

// SeemsStalled draws the opinion that a process has of a session. It may be wrong at any time.
func (w *World) SeemsStalled() bool { return w.Choose(w.temper.suspicion) == 0 }

// Choose returns a number from 0 to n-1.
func (w *World) Choose(n int) int { return w.random.IntN(n) }

// Saw counts a step worth reaching.
func (w *World) Saw(step string) {
	w.Seen[step]++
	if w.Trace != nil {
		w.tracef("  saw: %s", step)
	}
}

// Fail ends the history: something happened that must not. The first failure is kept.
func (w *World) Fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf(format, args...)
		w.tracef("FAILED: %v", w.failure)
	}
}

func (w *World) tracef(format string, args ...any) {
	if w.Trace != nil {
		w.Trace(fmt.Sprintf(format, args...))
	}
}

// Run drives engine through the history and returns what went wrong, nil if nothing did.
func (w *World) Run(engine Engine) error {
	w.engine = engine
	for i, jobs := range w.plan() {
		w.start(&Host{ID: i, Jobs: jobs}, 0)
	}
	for len(w.processes) > 0 && w.failure == nil {
		w.step()
	}
	for len(w.late) > 0 && w.failure == nil {
		w.deliverLate()
	}
	if w.failure == nil {
		w.settle()
	}
	for len(w.processes) > 0 {
		w.end(w.processes[0])
	}
	return w.failure
}

// step lets one thing happen.
func (w *World) step() {
	w.steps++
	if len(w.late) > 0 && w.Choose(12) == 0 {
		w.deliverLate()
		return
	}
	p := w.pick()
	switch {
	case w.steps > stepLimit:
		w.end(p)
	case w.fallsAsleep(p):
		w.tracef("%s sleeps before %s", p, p.pending)
	case w.crashes < crashLimit && w.Choose(120) == 0:
		w.crash(p)
	case w.crashes < crashLimit && w.Choose(150) == 0:
		w.replace(p)
	default:
		w.serve(p)
	}
}

// fallsAsleep decides whether p sleeps before its request, and how long. Who is to get a head sleeps by preference
// until a sleeper has put one of the same number.
func (w *World) fallsAsleep(p *Process) bool {
	hazard, wakes := w.temper.sleepy, w.steps+10+w.Choose(w.temper.deep)
	if strings.HasPrefix(p.pending.name, headPrefix) && p.pending.verb != list {
		hazard = w.temper.drowsy
		for _, other := range w.processes {
			if p.pending.verb == get && other.pending.is(put, p.pending.name) && other.wakes > w.steps {
				hazard, wakes = 2, other.wakes+1+w.Choose(20)
			}
		}
	}
	if w.Choose(hazard) != 0 {
		return false
	}
	p.wakes = wakes
	return true
}

// pick returns a process that is awake. If none is, the first to wake does so now.
func (w *World) pick() *Process {
	first := w.processes[w.Choose(len(w.processes))]
	for range 4 {
		if first.wakes <= w.steps {
			return first
		}
		first = w.processes[w.Choose(len(w.processes))]
	}
	for _, p := range w.processes {
		if p.wakes < first.wakes {
			first = p
		}
	}
	return first
}

// crash ends p at its present request, which may be done, lost, or done later, and starts p's host again.
func (w *World) crash(p *Process) {
	w.crashes++
	w.tracef("%s crashes at %s", p, p.pending)
	w.Saw("process crashed")
	switch w.Choose(3) {
	case 0:
		w.apply(p.pending)
	case 1:
		w.postpone(p.pending)
	}
	restart := !p.replaced
	w.end(p)
	if restart {
		w.start(p.Host, p.at)
	}
}

// replace starts p's host again though p only sleeps: its host takes it for dead.
func (w *World) replace(p *Process) {
	if p.replaced {
		return
	}
	w.crashes++
	w.tracef("%s sleeps and is taken for dead", p)
	w.Saw("living process taken for dead")
	p.replaced = true
	p.wakes = w.steps + 10 + w.Choose(300)
	w.start(p.Host, p.at)
}

// settle runs the engine's last job with nothing else going on and every request answered.
func (w *World) settle() {
	p := &Process{World: w, Host: &Host{ID: -1}}
	w.launch(p, func() { w.engine.Settle(p) })
	for len(w.processes) > 0 && w.failure == nil {
		w.resume(p, w.apply(p.pending))
	}
}
