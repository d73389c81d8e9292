package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/metadata"
)

// A Change says what to change of a volume's record. Nil fields stay as they are; an empty label value removes
// the label.
type Change struct {
	Labels    map[string]string
	Protected *bool
}

// Set changes a volume's labels and protection, all or nothing.
func (m *Manager) Set(ctx context.Context, id string, c Change) (metadata.Volume, error) {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	changed := v
	changed.Labels = maps.Clone(v.Labels)
	for key, value := range c.Labels {
		if value == "" {
			delete(changed.Labels, key)
			continue
		}
		if changed.Labels == nil {
			changed.Labels = map[string]string{}
		}
		changed.Labels[key] = value
	}
	if c.Protected != nil {
		changed.Protected = *c.Protected
	}
	if err := m.replace(ctx, v, changed); err != nil {
		return v, fmt.Errorf("set volume %q: %w", v.Name, err)
	}
	m.log.Info("volume changed", "volume", v.Name, "labels", changed.Labels, "protected", changed.Protected)
	return changed, nil
}

// replace writes a changed record: to the device first, so that a database that is lost loses no acknowledged
// change, then to the database, which rules as long as it is there.
func (m *Manager) replace(ctx context.Context, old, v metadata.Volume) (err error) {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	record, err := m.describe(v)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if err := pool.Describe(ctx, blockdev.ID(v.Device), record); err != nil {
		return err
	}
	u.Push("describe device", func(ctx context.Context) error {
		record, err := m.describe(old)
		if err != nil {
			return err
		}
		return pool.Describe(ctx, blockdev.ID(old.Device), record)
	})
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) })
}

// Resize grows a volume to size bytes, also while it is in use. It fails with fault.ErrInvalid if that would
// shrink it. The new size is recorded first; cut short by a crash, the next mount finishes the growth.
func (m *Manager) Resize(ctx context.Context, id string, size int64) (metadata.Volume, error) {
	m.makeRoomFor(ctx, id)
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return v, err
	}
	if size < v.Size {
		return v, fault.Errorf(fault.ErrInvalid, "volume %q: size %d is below the present %d bytes: volumes only grow", v.Name, size, v.Size)
	}
	if size > kind.MaxSize {
		return v, fault.Errorf(fault.ErrInvalid, "volume %q: size %d is above the largest that %s takes, %d bytes", v.Name, size, v.Filesystem, kind.MaxSize)
	}
	grown := v
	grown.Size = size
	if err := m.grow(ctx, v, grown, kind); err != nil {
		return v, fmt.Errorf("resize volume %q: %w", v.Name, err)
	}
	m.log.Info("volume resized", "volume", v.Name, "from", v.Size, "to", size)
	return grown, nil
}

func (m *Manager) grow(ctx context.Context, old, v metadata.Volume, kind fs.Type) (err error) {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	remount, err := m.releaseToGrow(ctx, v, pool, kind)
	if err != nil {
		return err
	}
	if remount {
		defer func() { err = errors.Join(err, m.mount(context.WithoutCancel(ctx), v)) }()
	}
	if err := m.growDevice(ctx, old, v, pool); err != nil {
		return err
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil || info.Path == "" {
		return err
	}
	if mounted, err := m.isOurs(m.Mountpoint(v.Name), info.Path); err != nil || !mounted {
		return err
	}
	return m.growFilesystem(v, kind, info.Path, info.Size)
}

// growDevice records the new size and grows the device, or does neither.
func (m *Manager) growDevice(ctx context.Context, old, v metadata.Volume, pool blockdev.Pool) (err error) {
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if v.Size != old.Size {
		if err := m.replace(ctx, old, v); err != nil {
			return err
		}
		u.Push("record old size", func(ctx context.Context) error { return m.replace(ctx, v, old) })
	}
	if err := pool.Grow(ctx, blockdev.ID(v.Device), v.Size); err != nil {
		return err
	}
	u = undo.Stack{} // the device has grown: from here on the way is forward
	return m.recordDeviceSize(ctx, v)
}

// recordDeviceSize notes that a volume's device has been seen with the volume's size: from now on a smaller one is
// a truncated one.
func (m *Manager) recordDeviceSize(ctx context.Context, v metadata.Volume) error {
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		device, err := tx.Device(v.Device)
		if err != nil || device.Size == v.Size {
			return err
		}
		device.Size = v.Size
		return tx.PutDevice(device)
	})
}

// releaseToGrow unmounts a mounted volume that this process may only grow unmounted, and tells whether it is to be
// mounted again. It fails with fault.ErrUnsupported, changing nothing, if anybody uses the volume.
func (m *Manager) releaseToGrow(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) (remount bool, err error) {
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry == nil || kind.GrowsMounted() {
		return false, err
	}
	result, err := m.release(context.WithoutCancel(ctx), v, pool, time.Now())
	if err == nil && !result.released {
		err = fault.Errorf(fault.ErrUnsupported, "the kernel lets only a daemon with CAP_SYS_RESOURCE grow %s in use, and this one lacks it: stop what uses the volume (%s) or give the daemon that capability", v.Filesystem, result.by(v.Name))
	}
	return err == nil, err
}

// trimHolder begins the ID of the holder that keeps a volume mounted while it is trimmed. None outlives the daemon.
const trimHolder = "trim-"

// Trim tells a volume's device which blocks its filesystem does not use, so that their space comes back, and
// returns their bytes. A volume that is not mounted is mounted meanwhile. The work itself holds no lock.
func (m *Manager) Trim(ctx context.Context, id string) (bytes int64, err error) {
	holder := trimHolder + string(blockdev.NewID())
	dir, err := m.Mount(ctx, id, holder)
	if err != nil {
		return 0, err
	}
	defer func() {
		if failed := m.Unmount(context.WithoutCancel(ctx), id, holder); err == nil {
			err = failed
		}
	}()
	return fs.Trim(dir)
}
