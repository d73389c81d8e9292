package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/metadata"
)

// Growth is a wish, mounting is the duty: whatever fails in a growth, the volume can be mounted with its data. A record
// holds the size that is wanted. Each mount brings the filesystem to it where that can be done; a growth that failed is
// noted on the device, with the size that the filesystem has instead, and only a resize tries it again.

// granule is what sizes of volumes are multiples of, in bytes: a block of a filesystem and of a device.
const granule = 4096

// RoundUp returns the size in bytes of a volume that is to have at least size bytes.
func RoundUp(size int64) int64 {
	if rest := size % granule; rest > 0 {
		size -= rest // in this order: it does not overflow
		if size <= maxRounded {
			size += granule
		}
	}
	return size
}

const maxRounded = 1<<63 - 1 - granule

// fit returns the size in bytes that a pool's device has that is to have at least size bytes.
func fit(pool blockdev.Pool, size int64) int64 {
	if of := pool.Traits().Granularity; of > 0 && size%of > 0 && size <= 1<<63-1-of {
		size += of - size%of
	}
	return size
}

// Resize grows a volume to size bytes, a multiple of 4096, also while it is in use. A size below the recorded one takes
// back a growth that the filesystem has not followed. It fails with fault.ErrInvalid if that would shrink the filesystem
// or is more than it may be grown to, and with fault.ErrUnsupported if it cannot grow while it is in use.
//
// When it fails, the volume has the size that it had. After a crash it has that or the new one, or the next mount
// finishes the growth.
func (m *Manager) Resize(ctx context.Context, id string, size int64) (metadata.Volume, error) {
	m.MakeRoomFor(ctx, id)
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	resized, err := m.resize(context.WithoutCancel(ctx), v, size)
	if err != nil {
		return v, fmt.Errorf("resize volume %q: %w", v.Name, err)
	}
	if resized.Size != v.Size {
		m.log.Info("volume resized", "volume", v.Name, "from", v.Size, "to", resized.Size)
	}
	return resized, nil
}

func (m *Manager) resize(ctx context.Context, v metadata.Volume, size int64) (resized metadata.Volume, err error) {
	pool, err := m.Pool(v)
	if err != nil {
		return v, err
	}
	size = fit(pool, size)
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return v, err
	}
	if err := m.refuseCutOff(ctx, v, pool, kind); err != nil {
		return v, err
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil {
		return v, err
	}
	path := info.Path
	if path == "" {
		if path, err = pool.Activate(ctx, info.ID, blockdev.ReadWrite); err != nil {
			return v, err
		}
	}
	defer func() { err = errors.Join(err, m.deactivateUnmounted(ctx, v, pool)) }()
	present, err := m.presentSize(v, kind, path)
	if err != nil {
		return v, err
	}
	if err := checkResize(v, present, kind, path, size); err != nil {
		return v, err
	}
	resized = v
	resized.Size = size
	full, err := isGrown(ctx, resized, present, pool, kind, path)
	if err != nil {
		return v, err
	}
	if !full {
		return m.resizeTo(ctx, v, resized, pool, kind)
	}
	if size != v.Size {
		if err := m.replace(ctx, v, resized); err != nil {
			return v, err
		}
	}
	return resized, m.noteGrowth(ctx, resized, pool, nil)
}

// presentSize returns the size in bytes of a volume's filesystem, which it mounts for that where it is not mounted: a
// journal may hold a newer one than the device shows.
func (m *Manager) presentSize(v metadata.Volume, kind fs.Type, path string) (size int64, err error) {
	read := func(dir string) error {
		size, err = kind.MountedSize(path, dir)
		return err
	}
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err == nil && entry != nil {
		err = read(entry.Mountpoint)
	} else if err == nil {
		err = m.aside(v, kind, path, read)
	}
	return size, err
}

// isGrown reports whether a volume's device and the filesystem on it, at path and of present bytes, are as large as the
// volume is to be.
func isGrown(ctx context.Context, v metadata.Volume, present int64, pool blockdev.Pool, kind fs.Type, path string) (bool, error) {
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil || info.Size < v.Size {
		return false, err
	}
	usable, err := kind.Usable(path, v.Size)
	return present >= usable, err
}

