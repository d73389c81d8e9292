package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// The mount rule. Docker's Mount and Unmount calls do not tell who uses a volume: after a crash, a live-restore or
// a docker cp they come twice, not at all, or with an ID that is still in use. So holders are hints, and the kernel
// is the judge. Whenever a volume has no holder left it is settled: unmounted and its device freed if nothing in
// any mount namespace uses it, and kept mounted otherwise, to be looked at again.

const (
	// probeWait is how long a mount namespace may take to die after its container.
	probeWait = time.Second
	// openWait is how long another process may keep a device open: udev looks into each one that is attached.
	openWait = 2 * time.Second
)

// settled is the outcome of settling a volume.
type settled struct {
	released  bool              // neither mounted nor active
	holders   []metadata.Holder // that keep it
	processes []fs.Process      // in whose mount namespace the kernel shows it
	uses      []fs.Use          // in this one
	explained bool              // the two above list all that there is
	reason    string            // why it is kept, where nothing above tells
}

// by says who keeps the volume, for a refusal.
func (s settled) by(name string) string {
	var parts []string
	ours := map[string]bool{}
	for _, h := range s.holders {
		parts = append(parts, describeHolder(h, name, s.explained && !s.inUse()))
		ours[h.Mountpoint] = true
	}
	for _, p := range s.processes {
		parts = append(parts, p.String())
	}
	for _, u := range s.uses {
		if u.Mountpoint == "" || !ours[u.Mountpoint] {
			parts = append(parts, u.String())
		}
	}
	if len(parts) == 0 {
		parts = append(parts, s.reason)
	}
	return strings.Join(parts, ", ")
}

// A patience is how long to wait for what is about to end by itself.
type patience struct {
	trim      time.Duration // a trim of the daemon's own
	namespace time.Duration // the mount namespace of a container that has ended
	rest      time.Duration // a process with an open file
	device    time.Duration // a process that looks at the device
}

var (
	patient = patience{trim: trimWait, namespace: probeWait, rest: probeWait, device: openWait}
	hasty   = patience{rest: probeWait, device: openWait} // for a caller whom the background relieves of waiting
)

// settle unmounts a volume and frees its device unless something needs it. The caller holds the volume's lock. Once
// begun it does not heed ctx's end, so that it never stops between an unmount and mounting back.
func (m *Manager) settle(ctx context.Context, v metadata.Volume, w wish) (settled, error) {
	result, err := m.settleWith(ctx, v, w, patient)
	if err != nil || result.released {
		return result, err
	}
	return m.explain(ctx, v, result), nil
}

// settleNow is settle for a caller who waits for an answer only: what the first look shows to be in use is left to the
// background, which looks again soon.
func (m *Manager) settleNow(ctx context.Context, v metadata.Volume, w wish) error {
	result, err := m.settleWith(ctx, v, w, hasty)
	if err != nil {
		return err
	}
	if result.inUse() {
		m.settleLater(v.ID)
	}
	if !result.released && len(result.holders) == 0 {
		m.log.Info("volume kept", "volume", v.Name, "used_by", result.by(v.Name))
	}
	return nil
}

// inUse reports whether the kernel shows a user who may let go soon.
func (s settled) inUse() bool { return len(s.processes)+len(s.uses) > 0 }

func (m *Manager) settleWith(ctx context.Context, v metadata.Volume, w wish, p patience) (settled, error) {
	ctx = context.WithoutCancel(ctx)
	holders, err := m.holders(v)
	if err != nil {
		return settled{}, err
	}
	if firm := m.firm(holders, w); len(firm) > 0 {
		return settled{holders: firm}, nil
	}
	pool, err := m.Pool(v)
	if err != nil {
		if entry, tableErr := m.mountOf(m.Mountpoint(v.Name)); tableErr == nil && entry == nil {
			return settled{released: true}, nil // nothing is mounted, whatever became of the pool
		}
		return settled{}, err
	}
	result, err := m.release(ctx, v, pool, p)
	if err != nil {
		return result, fmt.Errorf("settle volume %q: %w", v.Name, err)
	}
	if !result.released {
		return result, nil
	}
	for _, h := range holders { // the kernel has just shown that they are gone
		if err := m.dropHolder(ctx, h); err != nil {
			return result, err
		}
		m.log.Info("stale holder dropped", "volume", v.Name, "holder", h.ID)
	}
	return result, nil
}

