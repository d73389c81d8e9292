package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/metadata"
)

// A Spec says what volume to create. Its values have been checked.
type Spec struct {
	Name         string
	Pool         string
	Size         int64 // bytes
	Filesystem   string
	UID, GID     int
	Mode         uint32
	MountOptions []string
	Labels       map[string]string
	Protected    bool
	BlockSize    int
}

// Create makes a volume: device, filesystem, empty root directory with its owner and mode. It fails with
// fault.ErrExists if there is one of this name, and waits for one that is just being made to know. Cut short by an
// error it leaves nothing; cut short by a crash, recovery undoes it.
func (m *Manager) Create(ctx context.Context, spec Spec) (v metadata.Volume, err error) {
	pool, known := m.pools[spec.Pool]
	if !known {
		return v, fault.Errorf(fault.ErrInvalid, "pool %q: not configured", spec.Pool)
	}
	if pool.Missing != nil {
		return v, fault.Errorf(fault.ErrNotFound, "pool %q is missing: %w", spec.Pool, pool.Missing)
	}
	kind, err := fs.Lookup(spec.Filesystem)
	if err != nil {
		return v, err
	}
	if err := kind.Available(); err != nil {
		return v, err
	}
	id := string(blockdev.NewID())
	v = metadata.Volume{
		ID: id, Name: spec.Name, Lineage: id, Device: string(blockdev.NewID()),
		Pool: pool.Name, PoolUUID: pool.UUID, Size: spec.Size,
		Filesystem: kind.Name, MkfsParams: kind.Params(), BlockSize: spec.BlockSize,
		UID: spec.UID, GID: spec.GID, Mode: spec.Mode, MountOptions: spec.MountOptions,
		Labels: spec.Labels, Protected: spec.Protected,
		State: metadata.Creating, Created: time.Now().UTC().Truncate(time.Millisecond),
	}
	m.makeRoom(ctx, spec.Pool)
	release, err := m.locks.acquire(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	if err := m.announce(ctx, v); err != nil {
		return v, err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("create volume", func(ctx context.Context) error { return m.undoCreate(ctx, v) })
	if err := m.fill(ctx, v, kind); err != nil {
		return v, fmt.Errorf("create volume %q: %w", v.Name, err)
	}
	if v, err = m.finish(ctx, v); err != nil {
		return v, fmt.Errorf("create volume %q: %w", v.Name, err)
	}
	m.log.Info("volume created", "volume", v.Name, "id", v.ID, "size", v.Size, "filesystem", v.Filesystem, "pool", v.Pool)
	return v, nil
}

// announce records a volume as being created. Where another of its name is being made or deleted just now, it
// waits for the outcome.
func (m *Manager) announce(ctx context.Context, v metadata.Volume) error {
	for {
		var other metadata.Volume
		err := m.store.Update(ctx, func(tx *metadata.Tx) error {
			var err error
			if other, err = tx.VolumeNamed(v.Name); err == nil && other.State == metadata.Ready {
				return fault.Errorf(fault.ErrExists, "volume %q: exists already", v.Name)
			}
			if err := tx.PutVolume(v); err != nil {
				return err
			}
			return tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: v.Size})
		})
		if !fault.Is(err, fault.ErrExists) || other.State == metadata.Ready {
			return err
		}
		release, err := m.locks.acquire(ctx, other.ID)
		if err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		release()
		var now metadata.Volume
		if m.store.View(func(tx *metadata.Tx) error { now, err = tx.Volume(other.ID); return err }) == nil && now.State != metadata.Ready {
			return notReady(now) // its deletion failed, or the daemon died in it: a later try finishes it
		}
	}
}

