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
	Labels       map[string]string
	Protected    *bool
	PreSnapshot  *[]string
	PostSnapshot *[]string
}

// Set changes a volume's labels, protection and hooks, all or nothing.
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
	if c.PreSnapshot != nil {
		changed.PreSnapshot = *c.PreSnapshot
	}
	if c.PostSnapshot != nil {
		changed.PostSnapshot = *c.PostSnapshot
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
	record, err := m.Describe(v)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if err := pool.Describe(ctx, blockdev.ID(v.Device), record); err != nil {
		return err
	}
	u.Push("describe device", func(ctx context.Context) error {
		record, err := m.Describe(old)
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
	m.MakeRoomFor(ctx, id)
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
// mounted again. It fails with fault.ErrUnsupported, changing nothing, if anybody uses the volume or is about to.
func (m *Manager) releaseToGrow(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) (remount bool, err error) {
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry == nil || kind.GrowsMounted() {
		return false, err
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil {
		return false, err
	}
	if now, err := kind.Size(info.Path); err == nil && now >= v.Size {
		return false, nil // it has that size already
	}
	holders, err := m.holders(v)
	if err != nil {
		return false, err
	}
	result := settled{holders: starting(holders)}
	if len(result.holders) == 0 {
		result, err = m.release(context.WithoutCancel(ctx), v, pool, patience{trim: trimWait})
	}
	if err == nil && !result.released {
		err = fault.Errorf(fault.ErrUnsupported, "the kernel lets only a daemon with CAP_SYS_RESOURCE grow %s in use, and this one lacks it: stop what uses the volume (%s) or give the daemon that capability", v.Filesystem, result.by(v.Name))
	}
	return err == nil, err
}

// starting returns Docker's holders that are young: their containers may be starting, with the path in hand and no mount
// of their own yet that the kernel would show.
func starting(holders []metadata.Holder) (young []metadata.Holder) {
	for _, h := range holders {
		if !h.User && time.Since(h.Since) < suspectAge {
			young = append(young, h)
		}
	}
	return young
}
