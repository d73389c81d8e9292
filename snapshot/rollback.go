package snapshot

import (
	"context"
	"fmt"
	"time"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/internal/volume"
	"orlop/metadata"
)

// beforeRestore begins the name of the snapshot that keeps what a rollback replaces.
const beforeRestore = "before-restore-"

// Restore rolls a volume back to a snapshot of it: a fresh copy of the snapshot takes the place of the volume's device,
// in one transaction. The snapshot stays; what the copy replaces becomes a snapshot itself, or is discarded. The volume
// keeps its size, labels and options; a filesystem that was smaller then grows to it at the next mount.
//
// It fails with fault.ErrInUse, naming the holders, while the volume is in use or a snapshot of it is being taken. A
// crash leaves the old state or the new one.
func (m *Manager) Restore(ctx context.Context, id string, discard bool) (v metadata.Volume, err error) {
	s, unpin, err := m.volumes.Pin(id, "a rollback")
	if err != nil {
		return v, err
	}
	defer unpin()
	pool, err := m.volumes.Pool(s.Volume)
	if err != nil {
		return v, err
	}
	if err := refuseTruncated(ctx, pool, s); err != nil {
		return v, err
	}
	v, old, err := m.Replace(ctx, Replacement{
		Volume: s.Volume.ID, Parent: s.Device, Size: s.Size,
		Fill: func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
			return cloneSealed(ctx, pool, dst, blockdev.ID(s.Device), record)
		},
	}, discard)
	if err != nil {
		return v, fmt.Errorf("restore snapshot %s: %w", title(s), err)
	}
	m.log.Info("volume rolled back", "volume", v.Name, "snapshot", s.Name, "replaced", old.Name)
	return v, nil
}

// A Replacement is a device that is to take the place of a volume's.
type Replacement struct {
	Volume string // ID of the volume
	Parent string // ID of the device that it is made of; may be empty
	Size   int64  // of its content, bytes; it grows to that of the volume if that is larger

	// Fill makes the device, which does not exist yet, with this record, in the volume's pool. It holds no lock.
	Fill func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error

	// Change, which may be nil, changes what the volume's record says of its content.
	Change func(*metadata.Volume)
}

// Replace makes a device and has it take the place of an unused volume's, in one transaction. What it replaces becomes a
// snapshot, which is returned, or is discarded. It fails as Restore does; a crash leaves the old state or the new one.
func (m *Manager) Replace(ctx context.Context, r Replacement, discard bool) (v metadata.Volume, old metadata.Snapshot, err error) {
	m.volumes.MakeRoomFor(ctx, r.Volume)
	v, err = m.ready(r.Volume)
	if err != nil {
		return v, old, err
	}
	pool, err := m.volumes.Pool(v)
	if err != nil {
		return v, old, err
	}
	if err := m.refuseHeld(ctx, v.ID); err != nil { // now, and not after a copy that may take a while
		return v, old, err
	}
	incoming := metadata.Device{ID: string(blockdev.NewID()), Pool: v.Pool, Parent: r.Parent, Kind: metadata.KindIncoming, Size: r.Size}
	defer m.work(incoming.ID)()
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutDevice(incoming) }); err != nil {
		return v, old, err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("make device", func(ctx context.Context) error { return m.dispose(ctx, pool, incoming.ID) })
	record, err := m.volumes.Describe(r.successor(v, incoming.ID, metadata.Creating))
	if err != nil {
		return v, old, err
	}
	// All that takes long, before the volume is locked.
	if err := r.Fill(ctx, blockdev.ID(incoming.ID), record); err != nil {
		return v, old, err
	}
	if err := pool.Sync(ctx, blockdev.ID(incoming.ID)); err != nil {
		return v, old, err
	}
	locked, release, err := m.volumes.Lock(ctx, v.ID)
	if err != nil {
		return v, old, err
	}
	defer release()
	v = locked[0]
	if err := m.volumes.RefuseHeld(ctx, v); err != nil {
		return v, old, err
	}
	defer m.work(v.Device)() // what is to be discarded is not abandoned
	next, old, err := m.swap(ctx, pool, v, r.successor(v, incoming.ID, metadata.Ready), incoming, discard)
	if err != nil {
		return v, old, err
	}
	u = undo.Stack{} // the volume has its new device: from here on the way is forward
	if discard {
		err = m.dispose(ctx, pool, v.Device)
	} else {
		err = m.keep(ctx, pool, old)
	}
	if err != nil { // the replacement itself is done
		m.log.Error("replaced state of a volume not put away; it is tried again", "volume", v.Name, "device", v.Device, "error", err)
	}
	return next, old, nil
}

