package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"orlop/internal/fault"
)

// stalledAfter is how long another host's session must show nothing new before pruning ends it.
const stalledAfter = 24 * time.Hour

// wastefulPart is the part of a pack that nothing needs from which on pruning copies the rest into a new pack.
const wastefulPart = 0.25

// PruneOptions say what PlanPrune looks at.
type PruneOptions struct {
	Policy   Policy             // which backups are kept of each volume; the zero Policy forgets none
	Lineages []string           // nil: all
	Match    func(*Backup) bool // the backups that the policy is applied to, the others are kept; nil: all
	Affected func(*Backup) bool // reports whether damage is known to affect a backup, so that it is not a good one; may be nil
	Force    bool               // apply the policy to the dates of backups as they are

	// ForgetOnly lets Execute free no space. Free does that.
	ForgetOnly bool

	// Warn is told of what keeps no space from being freed elsewhere; may be nil.
	Warn func(error)
}

// A PrunePlan is what Execute would do. Of a lineage that could not be looked at, or in which something is missing that the
// remaining backups need, nothing is planned.
type PrunePlan struct {
	Remove  []*Backup // in the order of their lineages, and of each the oldest first
	Kept    int       // how many backups are not removed, as far as could be looked at
	Matched bool      // whether Match let any backup pass
	Doubts  []*Doubt  // of the volumes of which more is kept than the rules say, as clocks may have been wrong
	Err     error     // what failed in lineages, joined and of the first's kind; nil if nothing did

	repository *Repository
	options    PruneOptions
	lineages   []lineagePlan
}

// lineagePlan is the plan for one lineage.
type lineagePlan struct {
	name   string
	checks KnownHead // the head that was looked at; zero if there is none
	all    int       // backups in it
	remove []*Backup
	doubts []*Doubt
	match  bool
	err    error
}

// Pruned is what Execute did.
type Pruned struct {
	Removed []*Backup
	Kept    int   // how many backups remain, as far as could be looked at
	Freed   int64 // bytes of the store
}

// PlanPrune decides which backups Execute removes, and changes nothing: the plan is the dry run. It checks what Execute would
// check, that nothing is missing of what the remaining backups need. It fails if it cannot list the lineages; what fails in
// one of them stands in the plan and keeps it from no other.
func (r *Repository) PlanPrune(ctx context.Context, o PruneOptions) (*PrunePlan, error) {
	names := o.Lineages
	if names == nil {
		var err error
		if names, err = r.Lineages(ctx); err != nil {
			return nil, err
		}
	}
	p := &PrunePlan{repository: r, options: o}
	var failed []error
	for _, name := range names {
		l := p.lineage(ctx, name)
		p.lineages = append(p.lineages, l)
		p.Remove = append(p.Remove, l.remove...)
		p.Kept += l.all - len(l.remove)
		p.Matched = p.Matched || l.match
		p.Doubts = append(p.Doubts, l.doubts...)
		failed = append(failed, l.err)
		if ctx.Err() != nil {
			break
		}
	}
	p.Err = fault.Join(failed...)
	return p, nil
}

// lineage plans for one lineage.
func (p *PrunePlan) lineage(ctx context.Context, name string) lineagePlan {
	l := lineagePlan{name: name}
	h, removed, err := p.repository.wouldThin(ctx, name, func(backups []*Backup) []string { return p.choose(&l, backups) })
	if err != nil {
		l.err = err
		return l
	}
	l.remove = removed
	if h != nil {
		l.checks = KnownHead{h.Number, h.Nonce}
	}
	return l
}

