package volume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/metadata"
)

// Unknown is a device in a pool that the metadata does not know.
type Unknown struct {
	blockdev.Info
	Pool string // name
	Name string // for the volume that it may become, from the record that it carries; empty without one
	Was  string // what that record tells of, as in "snapshot s of volume db"; empty without one
}

// Unknowns lists the devices that the metadata does not know. They are a person's to adopt or delete.
func (m *Manager) Unknowns(ctx context.Context) ([]Unknown, error) {
	var unknown []Unknown
	for _, pool := range m.pools {
		if pool.Missing != nil {
			continue
		}
		infos, err := pool.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for unknown devices in pool %q: %w", pool.Name, err)
		}
		known := map[string]bool{}
		err = m.store.View(func(tx *metadata.Tx) error {
			devices, err := tx.Devices()
			for _, device := range devices {
				known[device.ID] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, info := range infos {
			if known[string(info.ID)] {
				continue
			}
			if info.Size > 0 {
				if _, err := pool.Stat(ctx, info.ID); err != nil {
					continue // deleted since it was listed
				}
			}
			u := Unknown{Info: info, Pool: pool.Name}
			if record, err := decode(pool, info); err == nil && record.Snapshot != nil {
				u.Name = record.Snapshot.Volume.Name + "-" + record.Snapshot.Name
				u.Was = "snapshot " + record.Snapshot.Name + " of volume " + record.Snapshot.Volume.Name
			} else if err == nil {
				u.Name, u.Was = record.Volume.Name, "volume "+record.Volume.Name
			}
			unknown = append(unknown, u)
		}
	}
	return unknown, nil
}

// unknown finds an unknown device by its ID or the beginning of it.
func (m *Manager) unknown(ctx context.Context, ref string) (Unknown, error) {
	all, err := m.Unknowns(ctx)
	if err != nil {
		return Unknown{}, err
	}
	all = slices.DeleteFunc(all, func(u Unknown) bool { return !strings.HasPrefix(string(u.ID), ref) })
	switch {
	case len(all) == 1:
		return all[0], nil
	case len(all) > 1:
		return Unknown{}, fault.Errorf(fault.ErrInvalid, "device %q: ambiguous: %d unknown devices begin so", ref, len(all))
	}
	return Unknown{}, fault.Errorf(fault.ErrNotFound, "device %q: no unknown device of this ID: see 'orlop doctor'", ref)
}

// lockUnknown finds an unknown device, as unknown does, and keeps others from adopting or deleting it until unlock is called.
func (m *Manager) lockUnknown(ctx context.Context, ref string) (device Unknown, unlock func(), err error) {
	if device, err = m.unknown(ctx, ref); err != nil {
		return device, nil, err
	}
	unlock, err = m.locks.acquire(ctx, "device "+string(device.ID)) // no volume's ID
	if err != nil {
		return device, nil, err
	}
	if device, err = m.unknown(ctx, string(device.ID)); err != nil { // it was adopted or deleted just now
		unlock()
	}
	return device, unlock, err
}

// Adopt makes an unknown device the volume called name, as its record tells or, without one, as its filesystem
// shows. It fails with fault.ErrCorrupt if the device holds no filesystem.
//
// The volume has no commands to run around snapshots, whatever the record has: they would run as root, and nobody has
// checked them.
func (m *Manager) Adopt(ctx context.Context, ref, name string) (metadata.Volume, error) {
	device, unlock, err := m.lockUnknown(ctx, ref)
	if err != nil {
		return metadata.Volume{}, err
	}
	defer unlock()
	pool := m.pools[device.Pool]
	v := m.adopted(pool, device)
	if hooks := takeHooks(&v); len(hooks) > 0 {
		m.log.Warn("snapshot hooks of adopted device dropped", "device", device.ID, "volume", name, "commands", hooks)
	}
	kind, err := m.identify(ctx, pool, device.ID)
	if err != nil {
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
	}
	v.Name, v.Filesystem, v.Size, v.State = name, kind.Name, device.Size, metadata.Ready
	release, err := m.locks.acquire(ctx, v.ID)
	if err != nil {
		return v, err
	}
	defer release()
	if err := m.store.View(func(tx *metadata.Tx) error { return refuseTaken(tx, v) }); err != nil {
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
	}
	if v.Device == string(device.ID) {
		err = m.takeOver(ctx, pool, device, v)
	} else {
		err = m.takeCopy(ctx, pool, device, v)
	}
	if err != nil {
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
	}
	m.log.Info("device adopted", "device", device.ID, "volume", v.Name)
	return v, nil
}

// takeOver makes an unknown device that of the volume v: the device carries the volume's record first.
func (m *Manager) takeOver(ctx context.Context, pool Pool, device Unknown, v metadata.Volume) (err error) {
	record, err := m.Describe(v)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("describe device", func(ctx context.Context) error {
		if device.Record == nil {
			return nil // what it carries now is no worse than nothing
		}
		return pool.Describe(ctx, device.ID, device.Record)
	})
	if err := pool.Describe(ctx, device.ID, record); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := refuseTaken(tx, v); err != nil {
			return err
		}
		if _, err := tx.Device(v.Device); err == nil {
			return fault.Errorf(fault.ErrExists, "it belongs to a volume or snapshot already")
		}
		if err := tx.PutVolume(v); err != nil {
			return err
		}
		return putDevice(tx, v, device.Size)
	})
}