// checkResize fails with fault.ErrInvalid unless the filesystem on the device at path, of present bytes, may have size
// bytes.
func checkResize(v metadata.Volume, present int64, kind fs.Type, path string, size int64) error {
	if usable, err := kind.Usable(path, v.Size); err != nil {
		return err
	} else if present >= usable {
		present = v.Size
	}
	limit, err := kind.Limit(path)
	switch {
	case err != nil:
		return err
	case size < present:
		return fault.Errorf(fault.ErrInvalid, "%s is below the present %s: volumes only grow", Bytes(size), Bytes(present))
	case size > kind.MaxSize:
		return fault.Errorf(fault.ErrInvalid, "%s is above the largest that %s takes, %s", Bytes(size), kind.Name, Bytes(kind.MaxSize))
	case size > limit && size > present:
		return tooLarge(size, limit, kind)
	}
	return nil
}

func tooLarge(size, limit int64, kind fs.Type) error {
	return fault.Errorf(fault.ErrInvalid, "%s is above the %s to which this %s may be grown, %d times the size it was made with: create a larger volume and copy the data",
		Bytes(size), Bytes(limit), kind.Name, fs.GrowthFactor)
}

// Bytes is a size for people, with the exact bytes where it is rounded.
func Bytes(n int64) string {
	text := humanize.IBytes(uint64(max(n, 0)))
	if parsed, err := humanize.ParseBytes(text); err != nil || parsed != uint64(max(n, 0)) {
		text = fmt.Sprintf("%s (%d bytes)", text, n)
	}
	return text
}

// resizeTo grows a volume to the size of its record resized, and takes that back if it fails. A volume that was
// unmounted for it is mounted again in any case.
func (m *Manager) resizeTo(ctx context.Context, v, resized metadata.Volume, pool blockdev.Pool, kind fs.Type) (now metadata.Volume, err error) {
	remount, err := m.releaseToGrow(ctx, v, pool, kind)
	if err != nil {
		return v, err
	}
	if remount {
		defer func() { err = errors.Join(err, m.mount(ctx, now)) }()
	}
	if err := m.replace(ctx, v, resized); err != nil {
		return v, err
	}
	if err := m.grow(ctx, resized, pool, kind); err != nil {
		now, backErr := m.takeBack(ctx, v, resized, pool, kind)
		return now, errors.Join(err, backErr)
	}
	return resized, m.noteGrowth(ctx, resized, pool, nil)
}

// takeBack records the former size of a volume whose growth failed, or what the filesystem has of the new one.
func (m *Manager) takeBack(ctx context.Context, v, resized metadata.Volume, pool blockdev.Pool, kind fs.Type) (metadata.Volume, error) {
	path, err := pool.Activate(ctx, blockdev.ID(v.Device), blockdev.ReadWrite)
	if err == nil {
		var size int64
		size, err = m.presentSize(v, kind, path)
		v.Size = max(v.Size, size)
	}
	return v, errors.Join(err, m.replace(ctx, resized, v))
}

// converge grows a volume that is smaller than its record says, if that can be done now and has not failed before. It
// never fails: the log and the device's record say what did. The volume's device is active at path, mounted at the
// volume's mount point or nowhere; it may be inactive afterwards.
func (m *Manager) converge(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type, path string) {
	ctx = context.WithoutCancel(ctx)
	failed, err := m.failedGrowth(v)
	if err != nil {
		return // the next mount looks again
	}
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil {
		return
	}
	size := kind.Size
	if entry != nil {
		size = func(path string) (int64, error) { return kind.MountedSize(path, entry.Mountpoint) }
	}
	present, err := size(path)
	if err != nil {
		return // mounting tells what is wrong
	}
	full, err := isGrown(ctx, v, present, pool, kind, path)
	switch {
	case err != nil:
		return
	case full:
		failed = nil
	case failed != nil && failed.Wanted == v.Size && !failed.Retry:
		return
	case entry != nil && (entry.ReadOnly || !kind.GrowsMounted()):
		return // not now
	default:
		failed = m.tryToGrow(ctx, v, present, pool, kind, path)
	}
	if err := m.noteGrowth(ctx, v, pool, failed); err != nil {
		m.log.Error("cannot record outcome of growth", "volume", v.Name, "error", err)
	}
}

