package repo

import (
	"context"
	"slices"

	"orlop/internal/fault"
)

// hidden returns the records of backups that a head hides: one that was put on a state which was gone by then, above a gap or
// a head that it does not follow, while others committed to an older state. Its writer died before it looked, or it would have
// taken the head back. Those records stand in the head below, and in neither that head nor a later one. Where a head is missing
// for another reason, they are backups that it, or the next, removed. Findings are what survey found: without any nothing is
// hidden.
func (c *chain) hidden(ctx context.Context, findings []headFinding) (map[string]bool, error) {
	if len(findings) == 0 {
		return nil, nil
	}
	numbers, err := c.numbers(ctx)
	if err != nil || len(numbers) == 0 {
		return nil, err
	}
	newest, hidden := numbers[len(numbers)-1], map[string]bool{}
	var below *Head // the highest that could be read
	for _, number := range numbers {
		if newest-number >= c.repository.kept {
			continue
		}
		h, err := c.get(ctx, number)
		if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrCorrupt) {
			continue
		}
		if err != nil {
			return nil, err
		}
		forked := below != nil && h.Parent != below.Nonce
		if forked && below.Number < number-1 { // unless the heads between are there, and damaged
			_, err := c.get(ctx, number-1)
			forked = fault.Is(err, fault.ErrNotFound) && !slices.Contains(numbers, number-1)
		}
		if forked {
			for _, r := range below.Records {
				hidden[r.Record] = true
			}
		}
		for _, r := range h.Records {
			delete(hidden, r.Record)
		}
		below = h
	}
	return hidden, nil
}
