package volume

import (
	"context"
	"encoding/json"
	"errors"
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
		inventories := map[string]inventory{}
		for name, infos := range found { // what is gone goes first: its name may have been taken since
			inventories[name] = m.takeStock(m.pools[name], infos)
			if err := m.forgetGone(tx, m.pools[name], inventories[name]); err != nil {
				return err
			}
		}
		for _, i := range inventories {
			m.restoreAll(tx, i)
		}
		return tx.FinishRebuild()
	})
}

// An inventory is what the devices of a pool carry, by ID.
type inventory struct {
	volumes   map[string]metadata.Volume
	snapshots map[string]metadata.Snapshot
	sizes     map[string]int64 // bytes, by the device's ID
}

func (m *Manager) takeStock(pool Pool, infos []blockdev.Info) inventory {
	i := inventory{map[string]metadata.Volume{}, map[string]metadata.Snapshot{}, map[string]int64{}}
	for _, info := range infos {
		i.sizes[string(info.ID)] = info.Size
		record, err := decode(pool, info)
		switch {
		case err != nil:
			m.log.Error("device not restored; see 'orlop doctor'", "pool", pool.Name, "device", info.ID, "error", err)
		case record.Snapshot != nil:
			i.snapshots[record.Snapshot.ID] = *record.Snapshot
		default:
			if other, twice := i.volumes[record.Volume.ID]; !twice || outranks(*record.Volume, other) {
				i.volumes[record.Volume.ID] = *record.Volume
			}
		}
	}
	return i
}

// restoreAll puts into the database what can be put there.
func (m *Manager) restoreAll(tx *metadata.Tx, i inventory) {
	for _, v := range i.volumes {
		state, err := restore(tx, v, i.sizes[v.Device])
		if err != nil {
			m.log.Error("device not restored; see 'orlop doctor'", "pool", v.Pool, "device", v.Device, "error", err)
			continue
		}
		m.log.Info("volume restored from its device", "volume", v.Name, "state", state, "size", v.Size)
	}
	for _, s := range i.snapshots {
		if err := restoreSnapshot(tx, s); err != nil {
			m.log.Error("device not restored; see 'orlop doctor'", "pool", s.Volume.Pool, "device", s.Device, "error", err)
		}
	}
}

// outranks tells which of two devices that say to be a volume's is: one that is finished, and of those the later.
func outranks(v, other metadata.Volume) bool {
	if (v.State == metadata.Creating) != (other.State == metadata.Creating) {
		return other.State == metadata.Creating
	}
	return v.Rollbacks > other.Rollbacks
}

// decode reads the record of a device in pool, and fits it to the pool's present name. It fails with fault.ErrCorrupt
// for one that cannot be used.
func decode(pool Pool, info blockdev.Info) (record deviceRecord, err error) {
	if len(info.Record) == 0 {
		return record, fault.Errorf(fault.ErrCorrupt, "device %s: carries no record", info.ID)
	}
	if err := json.Unmarshal(info.Record, &record); err != nil {
		return record, fault.Errorf(fault.ErrCorrupt, "device %s: its record is damaged: %w", info.ID, err)
	}
	if record.Format < 1 || record.Format > recordFormat {
		return record, fault.Errorf(fault.ErrCorrupt, "device %s: its record has format %d, this orlop reads %d", info.ID, record.Format, recordFormat)
	}
	v, device := record.Volume, ""
	switch {
	case record.Snapshot != nil:
		v, device = &record.Snapshot.Volume, record.Snapshot.Device
		if _, err := blockdev.ParseID(record.Snapshot.ID); err != nil || record.Snapshot.Name == "" || record.Snapshot.Size <= 0 {
			v = nil
		}
	case v != nil:
		device = v.Device
	}
	if v == nil || device != string(info.ID) || !plausible(*v) {
		return deviceRecord{}, fault.Errorf(fault.ErrCorrupt, "device %s: its record is of another device, or damaged", info.ID)
	}
	v.Pool, v.PoolUUID = pool.Name, pool.UUID
	return record, nil
}

func plausible(v metadata.Volume) bool {
	_, idErr := blockdev.ParseID(v.ID)
	_, fsErr := fs.Lookup(v.Filesystem)
	return idErr == nil && fsErr == nil && v.Name != "" && !strings.ContainsAny(v.Name, "/\x00") && v.Size > 0
}

