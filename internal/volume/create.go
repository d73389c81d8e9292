package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
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
	PreSnapshot  []string
	PostSnapshot []string
	Keep         string // retention policy of its backups; empty for none of its own
	NoBackup     bool   // left out when all volumes are backed up
	Copy         *Copy  // instead of an empty filesystem

	// Of a restore: the backup's lineage and the parameters that its filesystem was made with.
	Restore    *metadata.Restore
	Lineage    string
	MkfsParams []string
}

// A Copy says what a new volume is a copy of.
type Copy struct {
	Of       metadata.Volume // as it was when the copied state was taken; its size may be below the new volume's
	SetOwner bool            // give the root directory the owner and mode of the Spec, instead of leaving them
	// Fill makes the device dst a copy, as blockdev.Pool.Clone does.
	Fill func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error
}

// Create makes a volume: device, filesystem, empty root directory with its owner and mode; or a copy. It fails with
// fault.ErrExists if there is one of this name, and waits for one that is just being made to know. Cut short by an
// error it leaves nothing; cut short by a crash, recovery undoes it.
func (m *Manager) Create(ctx context.Context, spec Spec) (v metadata.Volume, err error) {
	pool, kind, err := m.placeFor(spec)
	if err != nil {
		return v, err
	}
	spec.Size = fit(pool, spec.Size)
	v = newVolume(spec, pool, kind)
	if spec.Copy != nil {
		v.Lineage, v.MkfsParams = spec.Copy.Of.Lineage, spec.Copy.Of.MkfsParams
	}
	m.makeRoom(ctx, spec.Pool)
	release, err := m.locks.acquire(ctx, v.ID)
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
	if err := m.fill(ctx, v, kind, spec.Copy); err != nil {
		return v, fmt.Errorf("create volume %q: %w", v.Name, err)
	}
	if v, err = m.finish(ctx, v); err != nil {
		return v, fmt.Errorf("create volume %q: %w", v.Name, err)
	}
	m.log.Info("volume created", "volume", v.Name, "id", v.ID, "size", v.Size, "filesystem", v.Filesystem, "pool", v.Pool)
	return v, nil
}

// placeFor returns where a new volume is to be made and what its filesystem is.
func (m *Manager) placeFor(spec Spec) (pool Pool, kind fs.Type, err error) {
	pool, known := m.pools[spec.Pool]
	if !known {
		return pool, kind, fault.Errorf(fault.ErrInvalid, "pool %q: not configured", spec.Pool)
	}
	if pool.Missing != nil {
		return pool, kind, fault.Errorf(fault.ErrNotFound, "pool %q is missing: %w", spec.Pool, pool.Missing)
	}
	if kind, err = fs.Lookup(spec.Filesystem); err == nil {
		err = kind.Available()
	}
	return pool, kind, err
}

// newVolume returns the record of a new volume, with IDs of its own, in state creating.
func newVolume(spec Spec, pool Pool, kind fs.Type) metadata.Volume {
	id := string(blockdev.NewID())
	return metadata.Volume{
		ID: id, Name: spec.Name, Lineage: id, Device: string(blockdev.NewID()),
		Pool: pool.Name, PoolUUID: pool.UUID, Size: spec.Size,
		Filesystem: kind.Name, MkfsParams: kind.Params(), BlockSize: spec.BlockSize,
		UID: spec.UID, GID: spec.GID, Mode: spec.Mode, MountOptions: spec.MountOptions,
		Labels: spec.Labels, Protected: spec.Protected, PreSnapshot: spec.PreSnapshot, PostSnapshot: spec.PostSnapshot,
		Keep: spec.Keep, NoBackup: spec.NoBackup,
		State: metadata.Creating, Created: time.Now().UTC().Truncate(time.Millisecond),
	}
}