// explain adds to the outcome of settling a volume what the kernel shows of its users. What it cannot find out is left
// out: a refusal stands without it.
func (m *Manager) explain(ctx context.Context, v metadata.Volume, result settled) settled {
	device, err := m.activeDevice(ctx, v)
	if err != nil || device == 0 {
		return result
	}
	processes, err := fs.MountedElsewhere(device)
	uses, usesErr := fs.Users(ctx, device, m.Mountpoint(v.Name))
	result.processes, result.uses, result.explained = processes, uses, err == nil && usesErr == nil
	return result
}

// Lingering says what keeps a volume mounted that has no holder; it is empty for one that is not mounted.
func (m *Manager) Lingering(ctx context.Context, v metadata.Volume) []string {
	result := m.explain(ctx, v, settled{})
	var uses []string
	for _, p := range result.processes {
		uses = append(uses, p.String())
	}
	for _, u := range result.uses {
		uses = append(uses, u.String())
	}
	return uses
}

// activeDevice returns the number of the volume's active device, or 0.
func (m *Manager) activeDevice(ctx context.Context, v metadata.Volume) (uint64, error) {
	pool, err := m.Pool(v)
	if err != nil {
		return 0, err
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil || info.Path == "" {
		return 0, err
	}
	return deviceNumber(info.Path)
}

// release unmounts a volume without holders and frees its device. What is in use, in this mount namespace or another,
// is mounted as before when it returns.
func (m *Manager) release(ctx context.Context, v metadata.Volume, pool blockdev.Pool, p patience) (settled, error) {
	if !m.trims.await(v.ID, p.trim) {
		return settled{reason: "a trim, which ends by itself"}, nil
	}
	dir, id := m.Mountpoint(v.Name), blockdev.ID(v.Device)
	begin := time.Now()
	deadline := begin.Add(p.rest)
	info, err := pool.Stat(ctx, id)
	gone := fault.Is(err, fault.ErrNotFound)
	if gone {
		info, err = blockdev.Info{ID: id}, nil // the image is gone; unmounting is still right
	}
	if err != nil {
		return settled{}, err
	}
	mounted, err := m.isMounted(dir, info.Path, gone)
	if err != nil {
		return settled{reason: "a mount that is not the volume's"}, err
	}
	if !mounted && info.Path == "" {
		return settled{released: true}, nil
	}
	if info.Path != "" {
		users, err := awaitUnused(info.Path, dir, begin.Add(p.namespace))
		if err != nil || users.inUse() {
			return users, err
		}
	}
	if mounted {
		if err := m.unstall(v.ID); err != nil {
			return settled{}, err
		}
		if err := retryInUse(deadline, func() error { return m.host.Unmount(dir) }); fault.Is(err, fault.ErrInUse) {
			return settled{reason: "a process with an open file or directory in " + dir}, nil
		} else if err != nil {
			return settled{}, err
		}
	}
	if err := deactivate(ctx, pool, id, p.device); err == nil {
		m.log.Info("volume unmounted", "volume", v.Name)
		return settled{released: true}, nil
	} else if !fault.Is(err, fault.ErrInUse) {
		return settled{}, errors.Join(err, m.mountBack(ctx, v, pool, mounted))
	}
	return settled{reason: "a mount or a process that /proc does not show"}, m.mountBack(ctx, v, pool, mounted)
}

// deactivate frees a device, for which it waits no longer than limit while another process has it. Then it fails with
// fault.ErrInUse, and the device is as it was.
func deactivate(ctx context.Context, pool blockdev.Pool, id blockdev.ID, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	deadline, _ := ctx.Deadline()
	err := retryInUse(deadline, func() error { return pool.Deactivate(ctx, id) })
	if errors.Is(err, context.DeadlineExceeded) {
		err = fault.Errorf(fault.ErrInUse, "%w: another process has the device open", err)
	}
	return err
}

// isMounted tells whether the volume's device is mounted at dir. Once its image is gone any mount there counts as the
// volume's. It fails with fault.ErrInUse if something else is mounted there.
func (m *Manager) isMounted(dir, device string, gone bool) (bool, error) {
	if device != "" {
		return m.isOurs(dir, device)
	}
	entry, err := m.mountOf(dir)
	if err != nil || entry == nil || gone {
		return entry != nil, err
	}
	return false, strangerAt(dir, entry)
}

// mountBack mounts a device that is in use elsewhere at the volume's mount point again: the same device shows the
// same filesystem.
func (m *Manager) mountBack(ctx context.Context, v metadata.Volume, pool blockdev.Pool, mounted bool) error {
	if !mounted {
		return nil
	}
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return err
	}
	path, err := pool.Activate(ctx, blockdev.ID(v.Device), blockdev.ReadWrite)
	if err != nil {
		return err
	}
	return m.mountDevice(v, kind, path, v.MountOptions)
}

