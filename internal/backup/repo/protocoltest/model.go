package protocoltest

import (
	"fmt"
	"slices"
)

// A Model is the protocol as doc.go tells it, whole or with one part broken, and what has to hold of it.
type Model struct {
	world     *World
	broken    Mutation
	drawn     nonce
	chain     map[int]*head   // every head that ever was the newest, by number
	newest    *head           // of chain
	removed   map[nonce]bool  // records that a Forget took out
	committed map[nonce]bool  // records that ever were in the chain
	stalled   map[string]bool // sessions that broken collectors delete from
}

// NewModel returns the model for a history. Broken is Whole for the protocol as it is meant.
func NewModel(w *World, broken Mutation) *Model {
	first := &head{sequence: 1}
	w.overwrite = broken == HeadsOverwritten
	return &Model{
		world: w, broken: broken, newest: first, chain: map[int]*head{0: first},
		removed: map[nonce]bool{}, committed: map[nonce]bool{}, stalled: map[string]bool{},
	}
}

func (m *Model) is(mutation Mutation) bool { return m.broken == mutation }

// kept is how many heads the clean-up leaves.
func (m *Model) kept() int {
	if m.is(HeadsKeptTooShort) {
		return 1
	}
	return kept
}

func (m *Model) nonce() nonce { m.drawn++; return m.drawn }

func (m *Model) unique() string { return fmt.Sprintf("%06d", m.nonce()) }

// Perform implements Engine.
func (m *Model) Perform(p *Process, job Job) {
	if p.Host.Memory == nil {
		p.Host.Memory = &memory{index: map[string]*pack{}}
	}
	c := &client{Process: p, memory: p.Host.Memory.(*memory), m: m, owner: m.nonce()}
	switch job {
	case Backup:
		(&writer{client: c, content: m.world.NextContent()}).backup()
	case Forget:
		c.forget()
	case Collect:
		(&collector{c, func(session) bool { return m.world.SeemsStalled() }}).collect()
	case Compact:
		(&compactor{client: c}).compact()
	case Restore:
		c.restore()
	}
}

// Settle implements Engine.
func (m *Model) Settle(p *Process) {
	c := &client{Process: p, memory: &memory{index: map[string]*pack{}}, m: m}
	(&collector{c, func(session) bool { return true }}).collect()
	if len(m.newest.sessions) > 0 && !m.is(StalledIsDeleted) {
		m.world.Fail("settled: sessions %v are left", m.newest.sessions)
	}
	want := slices.Clone(m.newest.live)
	for number := max(1, m.newest.number-m.kept()+1); number <= m.newest.number; number++ {
		want = append(want, headName(number))
	}
	slices.Sort(want)
	if !slices.Equal(m.world.Names(), slices.Compact(want)) {
		m.world.Fail("settled: the store holds %v, want %v", m.world.Names(), want)
	}
	if dead, err := c.dead(m.newest); err != nil || len(dead) > 0 {
		m.world.Fail("settled: dead packs %v are left (%v)", dead, err)
	}
}

// Applied implements Engine. It holds every change of the store against the invariants.
func (m *Model) Applied(effect Effect) {
	next, isHead := effect.Object.(*head)
	switch {
	case isHead && next.number != m.newest.number+1:
		m.world.Saw("old head number created again")
		if m.world.overwrite {
			m.world.Fail("head %d was overwritten", next.number)
		}
	case isHead:
		m.chained(next)
	case effect.Object == nil && slices.Contains(m.newest.live, effect.Name):
		m.world.Fail("live pack %s deleted", effect.Name)
	case effect.Object == nil && effect.Name == headName(m.newest.number):
		m.world.Fail("newest head deleted")
	}
}

// chained looks at a new newest head.
func (m *Model) chained(next *head) {
	last := m.newest
	if next.parent != last.nonce {
		m.world.Fail("head %d does not follow the head before it", next.number)
	}
	m.newest, m.chain[next.number] = next, next
	bySequence := func(a, b record) int { return a.sequence - b.sequence }
	newest := slices.MaxFunc(append([]record{{}}, last.records...), bySequence)
	for _, r := range last.records {
		if _, there := next.record(r.id); there {
			continue
		}
		if next.by != Forget || r.id == newest.id {
			m.world.Fail("head %d (%s) lost backup %d", next.number, next.by, r.id)
		}
		m.removed[r.id] = true
	}
	for _, r := range next.records {
		m.committed[r.id] = true
		content, err := assemble(r.root, func(i id) (object, error) { return m.stored(next, i) })
		if err != nil || content != r.content {
			m.world.Fail("head %d (%s): backup %d restores as %v, %v; want %v",
				next.number, next.by, r.id, content, err, r.content)
		}
		if r.sequence >= next.sequence {
			m.world.Fail("head %d: sequence %d is beyond %d", next.number, r.sequence, next.sequence)
		}
	}
	for _, name := range next.live {
		if m.world.Object(name) == nil {
			m.world.Fail("head %d (%s) lists pack %s, which is not there", next.number, next.by, name)
		}
	}
}

// stored reads i from the store itself, through the live packs of h.
func (m *Model) stored(h *head, i id) (object, error) {
	for _, name := range h.live {
		if p, there := m.world.Object(name).(*pack); there {
			if o, there := p.find(i); there {
				return o, nil
			}
		}
	}
	return object{}, dangling(i)
}

// told is called when a writer was told that its backup is committed.
func (m *Model) told(id nonce, content Content) {
	if m.removed[id] {
		m.world.Saw("backup deleted before its writer was told")
		return
	}
	r, there := m.newest.record(id)
	if !there || r.content != content {
		m.world.Fail("a writer was told that backup %d of %v is committed; there is %v", id, content, r.content)
	}
	m.world.Saw("backup committed")
}

// corrupt is called when a process says that the repository is corrupt. It never is.
func (m *Model) corrupt(format string, args ...any) {
	m.world.Fail("said to be corrupt: "+format, args...)
}
