package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// heads mends the chain of a lineage.
func (f *repairer) heads(ctx context.Context, c *chain) error {
	known, last, err := knownHeads(f.Memory, c.lineage.name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.last = last
	c.mu.Unlock()
	h, trusted, findings, err := c.survey(ctx)
	if err != nil {
		return err
	}
	newest := h.Number
	for _, finding := range findings {
		if errors.Is(finding.problem, errForeign) {
			return fmt.Errorf("%w; the config is that of the latter: bring the right one back, or delete it and run repair again", finding.problem)
		}
		newest = max(newest, finding.number)
	}
	object := HeadName(c.lineage.name, max(newest, 1))
	switch {
	case trusted && known <= h.Number:
		if err := f.newer(ctx, c, findings); err != nil { // before anybody takes what is found for garbage
			return err
		}
		return f.passOver(ctx, c, h, findings)
	case trusted: // others may have written to it
		return f.rebuild(ctx, c, h, known, true, Step{
			Object: object, Problem: fmt.Sprintf("this host has seen head %d: the destination was set back to an older state", known),
			Action: "go on from the older state, with what else is found in packs",
		})
	}
	problem := corrupt(HeadPrefix(c.lineage.name), "all heads are missing")
	if len(findings) > 0 {
		problem = findings[len(findings)-1].problem
	}
	return f.rebuild(ctx, c, h, max(newest, known), errors.Is(problem, errForked), Step{
		Object: object, Problem: problem.Error(), Action: fmt.Sprintf("make a new head from head %d and what is found in packs", h.Number),
	})
}

// newer brings back whole backups that are newer than the newest head, which was not the last one then, and those that a head
// hides. The head before a commit has its session still: so it does not matter here who is registered. Who is alive all the same finds that the
// backup is committed, or begins anew.
func (f *repairer) newer(ctx context.Context, c *chain, findings []headFinding) error {
	hidden, err := c.hidden(ctx, findings)
	if err != nil {
		return err
	}
	check, err := newLineageCheck(ctx, c, nil, nil)
	if err != nil {
		return err
	}
	h, err := c.certain(ctx)
	if err != nil {
		return err
	}
	alone := *h
	alone.Sessions = nil
	found, packs, err := c.wholeNewer(ctx, &alone, check.listed, hidden)
	if err != nil || len(packs) == 0 {
		return err
	}
	next, step := h.child(), Step{
		Object: packs[0].Name.String(), Problem: "backups need what it holds, and the newest head has no place for it: the last heads were lost",
		Action: "make a new head with what is found in packs",
	}
	if len(found) > 0 {
		step.Object, step.Problem = found[0].pack.String(), errUnlisted(found[0], hidden).Error()
	}
	next.Live = append(next.Live, packs...)
	next.Sessions = slices.DeleteFunc(next.Sessions, func(s Session) bool {
		return slices.ContainsFunc(packs, func(p LivePack) bool { return p.Name.Session == s.Name() })
	})
	for _, b := range found {
		step.Backups = append(step.Backups, b.ID())
		next.Sequence = max(next.Sequence, b.Sequence+1)
		next.Records = append(next.Records, Record{b.Backup, b.encoded})
	}
	f.planned = next
	return f.step(step, func() error {
		if err := f.write(ctx, c, next, h.Number); err != nil {
			return err
		}
		// Who has seen the heads that were lost must not take this one for somebody else's.
		return f.advance(ctx, c, next.Number)
	})
}

// write puts a head that was made of the newest one. Before is as for chain.write.
func (f *repairer) write(ctx context.Context, c *chain, next *Head, before uint64) error {
	written, err := c.write(ctx, next, before)
	if err == nil && !written {
		err = fault.Errorf(fault.ErrInUse, "lineage %s: %w: wait until nothing else writes there, and run it again", c.lineage.name, errMoved)
	}
	return err
}

// passOver writes so many heads that older ones, which are damaged or missing and which nothing needs, can be cleaned up.
// A name among the kept numbers must never become free: a writer that slept could create it again.
func (f *repairer) passOver(ctx context.Context, c *chain, h *Head, findings []headFinding) error {
	if len(findings) == 0 {
		return nil
	}
	last := findings[len(findings)-1]
	problem := last.problem.Error()
	if len(findings) > 1 {
		problem = fmt.Sprintf("%d older heads are damaged or missing, the last: %v", len(findings), last.problem)
	}
	step := Step{
		Object: HeadName(c.lineage.name, last.number), Problem: problem,
		Action: fmt.Sprintf("no backup needs it; write heads until it is older than the %d that are kept, and delete it", Kept),
	}
	return f.step(step, func() error { return f.advance(ctx, c, last.number) })
}

// advance writes heads that change nothing until number is older than the kept ones, and cleans up.
func (f *repairer) advance(ctx context.Context, c *chain, number uint64) error {
	var h *Head
	for h == nil || h.Number < number+f.repository.kept {
		next, _, err := c.change(ctx, h, func(h *Head) (*Head, error) { return h.child(), nil })
		if err != nil {
			return err
		}
		h = next
	}
	numbers, err := c.numbers(ctx)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n+f.repository.kept > numbers[len(numbers)-1] {
			break
		}
		if err := f.repository.objects.Delete(ctx, HeadName(c.lineage.name, n)); err != nil {
			return err
		}
	}
	return nil
}

