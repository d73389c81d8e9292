package repo

import (
	"context"

	"orlop/internal/fault"
)

// headFinding is a head that is damaged or missing.
type headFinding struct {
	number  uint64
	problem error
}

// survey reads all heads. It returns the newest one, and whether that can be trusted: if it is damaged, the newest that is
// not stands for it, or an empty one.
func (c *chain) survey(ctx context.Context) (h *Head, trusted bool, findings []headFinding, err error) {
	numbers, err := c.numbers(ctx)
	if err != nil {
		return nil, false, nil, err
	}
	h = &Head{Lineage: c.lineage.name, Sequence: 1}
	var newest, before uint64
	for _, number := range numbers {
		got, err := c.get(ctx, number)
		if fault.Is(err, fault.ErrNotFound) {
			continue // cleaned up meanwhile
		}
		if err != nil && !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrUnsupported) {
			return nil, false, nil, err
		}
		newest = number
		if before != 0 && number > before+1 {
			findings = append(findings, headFinding{before + 1, corrupt(HeadName(c.lineage.name, before+1), "it is missing")})
		}
		if err == nil && h.Number != 0 && h.Number == number-1 && got.Parent != h.Nonce {
			err = corrupt(HeadName(c.lineage.name, number), "it does not follow the one before")
		}
		before = number
		if err != nil {
			findings = append(findings, headFinding{number, err})
			continue
		}
		h = got
	}
	if _, err := c.newestNumber(ctx); fault.Is(err, fault.ErrCorrupt) { // the host was set back
		return h, false, append(findings, headFinding{newest + 1, err}), nil
	} else if err != nil {
		return nil, false, nil, err
	}
	if newest > 0 && h.Number == newest {
		if err := c.remember(newest); err != nil {
			return nil, false, nil, err
		}
	}
	if newest == 0 {
		findings = append(findings, headFinding{1, corrupt(HeadPrefix(c.lineage.name), "all heads are missing")})
	}
	return h, newest > 0 && h.Number == newest, findings, nil
}