// restore puts a volume that a device of size bytes carries into the database, and returns its state there. If it fails
// nothing is put there.
func restore(tx *metadata.Tx, v metadata.Volume, size int64) (metadata.State, error) {
	old, err := tx.Volume(v.ID)
	switch {
	case fault.Is(err, fault.ErrNotFound):
	case err != nil:
		return "", err
	case old.State == metadata.Removing:
		return old.State, nil // its deletion is finished by recovery
	case v.State == metadata.Creating && old.State == metadata.Ready:
		v.State = metadata.Ready
	}
	if err := tx.PutVolume(v); err != nil {
		return "", err
	}
	if old.Device != v.Device && old.Device != "" { // a rollback replaced it
		if err := tx.DeleteDevice(old.Device); err != nil {
			return "", err
		}
	}
	return v.State, putDevice(tx, v, size)
}

// restoreSnapshot puts a snapshot that a device carries into the database. If it fails nothing is put there.
func restoreSnapshot(tx *metadata.Tx, s metadata.Snapshot) error {
	if _, err := tx.Volume(s.Volume.ID); err != nil {
		return err
	}
	old, err := tx.Snapshot(s.ID)
	switch {
	case err == nil && old.State == metadata.Removing:
		return nil // its deletion is finished by recovery
	case err == nil && s.State == metadata.Creating:
		s.State = old.State
	case err != nil && !fault.Is(err, fault.ErrNotFound):
		return err
	}
	if err := tx.PutSnapshot(s); err != nil {
		return err
	}
	return tx.PutDevice(metadata.Device{ID: s.Device, Pool: s.Volume.Pool, Kind: metadata.KindSnapshot, Size: s.Size})
}

// putDevice records a volume's device as it is, size bytes large.
func putDevice(tx *metadata.Tx, v metadata.Volume, size int64) error {
	return tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: min(size, v.Size)})
}

// forgetGone forgets the volumes and snapshots of a pool that are not among those found in it.
func (m *Manager) forgetGone(tx *metadata.Tx, pool Pool, found inventory) error {
	knownSnapshots, err := tx.Snapshots("")
	if err != nil {
		return err
	}
	for _, s := range knownSnapshots {
		if _, there := found.snapshots[s.ID]; there || s.Volume.PoolUUID != pool.UUID {
			continue
		}
		m.log.Warn("snapshot of the copy forgotten: its device is gone", "volume", s.Volume.Name, "snapshot", s.Name)
		s.State = metadata.Removing
		if err := errors.Join(tx.PutSnapshot(s), tx.DeleteDevice(s.Device), tx.DeleteSnapshot(s.ID)); err != nil {
			return err
		}
	}
	known, err := tx.Volumes()
	if err != nil {
		return err
	}
	for _, v := range known {
		if _, there := found.volumes[v.ID]; there || v.PoolUUID != pool.UUID {
			continue
		}
		if err := m.forget(tx, v); err != nil {
			return err
		}
	}
	return nil
}

// forget forgets a volume whose device is gone. Its snapshots become unknown devices, which a person may adopt.
func (m *Manager) forget(tx *metadata.Tx, v metadata.Volume) error {
	m.log.Warn("volume of the copy forgotten: its device is gone", "volume", v.Name, "id", v.ID)
	left, err := tx.Snapshots(v.ID)
	if err != nil {
		return err
	}
	for _, s := range left {
		s.State = metadata.Removing
		if err := errors.Join(tx.PutSnapshot(s), tx.DeleteDevice(s.Device), tx.DeleteSnapshot(s.ID)); err != nil {
			return err
		}
	}
	if v.State == metadata.Ready {
		v.State = metadata.Removing
		if err := tx.PutVolume(v); err != nil {
			return err
		}
	}
	return errors.Join(tx.DeleteDevice(v.Device), tx.DeleteVolume(v.ID))
}

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

// Adopt makes an unknown device the volume called name, as its record tells or, without one, as its filesystem
// shows. It fails with fault.ErrCorrupt if the device holds no filesystem.
func (m *Manager) Adopt(ctx context.Context, ref, name string) (metadata.Volume, error) {
	device, err := m.unknown(ctx, ref)
	if err != nil {
		return metadata.Volume{}, err
	}
	pool := m.pools[device.Pool]
	v := m.adopted(pool, device)
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
