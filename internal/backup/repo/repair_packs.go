package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"orlop/internal/fault"
)

// repairAttempts is how often the packs of a lineage are looked at anew because others wrote to it meanwhile.
const repairAttempts = 3

var (
	// errMoved tells that others wrote to a lineage since it was looked at.
	errMoved = errors.New("others write to it at the same time")

	// errUnsteady tells that a pack was not as it had been before.
	errUnsteady = errors.New("what is read of it is not the same each time, so that nothing is dropped: is a disk or a network failing?")
)

// packs saves what is good in damaged packs of a lineage. It reads all of its data.
func (f *repairer) packs(ctx context.Context, c *chain) error {
	var err error
	for range repairAttempts {
		before := len(f.steps)
		if err = f.packsOnce(ctx, c); !errors.Is(err, errMoved) && !errors.Is(err, errUnsteady) {
			return err
		}
		f.steps = f.steps[:before]
	}
	if errors.Is(err, errUnsteady) {
		return fault.Errorf(fault.ErrCorrupt, "lineage %s: %w", c.lineage.name, err)
	}
	return fault.Errorf(fault.ErrInUse, "lineage %s: %w: wait until nothing backs up or prunes, and try again", c.lineage.name, errMoved)
}

// damagedPacks is what is wrong with the packs of a head, and what is to be done.
type damagedPacks struct {
	head  *Head
	check *lineageCheck
	drop  map[PackName]bool // packs to take off the live list
	lost  map[string]bool   // records whose data is gone
	store []Record          // that no pack holds any more

	stored PackName // the new pack with those
}

const actionLost = "the data of backups is lost: --drop-damaged drops them"

func (f *repairer) packsOnce(ctx context.Context, c *chain) error {
	h, trusted, _, err := c.survey(ctx)
	if err != nil {
		return err
	}
	if f.DryRun && f.planned != nil {
		h, trusted = f.planned, false
	}
	d := &damagedPacks{head: h, drop: map[PackName]bool{}, lost: map[string]bool{}}
	var hurt map[string][]*Backup
	if d.check, hurt, err = lookAtAll(ctx, c, h); err != nil {
		return err
	}
	if trusted && d.check.misses() {
		newest, err := c.certain(ctx)
		if err != nil {
			return err
		}
		if d.check.replaced(newest) {
			return errMoved
		}
	}
	if f.DropDamaged && !f.DryRun && len(hurt) > 0 { // what cannot be taken back is not decided by one look
		_, again, err := lookAtAll(ctx, c, h)
		if err != nil {
			return err
		}
		if !maps.EqualFunc(hurt, again, slices.Equal) {
			return errUnsteady
		}
	}
	steps := f.plan(d, hurt)
	for _, r := range d.check.unrecorded(h) {
		if d.lost[r.Record] {
			continue
		}
		d.store = append(d.store, r)
		if d.check.damaged() {
			continue // lost with a pack that a step is about
		}
		steps = append(steps, Step{Object: HeadName(h.Lineage, h.Number), Problem: "no pack holds the record of a backup, which would be lost with the heads",
			Action: "store the record again", Backups: []string{r.ID()}, Done: true})
	}
	if len(d.drop)+len(d.lost)+len(d.store) > 0 && !f.DryRun {
		if err := f.replace(ctx, c, d); err != nil {
			return err
		}
	}
	for _, s := range steps {
		s.Done = s.Done && !f.DryRun
		if err := f.step(s, nil); err != nil {
			return err
		}
	}
	return nil
}

// lookAtAll reads all packs of a head, and tells which of its backups what is wrong hurts, by the objects that are to blame.
func lookAtAll(ctx context.Context, c *chain, h *Head) (*lineageCheck, map[string][]*Backup, error) {
	check, err := newLineageCheck(ctx, c, h.Backups(), h.Live)
	if err != nil {
		return nil, nil, err
	}
	if err := check.each(ctx, slices.Collect(maps.Keys(check.packs)), (*packCheck).checkWhole, nil); err != nil {
		return nil, nil, err
	}
	hurt, err := check.hurt(ctx)
	return check, hurt, err
}

// plan decides which packs and which backups go.
func (f *repairer) plan(d *damagedPacks, hurt map[string][]*Backup) (steps []Step) {
	for _, finding := range d.check.findings(hurt, "") {
		name, err := ParsePackName(finding.Object)
		step := Step{Object: finding.Object, Problem: finding.Problem, Backups: finding.Backups}
		switch {
		case len(finding.Backups) > 0 && !f.DropDamaged:
			step.Action, step.Lost = actionLost, true
		case err == nil && !d.check.packs[name].known && len(hurt) > 0 && !f.DropDamaged:
			step.Action, step.Lost = "nobody knows what it holds, and the data of backups is lost: keep it until those are dropped", true
		default:
			step.Action, step.Done = "save its good records into a new pack, and drop it", true
			if p := d.check.packs[name]; err == nil && (p.missing || !p.known) {
				step.Action = "drop it: there is nothing to save"
			}
			if len(finding.Backups) > 0 {
				step.Action += ", and the backups whose data is lost"
			}
			if err == nil {
				d.drop[name] = true
			}
			for _, b := range hurt[finding.Object] {
				d.lost[b.Record] = true
			}
		}
		steps = append(steps, step)
	}
	return steps
}

