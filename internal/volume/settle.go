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
	// suspectAge is how old a holder of an earlier Docker epoch must be to be dropped.
	suspectAge = 3 * time.Minute
)

// settled is the outcome of settling a volume.
type settled struct {
	released  bool              // neither mounted nor active
	holders   []metadata.Holder // that keep it
	processes []fs.Process      // in whose mount namespace the kernel shows it
	reason    string            // why it is kept, where it is neither
}

// by says who keeps the volume, for a refusal.
func (s settled) by(name string) string {
	var parts []string
	for _, h := range s.holders {
		switch {
		case h.User && h.Mountpoint != "":
			parts = append(parts, fmt.Sprintf("a mount at %s (run 'orlop umount %s')", h.Mountpoint, name))
		case h.User:
			parts = append(parts, fmt.Sprintf("'orlop mount' (run 'orlop umount %s')", name))
		default:
			parts = append(parts, "docker mount "+h.ID)
		}
	}
	for _, p := range s.processes {
		parts = append(parts, p.String())
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
	rest      time.Duration // a process with an open file, or one that looks at the device
}

var (
	patient = patience{trim: trimWait, namespace: probeWait, rest: probeWait}
	hasty   = patience{rest: probeWait} // for a caller whom the background relieves of waiting
)

// settle unmounts a volume and frees its device unless somebody needs it. The caller holds the volume's lock. Once
// begun it does not heed ctx's end, so that it never stops between an unmount and mounting back.
func (m *Manager) settle(ctx context.Context, v metadata.Volume) (settled, error) {
	return m.settleWith(ctx, v, patient)
}

// settleNow is settle for a caller who waits for an answer only: what the first look shows to be in use is left to the
// background, which looks again soon.
func (m *Manager) settleNow(ctx context.Context, v metadata.Volume) error {
	result, err := m.settleWith(ctx, v, hasty)
	if err != nil {
		return err
	}
	if len(result.processes) > 0 {
		m.settleLater(v.ID)
	}
	if !result.released && len(result.holders) == 0 {
		m.log.Info("volume kept", "volume", v.Name, "used_by", result.by(v.Name))
	}
	return nil
}

func (m *Manager) settleWith(ctx context.Context, v metadata.Volume, p patience) (settled, error) {
	ctx = context.WithoutCancel(ctx)
	holders, err := m.holders(v)
	if err != nil {
		return settled{}, err
	}
	if firm := m.firm(holders); len(firm) > 0 {
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
	for _, h := range holders { // suspects all, and the kernel has just shown that they are gone
		if err := m.dropHolder(ctx, h); err != nil {
			return result, err
		}
	}
	return result, nil
}

// users lists the processes of other mount namespaces that have the volume, for messages.
func (m *Manager) users(ctx context.Context, v metadata.Volume) []fs.Process {
	device, err := m.activeDevice(ctx, v)
	if err != nil || device == 0 {
		return nil
	}
	processes, err := fs.MountedElsewhere(device)
	if err != nil {
		return nil
	}
	return processes
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

// firm returns the holders that are not suspect: suspects were taken before Docker last started and are old enough
// to be followed by a Mount if they were still wanted.
func (m *Manager) firm(holders []metadata.Holder) (firm []metadata.Holder) {
	m.epochMu.Lock()
	epoch := m.epoch
	m.epochMu.Unlock()
	for _, h := range holders {
		if h.User || h.Epoch == epoch || time.Since(h.Since) < suspectAge {
			firm = append(firm, h)
		}
	}
	return firm
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
		processes, err := awaitUnused(info.Path, begin.Add(p.namespace))
		if err != nil || len(processes) > 0 {
			return settled{processes: processes}, err
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
	err = retryInUse(deadline, func() error { return pool.Deactivate(ctx, id) })
	if err == nil {
		m.log.Info("volume unmounted", "volume", v.Name)
		return settled{released: true}, nil
	}
	if fault.Is(err, fault.ErrInUse) {
		err = nil
	}
	return settled{reason: "a mount that no process shows"}, errors.Join(err, m.mountBack(ctx, v, pool, mounted))
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

// awaitUnused waits until no other mount namespace shows the device, and returns who still does at the deadline.
func awaitUnused(path string, deadline time.Time) ([]fs.Process, error) {
	number, err := deviceNumber(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var processes []fs.Process
	err = retryInUse(deadline, func() error {
		processes, err = fs.MountedElsewhere(number)
		if err == nil && len(processes) > 0 {
			return fault.ErrInUse
		}
		return err
	})
	if errors.Is(err, fault.ErrInUse) {
		err = nil
	}
	return processes, err
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

// loadEpoch reads the present Docker epoch, and whether a holder was recorded in it.
func (m *Manager) loadEpoch() error {
	return m.store.View(func(tx *metadata.Tx) error {
		m.epoch = tx.Epoch()
		holders, err := tx.Holders("")
		for _, h := range holders {
			m.epochUsed = m.epochUsed || !h.User && h.Epoch == m.epoch
		}
		return err
	})
}

// useEpoch returns the present epoch for a new holder's record.
func (m *Manager) useEpoch() uint64 {
	m.epochMu.Lock()
	defer m.epochMu.Unlock()
	m.epochUsed = true
	return m.epoch
}

// NewEpoch notes that a Docker daemon has started, or that podman ran, which says so each time. It drops nothing:
// it makes the holders taken so far suspect.
func (m *Manager) NewEpoch(ctx context.Context) error {
	m.epochMu.Lock()
	defer m.epochMu.Unlock()
	if !m.epochUsed {
		return nil
	}
	next := m.epoch + 1
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutEpoch(next) }); err != nil {
		return fmt.Errorf("note start of docker: %w", err)
	}
	m.epoch, m.epochUsed = next, false
	return nil
}

// Suspect tells whether a holder may be dropped as soon as the kernel shows that nobody uses the volume.
func (m *Manager) Suspect(h metadata.Holder) bool { return len(m.firm([]metadata.Holder{h})) == 0 }

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
		if result, err := m.settle(ctx, v); err != nil {
			held = append(held, err.Error())
		} else if !result.released {
			held = append(held, fmt.Sprintf("%s (by %s)", v.Name, result.by(v.Name)))
		} else if err := m.host.RemoveMountpoint(m.Mountpoint(v.Name)); err != nil {
			held = append(held, err.Error())
		}
	})
	if err == nil && len(held) > 0 {
		err = fault.Errorf(fault.ErrInUse, "volumes are held: %s", strings.Join(held, "; "))
	}
	return err
}
