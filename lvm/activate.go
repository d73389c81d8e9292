package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// A lease keeps a device active for the readers that Open made, while no caller has activated it.
type lease struct {
	open int  // readers
	only bool // no caller has activated it
}

// lent reports whether a device is active for readers only.
func (p *Pool) lent(id blockdev.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.readers[id]
	return l != nil && l.only
}

// Activate makes the LV's device, without waiting for lvm(8) if it is there.
func (p *Pool) Activate(ctx context.Context, id blockdev.ID, mode blockdev.Mode) (string, error) {
	if s, ok, err := p.activeFor(id, mode); err != nil || ok {
		return s.path(), err
	}
	if err := p.enter(ctx); err != nil {
		return "", err
	}
	defer p.leave()
	if s, ok, err := p.activeFor(id, mode); err != nil || ok {
		return s.path(), err
	}
	s, err := p.start(ctx, id, mode)
	if err != nil {
		return "", err
	}
	return s.path(), nil
}

// activeFor returns the device if it is active and may be used in this mode, and takes it from the readers that had it
// alone.
func (p *Pool) activeFor(id blockdev.ID, mode blockdev.Mode) (s status, ok bool, err error) {
	d, err := p.find(id)
	if err != nil {
		return s, false, err
	}
	if d.sealed && mode == blockdev.ReadWrite {
		return s, false, fault.Errorf(fault.ErrProtected, "activate device %s: it is sealed", id)
	}
	s, ok, err = p.active(d)
	if err != nil || !ok {
		return s, false, err
	}
	switch {
	case s.readOnly && mode == blockdev.ReadWrite:
		return s, false, fault.Errorf(fault.ErrInUse, "activate device %s: it is active as %s, and read-only there", id, s.path())
	case !s.readOnly && mode == blockdev.ReadOnly && p.lent(id):
		return s, false, fault.Errorf(fault.ErrInUse, "activate device %s: it is being read", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.readers[id]; l != nil {
		l.only = false
	}
	return s, true, nil
}

// start activates an LV. The caller holds the door.
func (p *Pool) start(ctx context.Context, id blockdev.ID, mode blockdev.Mode) (s status, err error) {
	said, err := p.command(ctx, id, func(lv string) []string {
		return slices.Concat([]string{"lvchange", "--activate", "y", "--ignoreactivationskip"}, p.lvm.config(), []string{lv})
	})
	if err != nil {
		return s, fmt.Errorf("activate device %s: %w", id, err)
	}
	d, err := p.find(id)
	if err != nil {
		return s, err
	}
	s, ok, err := p.active(d)
	if err != nil {
		return s, err
	}
	if !ok {
		return s, fmt.Errorf("activate device %s: lvm did not activate %s: see volume_list in /etc/lvm/lvm.conf: %s", id, p.of(d.lv), lastLines(said))
	}
	if mode == blockdev.ReadOnly && !s.readOnly {
		// LVM's read_only_volume_list would have the thin pool read-only as well, which fails.
		if err = setReadOnly(s.path()); err != nil {
			return s, fmt.Errorf("activate device %s: %w", id, errors.Join(err, p.stop(context.WithoutCancel(ctx), id)))
		}
		s.readOnly = true
	} else if _, err := os.Stat(s.path()); err != nil {
		return s, fmt.Errorf("activate device %s: its node is missing: %w", id, err)
	}
	p.keep(id, func(d *device) { d.uuid = p.lvUUID(s.uuid) })
	return s, nil
}

// setReadOnly makes the kernel refuse writes to a device until it is deactivated.
func setReadOnly(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1); err != nil {
		return fmt.Errorf("set %s read-only: %w", path, err)
	}
	return nil
}

// releaseWait is how long a device that is to be deactivated may be open without being claimed: udev and the like look into
// devices that were just written.
const releaseWait = 5 * time.Second

// Deactivate removes the kernel's device. It fails with fault.ErrInUse, without waiting for lvm(8), if a mount or the like
// claims it, or if anyone but this pool's readers has it open for longer than a few seconds.
func (p *Pool) Deactivate(ctx context.Context, id blockdev.ID) error {
	done, err := p.awaitReleased(ctx, id)
	if err != nil || done {
		return err
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	if done, err := p.released(id); err != nil || done {
		return err
	}
	return p.stop(ctx, id)
}

// awaitReleased is released that waits while a device is open and not claimed.
func (p *Pool) awaitReleased(ctx context.Context, id blockdev.ID) (done bool, err error) {
	deadline := time.Now().Add(releaseWait)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err = p.released(id)
		if !fault.Is(err, fault.ErrInUse) || time.Now().After(deadline) || p.claimed(id) {
			return done, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// claimed reports whether a mount or the like claims a device, or it cannot be opened.
func (p *Pool) claimed(id blockdev.ID) bool {
	d, err := p.find(id)
	if err != nil {
		return true
	}
	s, ok, err := p.active(d)
	if err != nil || !ok {
		return err != nil
	}
	f, err := os.OpenFile(s.path(), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return true
	}
	return f.Close() != nil
}

// released reports whether Deactivate has nothing to do, or nothing left because the last reader does it.
func (p *Pool) released(id blockdev.ID) (bool, error) {
	d, err := p.find(id)
	if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrInvalid) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	s, ok, err := p.active(d)
	if err != nil || !ok {
		return !ok, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.readers[id]
	readers := 0
	if l != nil {
		readers = l.open
	}
	if s.opens > readers {
		return false, fault.Errorf(fault.ErrInUse, "deactivate device %s: %s is in use", id, s.path())
	}
	if l != nil {
		l.only = true
	}
	return l != nil, nil
}

// stop deactivates an LV. The caller holds the door.
func (p *Pool) stop(ctx context.Context, id blockdev.ID) error {
	d, err := p.find(id)
	if err != nil {
		return err
	}
	if _, err := p.describe(id, d); err != nil { // how much it uses is known only while it is active
		return err
	}
	_, err = p.command(ctx, id, func(lv string) []string {
		return slices.Concat([]string{"lvchange", "--activate", "n"}, p.lvm.config(), []string{lv})
	})
	if fault.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deactivate device %s: %w", id, err)
	}
	return nil
}

// A reader reads an LV's device, which it keeps active.
type reader struct {
	*os.File
	pool *Pool
	id   blockdev.ID
	size int64
}

func (r *reader) Size() int64 { return r.size }

// Close closes the device and, if it is not used otherwise, deactivates it. It does so whatever became of the work that read.
func (r *reader) Close() error {
	if err := r.File.Close(); err != nil {
		return err
	}
	p := r.pool
	ctx := context.Background() //nolint:forbidigo // io.Closer has none, and each lvm command has its limit
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	p.mu.Lock()
	l := p.readers[r.id]
	l.open--
	last := l.open == 0
	if last {
		delete(p.readers, r.id)
	}
	p.mu.Unlock()
	if !last || !l.only {
		return nil
	}
	if err := p.stop(ctx, r.id); err != nil && !fault.Is(err, fault.ErrNotFound) && !fault.Is(err, fault.ErrInUse) {
		return err
	}
	return nil
}

// openToRead opens a device, activating it for that if it is not active: read-only, if it is sealed. One that is not
// sealed may be activated to be written meanwhile.
func (p *Pool) openToRead(ctx context.Context, id blockdev.ID) (r *reader, err error) {
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	defer p.leave()
	d, err := p.find(id)
	if err != nil {
		return nil, err
	}
	s, ok, err := p.active(d)
	if err != nil {
		return nil, err
	}
	if !ok {
		mode := blockdev.ReadWrite
		if d.sealed {
			mode = blockdev.ReadOnly
		}
		if s, err = p.start(ctx, id, mode); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(s.path())
	if err != nil {
		if !ok {
			_ = p.stop(context.WithoutCancel(ctx), id) // the next Open of the pool does it otherwise
		}
		return nil, fmt.Errorf("open device %s: %w", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.readers[id]
	if l == nil {
		l = &lease{only: !ok}
		p.readers[id] = l
	}
	l.open++ // after the open: until then it counts as another's, and the device is in use
	return &reader{File: f, pool: p, id: id, size: d.size}, nil
}