// announce records a volume as being created or restored. Where another of its name is being made or deleted just now, it
// waits for the outcome.
func (m *Manager) announce(ctx context.Context, v metadata.Volume) error {
	for {
		var other metadata.Volume
		err := m.store.Update(ctx, func(tx *metadata.Tx) error {
			var err error
			if other, err = tx.VolumeNamed(v.Name); err == nil && settledDown(other.State) {
				return errExists(other)
			}
			if err := tx.PutVolume(v); err != nil {
				return err
			}
			return tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: v.Size})
		})
		if !fault.Is(err, fault.ErrExists) || settledDown(other.State) {
			return err
		}
		release, err := m.locks.acquire(ctx, other.ID)
		if err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		release()
		var now metadata.Volume
		if m.store.View(func(tx *metadata.Tx) error { now, err = tx.Volume(other.ID); return err }) == nil && now.State != metadata.Ready {
			return NotReady(now) // its deletion failed, or the daemon died in it: a later try finishes it
		}
	}
}

// settledDown reports whether a volume in this state keeps its name until somebody deletes it.
func settledDown(s metadata.State) bool {
	return s == metadata.Ready || s == metadata.Restoring || s == metadata.Failed
}

// errExists refuses a new volume of the name of another one.
func errExists(other metadata.Volume) error {
	if other.State == metadata.Ready {
		return fault.Errorf(fault.ErrExists, "volume %q: already exists", other.Name)
	}
	return fault.Errorf(fault.ErrExists, "volume %q: already exists: %w", other.Name, NotReady(other))
}

// fill makes the device and the filesystem of a volume that is being created.
func (m *Manager) fill(ctx context.Context, v metadata.Volume, kind fs.Type, copied *Copy) error {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	record, err := m.Describe(v)
	if err != nil {
		return err
	}
	if copied != nil {
		err = m.fillCopy(ctx, v, kind, pool, record, copied)
	} else {
		err = m.fillEmpty(ctx, v, kind, pool, record)
	}
	if err != nil {
		return err
	}
	// Now, and not with the first mount: a full disk has no room for a directory.
	if err := m.host.MakeMountpoint(m.Mountpoint(v.Name)); err != nil {
		return err
	}
	return pool.Deactivate(ctx, blockdev.ID(v.Device))
}

func (m *Manager) fillEmpty(ctx context.Context, v metadata.Volume, kind fs.Type, pool blockdev.Pool, record blockdev.Record) error {
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
	return m.aside(v, kind, path, func(dir string) error {
		if err := m.host.RemoveLostFound(kind, dir); err != nil {
			return err
		}
		return m.host.FinishRoot(dir, v.UID, v.GID, v.Mode)
	})
}

// fillCopy makes the device a copy and, where the copy is to differ, changes that in its filesystem.
func (m *Manager) fillCopy(ctx context.Context, v metadata.Volume, kind fs.Type, pool blockdev.Pool, record blockdev.Record, copied *Copy) error {
	device := blockdev.ID(v.Device)
	if err := copied.Fill(ctx, device, record); err != nil {
		return err
	}
	larger := v.Size > copied.Of.Size
	if larger {
		if err := pool.Grow(ctx, device, v.Size); err != nil {
			return err
		}
	}
	if err := pool.Sync(ctx, device); err != nil {
		return err
	}
	if !larger && !copied.SetOwner {
		return nil
	}
	path, err := pool.Activate(ctx, device, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	if larger {
		if err := m.growNew(ctx, v, kind, path); err != nil {
			return err
		}
	}
	if !copied.SetOwner {
		return nil
	}
	return m.aside(v, kind, path, func(dir string) error { return m.host.FinishRoot(dir, v.UID, v.GID, v.Mode) })
}

// growNew grows the filesystem of a volume that is being created, and is not if that fails.
func (m *Manager) growNew(ctx context.Context, v metadata.Volume, kind fs.Type, path string) error {
	limit, err := kind.Limit(path)
	if err != nil {
		return err
	}
	if v.Size > limit {
		return tooLarge(v.Size, limit, kind)
	}
	if !kind.GrowsMounted() {
		return m.growAside(ctx, v, kind, path)
	}
	return m.aside(v, kind, path, func(dir string) error { return m.host.Grow(kind, path, dir, v.Size) })
}

// aside calls fn with the directory at which a volume, mounted nowhere else, is mounted meanwhile.
func (m *Manager) aside(v metadata.Volume, kind fs.Type, path string, fn func(dir string) error) error {
	dir := filepath.Join(m.scratch, v.ID)
	if err := m.host.MakeMountpoint(dir); err != nil {
		return err
	}
	err := m.host.Mount(kind, path, dir, nil)
	if err == nil {
		err = fn(dir)
	}
	return errors.Join(err, m.leaveScratch(v))
}

// finish says that a volume is ready, on its device and in the database.
func (m *Manager) finish(ctx context.Context, v metadata.Volume) (metadata.Volume, error) {
	v.State = metadata.Ready
	return v, m.finishWith(ctx, v, func(*metadata.Tx) error { return nil })
}

// finishWith writes the record of a volume that is ready to its device and, together with what also changes, to the
// database.
func (m *Manager) finishWith(ctx context.Context, v metadata.Volume, also func(*metadata.Tx) error) error {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	record, err := m.Describe(v)
	if err != nil {
		return err
	}
	if err := pool.Describe(ctx, blockdev.ID(v.Device), record); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := tx.PutVolume(v); err != nil {
			return err
		}
		return also(tx)
	})
}

