package repo

import (
	"context"
	"fmt"
	"strings"

	"orlop/internal/fault"
)

// Forget removes backups of a lineage, given their records, and returns those that were removed. It frees nothing: Collect
// does. It fails with fault.ErrNotFound if one of them is not there, and then removes none.
func (r *Repository) Forget(ctx context.Context, lineage string, records []string) ([]*Backup, error) {
	seen := map[string]*Backup{}
	_, err := r.thin(ctx, lineage, func(_ *chain, h, next *Head) error {
		var missing []string
		for _, record := range records {
			b, found := h.Backup(record)
			switch {
			case found:
				seen[record] = b
			case seen[record] == nil:
				missing = append(missing, lineage+"."+record)
			}
		}
		if len(missing) > 0 {
			return concluded{fault.Errorf(fault.ErrNotFound, "backup %s: not found", strings.Join(missing, ", "))}
		}
		next.forget(records)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var removed []*Backup
	for _, record := range records {
		removed = append(removed, seen[record])
	}
	return removed, nil
}

// Thin removes those backups of a lineage that choose names by their records, and returns them. Choose is given all, by
// their sequence, and is called anew whenever they turn out to have changed. If anything that the others need is missing, it
// fails with fault.ErrCorrupt and removes none: one of those may be the last that is good.
func (r *Repository) Thin(ctx context.Context, lineage string, choose func([]*Backup) []string) ([]*Backup, error) {
	return r.thin(ctx, lineage, func(c *chain, h, next *Head) error { return c.choose(ctx, h, next, choose) })
}

// WouldThin returns what Thin would remove, and fails as that would.
func (r *Repository) WouldThin(ctx context.Context, lineage string, choose func([]*Backup) []string) ([]*Backup, error) {
	_, removed, err := r.wouldThin(ctx, lineage, choose)
	return removed, err
}

// wouldThin returns besides the head that it looked at, nil if there is none.
func (r *Repository) wouldThin(ctx context.Context, lineage string, choose func([]*Backup) []string) (*Head, []*Backup, error) {
	if r.damage != nil {
		return nil, nil, r.damage
	}
	c, err := r.chain(lineage)
	if err != nil {
		return nil, nil, err
	}
	for range attemptLimit {
		h, err := c.certain(ctx)
		if err != nil {
			return nil, nil, err
		}
		if h.Number == 0 {
			if moved, err := c.checkNew(ctx); err != nil || !moved {
				return nil, nil, err
			}
			continue
		}
		next := h.child()
		err = c.choose(ctx, h, next, choose)
		if err == nil {
			return h, missingFrom(next, h), nil
		}
		if err := c.doubt(ctx, h, err); err != nil {
			return nil, nil, fmt.Errorf("forget backups of lineage %s: %w", lineage, err)
		}
	}
	return nil, nil, c.errBusy()
}

// choose takes off next, a child of h, what is to be removed.
func (c *chain) choose(ctx context.Context, h, next *Head, choose func([]*Backup) []string) error {
	records := choose(h.Backups())
	if len(records) == 0 {
		return nil
	}
	next.forget(records)
	kept := *next
	kept.Sessions = nil // what they build on, others need not have
	_, err := c.whole(ctx, &kept)
	return err
}

// missingFrom returns the backups of h that next has not.
func missingFrom(next, h *Head) (removed []*Backup) {
	for _, r := range h.Records {
		if _, there := next.Backup(r.Record); !there {
			removed = append(removed, r.Backup)
		}
	}
	return removed
}

// thin writes a head without the backups that remove takes off next, and returns them.
func (r *Repository) thin(ctx context.Context, lineage string, remove func(c *chain, h, next *Head) error) ([]*Backup, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return nil, err
	}
	var removed []*Backup
	_, wrote, err := c.changeWithRoom(ctx, func(h *Head) (*Head, error) {
		next := h.child()
		if err := remove(c, h, next); err != nil {
			return nil, err
		}
		if removed = missingFrom(next, h); len(removed) == 0 {
			return nil, nil
		}
		return next, nil
	})
	if err != nil {
		return nil, fmt.Errorf("forget backups of lineage %s: %w", lineage, err)
	}
	if !wrote {
		return nil, nil
	}
	return removed, nil
}
