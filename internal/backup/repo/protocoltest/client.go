package protocoltest

import (
	"errors"
	"slices"

	"orlop/internal/fault"
)

// A client is one run of one process: what writers, collectors and readers have in common.
type client struct {
	*Process
	*memory
	m     *Model
	owner nonce
}

// A memory is what a host keeps across crashes.
type memory struct {
	index  map[string]*pack // of packs, by name: write-once, so never wrong
	listed []string         // the listing of a collection that was cut short
	newest int              // the highest head seen
}

// errFenced: the session is registered no more.
var errFenced = errors.New("fenced")

// absent is the error of a pack that is not in the store though a head lists it.
type absent string

func (a absent) Error() string { return string(a) + " is missing" }

// dangling is the error of an object that no live pack holds though another refers to it.
type dangling id

func (d dangling) Error() string { return "an object is in no live pack" }

// fetch gets an object, however often the answer is lost. The object is nil if it is not there.
func (c *client) fetch(name string) any {
	for {
		object, err := c.Get(name)
		if err == nil {
			return object
		}
		if fault.Is(err, fault.ErrNotFound) {
			return nil
		}
	}
}

// names lists what begins with prefix and comes after after, page by page.
func (c *client) names(prefix, after string) (all []string) {
	for {
		page, more, err := c.List(prefix, after)
		if err != nil {
			continue
		}
		all = append(all, page...)
		if !more {
			return all
		}
		after = page[len(page)-1]
	}
}

// newestNumber lists the heads, from the highest known one on, and returns the highest. Numbers rise, and the highest
// is never deleted, so even a listing by pages ends with one that was the newest while it ran.
func (c *client) newestNumber() int {
	if heads := c.names(headPrefix, headName(c.newest-1)); len(heads) > 0 {
		c.newest = headNumber(heads[len(heads)-1])
	}
	return c.newest
}

// read returns the newest head. It may be one that never was in the chain: between the listing and the Get the
// number may have been cleaned up, and created again by a writer that slept. Nothing may be concluded from it that
// a put does not prove, before genuine has been asked.
func (c *client) read() *head {
	for {
		number := c.newestNumber()
		if number == 0 {
			return c.m.chain[0]
		}
		if h, there := c.fetch(headName(number)).(*head); there {
			if h != c.m.chain[number] {
				c.World.Saw("head read that never was in the chain")
			}
			return h
		}
		c.World.Saw("head cleaned up between list and get")
	}
}

// genuine tells whether h, which has been read or put, is certainly a head of the chain: its number is among the
// kept ones of a listing begun afterwards, so it was never deleted before, so it was created once.
func (c *client) genuine(h *head) bool { return c.newestNumber()-h.number < kept }

// conclusive is genuine for a head that was read.
func (c *client) conclusive(h *head) bool {
	if !c.m.is(UncertainConclusion) && !c.genuine(h) {
		c.World.Saw("head read too old to conclude from")
		return false
	}
	if c.m.chain[h.number] != h {
		c.World.Fail("%s draws a conclusion from head %d as it never was in the chain", c, h.number)
	}
	return true
}

// certain returns a head that was the newest when certain was called, or later.
func (c *client) certain() *head {
	for {
		if h := c.read(); c.conclusive(h) {
			return h
		}
	}
}

// write puts next, and tells whether it is in the chain for certain.
func (c *client) write(next *head) bool {
	name := headName(next.number)
	err := c.Put(name, next)
	if err != nil {
		if c.m.is(LostReplyIsSuccess) && fault.Is(err, fault.ErrUnreachable) {
			return true
		}
		there, _ := c.fetch(name).(*head)
		if there == nil || there.nonce != next.nonce {
			c.World.Saw("head lost to another")
			return false
		}
		c.World.Saw("lost reply to a head found again")
	}
	switch {
	case c.m.is(CommitUnconfirmed) && next.by == Backup, c.m.is(CollectionUnconfirmed) && next.by == Collect:
		return true
	case !c.genuine(next):
		c.World.Saw("writer slept past the clean-up of its own number")
		return false
	}
	return true
}

// change replaces the newest head by what edit makes of it, until that stands, and returns it. Edit is called anew
// for each head that is to be replaced. It returns nil if there is nothing to change, for the reason err or because
// what is wanted has happened already; change then returns the head that was looked at, which is genuine and was read
// after change was called. Known is a head to try first, nil to read one: the put will tell whether it is the newest.
func (c *client) change(known *head, edit func(*head) (*head, error)) (*head, error) {
	for {
		h := known
		if known == nil {
			h = c.read()
		}
		next, err := edit(h)
		var missing absent
		var lost dangling
		switch {
		case errors.As(err, &missing):
			c.suspect(string(missing))
		case errors.As(err, &lost):
			if c.genuine(h) {
				c.m.corrupt("%s: head %d: object %x is in no live pack", c, h.number, uint32(lost))
			}
		case next == nil:
			if known == nil && c.conclusive(h) {
				return h, err
			}
		case c.write(next):
			return next, nil
		}
		known = nil
	}
}

// suspect is called when a pack was not in the store though a head listed it. It returns once a newer head does
// not list the pack any more. If one still does, the repository is corrupt.
func (c *client) suspect(name string) {
	c.World.Saw("pack missing, head read again")
	if h := c.certain(); slices.Contains(h.live, name) && c.fetch(name) == nil {
		c.m.corrupt("%s: head %d: live pack %s is missing", c, h.number, name)
	}
}

// load fills the memory with the indexes of h's live packs.
func (c *client) load(h *head) error {
	for _, name := range h.live {
		if c.index[name] != nil {
			continue
		}
		p, there := c.fetch(name).(*pack)
		if !there {
			return absent(name)
		}
		c.index[name] = p
	}
	return nil
}

// locate returns a live pack of h that holds i. H must be loaded.
func (c *client) locate(h *head, i id) (name string, o object, there bool) {
	for _, name := range h.live {
		if o, there := c.index[name].find(i); there {
			return name, o, true
		}
	}
	return "", object{}, false
}

// upload puts a pack of objects under a session and returns its name. It goes on until the pack is known to be
// there. The name is random, so a pack that is found under it is this one.
func (c *client) upload(session nonce, objects []object) string {
	name := session.prefix() + c.m.unique()
	p := &pack{objects}
	c.index[name] = p
	for {
		err := c.Put(name, p)
		switch {
		case err == nil, c.m.is(LostUploadIsSuccess) && fault.Is(err, fault.ErrUnreachable):
			return name
		case fault.Is(err, fault.ErrExists):
			if c.m.is(ConflictIsSuccess) || c.fetch(name) != nil {
				return name
			}
			c.World.Saw("upload refused for no reason sent again")
		}
	}
}