// fill makes the device and the filesystem of a volume that is being created.
func (m *Manager) fill(ctx context.Context, v metadata.Volume, kind fs.Type) error {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	record, err := m.describe(v)
	if err != nil {
		return err
	}
	device := blockdev.ID(v.Device)
	if err := pool.Create(ctx, device, v.Size, record); err != nil {
		return err
	}
	path, err := pool.Activate(ctx, device, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	if err := m.host.Make(ctx, kind, path, v.UID, v.GID); err != nil {
		return err
	}
	dir := filepath.Join(m.scratch, v.ID)
	if err := m.host.MakeMountpoint(dir); err != nil {
		return err
	}
	if err := m.host.Mount(kind, path, dir, nil); err != nil {
		return err
	}
	if err := m.host.FinishRoot(dir, v.UID, v.GID, v.Mode); err != nil {
		return err
	}
	if err := m.leaveScratch(v); err != nil {
		return err
	}
	// Now, and not with the first mount: a full disk has no room for a directory.
	if err := m.host.MakeMountpoint(m.Mountpoint(v.Name)); err != nil {
		return err
	}
	return pool.Deactivate(ctx, device)
}

// finish says that a volume is ready, on its device and in the database.
func (m *Manager) finish(ctx context.Context, v metadata.Volume) (metadata.Volume, error) {
	pool, err := m.Pool(v)
	if err != nil {
		return v, err
	}
	ready := v
	ready.State = metadata.Ready
	record, err := m.describe(ready)
	if err != nil {
		return v, err
	}
	if err := pool.Describe(ctx, blockdev.ID(v.Device), record); err != nil {
		return v, err
	}
	return ready, m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(ready) })
}

// leaveScratch unmounts and removes a volume's scratch mount point, if it has one.
func (m *Manager) leaveScratch(v metadata.Volume) error {
	dir := filepath.Join(m.scratch, v.ID)
	if err := m.host.Unmount(dir); err != nil {
		return err
	}
	return m.host.RemoveMountpoint(dir)
}

// undoCreate removes what there is of a volume that is being created, however far that came, and its record last.
func (m *Manager) undoCreate(ctx context.Context, v metadata.Volume) error {
	if err := m.leaveScratch(v); err != nil {
		return err
	}
	return m.erase(ctx, v)
}

// erase deletes a volume's device, its mount point and, when nothing else is left, its record. It may be repeated.
func (m *Manager) erase(ctx context.Context, v metadata.Volume) error {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	if err := pool.Deactivate(ctx, blockdev.ID(v.Device)); err != nil {
		return err
	}
	if err := pool.Remove(ctx, blockdev.ID(v.Device)); err != nil {
		return err
	}
	if err := m.host.RemoveMountpoint(m.Mountpoint(v.Name)); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := tx.DeleteDevice(v.Device); err != nil {
			return err
		}
		return tx.DeleteVolume(v.ID)
	})
}

// Delete deletes a volume and its data. It refuses a protected one with fault.ErrProtected and one that anybody
// holds with fault.ErrInUse, naming the holders. After a crash the deletion is finished in the background.
func (m *Manager) Delete(ctx context.Context, id string) error {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case v.State == metadata.Creating:
		return notReady(v)
	case v.State == metadata.Ready && v.Protected:
		return fault.Errorf(fault.ErrProtected, "volume %q: is protected: run 'orlop set %s --unprotect' first", v.Name, v.Name)
	case v.State == metadata.Ready:
		if err := m.refuseHeld(ctx, v); err != nil {
			return err
		}
		v.State = metadata.Removing
		if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) }); err != nil {
			return fmt.Errorf("delete volume %q: %w", v.Name, err)
		}
	}
	if err := m.erase(ctx, v); err != nil {
		return fmt.Errorf("delete volume %q (it will be tried again): %w", v.Name, err)
	}
	m.log.Info("volume deleted", "volume", v.Name, "id", v.ID)
	return nil
}

// refuseHeld settles a volume and fails with fault.ErrInUse if it is still held.
func (m *Manager) refuseHeld(ctx context.Context, v metadata.Volume) error {
	if _, err := m.Pool(v); err != nil {
		return err
	}
	result, err := m.settle(ctx, v)
	if err != nil {
		return err
	}
	if result.released {
		return nil
	}
	result.processes = m.users(ctx, v)
	return fault.Errorf(fault.ErrInUse, "volume %q: in use by %s", v.Name, result.by(v.Name))
}
