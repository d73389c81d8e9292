package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/metadata"
)

// userHolder is the ID of a holder taken by "orlop mount"; one with a mount point of its own has that appended.
const userHolder = "orlop-mount"

// Mount mounts a volume for Docker's mount ID holder and returns its mount point. The same holder twice gets the
// same answer. The answer is given only when the kernel shows the mount. It does not fail because the holder could
// not be recorded: the kernel knows who uses the volume.
func (m *Manager) Mount(ctx context.Context, id, holder string) (string, error) {
	return m.MountFor(ctx, id, holder, func() bool { return false })
}

// MountFor is Mount for a caller who may have gone away meanwhile, as gone tells: then the holder is dropped at once,
// under the same lock, so that it can be no later caller's with the same ID.
func (m *Manager) MountFor(ctx context.Context, id, holder string, gone func() bool) (string, error) {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return "", err
	}
	defer release()
	if err := m.mount(ctx, v); err != nil {
		return "", fmt.Errorf("mount volume %q: %w", v.Name, err)
	}
	h := metadata.Holder{Volume: v.ID, ID: holder, Epoch: m.useEpoch()}
	if err := m.recordHolder(ctx, h); err != nil {
		m.log.Error("holder not recorded", "volume", v.Name, "holder", holder, "error", err)
	}
	if !gone() {
		return m.Mountpoint(v.Name), nil
	}
	m.log.Warn("who asked for the mount has gone", "volume", v.Name, "holder", holder)
	return "", errors.Join(fmt.Errorf("mount volume %q: the caller gave up", v.Name), m.dropHolder(ctx, h), m.settleNow(ctx, v, toUnmount))
}

// MountUser mounts a volume for a person, until UnmountUser or a reboot, and returns the path: dir, an empty
// directory of the user's choice, or the volume's own mount point if dir is empty.
func (m *Manager) MountUser(ctx context.Context, id, dir string) (path string, err error) {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return "", err
	}
	defer release()
	if dir != "" {
		if dir, err = m.checkUserDir(ctx, v, dir); err != nil {
			return "", fmt.Errorf("mount volume %q: %w", v.Name, err)
		}
	}
	if err := m.mount(ctx, v); err != nil {
		return "", fmt.Errorf("mount volume %q: %w", v.Name, err)
	}
	holder := metadata.Holder{Volume: v.ID, ID: userHolder, User: true}
	if dir == "" {
		if err := m.recordHolder(ctx, holder); err != nil {
			return "", errors.Join(err, m.settleNow(ctx, v, toTidy))
		}
		return m.Mountpoint(v.Name), nil
	}
	holder.ID, holder.Mountpoint = userHolder+":"+dir, dir
	if err := m.bindUser(ctx, v, holder); err != nil {
		return "", errors.Join(fmt.Errorf("mount volume %q: %w", v.Name, err), m.settleNow(ctx, v, toTidy))
	}
	return dir, nil
}

