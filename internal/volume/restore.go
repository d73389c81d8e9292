package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/metadata"
)

// A Contents fills the device of a volume that is being restored. Only one runs for a volume at a time: its caller sees to
// that. Everything but Write may be repeated after a crash, and Write is told whether it is.
type Contents struct {
	// Clone makes the new device dst a copy of another one, as blockdev.Pool.Clone does; nil to begin with zeroes.
	Clone func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error

	// Write writes to the device, whose size is that of the volume. A resumed one may hold anything; another one holds
	// what Clone made, and zeroes behind that. What Write has written need not be durable.
	Write func(ctx context.Context, device *os.File, resumed bool) error

	// Keep is called with the volume locked, when its device is durable and before it is ready. What it returns is part of
	// the transaction that makes it ready.
	Keep func(ctx context.Context, v metadata.Volume) (func(*metadata.Tx) error, error)
}

// AnnounceRestore records a volume in state restoring, without making anything of it yet. Its device is made by Fill. It
// fails with fault.ErrExists if there is a volume of this name.
func (m *Manager) AnnounceRestore(ctx context.Context, spec Spec) (v metadata.Volume, err error) {
	pool, kind, err := m.placeFor(spec)
	if err != nil {
		return v, err
	}
	if err := room(ctx, pool.Name, pool.Pool); err != nil {
		return v, err
	}
	v = newVolume(spec, pool, kind)
	v.State, v.Restore = metadata.Restoring, spec.Restore
	if spec.Lineage != "" {
		v.Lineage, v.MkfsParams = spec.Lineage, spec.MkfsParams
	}
	release, err := m.locks.acquire(ctx, v.ID)
	if err != nil {
		return v, err
	}
	defer release()
	return v, m.announce(ctx, v)
}

// RestoreAgain returns a volume whose restore failed to state restoring, with another origin.
func (m *Manager) RestoreAgain(ctx context.Context, id string, r metadata.Restore) (metadata.Volume, error) {
	return m.changeRestore(ctx, id, func(v *metadata.Volume) error {
		if v.State != metadata.Failed {
			return NotReady(*v)
		}
		v.State, v.Restore = metadata.Restoring, &r
		return nil
	})
}

// FailRestore puts a volume that is being restored into state failed, with the reason. Its device stays, so that another
// try resumes, unless space ran out, which others need.
func (m *Manager) FailRestore(ctx context.Context, id string, why error) error {
	v, err := m.changeRestore(ctx, id, func(v *metadata.Volume) error {
		r := *v.Restore
		r.Error = why.Error()
		v.State, v.Restore = metadata.Failed, &r
		return nil
	})
	if err == nil && fault.Is(why, fault.ErrNoSpace) {
		pool, poolErr := m.Pool(v)
		if err = poolErr; err == nil {
			err = RemoveDevice(ctx, pool, v.Device)
		}
	}
	return err
}

// NoteRestore records why the restore of a volume waits. Fill and RestoreAgain clear it.
func (m *Manager) NoteRestore(ctx context.Context, id string, why error) error {
	_, err := m.changeRestore(ctx, id, func(v *metadata.Volume) error {
		if v.State != metadata.Restoring {
			return NotReady(*v)
		}
		r := *v.Restore
		r.Error = why.Error()
		v.Restore = &r
		return nil
	})
	return err
}

// changeRestore changes the record of a volume that is being restored, or whose restore failed.
func (m *Manager) changeRestore(ctx context.Context, id string, change func(*metadata.Volume) error) (v metadata.Volume, err error) {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	if v.State != metadata.Restoring && v.State != metadata.Failed {
		return v, NotReady(v)
	}
	if err := change(&v); err != nil {
		return v, err
	}
	return v, m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) })
}

// DropRestore undoes AnnounceRestore and what followed, for a volume that is being restored or whose restore failed.
func (m *Manager) DropRestore(ctx context.Context, id string) error {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if v.State != metadata.Restoring && v.State != metadata.Failed {
		return NotReady(v)
	}
	v.State = metadata.Removing
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) }); err != nil {
		return err
	}
	return m.erase(ctx, v)
}

