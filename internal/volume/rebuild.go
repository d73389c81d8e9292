package volume

import (
	"context"
	"encoding/json"
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

// Rebuild brings the metadata in line with what the devices in the pools carry, after the database was lost: each
// device's own record is newer than the copy that the database may begin with. Volumes of the copy whose device is
// gone from its pool have been deleted since and go. A device whose record cannot be used stays unknown. It comes
// before Recover, is all or nothing, and is repeated at the next start until it has been done.
func (m *Manager) Rebuild(ctx context.Context) error {
	found := map[string][]blockdev.Info{}
	for _, pool := range m.pools {
		if pool.Missing != nil {
			m.log.Error("pool is missing; its volumes are as the copy has them", "pool", pool.Name, "error", pool.Missing)
			continue
		}
		infos, err := pool.List(ctx)
		if err != nil {
			return fmt.Errorf("rebuild metadata from pool %q: %w", pool.Name, err)
		}
		found[pool.Name] = infos
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		for name, infos := range found { // what is gone goes first: its name may have been taken since
			if err := m.forgetGone(tx, m.pools[name], infos); err != nil {
				return err
			}
		}
		for name, infos := range found {
			for _, info := range infos {
				v, err := restore(tx, m.pools[name], info)
				if err != nil {
					m.log.Error("device not restored; see 'orlop doctor'", "pool", name, "device", info.ID, "error", err)
					continue
				}
				m.log.Info("volume restored from its device", "volume", v.Name, "state", v.State, "size", v.Size)
			}
		}
		return tx.FinishRebuild()
	})
}

// decode reads the record of a device in pool, and fits it to the pool's present name.
func decode(pool Pool, info blockdev.Info) (metadata.Volume, error) {
	var record deviceRecord
	if len(info.Record) == 0 {
		return metadata.Volume{}, fault.Errorf(fault.ErrCorrupt, "device %s: carries no record", info.ID)
	}
	if err := json.Unmarshal(info.Record, &record); err != nil {
		return metadata.Volume{}, fault.Errorf(fault.ErrCorrupt, "device %s: its record is damaged: %w", info.ID, err)
	}
	v := record.Volume
	if record.Format < 1 || record.Format > recordFormat {
		return v, fault.Errorf(fault.ErrCorrupt, "device %s: its record has format %d, this orlop reads %d", info.ID, record.Format, recordFormat)
	}
	_, idErr := blockdev.ParseID(v.ID)
	_, fsErr := fs.Lookup(v.Filesystem)
	if v.Device != string(info.ID) || idErr != nil || fsErr != nil || v.Name == "" || strings.ContainsAny(v.Name, "/\x00") || v.Size <= 0 {
		return v, fault.Errorf(fault.ErrCorrupt, "device %s: its record is of another device, or damaged", info.ID)
	}
	v.Pool, v.PoolUUID = pool.Name, pool.UUID
	return v, nil
}

// restore puts the volume that a device carries into the database. If it fails nothing is put there.
func restore(tx *metadata.Tx, pool Pool, info blockdev.Info) (metadata.Volume, error) {
	v, err := decode(pool, info)
	if err != nil {
		return v, err
	}
	old, err := tx.Volume(v.ID)
	switch {
	case fault.Is(err, fault.ErrNotFound):
	case err != nil:
		return v, err
	case old.State == metadata.Removing:
		return v, nil // its deletion is finished by recovery
	case v.State == metadata.Creating && old.State == metadata.Ready:
		v.State = metadata.Ready
	}
	if err := tx.PutVolume(v); err != nil {
		return v, err
	}
	return v, putDevice(tx, v, info.Size)
}

// putDevice records a volume's device as it is, size bytes large.
func putDevice(tx *metadata.Tx, v metadata.Volume, size int64) error {
	return tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: min(size, v.Size)})
}

// forgetGone forgets the volumes of a pool whose device is not among those found in it.
func (m *Manager) forgetGone(tx *metadata.Tx, pool Pool, found []blockdev.Info) error {
	volumes, err := tx.Volumes()
	if err != nil {
		return err
	}
	for _, v := range volumes {
		there := slices.ContainsFunc(found, func(info blockdev.Info) bool { return string(info.ID) == v.Device })
		if v.PoolUUID != pool.UUID || there {
			continue
		}
		m.log.Warn("volume of the copy forgotten: its device is gone", "volume", v.Name, "id", v.ID)
		if v.State == metadata.Ready {
			v.State = metadata.Removing
			if err := tx.PutVolume(v); err != nil {
				return err
			}
		}
		if err := tx.DeleteDevice(v.Device); err != nil {
			return err
		}
		if err := tx.DeleteVolume(v.ID); err != nil {
			return err
		}
	}
	return nil
}

// Unknown is a device in a pool that the metadata does not know.
type Unknown struct {
	blockdev.Info
	Pool string // name
	Name string // of the volume that its record tells of, or empty
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
			v, _ := decode(pool, info) // without a record it has no name
			unknown = append(unknown, Unknown{Info: info, Pool: pool.Name, Name: v.Name})
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

// Adopt makes an unknown device the volume called name, as its record tells or, without one, as its filesystem
// shows. It fails with fault.ErrCorrupt if the device holds no filesystem.
func (m *Manager) Adopt(ctx context.Context, ref, name string) (_ metadata.Volume, err error) {
	device, err := m.unknown(ctx, ref)
	if err != nil {
		return metadata.Volume{}, err
	}
	pool := m.pools[device.Pool]
	v, err := decode(pool, device.Info)
	if err != nil {
		id := string(blockdev.NewID())
		v = metadata.Volume{
			ID: id, Lineage: id, Device: string(device.ID), Pool: pool.Name, PoolUUID: pool.UUID,
			Mode: 0o755, Created: time.Now().UTC().Truncate(time.Millisecond),
		}
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
	record, err := m.describe(v)
	if err != nil {
		return v, err
	}
	if err := m.store.View(func(tx *metadata.Tx) error { return refuseTaken(tx, v) }); err != nil {
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
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
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
	}
	err = m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := refuseTaken(tx, v); err != nil {
			return err
		}
		if err := tx.PutVolume(v); err != nil {
			return err
		}
		return putDevice(tx, v, device.Size)
	})
	if err != nil {
		return v, fmt.Errorf("adopt device %s: %w", device.ID, err)
	}
	m.log.Info("device adopted", "device", device.ID, "volume", v.Name)
	return v, nil
}

// refuseTaken fails with fault.ErrExists if another volume has v's name or ID.
func refuseTaken(tx *metadata.Tx, v metadata.Volume) error {
	if _, err := tx.VolumeNamed(v.Name); err == nil {
		return fault.Errorf(fault.ErrExists, "volume %q: exists already", v.Name)
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
	device, err := m.unknown(ctx, ref)
	if err != nil {
		return err
	}
	if err := m.pools[device.Pool].Remove(ctx, device.ID); err != nil {
		return fmt.Errorf("delete device %s: %w", device.ID, err)
	}
	m.log.Info("unknown device deleted", "device", device.ID, "pool", device.Pool)
	return nil
}
