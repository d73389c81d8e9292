package protocoltest

import "slices"

// A collector deletes what is dead.
type collector struct {
	*client

	// stalled tells, in the collector's opinion, whether a session is dead. It may be wrong at any time.
	stalled func(session) bool
}

// collect lists the objects, takes from the head what is dead, and deletes the listed names that are dead in a head
// certainly in the chain and newer than the listing. A dead name stays dead: the deletions may come at any time.
func (c *collector) collect() {
	listed := c.listed // the run's own from here on: another may put a newer one there, too new for this run's head
	if listed == nil || c.World.Choose(2) == 0 {
		listed = c.names(sessionPrefix, "")
		c.listed = listed
	} else {
		c.World.Saw("collection begun again with an old listing")
	}
	var first []string // what a broken collector marked in another head
	h, _ := c.change(nil, func(h *head) (*head, error) {
		next := h.child(c.m.nonce(), Collect)
		c.fence(next)
		dead, err := c.dead(next)
		if err != nil {
			return nil, err
		}
		if c.m.is(CollectorRebases) && first != nil {
			dead = first
		} else if first != nil {
			c.World.Saw("collection marked again")
		}
		first = dead
		if len(dead) == 0 && len(next.sessions) == len(h.sessions) {
			return nil, nil
		}
		next.drop(dead)
		return next, nil
	})
	if c.m.is(ListAfterHead) {
		listed = c.names(sessionPrefix, "")
	}
	if h.by != Collect {
		c.World.Saw("collection that had nothing to write")
	}
	for _, name := range listed {
		if !h.spares(name) || c.m.stalled[sessionOf(name)] && !slices.Contains(h.live, name) {
			c.discard(name)
		}
	}
	c.listed = nil
	c.cleanHeads()
}

// fence removes the stalled sessions from next. What they alone protected is marked no more.
func (c *collector) fence(next *head) {
	for _, s := range slices.Clone(next.sessions) {
		if !c.stalled(s) {
			continue
		}
		if c.m.is(StalledIsDeleted) {
			c.m.stalled[s.id.prefix()] = true
			continue
		}
		c.World.Saw("session fenced")
		if len(s.bases) > 0 {
			c.World.Saw("session with a base fenced")
		}
		next.end(s.id)
	}
}

// dead returns the live packs of h in which nothing is marked.
func (c *client) dead(h *head) (dead []string, err error) {
	marked, err := c.mark(h)
	if err != nil {
		return nil, err
	}
	for _, name := range h.live {
		if !slices.ContainsFunc(c.index[name].objects, func(o object) bool { return marked[o.id] }) {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// mark returns all that is reachable from h's records and from the bases of its sessions.
func (c *client) mark(h *head) (marked map[id]bool, err error) {
	if err := c.load(h); err != nil {
		return nil, err
	}
	marked = map[id]bool{}
	visit := func(i id) (object, bool) {
		if marked[i] {
			return object{}, false
		}
		marked[i] = true
		_, o, there := c.locate(h, i)
		if !there && err == nil {
			err = dangling(i)
		}
		return o, there
	}
	for _, r := range h.records {
		walk(r.root, visit)
	}
	for _, s := range h.sessions {
		for _, base := range s.bases {
			if c.m.is(BasesUnmarked) {
				continue
			}
			if _, there := h.record(base.id); !there {
				c.World.Saw("base marked that is a record no more")
			}
			walk(base.root, visit)
		}
	}
	return marked, err
}

// discard deletes name. Should the answers be lost, the next collection will see to it.
func (c *client) discard(name string) {
	for range 3 {
		if c.Delete(name) == nil {
			return
		}
	}
}

// cleanHeads deletes all heads but the newest ones. It goes by numbers, so it needs no head to be genuine.
func (c *client) cleanHeads() {
	heads := c.names(headPrefix, "")
	for _, name := range heads {
		if headNumber(name) <= headNumber(heads[len(heads)-1])-c.m.kept() {
			c.discard(name)
		}
	}
}
