package repo

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"orlop/internal/fault"
)

// VerifyOptions say what Verify looks at. By default it checks the config, the heads, that every pack is there with its
// list of records, and that the tree of every backup leads to records that are in packs.
type VerifyOptions struct {
	Data   bool    // read all of every pack, and check every record
	Sample float64 // read a part of the packs' bytes, above 0 and up to 1; those not read for longest
	Only   *Backup // look at what this backup needs

	// Memory is a local file in which it is remembered when packs were read, and which backups are hurt; none if empty.
	Memory string

	Command  string // what findings say is to be run next
	Progress func(done, total int64)
}

// verifier is one run of Verify.
type verifier struct {
	VerifyOptions
	repository *Repository
	memory     *verified
	report     Report
	packs      map[string]bool // all that are live
	backups    map[string]bool
	hurt       map[string]bool
	looked     []*Backup
	done, all  int64 // bytes to read, as far as is known
}

// Verify looks for damage and changes nothing. What it finds is in the report; it fails only if it could not look at a lineage,
// and then has looked at the others. A backup is hurt if it cannot be restored now.
func (r *Repository) Verify(ctx context.Context, o VerifyOptions) (report Report, err error) {
	if o.Sample < 0 || o.Sample > 1 {
		return Report{}, fault.Errorf(fault.ErrInvalid, "verify: a sample of %g: want a part above 0 and up to 1", o.Sample)
	}
	memory, err := readVerified(o.Memory)
	if err != nil {
		return Report{}, err
	}
	v := &verifier{
		VerifyOptions: o, repository: r, memory: memory, packs: map[string]bool{}, backups: map[string]bool{}, hurt: map[string]bool{},
	}
	v.report.Findings = []Finding{}
	defer func() { err = errors.Join(err, memory.save()) }()
	if err := v.config(ctx); err != nil {
		return v.report, err
	}
	lineages, err := r.Lineages(ctx)
	if err != nil {
		return v.report, err
	}
	var failed []error
	for _, name := range lineages {
		if o.Only != nil && o.Only.Lineage != name {
			continue
		}
		if err := v.lineage(ctx, name); err != nil {
			failed = append(failed, fmt.Errorf("verify lineage %s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	memory.change(func(m *verified) {
		m.judge(v.looked, v.hurt)
		if o.Only == nil && failed == nil {
			m.forget(v.packs, v.backups)
		}
	})
	return v.report, errors.Join(failed...)
}

func (v *verifier) find(object string, problem error, hurt []*Backup) {
	v.report.Findings = append(v.report.Findings, newFinding(object, problem.Error(), hurt, v.Command))
	for _, b := range hurt {
		v.hurt[b.ID()] = true
	}
}

// config checks the config. It hurts no backup: packs tell what it tells.
func (v *verifier) config(ctx context.Context) error {
	r := v.repository
	object, err := r.objects.Get(ctx, ConfigName)
	var file *ConfigFile
	if err == nil {
		file, err = ParseConfig(object)
	}
	if err == nil && (file.Config.Repository != r.ID() || file.Config.Encrypted != r.Encrypted() || !hmac.Equal(file.mac, configMAC(r.keys, file.signed))) {
		err = corrupt(ConfigName, "it is another repository's, or somebody without the key changed it")
	}
	switch {
	case fault.Is(err, fault.ErrNotFound):
		v.find(ConfigName, corrupt(ConfigName, "it is missing"), nil)
	case fault.Is(err, fault.ErrCorrupt):
		v.find(ConfigName, err, nil)
	default:
		return err
	}
	return nil
}

// lineage checks one lineage.
func (v *verifier) lineage(ctx context.Context, name string) error {
	c, err := v.repository.chain(name)
	if err != nil {
		return err
	}
	for range attemptLimit {
		h, trusted, findings, err := c.survey(ctx)
		if err != nil {
			return err
		}
		check, err := v.checkLineage(ctx, c, h)
		if err != nil {
			return err
		}
		hurt, err := check.hurt(ctx)
		if err != nil {
			return err
		}
		if trusted && check.misses() {
			// A pack that is missing may have been replaced meanwhile: then all is looked at anew.
			newest, err := c.certain(ctx)
			if err != nil {
				return err
			}
			if check.replaced(newest) {
				continue
			}
		}
		if err := v.conclude(ctx, check, h, trusted, findings, hurt); err != nil || !trusted || v.Only != nil {
			return err
		}
		return v.records(ctx, c, check, h, findings)
	}
	return c.errBusy()
}

// records checks that packs hold the record of every backup, and no newer ones than the head does. Records that are lost
// with a damaged pack are no damage of their own.
func (v *verifier) records(ctx context.Context, c *chain, check *lineageCheck, h *Head, findings []headFinding) error {
	unrecorded := check.unrecorded(h)
	if check.damaged() {
		unrecorded = nil
	}
	for _, r := range unrecorded {
		v.find(HeadName(h.Lineage, h.Number), fault.Errorf(fault.ErrCorrupt, "no pack holds the record of backup %s, which would be lost with the heads", r.ID()), nil)
	}
	newest, err := c.certain(ctx) // after the listing: what is in it was registered before
	if err != nil {
		return err
	}
	hidden, err := c.hidden(ctx, findings)
	if err != nil {
		return err
	}
	found, err := c.newerThan(ctx, newest, check.listed, hidden)
	if err != nil || len(found) == 0 {
		return err
	}
	newer, _, err := c.wholeNewer(ctx, newest, check.listed, hidden)
	for _, f := range newer {
		v.find(f.pack.String(), errUnlisted(f, hidden), []*Backup{f.Backup})
	}
	return err
}

// errUnlisted is what is wrong with a pack that holds the record of a backup that is newer than the newest head, or hidden.
func errUnlisted(f foundBackup, hidden map[string]bool) error {
	if hidden[f.Record] {
		return fault.Errorf(fault.ErrCorrupt, "it holds backup %s, which a newer head hides: the destination was rolled back to an older state while it was written, or a head between was lost", f.ID())
	}
	return fault.Errorf(fault.ErrCorrupt, "it holds backup %s, which is newer than the newest head: the last heads were lost, or its writer was ended", f.ID())
}

// checkLineage looks at the packs of a head.
func (v *verifier) checkLineage(ctx context.Context, c *chain, h *Head) (*lineageCheck, error) {
	backups := h.Backups()
	if v.Only != nil {
		backups = slices.DeleteFunc(backups, func(b *Backup) bool { return b.ID() != v.Only.ID() })
	}
	check, err := newLineageCheck(ctx, c, backups, h.Live)
	if err != nil {
		return nil, err
	}
	wanted, err := v.wanted(ctx, check)
	if err != nil {
		return nil, err
	}
	v.all = v.done
	for _, name := range wanted {
		v.all += check.packs[name].size
	}
	return check, check.each(ctx, wanted, (*packCheck).checkWhole, func(p *packCheck) {
		v.memory.change(func(m *verified) { m.Packs[p.name.String()] = time.Now().UTC() })
		v.done += p.size
		if v.Progress != nil {
			v.Progress(min(v.done, v.all), v.all)
		}
	})
}

// wanted returns the packs of which all is to be read, in the order in which they are.
func (v *verifier) wanted(ctx context.Context, check *lineageCheck) ([]PackName, error) {
	names := slices.Collect(maps.Keys(check.packs))
	if !v.Data && v.Sample == 0 { // what was damaged is looked at again
		return slices.DeleteFunc(names, func(name PackName) bool { return !v.memory.isDamaged(name) }), nil
	}
	if v.Only != nil {
		needed, err := check.needed(ctx)
		if err != nil {
			return nil, err
		}
		names = slices.DeleteFunc(names, func(name PackName) bool { return !needed[name] })
	}
	v.memory.oldest(names, time.Now().UTC())
	if v.Data {
		return names, nil
	}
	var all, some int64
	for _, name := range names {
		all += check.packs[name].size
	}
	var chosen []PackName
	for _, name := range names {
		if float64(some) < v.Sample*float64(all) {
			some += check.packs[name].size
		} else if !v.memory.isDamaged(name) {
			continue
		}
		chosen = append(chosen, name)
	}
	return chosen, nil
}

// conclude adds what was found to the report.
func (v *verifier) conclude(ctx context.Context, check *lineageCheck, h *Head, trusted bool, heads []headFinding, by map[string][]*Backup) error {
	v.looked = append(v.looked, check.backups...)
	for _, b := range h.Backups() {
		v.backups[b.ID()] = true
	}
	for name, p := range check.packs {
		v.packs[name.String()] = true
		v.report.Packs++
		if p.read {
			v.report.Read++
			v.report.Bytes += p.size
		}
		v.memory.change(func(m *verified) { m.damaged(p) })
	}
	v.report.Backups += len(check.backups)
	for _, f := range heads {
		var hurt []*Backup
		if !trusted && f.number > h.Number {
			var err error
			if hurt, err = v.unlisted(ctx, check); err != nil {
				return err
			}
		}
		v.find(HeadName(h.Lineage, f.number), f.problem, hurt)
		v.report.Findings[len(v.report.Findings)-1].Unnamed = !trusted && f.number > h.Number
	}
	for _, f := range check.findings(by, v.Command) {
		v.report.Findings = append(v.report.Findings, f)
		for _, id := range f.Backups {
			v.hurt[id] = true
		}
	}
	return nil
}

// unlisted returns the backups that may be in a lineage whose newest head cannot be read: those of the head that stands
// for it, and those in packs. Some may have been deleted.
func (v *verifier) unlisted(ctx context.Context, check *lineageCheck) ([]*Backup, error) {
	backups := slices.Clone(check.backups)
	found, err := findBackups(ctx, check.lineage, v.repository.objects)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		same := func(b *Backup) bool { return b.Record == f.Record }
		if !slices.ContainsFunc(backups, same) && (v.Only == nil || same(v.Only)) {
			backups = append(backups, f.Backup)
		}
	}
	return backups, nil
}
