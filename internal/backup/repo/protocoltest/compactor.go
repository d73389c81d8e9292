package protocoltest

import (
	"errors"
	"slices"
)

// A compactor rewrites the live objects of partly dead packs under a session of its own, and swaps the packs.
type compactor struct {
	*client
	session session
	packs   []string // its own
	victims []string // to be replaced
}

func (c *compactor) compact() {
	if c.m.is(CompactionUnregistered) {
		c.session.id = c.m.nonce()
	} else {
		c.register()
	}
	if _, err := c.change(nil, c.swap); errors.Is(err, errFenced) {
		c.World.Saw("compaction fenced")
	} else if len(c.packs) > 0 {
		c.World.Saw("compaction committed")
	}
}

// register enters the compaction's session.
func (c *compactor) register() {
	h, _ := c.change(nil, func(h *head) (*head, error) {
		if _, registered := h.owned(c.owner); registered {
			return nil, nil
		}
		next := h.child(c.m.nonce(), Compact)
		next.sessions = append(next.sessions, session{id: c.m.nonce(), owner: c.owner, host: c.Host.ID, by: Compact})
		return next, nil
	})
	c.session, _ = h.owned(c.owner)
}

// swap makes the head in which the own packs stand for the victims. For each head it marks again: what was dead in a
// victim may be referred to by a new record.
func (c *compactor) swap(h *head) (*head, error) {
	if _, registered := h.owned(c.owner); !registered && !c.m.is(CompactionUnregistered) {
		if slices.ContainsFunc(c.packs, func(name string) bool { return slices.Contains(h.live, name) }) {
			return nil, nil
		}
		return nil, errFenced
	}
	again := c.victims != nil
	if !again || !c.m.is(CompactionRebases) {
		if again {
			c.World.Saw("compaction marked again")
		}
		if err := c.rewrite(h); err != nil {
			return nil, err
		}
	}
	next := h.child(c.m.nonce(), Compact)
	next.drop(c.victims)
	next.live = append(next.live, c.packs...)
	next.end(c.session.id)
	return next, nil
}

// rewrite chooses the victims, if it has none, and uploads what is marked and neither in the own packs nor in live
// packs that stay.
func (c *compactor) rewrite(h *head) error {
	marked, err := c.mark(h)
	if err != nil {
		return err
	}
	if c.victims == nil {
		c.victims = c.partlyDead(h, marked)
	}
	c.victims = slices.DeleteFunc(c.victims, func(name string) bool { return !slices.Contains(h.live, name) })
	staying := slices.DeleteFunc(append(slices.Clone(h.live), c.packs...),
		func(name string) bool { return slices.Contains(c.victims, name) })
	var needed []object
	for _, victim := range c.victims {
		p, there := c.fetch(victim).(*pack)
		if !there {
			return absent(victim)
		}
		for _, o := range p.objects {
			held := func(name string) bool { return c.index[name].holds(o.id) }
			if marked[o.id] && !slices.ContainsFunc(staying, held) && !slices.Contains(needed, o) {
				needed = append(needed, o)
			}
		}
	}
	for objects := range slices.Chunk(needed, 2) {
		c.packs = append(c.packs, c.upload(c.session.id, objects))
	}
	return nil
}

// partlyDead returns up to three live packs in which some but not all is marked. The list is not nil.
func (c *compactor) partlyDead(h *head, marked map[id]bool) []string {
	packs := []string{}
	for _, name := range h.live {
		live := 0
		for _, o := range c.index[name].objects {
			if marked[o.id] {
				live++
			}
		}
		if live > 0 && live < len(c.index[name].objects) && len(packs) < 3 {
			packs = append(packs, name)
		}
	}
	return packs
}