// bindUser shows a mounted volume at a holder's mount point too, and records the holder; or it does neither.
func (m *Manager) bindUser(ctx context.Context, v metadata.Volume, holder metadata.Holder) (err error) {
	already, err := m.shows(ctx, v, holder.Mountpoint)
	if err != nil {
		return err
	}
	// The record comes first: a bind mount without one would hold the volume for ever.
	if err := m.recordHolder(ctx, holder); err != nil || already {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("record holder", func(ctx context.Context) error { return m.dropHolder(ctx, holder) })
	if err := m.host.Bind(m.Mountpoint(v.Name), holder.Mountpoint); err != nil {
		return err
	}
	u.Push("bind", func(context.Context) error { return m.unmount(holder.Mountpoint) })
	if shown, err := m.shows(ctx, v, holder.Mountpoint); err != nil || !shown {
		return errors.Join(err, fmt.Errorf("%s does not show the volume after mounting it there", holder.Mountpoint))
	}
	return nil
}

// checkUserDir resolves a mount point of the user's choice and refuses one that would hide something.
func (m *Manager) checkUserDir(ctx context.Context, v metadata.Volume, dir string) (string, error) {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: %w", dir, cause(err))
	}
	if !filepath.IsAbs(resolved) {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: must be an absolute path", dir)
	}
	if root := filepath.Dir(m.mounts); resolved == root || strings.HasPrefix(resolved, root+"/") {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: must not be inside orlop's own directory %s", dir, root)
	}
	if already, err := m.shows(ctx, v, resolved); err != nil || already {
		return resolved, err
	}
	entries, err := os.ReadDir(resolved)
	if err != nil {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: %w", dir, cause(err))
	}
	if mounted, err := fs.IsMountpoint(resolved); err != nil {
		return "", err
	} else if mounted {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: something is mounted there already", dir)
	}
	if len(entries) > 0 {
		return "", fault.Errorf(fault.ErrInvalid, "mount point %q: must be an empty directory", dir)
	}
	return resolved, nil
}

