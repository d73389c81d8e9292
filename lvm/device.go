package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// newTags are the tags of a new device.
func newTags(id blockdev.ID, record blockdev.Record) ([]string, error) {
	pieces, err := recordTags(record)
	if err != nil {
		return nil, fmt.Errorf("describe device %s: %w", id, err)
	}
	return append([]string{tagOurs, tagID + string(id)}, pieces...), nil
}

func flags(flag string, values []string) (argv []string) {
	for _, value := range values {
		argv = append(argv, flag, value)
	}
	return argv
}

// Create makes a thin volume. Its blocks are zeroed by the thin pool before they are first used.
func (p *Pool) Create(ctx context.Context, id blockdev.ID, size int64, record blockdev.Record) error {
	tags, err := newTags(id, record)
	if err != nil {
		return err
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	if err := p.refuse(id); err != nil {
		return err
	}
	made := device{lv: lvName(id), size: p.round(size), thin: -1, record: record, tags: tags}
	argv := []string{"lvcreate", "--type", "thin", "--virtualsize", sizeArg(made.size), "--thinpool", p.of(p.name)}
	if err := p.make(ctx, id, made, argv); err != nil {
		return fmt.Errorf("make device %s: %w", id, err)
	}
	return nil
}

// refuse fails if a new device may not be made: its ID is bad or taken, or the thin pool is full.
func (p *Pool) refuse(id blockdev.ID) error {
	switch _, err := p.find(id); {
	case err == nil:
		return fault.Errorf(fault.ErrExists, "make device %s: it is there already", id)
	case !fault.Is(err, fault.ErrNotFound):
		return err
	}
	return p.room()
}

// make runs a command that makes an LV. If that fails, what it left is removed. The caller holds the door.
func (p *Pool) make(ctx context.Context, id blockdev.ID, made device, argv []string) error {
	argv = append(argv, "--name", made.lv, "--setactivationskip", "y", "--activate", "n", "--permission", "rw", "--yes")
	argv = append(append(argv, flags("--addtag", made.tags)...), p.lvm.config()...)
	if _, err := p.lvm.run(ctx, argv...); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return err // it did not begin
		}
		return p.unmake(ctx, id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices[id] = &made
	return nil
}

// unmake removes what a failed command may have left of a new device, and returns the command's error.
func (p *Pool) unmake(ctx context.Context, id blockdev.ID, err error) error {
	ctx = context.WithoutCancel(ctx)
	if _, lookErr := p.look(ctx); lookErr != nil {
		return fault.Errorf(fault.KindOf(err), "%w (and then %w)", err, lookErr)
	}
	if _, findErr := p.find(id); findErr != nil {
		return err
	}
	if failed := p.erase(ctx, id); failed != nil {
		return fault.Errorf(fault.KindOf(err), "%w (and what it left could not be removed: %w)", err, failed)
	}
	return err
}

// Prepare does nothing: a thin snapshot costs the same whenever it is taken.
func (p *Pool) Prepare(_ context.Context, dst, src blockdev.ID, _ blockdev.Record) error {
	if err := p.refuse(dst); err != nil {
		return err
	}
	_, err := p.find(src)
	return err
}

// Clone takes a thin snapshot. A mounted source's filesystem is made consistent by device-mapper itself.
func (p *Pool) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	tags, err := newTags(dst, record)
	if err != nil {
		return err
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	if err := p.refuse(dst); err != nil {
		return err
	}
	origin, err := p.find(src)
	if err != nil {
		return err
	}
	info, err := p.describe(src, origin)
	if err != nil {
		return err
	}
	made := device{lv: lvName(dst), size: origin.size, thin: -1, record: record, tags: tags, used: info.Used}
	err = p.make(ctx, dst, made, []string{"lvcreate", "--snapshot", p.of(origin.lv)})
	if err != nil && ctx.Err() == nil {
		now, findErr := p.find(src) // after a look
		switch {
		case findErr != nil:
			err = fault.Errorf(fault.KindOf(findErr), "%w: %w", findErr, err)
		case now.lv != origin.lv: // it was renamed
			err = p.make(ctx, dst, made, []string{"lvcreate", "--snapshot", p.of(now.lv)})
		}
	}
	if err != nil {
		return fmt.Errorf("clone device %s as %s: %w", src, dst, err)
	}
	return nil
}

// Describe replaces the tags that hold the record, in one commit.
func (p *Pool) Describe(ctx context.Context, id blockdev.ID, record blockdev.Record) error {
	wanted, err := recordTags(record)
	if err != nil {
		return fmt.Errorf("describe device %s: %w", id, err)
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	d, err := p.find(id)
	if err != nil {
		return err
	}
	if err := p.retag(ctx, id, d, withRecord(d.tags, wanted)); err != nil {
		return fmt.Errorf("describe device %s: %w", id, err)
	}
	p.keep(id, func(d *device) { d.record = record })
	return nil
}

// withRecord returns tags with another record in them.
func withRecord(tags, record []string) []string {
	rest := slices.DeleteFunc(slices.Clone(tags), isRecord)
	return append(rest, record...)
}

// retag gives an LV other tags, in one commit, with further arguments to lvchange. The caller holds the door.
func (p *Pool) retag(ctx context.Context, id blockdev.ID, d device, tags []string, more ...string) error {
	var gone, added []string
	for _, tag := range d.tags {
		if !slices.Contains(tags, tag) {
			gone = append(gone, tag)
		}
	}
	for _, tag := range tags {
		if !slices.Contains(d.tags, tag) {
			added = append(added, tag)
		}
	}
	if len(gone) == 0 && len(added) == 0 && len(more) == 0 {
		return nil
	}
	_, err := p.command(ctx, id, func(lv string) []string {
		return slices.Concat([]string{"lvchange"}, more, flags("--deltag", gone), flags("--addtag", added), p.lvm.config(), []string{lv})
	})
	if err != nil {
		return err
	}
	p.keep(id, func(d *device) { d.tags = tags })
	return nil
}

// Sync writes what was written to an active device to stable storage, with the thin pool's metadata. Of an inactive one
// nothing is outstanding: lvm commits the snapshot and its data before it returns.
func (p *Pool) Sync(_ context.Context, id blockdev.ID) error {
	d, err := p.find(id)
	if err != nil {
		return err
	}
	s, ok, err := p.active(d)
	if err != nil || !ok {
		return err
	}
	f, err := os.Open(s.path())
	if err != nil {
		return fmt.Errorf("sync device %s: %w", id, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync device %s: %w", id, err)
	}
	return nil
}

// Seal marks a device by a tag, which Activate and Grow go by, and makes the LV read-only for others, too.
func (p *Pool) Seal(ctx context.Context, id blockdev.ID) error {
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	d, err := p.find(id)
	if err != nil || d.sealed {
		return err
	}
	s, ok, err := p.active(d)
	if err != nil {
		return err
	}
	if ok && !s.readOnly {
		return fault.Errorf(fault.ErrInUse, "seal device %s: %s can be written", id, s.path())
	}
	if err := p.retag(ctx, id, d, append(slices.Clone(d.tags), tagSealed), "--permission", "r"); err != nil {
		if now, findErr := p.find(id); findErr == nil && now.sealed { // it was read-only already, which LVM calls a failure
			return nil
		}
		return fmt.Errorf("seal device %s: %w", id, err)
	}
	p.keep(id, func(d *device) { d.sealed = true })
	return nil
}

// Grow extends the LV, and the kernel's device if it is active.
func (p *Pool) Grow(ctx context.Context, id blockdev.ID, size int64) error {
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	d, err := p.find(id)
	if err != nil {
		return err
	}
	s, ok, err := p.active(d)
	if err != nil {
		return err
	}
	size = p.round(size)
	switch {
	case size > d.size && d.sealed:
		return fault.Errorf(fault.ErrProtected, "grow device %s: it is sealed", id)
	case size > d.size:
		_, err := p.command(ctx, id, func(lv string) []string {
			return slices.Concat([]string{"lvextend", "--size", sizeArg(size)}, p.lvm.config(), []string{lv})
		})
		if err != nil {
			return fmt.Errorf("grow device %s: %w", id, err)
		}
		p.keep(id, func(d *device) { d.size = size })
	case ok && s.size < d.size: // an earlier call came as far as LVM's metadata only
		_, err := p.command(ctx, id, func(lv string) []string {
			return slices.Concat([]string{"lvchange", "--refresh"}, p.lvm.config(), []string{lv})
		})
		if err != nil {
			return fmt.Errorf("grow device %s: %w", id, err)
		}
	}
	return nil
}

// Replace gives the LV of by the ID and the record of id, in one commit, then removes the LV that id had and gives its
// name to the new one. After a crash the next Open does what is left.
func (p *Pool) Replace(ctx context.Context, id, by blockdev.ID) error {
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	for _, each := range []blockdev.ID{id, by} {
		d, err := p.find(each)
		if err != nil {
			return err
		}
		if d.sealed {
			return fault.Errorf(fault.ErrProtected, "replace device %s by %s: %s is sealed", id, by, each)
		}
		if s, ok, err := p.active(d); err != nil {
			return err
		} else if ok {
			return fault.Errorf(fault.ErrInUse, "replace device %s by %s: %s is active as %s", id, by, each, s.path())
		}
	}
	if _, err := p.look(ctx); err != nil { // for the UUID of the LV that goes
		return err
	}
	old, err := p.find(id)
	if err != nil {
		return err
	}
	successor, err := p.find(by)
	if err != nil {
		return err
	}
	tags := slices.DeleteFunc(slices.Clone(old.tags), isReplaces)
	if err := p.retag(ctx, by, successor, append(tags, tagReplaces+old.uuid)); err != nil {
		return fmt.Errorf("replace device %s by %s: %w", id, by, err)
	}
	superseded, err := p.look(context.WithoutCancel(ctx))
	if err == nil {
		err = p.finishReplacing(context.WithoutCancel(ctx), superseded)
	}
	if err != nil {
		return fmt.Errorf("replace device %s by %s: %w", id, by, err)
	}
	return nil
}

// finishReplacing removes the LVs whose place others have taken, and gives those their names. The caller holds the door.
func (p *Pool) finishReplacing(ctx context.Context, superseded []string) error {
	for _, lv := range superseded {
		if _, err := p.lvm.run(ctx, p.removal(p.of(lv))...); err != nil {
			return err
		}
	}
	p.mu.Lock()
	renames := map[blockdev.ID]string{}
	for id, d := range p.devices {
		if d.replaced != "" && d.twin == "" && d.lv != lvName(id) {
			renames[id] = d.lv
		}
	}
	p.mu.Unlock()
	for id, lv := range renames {
		if _, err := p.lvm.run(ctx, slices.Concat([]string{"lvrename"}, p.lvm.config(), []string{p.vg, lv, lvName(id)})...); err != nil {
			return err
		}
		p.keep(id, func(d *device) { d.lv = lvName(id) })
	}
	return nil
}

// Remove deletes the LV.
func (p *Pool) Remove(ctx context.Context, id blockdev.ID) error {
	if _, err := blockdev.ParseID(string(id)); err != nil {
		return err
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	d, err := p.find(id)
	if fault.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s, ok, err := p.active(d)
	if err != nil {
		return err
	}
	if ok {
		return fault.Errorf(fault.ErrInUse, "remove device %s: active as %s", id, s.path())
	}
	return p.erase(ctx, id)
}

// erase removes a device's LV. The caller holds the door.
func (p *Pool) erase(ctx context.Context, id blockdev.ID) error {
	if _, err := p.command(ctx, id, p.removal); fault.Is(err, fault.ErrNotFound) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove device %s: %w", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.devices, id)
	return nil
}

func (p *Pool) removal(lv string) []string {
	return slices.Concat([]string{"lvremove", "--yes"}, p.lvm.config(), []string{lv})
}
