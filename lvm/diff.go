package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/run"
)

// Differ compares thin volumes by the thin pool's metadata, in chunks of the thin pool. Its time follows the number of
// chunks that differ.
func (p *Pool) Differ() (blockdev.Differ, bool) { return differ{p}, true }

type differ struct{ pool *Pool }

// Open opens the LV's device, which stays active, and unseen by Stat, until the reader is closed.
func (d differ) Open(ctx context.Context, id blockdev.ID) (blockdev.Reader, error) {
	r, err := d.pool.openToRead(ctx, id)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Diff reads a snapshot of the thin pool's metadata. It is released before fn is called.
func (d differ) Diff(ctx context.Context, from, to blockdev.ID, fn func(blockdev.Extent) error) error {
	p := d.pool
	ids := []blockdev.ID{to}
	if from != "" {
		ids = append(ids, from)
	}
	found, err := p.numbered(ctx, ids)
	if err != nil {
		return fmt.Errorf("compare device %s with %q: %w", to, from, err)
	}
	argv := []string{"thin_dump", "--format", "xml", "--dev-id", strconv.FormatInt(found[0].thin, 10)}
	seam := int64(0)
	if from != "" {
		argv = []string{"thin_delta", "--thin1", strconv.FormatInt(found[1].thin, 10), "--thin2", strconv.FormatInt(found[0].thin, 10)}
		seam = found[1].size
	}
	var differs delta
	err = p.withMetadata(ctx, func(node string) error {
		return d.pool.tools.Stream(ctx, func(r io.Reader) (err error) {
			differs, err = readDelta(r)
			return err
		}, append(argv, "--metadata-snap", node)...)
	})
	if err != nil {
		return fmt.Errorf("compare device %s with %q: %w", to, from, err)
	}
	return differs.extents(found[0].size, seam, func(e blockdev.Extent) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("compare device %s with %q: %w", to, from, err)
		}
		return fn(e)
	})
}

// numbered returns devices with their numbers in the thin pool, for which it asks LVM if one has not been read yet.
func (p *Pool) numbered(ctx context.Context, ids []blockdev.ID) (found []device, err error) {
	known := func() (all bool, err error) {
		found, all = nil, true
		for _, id := range ids {
			d, err := p.find(id)
			if err != nil {
				return false, err
			}
			found = append(found, d)
			all = all && d.thin >= 0
		}
		return all, nil
	}
	if all, err := known(); err != nil || all {
		return found, err
	}
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	defer p.leave()
	if _, err := p.look(ctx); err != nil {
		return nil, err
	}
	if _, err := known(); err != nil {
		return nil, err
	}
	return found, nil
}

// withMetadata calls fn with the node of the thin pool's metadata while a snapshot of that is reserved: there can be one.
func (p *Pool) withMetadata(ctx context.Context, fn func(node string) error) (err error) {
	select {
	case p.delta <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for another comparison: %w", ctx.Err())
	}
	defer func() { <-p.delta }()
	if err := ctx.Err(); err != nil {
		return err
	}
	s, ok, err := p.poolDevice()
	if err == nil && !ok {
		err = p.inactive()
	}
	if err != nil {
		return err
	}
	switch err := p.kernel.message(s.name, "reserve_metadata_snap"); {
	case errors.Is(err, unix.EBUSY):
		return fault.Errorf(fault.ErrInUse, "%w: another program reads the metadata of thin pool %s; if none does: dmsetup message %s 0 release_metadata_snap",
			err, p.of(p.name), s.name)
	case err != nil:
		return err
	}
	defer func() {
		if failed := p.kernel.message(s.name, "release_metadata_snap"); failed != nil {
			err = fault.Join(err, failed)
		}
	}()
	return fn("/dev/mapper/" + mapperName(p.vg, p.metadata))
}

// releaseStale releases the metadata snapshot of a process that was killed.
func (p *Pool) releaseStale() error {
	s, err := p.poolStatus()
	if err != nil || !s.held {
		return err
	}
	device, _, err := p.poolDevice()
	if err != nil {
		return err
	}
	return p.kernel.message(device.name, "release_metadata_snap")
}

// measure reads how much is allocated for each device: of an inactive one nothing else tells. The caller holds the door.
func (p *Pool) measure(ctx context.Context) error {
	used := map[int64]int64{}
	err := p.withMetadata(ctx, func(node string) error {
		out, err := p.tools.Run(ctx, "thin_ls", "--no-headers", "--format", "DEV,MAPPED_BYTES", "--metadata-snap", node)
		if err != nil {
			return err
		}
		used, err = parseList(out)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the use of thin pool %s: %w", p.of(p.name), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.devices {
		d.used = used[d.thin]
	}
	return nil
}

// newTools returns what runs the readers of thin metadata.
func newTools() run.Runner { return run.Runner{Limit: toolLimit, Nice: 5} }