// awaitUnused waits until neither another mount namespace nor another mount point than dir shows the device, and returns
// what still does at the deadline.
func awaitUnused(path, dir string, deadline time.Time) (users settled, err error) {
	number, err := deviceNumber(path)
	if os.IsNotExist(err) {
		return users, nil
	}
	if err != nil {
		return users, err
	}
	err = retryInUse(deadline, func() error {
		if users.uses, err = fs.OtherMounts(number, dir); err != nil {
			return err
		}
		users.processes, err = fs.MountedElsewhere(number)
		if err == nil && users.inUse() {
			return fault.ErrInUse
		}
		return err
	})
	if errors.Is(err, fault.ErrInUse) {
		err = nil
	}
	return users, err
}

// retryInUse repeats try, ever more slowly, while it fails with fault.ErrInUse and there is time.
func retryInUse(deadline time.Time, try func() error) error {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := try()
		if !errors.Is(err, fault.ErrInUse) || !time.Now().Before(deadline) {
			return err
		}
		<-time.After(min(pause, time.Until(deadline)))
	}
}

// passingWait bounds the wait for uses of a mount that end by themselves: a child process that this one has just forked
// holds its open files until it executes its program.
const passingWait = 2 * time.Second

// unmount unmounts dir, and waits up to passingWait while it is in use.
func (m *Manager) unmount(dir string) error {
	return retryInUse(time.Now().Add(passingWait), func() error { return m.host.Unmount(dir) })
}

// SettleAll settles every volume and removes the mount points of those that are not held. It fails with
// fault.ErrInUse, naming them, if any is.
func (m *Manager) SettleAll(ctx context.Context) error {
	var held []string
	err := m.eachIn(metadata.Ready, func(v metadata.Volume) {
		v, release, err := m.acquireReady(ctx, v.ID)
		if err != nil {
			return // deleted meanwhile
		}
		defer release()
		if result, err := m.settleForAll(ctx, v); err != nil {
			held = append(held, err.Error())
		} else if !result.released {
			held = append(held, fmt.Sprintf("%s (by %s)", v.Name, result.by(v.Name)))
		} else if err := m.host.RemoveMountpoint(m.Mountpoint(v.Name)); err != nil {
			held = append(held, err.Error())
		}
	})
	if err == nil && len(held) > 0 {
		err = fault.Errorf(fault.ErrInUse, "in use: %s", strings.Join(held, "; "))
	}
	return err
}

// settleForAll is settle for SettleAll, which names holders and looks for users only where there is none.
func (m *Manager) settleForAll(ctx context.Context, v metadata.Volume) (settled, error) {
	result, err := m.settleWith(ctx, v, toFree, patient)
	if err != nil || result.released || len(result.holders) > 0 {
		return result, err
	}
	return m.explain(ctx, v, result), nil
}