// choose returns the records that the policy removes, and notes in l what it decided.
func (p *PrunePlan) choose(l *lineagePlan, backups []*Backup) (records []string) {
	var chosen []*Backup
	for _, b := range backups {
		if p.options.Match == nil || p.options.Match(b) {
			chosen = append(chosen, b)
		}
	}
	l.all, l.match, l.doubts = len(backups), len(chosen) > 0, nil
	if p.options.Policy.IsZero() {
		return nil
	}
	for _, v := range Retain(chosen, p.options.Policy, p.options.Affected, p.options.Force) {
		if v.Doubt != nil {
			l.doubts = append(l.doubts, v.Doubt)
		}
		for _, b := range v.Remove {
			records = append(records, b.Record)
		}
	}
	return records
}

// Execute removes the backups of the plan and frees what no backup needs. Nothing is removed that is not in the plan; of what
// is, that stays which the policy would keep by now, as when others removed newer backups. It runs beside everything else and
// may be interrupted anywhere. What fails in one lineage keeps it from no other; the error, of the first one's kind, joins
// what failed, that of the plan included.
func (p *PrunePlan) Execute(ctx context.Context) (done Pruned, err error) {
	var failed []error
	for i := range p.lineages {
		err := p.execute(ctx, &p.lineages[i], &done)
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return done, fault.Join(failed...)
}

func (p *PrunePlan) execute(ctx context.Context, l *lineagePlan, done *Pruned) error {
	if l.err != nil {
		done.Kept += l.all
		return l.err
	}
	removed, err := p.forget(ctx, l)
	done.Removed = append(done.Removed, removed...)
	done.Kept += l.all - len(removed)
	if err != nil || p.options.ForgetOnly {
		return err
	}
	freed, err := p.repository.Free(ctx, l.name, p.options.Warn)
	done.Freed += freed
	return err
}

// forget removes what is planned and what the policy still removes. The plan's check is not repeated for the same head.
func (p *PrunePlan) forget(ctx context.Context, l *lineagePlan) ([]*Backup, error) {
	planned := map[string]bool{}
	for _, b := range l.remove {
		planned[b.Record] = true
	}
	if len(planned) == 0 {
		return nil, nil
	}
	return p.repository.thin(ctx, l.name, func(c *chain, h, next *Head) error {
		still := func(backups []*Backup) []string {
			return slices.DeleteFunc(p.choose(l, backups), func(record string) bool { return !planned[record] })
		}
		if l.checks == (KnownHead{h.Number, h.Nonce}) {
			next.forget(still(h.Backups()))
			return nil
		}
		return c.choose(ctx, h, next, still)
	})
}

// Free deletes what no backup of a lineage needs, as Collect does, and ends sessions of other hosts that showed nothing new
// for a day. What is needed of packs that are wasted to a quarter or more it copies into new ones. Where there is no room for
// that they stay, and warn, which may be nil, is told. It returns the bytes that the store has less.
func (r *Repository) Free(ctx context.Context, lineage string, warn func(error)) (freed int64, err error) {
	var stalled func(*Session) bool
	if r.options.memory != nil {
		if stalled, err = r.Stalled(ctx, lineage, stalledAfter); err != nil {
			return 0, err
		}
	}
	collected, err := r.Collect(ctx, lineage, stalled)
	if err != nil {
		return collected.Freed, err
	}
	saved, err := r.compactAll(ctx, lineage, stalled)
	if fault.Is(err, fault.ErrNoSpace) {
		if warn != nil {
			warn(fmt.Errorf("packs that are wasted in part stay: there is no room to write what is needed of them anew: %w", err))
		}
		err = nil
	}
	return collected.Freed + saved, err
}

// compactAll copies what is needed of wasteful packs, some at a time.
func (r *Repository) compactAll(ctx context.Context, lineage string, stalled func(*Session) bool) (saved int64, err error) {
	for {
		done, err := r.Compact(ctx, lineage, wastefulPart)
		if err == nil && done.Replaced == 0 {
			return saved, nil
		}
		// It deletes what was replaced, or what was written in vain.
		_, failed := r.Collect(ctx, lineage, stalled)
		if failed != nil {
			return saved, errors.Join(err, failed)
		}
		if err != nil {
			return saved, err
		}
		saved += done.Saved
	}
}