// tryToGrow grows a volume whose filesystem, at path, has present bytes if its pool has room, and returns what failed, or nil.
func (m *Manager) tryToGrow(ctx context.Context, v metadata.Volume, present int64, pool blockdev.Pool, kind fs.Type, path string) *metadata.FailedGrowth {
	limit, err := kind.Limit(path)
	if err == nil && v.Size > limit { // recorded by a version that took any size
		err = tooLarge(v.Size, limit, kind)
	}
	if err == nil {
		err = room(ctx, v.Pool, pool)
	}
	if err == nil {
		err = m.grow(ctx, v, pool, kind)
	}
	if err == nil {
		m.log.Info("volume grown", "volume", v.Name, "to", v.Size)
		return nil
	}
	m.log.Error("cannot grow volume; using it at its present size", "volume", v.Name, "wanted", v.Size, "error", err)
	failed := &metadata.FailedGrowth{Wanted: v.Size, Size: present, Problem: err.Error(), Retry: fault.Is(err, fault.ErrNoSpace)}
	if path, err := pool.Activate(ctx, blockdev.ID(v.Device), blockdev.ReadWrite); err == nil {
		if now, err := m.presentSize(v, kind, path); err == nil {
			failed.Size = now // a growth in use may have come a part of the way
		}
	}
	return failed
}

func (m *Manager) failedGrowth(v metadata.Volume) (failed *metadata.FailedGrowth, err error) {
	err = m.store.View(func(tx *metadata.Tx) error {
		device, err := tx.Device(v.Device)
		failed = device.FailedGrowth
		return err
	})
	return failed, err
}

// noteGrowth records how large a volume's device was seen, up to the volume's size, so that from now on a smaller one is
// a truncated one; and why its filesystem could not be grown, or that it was.
func (m *Manager) noteGrowth(ctx context.Context, v metadata.Volume, pool blockdev.Pool, failed *metadata.FailedGrowth) error {
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil {
		return err
	}
	var device metadata.Device
	err = m.store.View(func(tx *metadata.Tx) (err error) {
		device, err = tx.Device(v.Device)
		return err
	})
	was := device
	device.Size, device.FailedGrowth = min(info.Size, v.Size), failed
	if err != nil || device.Size == was.Size && equal(failed, was.FailedGrowth) {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutDevice(device) })
}

func equal(a, b *metadata.FailedGrowth) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// grow brings a volume's device and filesystem to the volume's size. The volume is mounted at its mount point, or not
// at all. A device that is not mounted may be inactive afterwards.
func (m *Manager) grow(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) error {
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil {
		return err
	}
	if entry == nil && !kind.GrowsMounted() {
		return m.growCopy(ctx, v, pool, kind)
	}
	id := blockdev.ID(v.Device)
	if err := pool.Grow(ctx, id, v.Size); err != nil {
		return err
	}
	path, err := pool.Activate(ctx, id, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	if entry != nil {
		return m.host.Grow(kind, path, m.Mountpoint(v.Name), v.Size)
	}
	return m.aside(v, kind, path, func(dir string) error { return m.host.Grow(kind, path, dir, v.Size) })
}

// growCopy grows the filesystem of a volume that is not mounted on a copy of its device, and puts that in the place of
// the device once it is sound and the kernel has mounted it. Until then neither an error nor a power cut has touched
// the volume.
func (m *Manager) growCopy(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) (err error) {
	id, copied := blockdev.ID(v.Device), blockdev.NewID()
	if err := retryInUse(time.Now().Add(probeWait), func() error { return pool.Deactivate(ctx, id) }); fault.Is(err, fault.ErrInUse) {
		return growsUnmounted(kind, "another mount namespace or process has its device")
	} else if err != nil {
		return err
	}
	announced := metadata.Device{ID: string(copied), Pool: v.Pool, Parent: v.Device, Kind: metadata.KindGrowing, Size: v.Size}
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutDevice(announced) }); err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("copy device", func(ctx context.Context) error { return m.dropCopy(ctx, v, pool, copied) })
	unready := v
	unready.Device, unready.State = string(copied), metadata.Creating
	record, err := m.Describe(unready)
	if err != nil {
		return err
	}
	if err := pool.Clone(ctx, copied, id, record); err != nil {
		return err
	}
	if err := pool.Grow(ctx, copied, v.Size); err != nil {
		return err
	}
	path, err := pool.Activate(ctx, copied, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	if err := m.growAside(ctx, v, kind, path); err != nil {
		return err
	}
	if err := retryInUse(time.Now().Add(probeWait), func() error { return pool.Deactivate(ctx, copied) }); err != nil {
		return err
	}
	if err := pool.Replace(ctx, id, copied); err != nil {
		return err
	}
	return m.dropCopy(ctx, v, pool, copied)
}

