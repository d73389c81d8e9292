package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
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
			if record.Root != m.store.RootID() { // its daemon's owner need not be this one's
				if hooks := takeHooks(record.Volume); len(hooks) > 0 {
					m.log.Error("snapshot hooks not restored: they were set by the daemon of another data root", "volume", record.Volume.Name, "commands", hooks)
				}
			}
			if other, twice := i.volumes[record.Volume.ID]; !twice || outranks(*record.Volume, other) {
				i.volumes[record.Volume.ID] = *record.Volume
			}
		}
	}
	return i
}

// takeHooks removes the commands around snapshots from a volume's record and returns them. They run as root.
func takeHooks(v *metadata.Volume) (hooks [][]string) {
	for _, argv := range []*[]string{&v.PreSnapshot, &v.PostSnapshot} {
		if len(*argv) > 0 {
			hooks = append(hooks, *argv)
		}
		*argv = nil
	}
	return hooks
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
	for _, id := range slices.Sorted(maps.Keys(i.snapshots)) { // by age, for their sequence numbers
		s := i.snapshots[id]
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
