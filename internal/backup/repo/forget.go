package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"orlop/internal/fault"
)

// Forget removes backups of a lineage, given their records, and returns those that were removed. It frees nothing: Collect
// does. It fails with fault.ErrNotFound if one of them is not there, and then removes none.
func (r *Repository) Forget(ctx context.Context, lineage string, records []string) ([]*Backup, error) {
	seen := map[string]*Backup{}
	_, err := r.thin(ctx, lineage, func(h *Head) ([]string, error) {
		var there, missing []string
		for _, record := range records {
			b, found := h.Backup(record)
			switch {
			case found:
				seen[record] = b
				there = append(there, record)
			case seen[record] == nil:
				missing = append(missing, lineage+"."+record)
			}
		}
		if len(missing) > 0 {
			return nil, concluded{fault.Errorf(fault.ErrNotFound, "backup %s: not found", strings.Join(missing, ", "))}
		}
		return there, nil
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
// their sequence, and is called anew whenever they turn out to have changed.
func (r *Repository) Thin(ctx context.Context, lineage string, choose func([]*Backup) []string) ([]*Backup, error) {
	return r.thin(ctx, lineage, func(h *Head) ([]string, error) { return choose(h.Backups()), nil })
}

func (r *Repository) thin(ctx context.Context, lineage string, choose func(*Head) ([]string, error)) ([]*Backup, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return nil, err
	}
	var removed []*Backup
	_, wrote, err := c.change(ctx, nil, func(h *Head) (*Head, error) {
		removed = nil
		records, err := choose(h)
		if err != nil {
			return nil, err
		}
		next := h.child()
		next.Records = slices.DeleteFunc(next.Records, func(r Record) bool {
			chosen := slices.Contains(records, r.Record)
			if chosen {
				removed = append(removed, r.Backup)
			}
			return chosen
		})
		if len(removed) == 0 {
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