// growAside grows a filesystem that nothing has mounted, and which may be lost, offline. It is mounted before, which
// replays its journal, and after, which shows that the kernel takes it.
func (m *Manager) growAside(ctx context.Context, v metadata.Volume, kind fs.Type, path string) error {
	if err := m.aside(v, kind, path, func(string) error { return nil }); err != nil {
		return err
	}
	madeLostFound, err := m.host.GrowOffline(ctx, kind, path, v.Size)
	if err != nil {
		return fmt.Errorf("a copy of its filesystem cannot be grown, and the volume is unchanged; try a smaller size: %w", err)
	}
	return m.aside(v, kind, path, func(dir string) error {
		if madeLostFound {
			return m.host.RemoveLostFound(kind, dir)
		}
		return nil
	})
}

// dropCopy removes what there is of a copy that a filesystem was grown on, and its record. It may be repeated.
func (m *Manager) dropCopy(ctx context.Context, v metadata.Volume, pool blockdev.Pool, copied blockdev.ID) error {
	if err := m.leaveScratch(v); err != nil {
		return err
	}
	if err := RemoveDevice(ctx, pool, string(copied)); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DeleteDevice(string(copied)) })
}

// releaseToGrow unmounts a mounted volume that can only be grown unmounted, and reports whether it is to be mounted
// again. It fails with fault.ErrUnsupported, changing nothing, if anything uses the volume or is about to.
func (m *Manager) releaseToGrow(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) (remount bool, err error) {
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry == nil || kind.GrowsMounted() && !isReadOnly(v) {
		return false, err
	}
	holders, err := m.holders(v)
	if err != nil {
		return false, err
	}
	result := settled{holders: starting(holders)}
	if len(result.holders) == 0 {
		result, err = m.release(ctx, v, pool, patience{trim: trimWait, device: openWait})
	}
	if err == nil && !result.released {
		err = growsUnmounted(kind, result.by(v.Name))
		if kind.GrowsMounted() {
			err = fault.Errorf(fault.ErrUnsupported, "it is mounted read-only by its mount option ro, and the kernel grows %s only where it may write: stop what uses the volume (%s)", kind.Name, result.by(v.Name))
		}
	}
	return err == nil, err
}

func growsUnmounted(kind fs.Type, by string) error {
	return fault.Errorf(fault.ErrUnsupported, "the kernel lets only a daemon with CAP_SYS_RESOURCE grow %s in use, and this one lacks it: stop what uses the volume (%s) or give the daemon that capability", kind.Name, by)
}

func isReadOnly(v metadata.Volume) bool { return slices.Contains(v.MountOptions, "ro") }

// deactivateUnmounted frees a volume's device that was active for a look only.
func (m *Manager) deactivateUnmounted(ctx context.Context, v metadata.Volume, pool blockdev.Pool) error {
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry != nil {
		return err
	}
	if err := pool.Deactivate(ctx, blockdev.ID(v.Device)); !fault.Is(err, fault.ErrInUse) {
		return err
	}
	return nil // in use elsewhere, and settled later
}

// undoGrowths removes the copies on which filesystems were being grown when the daemon died.
func (m *Manager) undoGrowths(ctx context.Context) error {
	var devices []metadata.Device
	var volumes []metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		if devices, err = tx.Devices(); err != nil {
			return err
		}
		volumes, err = tx.Volumes()
		return err
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(orphanWait)
	for _, d := range devices {
		i := slices.IndexFunc(volumes, func(v metadata.Volume) bool { return v.Device == d.Parent })
		if d.Kind != metadata.KindGrowing || i < 0 {
			continue
		}
		pool, err := m.Pool(volumes[i])
		if err == nil {
			err = retryInUse(deadline, func() error { return m.dropCopy(ctx, volumes[i], pool, blockdev.ID(d.ID)) })
		}
		if err != nil {
			m.log.Error("copy of an interrupted growth not removed", "device", d.ID, "error", err)
			continue
		}
		m.log.Warn("rolled back interrupted growth", "volume", volumes[i].Name)
	}
	return nil
}