// Fill gives a volume in state restoring its device, has it filled, and makes the volume ready, durably. It holds no lock
// while it writes. It fails with fault.ErrNoSpace once the pool passes the limit above which it takes on nothing more;
// whatever it fails with, the volume stays in state restoring, and Fill can be called again.
func (m *Manager) Fill(ctx context.Context, id string, c Contents) (v metadata.Volume, err error) {
	err = m.store.View(func(tx *metadata.Tx) error { v, err = tx.Volume(id); return err })
	if err != nil {
		return v, err
	}
	if v.State != metadata.Restoring {
		return v, NotReady(v)
	}
	pool, err := m.Pool(v)
	if err != nil {
		return v, err
	}
	record, err := m.Describe(v)
	if err != nil {
		return v, err
	}
	if err := FillDevice(ctx, Device{Pool: pool, PoolName: v.Pool, ID: blockdev.ID(v.Device), Size: v.Size, Record: record}, c); err != nil {
		return v, err
	}
	if err := m.host.MakeMountpoint(m.Mountpoint(v.Name)); err != nil {
		return v, err
	}
	now, release, err := m.acquire(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	if now.State != metadata.Restoring {
		return now, NotReady(now)
	}
	also, err := c.Keep(ctx, now)
	if err != nil {
		return v, err
	}
	v = now
	restored := *now.Restore
	restored.Error = ""
	v.State, v.Restore = metadata.Ready, &restored
	if err := m.finishWith(ctx, v, also); err != nil {
		return v, err
	}
	m.log.Info("volume restored", "volume", v.Name, "id", v.ID, "size", v.Size, "backup", v.Restore.Backup)
	return v, nil
}

// A Device is one that is to be filled.
type Device struct {
	Pool     blockdev.Pool
	PoolName string
	ID       blockdev.ID
	Size     int64 // bytes
	Record   blockdev.Record
}

// FillDevice makes a device, unless it is there, and has it written. The device is durable on return, and not active. It fails
// with fault.ErrNoSpace once the pool passes the limit above which it takes on nothing more. Nobody else may use the device.
func FillDevice(ctx context.Context, d Device, c Contents) error {
	resumed, err := d.make(ctx, c)
	if err != nil {
		return err
	}
	if err := d.write(ctx, resumed, c.Write); err != nil {
		return err
	}
	return d.Pool.Sync(ctx, d.ID)
}

// make makes the device, unless an earlier try has.
func (d Device) make(ctx context.Context, c Contents) (resumed bool, err error) {
	info, err := d.Pool.Stat(ctx, d.ID)
	switch {
	case err == nil && info.Size >= d.Size:
		return true, nil
	case err == nil: // made in part
		err = RemoveDevice(ctx, d.Pool, string(d.ID))
	case fault.Is(err, fault.ErrNotFound):
		err = d.Pool.Remove(ctx, d.ID) // of what may be left of a clone
	}
	if err != nil {
		return false, err
	}
	if c.Clone == nil {
		return false, d.Pool.Create(ctx, d.ID, d.Size, d.Record)
	}
	if err := c.Clone(ctx, d.ID, d.Record); err != nil {
		return false, err
	}
	if err := d.Pool.Grow(ctx, d.ID, d.Size); err != nil {
		return false, err
	}
	return false, d.Pool.Sync(ctx, d.ID)
}

// write activates the device and has it written.
func (d Device) write(ctx context.Context, resumed bool, write func(context.Context, *os.File, bool) error) (err error) {
	path, err := d.Pool.Activate(ctx, d.ID, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Pool.Deactivate(context.WithoutCancel(ctx), d.ID)) }()
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open device: %w", err)
	}
	guarded, stop := whileRoom(ctx, d.PoolName, d.Pool)
	err = write(guarded, device, resumed)
	if full := stop(); full != nil {
		err = full
	}
	if err == nil {
		err = device.Sync()
	}
	if err = errors.Join(err, device.Close()); err == nil {
		return nil
	}
	if full := room(ctx, d.PoolName, d.Pool); full != nil && ctx.Err() == nil { // a loop device says EIO of a full disk
		return fault.Errorf(fault.ErrNoSpace, "%w (%v)", full, err)
	}
	return err
}

// whileRoom returns a context that ends when the pool is too full to take on more, looked at each poolEvery. stop ends the
// looking and returns what was found.
func whileRoom(ctx context.Context, name string, pool blockdev.Pool) (guarded context.Context, stop func() error) {
	guarded, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	var full error
	go func() {
		defer close(ended)
		every(guarded, func() time.Duration {
			if err := room(guarded, name, pool); fault.Is(err, fault.ErrNoSpace) {
				full = err
				cancel(err)
			}
			return poolEvery
		})
	}()
	return guarded, func() error {
		cancel(nil)
		<-ended
		return full
	}
}