// refuseHeld fails with fault.ErrInUse while a volume is in use.
func (m *Manager) refuseHeld(ctx context.Context, id string) error {
	locked, release, err := m.volumes.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return m.volumes.RefuseHeld(ctx, locked[0])
}

// successor is a volume's record after a replacement gave it another device.
func (r Replacement) successor(v metadata.Volume, device string, state metadata.State) metadata.Volume {
	v.Device, v.State = device, state
	v.Size = max(v.Size, r.Size)
	v.Rollbacks++
	if r.Change != nil {
		r.Change(&v)
	}
	return v
}

// swap gives the volume its new record and device, on the device first: a database that is lost just then comes back with the
// new state. The old device becomes a snapshot that is being kept, or trash.
func (m *Manager) swap(ctx context.Context, pool blockdev.Pool, v, next metadata.Volume, incoming metadata.Device, discard bool) (_ metadata.Volume, old metadata.Snapshot, err error) {
	record, err := m.volumes.Describe(next)
	if err != nil {
		return next, old, err
	}
	if err := pool.Describe(ctx, blockdev.ID(incoming.ID), record); err != nil {
		return next, old, err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	err = m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := refuseCaptured(tx, v); err != nil {
			return err
		}
		device, err := tx.Device(v.Device)
		if err != nil {
			return err
		}
		incoming.Kind, device.Kind = metadata.KindVolume, metadata.KindTrash
		if !discard {
			device.Kind = metadata.KindSnapshot
			old = metadata.Snapshot{
				ID: string(blockdev.NewID()), Device: v.Device, Size: device.Size, Consistency: metadata.Unmounted,
				State: metadata.Keeping, Created: now, Volume: v,
			}
			if old.Name, err = unusedName(tx, v.ID, beforeRestore+stamp(now)); err != nil {
				return err
			}
			if err := tx.PutSnapshot(old); err != nil {
				return err
			}
		}
		if err := tx.PutDevice(device); err != nil {
			return err
		}
		if err := tx.PutDevice(incoming); err != nil {
			return err
		}
		return tx.PutVolume(next)
	})
	return next, old, err
}

// refuseCaptured fails with fault.ErrInUse while a snapshot of a volume is being taken.
func refuseCaptured(tx *metadata.Tx, v metadata.Volume) error {
	snapshots, err := tx.Snapshots(v.ID)
	for _, s := range snapshots {
		if s.State == metadata.Creating {
			return fault.Errorf(fault.ErrInUse, "volume %q: its snapshot %q is being taken", v.Name, s.Name)
		}
	}
	return err
}

// keep makes the replaced state of a volume a snapshot like others. It may be repeated.
func (m *Manager) keep(ctx context.Context, pool blockdev.Pool, s metadata.Snapshot) error {
	info, err := pool.Stat(ctx, blockdev.ID(s.Device))
	if err != nil {
		return err
	}
	s.Size = info.Size
	if s, err = m.seal(ctx, pool, s); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return putReady(tx, s) })
}

// dispose removes a device that belongs to nobody, and then its record. It may be repeated.
func (m *Manager) dispose(ctx context.Context, pool blockdev.Pool, id string) error {
	if err := volume.RemoveDevice(ctx, pool, id); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DeleteDevice(id) })
}
