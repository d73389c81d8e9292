package protocoltest

import (
	"errors"

	"orlop/internal/fault"
)

// restore reads any backup of the newest head.
func (c *client) restore() {
	h := c.certain()
	if len(h.records) == 0 {
		return
	}
	r := h.records[c.World.Choose(len(h.records))]
	if !c.m.committed[r.id] {
		c.World.Fail("%s was shown backup %d, which was never committed", c, r.id)
	}
	content, err := assemble(r.root, func(i id) (object, error) {
		for {
			o, err := c.readObject(h, i)
			if err == nil {
				return o, nil
			}
			if c.m.is(MissingIsCorrupt) {
				c.m.corrupt("%s: backup %d: %v", c, r.id, err)
			}
			if h, err = c.resolve(h, r, err); err != nil {
				return object{}, err
			}
		}
	})
	switch {
	case fault.Is(err, fault.ErrNotFound):
		c.World.Saw("reader told that its backup was deleted meanwhile")
		if !c.m.removed[r.id] {
			c.World.Fail("%s: backup %d is said to be deleted, and was not", c, r.id)
		}
	case err == nil && content != r.content:
		c.World.Fail("%s: backup %d: read %v, want %v", c, r.id, content, r.content)
	case err == nil:
		c.World.Saw("backup read")
	}
}

// readObject reads one object from the pack that h says holds it.
func (c *client) readObject(h *head, i id) (object, error) {
	if err := c.load(h); err != nil {
		return object{}, err
	}
	name, _, there := c.locate(h, i)
	if !there {
		return object{}, dangling(i)
	}
	p, there := c.fetch(name).(*pack)
	if !there {
		return object{}, absent(name)
	}
	o, _ := p.find(i)
	return o, nil
}

// resolve returns the head to go on with after h led to something that is missing.
func (c *client) resolve(h *head, r record, err error) (*head, error) {
	var missing absent
	gone := errors.As(err, &missing)
	if gone {
		c.suspect(string(missing))
	}
	newer := c.certain()
	if _, there := newer.record(r.id); !there {
		return nil, fault.Errorf(fault.ErrNotFound, "backup %d was deleted meanwhile", r.id)
	}
	if newer.nonce == h.nonce && !gone {
		c.m.corrupt("%s: backup %d: %v", c, r.id, err)
		return nil, fault.Errorf(fault.ErrCorrupt, "backup %d: %w", r.id, err)
	}
	c.World.Saw("reader resolved a moved object again")
	return newer, nil
}