// leaveScratch unmounts and removes a volume's scratch mount point, if it has one.
func (m *Manager) leaveScratch(v metadata.Volume) error {
	dir := filepath.Join(m.scratch, v.ID)
	if err := m.unmount(dir); err != nil {
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

// erase deletes a volume's device, its snapshots', its mount point and, when nothing else is left, the records. It may
// be repeated.
func (m *Manager) erase(ctx context.Context, v metadata.Volume) error {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	var snapshots []metadata.Snapshot
	err = m.store.View(func(tx *metadata.Tx) error {
		snapshots, err = tx.Snapshots(v.ID)
		return err
	})
	if err != nil {
		return err
	}
	devices := []string{v.Device}
	for _, s := range snapshots {
		devices = append(devices, s.Device)
	}
	for _, device := range devices {
		if err := RemoveDevice(ctx, pool, device); err != nil {
			return err
		}
	}
	if err := m.host.RemoveMountpoint(m.Mountpoint(v.Name)); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, device := range devices {
			if err := tx.DeleteDevice(device); err != nil {
				return err
			}
		}
		for _, s := range snapshots {
			if err := tx.DeleteSnapshot(s.ID); err != nil {
				return err
			}
		}
		return tx.DeleteVolume(v.ID)
	})
}

// RemoveDevice frees and removes a device. It may be repeated.
func RemoveDevice(ctx context.Context, pool blockdev.Pool, id string) error {
	if err := pool.Deactivate(ctx, blockdev.ID(id)); err != nil {
		return err
	}
	return pool.Remove(ctx, blockdev.ID(id))
}

// Delete deletes a volume and its data. It refuses a protected one with fault.ErrProtected and one that anybody
// holds with fault.ErrInUse, naming the holders. Snapshots of the user's go with it only if withSnapshots is set, and
// are fault.ErrProtected otherwise; one that is being taken or read is fault.ErrInUse. After a crash the deletion is
// finished in the background.
func (m *Manager) Delete(ctx context.Context, id string, withSnapshots bool) error {
	return m.delete(ctx, id, withSnapshots, toFree)
}

// Remove is Delete, without snapshots, for Docker or Podman. They ask for it only when they know of no user, so that their
// own holders do not count for more than the kernel.
func (m *Manager) Remove(ctx context.Context, id string) error {
	return m.delete(ctx, id, false, toForget)
}

