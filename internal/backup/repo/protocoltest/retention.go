package protocoltest

import (
	"cmp"
	"slices"
)

// forget removes records: all but the newest ones, or a chosen one. What may go is decided anew for each head that is
// to be replaced: the head in which a record was chosen may never have been in the chain, and with it a newer record.
func (c *client) forget() {
	keep := 1 + c.World.Choose(2)
	one := c.World.Choose(2) == 0
	var chosen nonce
	_, _ = c.change(nil, func(h *head) (*head, error) {
		old := c.old(h, keep)
		if one {
			if chosen == 0 && len(old) > 0 {
				chosen = old[c.World.Choose(len(old))].id
			}
			old = slices.DeleteFunc(c.old(h, 1), func(r record) bool { return r.id != chosen })
		}
		if len(old) == 0 {
			return nil, nil
		}
		next := h.child(c.m.nonce(), Forget)
		next.records = slices.DeleteFunc(next.records, func(r record) bool {
			return slices.ContainsFunc(old, func(o record) bool { return o.id == r.id })
		})
		return next, nil
	})
}

// old returns all records of h but the newest keep. Order is by sequence: clocks say nothing.
func (c *client) old(h *head, keep int) []record {
	order := func(a, b record) int { return cmp.Compare(a.sequence, b.sequence) }
	if c.m.is(OrderByClock) {
		order = func(a, b record) int { return cmp.Compare(a.clock, b.clock) }
	}
	byAge := slices.SortedFunc(slices.Values(h.records), order)
	return byAge[:max(0, len(byAge)-keep)]
}