// cause strips the path, which may be any text, from an error that shows it unquoted.
func cause(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// shows tells whether the volume is mounted at dir, also if it is not at its own mount point any more. It fails if then
// the pool is missing too, and nothing can tell.
func (m *Manager) shows(ctx context.Context, v metadata.Volume, dir string) (bool, error) {
	there, err := m.mountOf(dir)
	if err != nil || there == nil {
		return false, err
	}
	number, poolErr := m.activeDevice(ctx, v)
	if poolErr == nil && number != 0 {
		return there.Device == number, nil
	}
	own, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || own == nil {
		return false, errors.Join(err, poolErr)
	}
	return there.Device == own.Device, nil
}

// mountOf returns what is mounted on dir itself, the uppermost, or nil.
func (m *Manager) mountOf(dir string) (*fs.Entry, error) {
	table, err := fs.Table(dir)
	if err != nil {
		return nil, err
	}
	var top *fs.Entry
	for i := range table {
		if table[i].Mountpoint == dir {
			top = &table[i]
		}
	}
	return top, nil
}

// mount brings a volume to its mount point: device active, filesystem checked if it needs it, both of the wanted size if
// that can be done, and the kernel's mount table showing just that. What is so already stays untouched.
func (m *Manager) mount(ctx context.Context, v metadata.Volume) (err error) {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if err := m.refuseCutOff(ctx, v, pool, kind); err != nil {
		return err
	}
	id := blockdev.ID(v.Device)
	path, err := pool.Activate(ctx, id, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	u.Push("deactivate", func(ctx context.Context) error { return pool.Deactivate(ctx, id) })
	mounted, err := m.isOurs(m.Mountpoint(v.Name), path)
	if err != nil {
		return err
	}
	if mounted {
		m.converge(ctx, v, pool, kind, path)
		return nil
	}
	return m.mountActive(ctx, v, pool, kind, path)
}

// mountActive mounts a volume that is active, and not mounted, at its mount point.
func (m *Manager) mountActive(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type, path string) (err error) {
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	dir, options := m.Mountpoint(v.Name), v.MountOptions
	unused, err := claim(path)
	if err != nil {
		return err
	}
	madeLostFound := false
	if unused { // also in every other mount namespace
		madeLostFound, err = m.prepare(ctx, v, pool, kind, path)
	}
	if fault.Is(err, fault.ErrNoSpace) {
		m.log.Error("volume is mounted read-only", "volume", v.Name, "error", err)
		options = append(slices.Clone(options), "ro")
	} else if err != nil {
		return err
	}
	if path, err = pool.Activate(ctx, blockdev.ID(v.Device), blockdev.ReadWrite); err != nil {
		return err
	}
	if err := m.host.MakeMountpoint(dir); err != nil {
		return err
	}
	if err := m.mountDevice(v, kind, path, options); err != nil {
		return err
	}
	u.Push("unmount", func(context.Context) error { return m.unmount(dir) })
	if mounted, err := m.isOurs(dir, path); err != nil || !mounted {
		return errors.Join(err, fmt.Errorf("%s does not show %s after mounting it", dir, path))
	}
	if madeLostFound {
		if err := m.host.RemoveLostFound(kind, dir); err != nil {
			m.log.Warn("lost+found not removed", "volume", v.Name, "error", err)
		}
	}
	if !unused {
		m.converge(ctx, v, pool, kind, path)
	}
	m.log.Info("volume mounted", "volume", v.Name, "device", path)
	return nil
}

// mountDevice mounts a volume's device at its mount point. All who mount a filesystem share its superblock: where that is
// read-only in another mount namespace, after an error say, this mount is read-only too. It fails with fault.ErrInUse if
// something other than a mount claims the device.
func (m *Manager) mountDevice(v metadata.Volume, kind fs.Type, path string, options []string) error {
	dir := m.Mountpoint(v.Name)
	err := m.host.Mount(kind, path, dir, options)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if m.host.Mount(kind, path, dir, append(slices.Clone(options), "ro")) != nil {
		return fault.Errorf(fault.ErrInUse, "%w: something other than a mount claims the device", err)
	}
	m.log.Error("volume is mounted read-only, as it is in another mount namespace", "volume", v.Name, "device", path)
	return nil
}

// Truncated fails with fault.ErrCorrupt if a volume's device of size bytes is smaller than it has been seen to be.
// One that is smaller than the volume only is about to grow.
func (m *Manager) Truncated(v metadata.Volume, size int64) error {
	return m.store.View(func(tx *metadata.Tx) error {
		device, err := tx.Device(v.Device)
		if err == nil && size < device.Size {
			err = fault.Errorf(fault.ErrCorrupt, "device %s has %d bytes and had %d: it was truncated, and what it held beyond is lost", v.Device, size, device.Size)
		}
		return err
	})
}

// refuseCutOff fails with fault.ErrCorrupt if a volume's device is smaller than it has been, or than its filesystem: it
// was truncated, and after a loss of the metadata nothing else tells. To grow it would hide that.
func (m *Manager) refuseCutOff(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type) (err error) {
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil || info.Size >= v.Size {
		return err
	}
	if err := m.Truncated(v, info.Size); err != nil {
		return err
	}
	path, err := pool.Activate(ctx, info.ID, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	size, err := kind.Size(path)
	switch {
	case err != nil:
		err = fault.Errorf(fault.ErrCorrupt, "device %s of %d bytes cannot grow: %w", info.ID, info.Size, err)
	case size > info.Size:
		err = fault.Errorf(fault.ErrCorrupt, "device %s has %d bytes and its filesystem %d: it was truncated, and what it held beyond is lost", info.ID, info.Size, size)
	}
	if err != nil && info.Path == "" {
		err = errors.Join(err, pool.Deactivate(context.WithoutCancel(ctx), info.ID))
	}
	return err
}

// isOurs tells whether dir is a mount of the device node at path. It fails with fault.ErrInUse if something else
// is mounted there.
func (m *Manager) isOurs(dir, path string) (bool, error) {
	entry, err := m.mountOf(dir)
	if err != nil || entry == nil {
		return false, err
	}
	number, err := deviceNumber(path)
	if err != nil {
		return false, err
	}
	if entry.Device != number {
		return false, strangerAt(dir, entry)
	}
	return true, nil
}

func strangerAt(dir string, entry *fs.Entry) error {
	return fault.Errorf(fault.ErrInUse, "something else is mounted at %s (device %d:%d)", dir, unix.Major(entry.Device), unix.Minor(entry.Device))
}

// deviceNumber returns the number of a device node, as st_dev of its filesystem shows it.
func deviceNumber(path string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return stat.Rdev, nil
}

// prepare checks a filesystem that is mounted nowhere if it recorded an error, and grows it if it is too small; its device
// may be inactive afterwards. It reports whether the check made a lost+found. It fails with fault.ErrNoSpace if
// there is no space for a check that is due: then the filesystem can be read, and is for the next mount to check.
func (m *Manager) prepare(ctx context.Context, v metadata.Volume, pool blockdev.Pool, kind fs.Type, path string) (madeLostFound bool, err error) {
	if err := m.roomToRepair(ctx, v, kind, path); err != nil {
		return false, err
	}
	repaired, madeLostFound, err := m.host.Repair(ctx, kind, path)
	if err != nil {
		return false, err
	}
	if repaired {
		m.log.Warn("filesystem repaired", "volume", v.Name, "device", path)
	}
	m.converge(ctx, v, pool, kind, path)
	return madeLostFound, nil
}

// Unmount drops one of Docker's mount IDs, known or not, and unmounts the volume if nobody holds it any more. A
// volume that is not mounted, or that something still uses, is no error: what is used stays mounted and is looked
// at again later.
func (m *Manager) Unmount(ctx context.Context, id, holder string) error {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if err := m.dropHolder(ctx, metadata.Holder{Volume: v.ID, ID: holder}); err != nil {
		// The mount table decides all the same; the holder stays until it is suspect.
		m.log.Error("holder not dropped", "volume", v.Name, "holder", holder, "error", err)
	}
	return m.settleNow(ctx, v, toUnmount)
}

// UnmountUser drops what MountUser took and unmounts the volume, unless something else needs it. What Docker holds stays
// held, and held then says by whom; with stale set, Docker's and Podman's holders go too that are 3 minutes old and that the
// kernel shows no user for. It fails with fault.ErrInUse, naming the users, if a process uses the mount point of the user's
// choice, if something without a holder keeps the volume mounted, or if stale is set and holders are left. It may be
// repeated.
func (m *Manager) UnmountUser(ctx context.Context, id string, stale bool) (held string, err error) {
	v, release, err := m.acquire(ctx, id)
	if err != nil {
		return "", err
	}
	defer release()
	if err := m.dropUsers(ctx, v); err != nil {
		return "", err
	}
	w := toUnmount
	if stale {
		w = toForget
	}
	result, err := m.settle(ctx, v, w)
	switch {
	case err != nil || result.released:
		return "", err
	case len(result.holders) > 0 && !stale:
		return result.by(v.Name), nil
	case len(result.holders) > 0:
		return "", fault.Errorf(fault.ErrInUse, "volume %q: still mounted: in use by %s", v.Name, result.by(v.Name))
	}
	return "", fault.Errorf(fault.ErrInUse, "volume %q: still mounted, until it is no longer in use by %s", v.Name, result.by(v.Name))
}

// dropUsers drops the holders that MountUser took, with their bind mounts.
func (m *Manager) dropUsers(ctx context.Context, v metadata.Volume) error {
	holders, err := m.holders(v)
	if err != nil {
		return err
	}
	for _, h := range holders {
		if !h.User {
			continue
		}
		if h.Mountpoint != "" {
			if there, err := m.shows(ctx, v, h.Mountpoint); err != nil {
				return err
			} else if there {
				if err := m.unmount(h.Mountpoint); err != nil {
					return fmt.Errorf("volume %q: %w", v.Name, m.busyAt(ctx, v, h.Mountpoint, err))
				}
			}
		}
		if err := m.dropHolder(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// busyAt adds to the failure of unmounting a volume at dir what uses it.
func (m *Manager) busyAt(ctx context.Context, v metadata.Volume, dir string, err error) error {
	if !fault.Is(err, fault.ErrInUse) {
		return err
	}
	uses := m.Lingering(ctx, v)
	uses = slices.DeleteFunc(uses, func(use string) bool { return use == fs.Use{Mountpoint: dir}.String() })
	if len(uses) == 0 {
		return err
	}
	return fmt.Errorf("%w by %s", err, strings.Join(uses, ", "))
}