// takeCopy makes the volume v of an unknown device that is a snapshot, and so read-only for ever: v gets a copy, and the
// snapshot goes. Cut short by a crash the copy is undone as any creation is, or the snapshot's device is trash.
func (m *Manager) takeCopy(ctx context.Context, pool Pool, device Unknown, v metadata.Volume) (err error) {
	creating := v
	creating.State = metadata.Creating
	record, err := m.Describe(creating)
	if err != nil {
		return err
	}
	if err := m.announce(ctx, creating); err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("copy snapshot", func(ctx context.Context) error { return m.undoCreate(ctx, creating) })
	if err := pool.Clone(ctx, blockdev.ID(v.Device), device.ID, record); err != nil {
		return err
	}
	if err := pool.Sync(ctx, blockdev.ID(v.Device)); err != nil {
		return err
	}
	trash := metadata.Device{ID: string(device.ID), Pool: pool.Name, Kind: metadata.KindTrash, Size: device.Size}
	if err := m.finishWith(ctx, v, func(tx *metadata.Tx) error { return tx.PutDevice(trash) }); err != nil {
		return err
	}
	err = RemoveDevice(ctx, pool, trash.ID)
	if err == nil {
		err = m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DeleteDevice(trash.ID) })
	}
	if err != nil { // the volume is there
		m.log.Warn("adopted snapshot not removed; it is tried again", "device", device.ID, "error", err)
	}
	return nil
}

// adopted returns the record of the volume that an unknown device becomes.
func (m *Manager) adopted(pool Pool, device Unknown) metadata.Volume {
	id := string(blockdev.NewID())
	v := metadata.Volume{
		ID: id, Lineage: id, Pool: pool.Name, PoolUUID: pool.UUID,
		Mode: 0o755, Created: time.Now().UTC().Truncate(time.Millisecond),
	}
	switch record, err := decode(pool, device.Info); {
	case err != nil: // what its filesystem shows has to do
	case record.Snapshot != nil: // a volume made from it
		v = record.Snapshot.Volume
		v.ID, v.Device = id, string(blockdev.NewID())
		return v
	default:
		v = *record.Volume
		taken := m.store.View(func(tx *metadata.Tx) error { _, err := tx.Volume(v.ID); return err }) == nil
		if taken { // a state of it that a rollback replaced
			v.ID = id
		}
	}
	v.Device = string(device.ID)
	return v
}

// refuseTaken fails with fault.ErrExists if another volume has v's name or ID.
func refuseTaken(tx *metadata.Tx, v metadata.Volume) error {
	if _, err := tx.VolumeNamed(v.Name); err == nil {
		return fault.Errorf(fault.ErrExists, "volume %q: already exists", v.Name)
	}
	if _, err := tx.Volume(v.ID); err == nil {
		return fault.Errorf(fault.ErrExists, "volume %s, which the device belonged to, exists with another device", v.ID)
	}
	return nil
}

// identify finds out which filesystem a device holds.
func (m *Manager) identify(ctx context.Context, pool Pool, id blockdev.ID) (kind fs.Type, err error) {
	path, err := pool.Activate(ctx, id, blockdev.ReadOnly)
	if err != nil {
		return kind, err
	}
	defer func() {
		if failed := pool.Deactivate(context.WithoutCancel(ctx), id); err == nil {
			err = failed
		}
	}()
	for _, name := range fs.Names() {
		if kind, err = fs.Lookup(name); err != nil {
			return kind, err
		}
		if _, err = kind.Size(path); err == nil {
			return kind, nil
		}
	}
	return kind, fault.Errorf(fault.ErrCorrupt, "no filesystem found: 'orlop device delete %s' deletes the device", id)
}

// DeleteUnknown deletes an unknown device and its data.
func (m *Manager) DeleteUnknown(ctx context.Context, ref string) error {
	device, unlock, err := m.lockUnknown(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.pools[device.Pool].Remove(ctx, device.ID); err != nil {
		return fmt.Errorf("delete device %s: %w", device.ID, err)
	}
	m.log.Info("unknown device deleted", "device", device.ID, "pool", device.Pool)
	return nil
}