// rebuild writes a head above number with the backups and packs of h and what else is found. If others wrote to an older state,
// h is forked.
func (f *repairer) rebuild(ctx context.Context, c *chain, h *Head, number uint64, forked bool, step Step) error {
	next, lost, err := f.found(ctx, c, h, forked)
	if err != nil {
		return err
	}
	for _, r := range next.Records[len(h.Records):] {
		if !slices.Contains(lost, r.ID()) {
			step.Backups = append(step.Backups, r.ID())
		}
	}
	if len(next.Records) == 0 && f.remembers(c) && !f.DropDamaged {
		step.Action = "nothing is left of the backups that were there: bring the newer state back; --drop-damaged gives them up"
		step.Lost = true
		return f.step(step, nil)
	}
	next.Number, next.Parent = number+1, h.Nonce
	if next.Parent == (ID{}) && number > 0 {
		if err := fill(c.lineage.keys.Random, next.Parent[:]); err != nil { // whose it is nobody knows
			return err
		}
	}
	if number == 0 {
		next.Parent = ID{}
	}
	f.planned = next
	return f.step(step, func() error {
		if err := f.write(ctx, c, next, 0); err != nil {
			return err
		}
		if f.Memory != nil {
			err := f.Memory.Change(func(k *Known) { k.know(c.lineage.name, KnownHead{next.Number, next.Nonce}) })
			if err != nil {
				return err
			}
		}
		_, _, findings, err := c.survey(ctx)
		if err != nil || len(findings) == 0 {
			return err
		}
		return f.advance(ctx, c, findings[len(findings)-1].number)
	})
}

// remembers tells whether this host has seen a head of the lineage.
func (f *repairer) remembers(c *chain) bool {
	highest, _, err := knownHeads(f.Memory, c.lineage.name)
	return err == nil && highest > 0
}

// found returns a copy of a head, without sessions, to which all packs that are there are added, and the backups in them that
// are newer than all that the head ever had: the others were deleted. If it was made of an older state, those are added too
// that follow the first number which two of them have. It tells the IDs of those that are not whole.
func (f *repairer) found(ctx context.Context, c *chain, h *Head, forked bool) (next *Head, lost []string, err error) {
	next = h.child()
	next.Sessions = nil
	known := map[PackName]bool{}
	for _, p := range next.Live {
		known[p.Name] = true
	}
	err = f.repository.objects.List(ctx, SessionsPrefix(c.lineage.name), func(o store.Object) error {
		name, err := ParsePackName(o.Name)
		var session ID
		if err != nil || known[name] || session.UnmarshalText([]byte(name.Session)) != nil {
			return nil
		}
		_, _, err = c.lineage.ReadFooter(ctx, f.repository.objects, o.Name, o.Size)
		if err == nil {
			next.Live = append(next.Live, LivePack{name, o.Size})
		} else if errors.Is(err, errForeign) || !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrNotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	backups, err := findBackups(ctx, c.lineage, f.repository.objects)
	if err != nil {
		return nil, nil, err
	}
	check, err := newLineageCheck(ctx, c, nil, next.Live)
	if err != nil {
		return nil, nil, err
	}
	newer := h.Sequence
	if forked {
		numbered := map[uint64]string{}
		for _, b := range append(h.Backups(), unencoded(backups)...) {
			if other, there := numbered[b.Sequence]; there && other != b.Record {
				newer = min(newer, b.Sequence)
			}
			numbered[b.Sequence] = b.Record
		}
	}
	for _, b := range backups {
		if _, there := next.Backup(b.Record); there || b.Sequence < newer {
			continue
		}
		damage, err := check.treeOf(ctx, b.Backup)
		if err != nil {
			return nil, nil, err
		}
		if len(damage) > 0 {
			lost = append(lost, b.ID())
		}
		next.Sequence = max(next.Sequence, b.Sequence+1)
		next.Records = append(next.Records, Record{b.Backup, b.encoded})
	}
	return next, lost, nil
}