func (m *Manager) delete(ctx context.Context, id string, withSnapshots bool, w wish) error {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case v.State == metadata.Creating:
		return NotReady(v)
	case v.State == metadata.Ready && v.Protected:
		return fault.Errorf(fault.ErrProtected, "volume %q: is protected: run 'orlop set %s --unprotect' first", v.Name, v.Name)
	case v.State == metadata.Restoring || v.State == metadata.Failed: // nobody can have mounted it
		if err := m.beginRemoval(ctx, v, withSnapshots); err != nil {
			return fmt.Errorf("delete volume %q: %w", v.Name, err)
		}
		v.State = metadata.Removing
	case v.State == metadata.Ready:
		err := m.store.View(func(tx *metadata.Tx) error { _, err := goesAlong(tx, v, withSnapshots, m.pinned); return err })
		if err != nil {
			return err
		}
		if err := m.refuseHeld(ctx, v, w); err != nil {
			return err
		}
		if err := m.beginRemoval(ctx, v, withSnapshots); err != nil {
			return fmt.Errorf("delete volume %q: %w", v.Name, err)
		}
		v.State = metadata.Removing
	}
	if err := m.erase(ctx, v); err != nil {
		return fmt.Errorf("delete volume %q (it will be tried again): %w", v.Name, err)
	}
	m.log.Info("volume deleted", "volume", v.Name, "id", v.ID)
	return nil
}

// beginRemoval records that a volume and its snapshots are being deleted.
func (m *Manager) beginRemoval(ctx context.Context, v metadata.Volume, withSnapshots bool) error {
	return m.UpdateUnpinned(ctx, func(tx *metadata.Tx, pinned func(string) string) error {
		snapshots, err := goesAlong(tx, v, withSnapshots, pinned)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			s.State = metadata.Removing
			if err := tx.PutSnapshot(s); err != nil {
				return err
			}
		}
		v.State = metadata.Removing
		return tx.PutVolume(v)
	})
}

// goesAlong returns the snapshots that are to be deleted with a volume, all it has, or why it must stay for them.
func goesAlong(tx *metadata.Tx, v metadata.Volume, withSnapshots bool, pinned func(id string) string) ([]metadata.Snapshot, error) {
	snapshots, err := tx.Snapshots(v.ID)
	if err != nil {
		return nil, err
	}
	var kept []string
	var going []metadata.Snapshot
	for _, s := range snapshots {
		switch why := pinned(s.ID); {
		case s.State == metadata.Creating || s.State == metadata.Keeping:
			return nil, fault.Errorf(fault.ErrInUse, "volume %q: its snapshot %q is being taken", v.Name, s.Name)
		case why != "":
			return nil, fault.Errorf(fault.ErrInUse, "volume %q: its snapshot %q is in use by %s", v.Name, s.Name, why)
		case s.State == metadata.Ready && !s.Managed:
			kept = append(kept, s.Name)
		}
		if s.State != metadata.Removing {
			going = append(going, s)
		}
	}
	if len(kept) > 0 && !withSnapshots {
		return nil, fault.Errorf(fault.ErrProtected, "volume %q: has %s: delete %s first, or use 'orlop delete --snapshots %s'", v.Name, enumerate(kept), map[bool]string{true: "it", false: "them"}[len(kept) == 1], v.Name)
	}
	return going, nil
}

// enumerate counts snapshots and names some of them.
func enumerate(names []string) string {
	const most = 5
	listed, more := names, ""
	if len(names) > most {
		listed, more = names[:most], " …"
	}
	noun := "snapshots"
	if len(names) == 1 {
		noun = "snapshot"
	}
	return fmt.Sprintf("%d %s (%s%s)", len(names), noun, strings.Join(listed, ", "), more)
}

// RefuseHeld settles a volume, whose lock the caller holds, and fails with fault.ErrInUse, naming who holds it, unless
// it is now neither mounted nor active.
func (m *Manager) RefuseHeld(ctx context.Context, v metadata.Volume) error {
	return m.refuseHeld(ctx, v, toFree)
}

func (m *Manager) refuseHeld(ctx context.Context, v metadata.Volume, w wish) error {
	if _, err := m.Pool(v); err != nil {
		return err
	}
	result, err := m.settle(ctx, v, w)
	if err != nil {
		return err
	}
	if result.released {
		return nil
	}
	return fault.Errorf(fault.ErrInUse, "volume %q: in use by %s", v.Name, result.by(v.Name))
}