// replace writes new packs with what is good in those to be dropped, and a head that lists them instead.
func (f *repairer) replace(ctx context.Context, c *chain, d *damagedPacks) error {
	s, registeredIn, err := c.register(ctx, RepairSession, nil, nil)
	if err != nil {
		return err
	}
	defer s.release()
	var saved []LivePack
	if registeredIn.Parent == d.head.Nonce {
		for name := range d.drop {
			pack, err := f.rescue(ctx, c, d, s, name)
			if err != nil {
				return err
			}
			saved = append(saved, pack...)
		}
		pack, err := d.storeRecords(ctx, c, s)
		if err != nil {
			return err
		}
		saved = append(saved, pack...)
	}
	h, _, err := c.change(ctx, registeredIn, func(h *Head) (*Head, error) {
		if !s.mine(h) {
			return nil, concluded{errFenced}
		}
		next := h.child()
		next.end(s.ID)
		if registeredIn.Parent == d.head.Nonce && h.Nonce == registeredIn.Nonce {
			d.apply(next, saved)
		} // else what was decided is not valid
		return next, nil
	})
	if err != nil && !errors.Is(err, errFenced) {
		return fmt.Errorf("repair: %w", err)
	}
	if !d.applied(h) {
		return errMoved
	}
	return nil
}

// apply makes the decided changes to a head.
func (d *damagedPacks) apply(next *Head, saved []LivePack) {
	if len(d.drop)+len(d.lost) > 0 {
		next.Sessions = nil // who builds on what goes begins anew
	}
	next.drop(d.drop)
	next.Live = append(next.Live, saved...)
	next.Records = slices.DeleteFunc(next.Records, func(r Record) bool { return d.lost[r.Record] })
}

// applied tells whether they stand in a head.
func (d *damagedPacks) applied(h *Head) bool {
	if len(d.store) > 0 && !h.IsLive(d.stored) {
		return false
	}
	return !slices.ContainsFunc(h.Live, func(p LivePack) bool { return d.drop[p.Name] }) &&
		!slices.ContainsFunc(h.Records, func(r Record) bool { return d.lost[r.Record] })
}

// storeRecords uploads a pack with the backup records that none holds, if there are any.
func (d *damagedPacks) storeRecords(ctx context.Context, c *chain, s *registered) ([]LivePack, error) {
	if len(d.store) == 0 {
		return nil, nil
	}
	var packs []LivePack
	w, err := c.lineage.NewMetaWriter(s.Name(), NewIndex(), func(ctx context.Context, pack Pack) error {
		packs, d.stored = append(packs, LivePack{pack.Ref.Name, pack.Ref.Size}), pack.Ref.Name
		return s.upload(ctx, pack)
	})
	if err != nil {
		return nil, err
	}
	for _, r := range d.store {
		if _, err := w.write(ctx, TypeBackup, 0, r.encoded); err != nil {
			return nil, err
		}
	}
	err = w.Flush(ctx)
	return packs, err
}

// rescue uploads the good records of a damaged pack, if there are any.
func (f *repairer) rescue(ctx context.Context, c *chain, d *damagedPacks, s *registered, name PackName) ([]LivePack, error) {
	p := d.check.packs[name]
	if !p.known || p.missing {
		return nil, nil
	}
	data, err := d.check.whole(ctx, p)
	unreadable := fault.Is(err, fault.ErrCorrupt) // a part of it
	if err != nil && !unreadable {
		return nil, err
	}
	compressor, err := newCompressor(DefaultChunk)
	if err != nil {
		return nil, err
	}
	var packs []LivePack
	w := &repacker{lineage: c.lineage, session: s.Name(), kind: name.Kind, index: NewIndex(), compressor: compressor,
		emit: func(ctx context.Context, pack Pack) error {
			packs = append(packs, LivePack{pack.Ref.Name, pack.Ref.Size})
			return s.upload(ctx, pack)
		}}
	save := func(e Entry, plaintext []byte, err error) error {
		switch {
		case err == nil:
			return w.add(ctx, e, plaintext)
		case p.wrong[e.ID] == nil:
			return errUnsteady
		}
		return nil // it is lost
	}
	if unreadable {
		err = d.check.openEach(ctx, p, save)
	} else if p.cached != nil {
		err = d.check.openCached(p.cached, data, save)
	} else {
		_, _, err = c.lineage.SalvagePack(name.String(), data, save)
	}
	if err != nil {
		return nil, err
	}
	err = w.flush(ctx)
	return packs, err
}
