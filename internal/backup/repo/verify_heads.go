package repo

import (
	"context"
	"errors"
	"slices"

	"orlop/internal/fault"
)

// headFinding is a head that is damaged or missing.
type headFinding struct {
	number  uint64
	problem error
}

// survey reads all heads. It returns the newest one, and whether that can be trusted: if it is damaged, the newest that is
// not stands for it, or an empty one. Heads that are older than those that are kept may be missing, or be no part of the
// chain: they are no findings. It fails with fault.ErrUnsupported if this program is too old for one of the others.
func (c *chain) survey(ctx context.Context) (h *Head, trusted bool, findings []headFinding, err error) {
	numbers, err := c.numbers(ctx)
	if err != nil {
		return nil, false, nil, err
	}
	h = &Head{Lineage: c.lineage.name, Sequence: 1}
	read := make([]error, len(numbers))
	stray := map[uint64]bool{} // heads that do not name the one before as their parent
	for i, number := range numbers {
		got, err := c.get(ctx, number)
		if read[i] = err; err != nil {
			continue
		}
		stray[number] = h.Number != 0 && h.Number == number-1 && got.Parent != h.Nonce
		h = got
	}
	// By now some may have been cleaned up.
	newest, err := c.newestNumber(ctx)
	back := fault.Is(err, fault.ErrCorrupt) // the host was set back
	if err != nil && !back {
		return nil, false, nil, err
	}
	problem := err
	var last uint64
	if len(numbers) > 0 {
		last = numbers[len(numbers)-1]
	}
	kept := max(newest, last) - min(max(newest, last), c.repository.kept)
	find := func(number uint64, problem error) {
		if number > kept {
			findings = append(findings, headFinding{number, problem})
		}
	}
	var before uint64
	for i, number := range numbers {
		name := HeadName(c.lineage.name, number)
		for n := max(before, kept) + 1; n < number; n++ { // a listing need not show what was put meanwhile
			_, err := c.get(ctx, n)
			switch {
			case fault.Is(err, fault.ErrNotFound):
				find(n, corrupt(HeadName(c.lineage.name, n), "it is missing"))
			case err != nil && !fault.Is(err, fault.ErrCorrupt):
				return nil, false, nil, err
			}
		}
		before = number
		switch err := read[i]; {
		case fault.Is(err, fault.ErrNotFound):
			find(number, corrupt(name, "it is missing"))
		case fault.Is(err, fault.ErrCorrupt):
			find(number, err)
		case err != nil && (number > kept || !fault.Is(err, fault.ErrUnsupported)):
			return nil, false, nil, err
		case stray[number] && number-1 > kept:
			find(number, corrupt(name, "it does not follow the one before"))
		}
	}
	if len(findings) > 0 { // what was cleaned up since is not missing
		now, err := c.numbers(ctx)
		if err != nil {
			return nil, false, nil, err
		}
		findings = slices.DeleteFunc(findings, func(f headFinding) bool {
			return len(now) > 0 && f.number+c.repository.kept <= now[len(now)-1]
		})
	}
	if h.Number == last && last > kept && !back {
		problem = c.checkFollows(ctx, h)
		back = errors.Is(problem, errForked)
		if problem != nil && !back {
			return nil, false, nil, problem
		}
	}
	if back {
		return h, false, append(findings, headFinding{last + 1, problem}), nil
	}
	if last == 0 {
		return h, false, append(findings, headFinding{1, corrupt(HeadPrefix(c.lineage.name), "all heads are missing")}), nil
	}
	if last <= kept {
		return c.survey(ctx) // others wrote many heads meanwhile
	}
	if h.Number == last {
		err = c.know(h)
	}
	return h, h.Number == last, findings, err
}
