package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// orphanWait is how long the start waits for commands of a daemon that was killed: a mkfs or resize2fs of its goes on
// and has the device.
const orphanWait = 5 * time.Second

// settleEvery is how often volumes without holders that were kept are looked at again.
const settleEvery = time.Minute

// Recover brings what a crash left to a state in which requests may be answered: announced freezes of this boot
// and mounts aside end, copies that filesystems were grown on and holders of another boot go, creations are undone, the
// devices of volumes that are not wholly restored are deactivated, and what is held is mounted. A volume that cannot be recovered now, its pool
// missing say, is logged and left as it is. It may be repeated, and must be done before requests are taken.
func (m *Manager) Recover(ctx context.Context) error {
	if err := m.thaw(ctx); err != nil {
		return err
	}
	m.sweepScratch()
	if err := m.undoGrowths(ctx); err != nil {
		return err
	}
	if err := m.dropEnded(ctx); err != nil {
		return err
	}
	deadline := time.Now().Add(orphanWait)
	err := m.eachIn(metadata.Creating, func(v metadata.Volume) { m.undoAbandoned(ctx, v, deadline) })
	if err != nil {
		return err
	}
	for _, state := range []metadata.State{metadata.Restoring, metadata.Failed} {
		if err := m.eachIn(state, func(v metadata.Volume) { m.deactivateAbandoned(ctx, v, deadline) }); err != nil {
			return err
		}
	}
	return m.eachIn(metadata.Ready, func(v metadata.Volume) {
		if err := m.remount(ctx, v, deadline); err != nil {
			m.log.Error("volume not mounted again", "volume", v.Name, "error", err)
		}
	})
}

// undoAbandoned undoes a creation that was cut short. It tries until deadline while something has the device.
func (m *Manager) undoAbandoned(ctx context.Context, v metadata.Volume, deadline time.Time) {
	if err := retryInUse(deadline, func() error { return m.undoCreate(ctx, v) }); err != nil {
		m.log.Error("creation not undone", "volume", v.Name, "error", err)
		return
	}
	m.log.Warn("creation undone that was cut short", "volume", v.Name, "id", v.ID)
}

// deactivateAbandoned deactivates the device of a volume that a killed daemon was restoring. The restore activates it again
// when it is resumed, which may be much later, or never. It tries until deadline while something has the device.
func (m *Manager) deactivateAbandoned(ctx context.Context, v metadata.Volume, deadline time.Time) {
	pool, err := m.Pool(v)
	if err == nil {
		err = retryInUse(deadline, func() error { return pool.Deactivate(ctx, blockdev.ID(v.Device)) })
	}
	if err != nil && !fault.Is(err, fault.ErrNotFound) {
		m.log.Error("device of a volume that is being restored not deactivated", "volume", v.Name, "error", err)
	}
}

// remount mounts a volume that somebody holds, if it is not mounted or not all done: a growth for which it was
// unmounted was cut short. It tries until deadline while something has the device.
func (m *Manager) remount(ctx context.Context, v metadata.Volume, deadline time.Time) error {
	holders, err := m.holders(v)
	if err != nil || len(holders) == 0 {
		return err
	}
	return retryInUse(deadline, func() error {
		err := m.mount(ctx, v)
		if errors.Is(err, unix.EBUSY) {
			err = fault.Errorf(fault.ErrInUse, "%w", err)
		}
		return err
	})
}

// thaw ends the freezes that were announced and not withdrawn. Another boot's ended with it.
func (m *Manager) thaw(ctx context.Context) error {
	var intents []metadata.Intent
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		intents, err = tx.Intents()
		return err
	})
	if err != nil {
		return err
	}
	for _, intent := range intents {
		if intent.Boot == m.boot {
			if err := m.thawDevice(intent.Device); err != nil {
				return err
			}
		}
		err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.DeleteIntent(intent.Volume) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) thawDevice(device uint64) error {
	for _, dir := range []string{m.mounts, m.scratch} {
		table, err := fs.Table(dir)
		if err != nil {
			return err
		}
		for _, entry := range table {
			if entry.Device == device {
				return m.host.Thaw(entry.Mountpoint)
			}
		}
	}
	return nil
}

// sweepScratch unmounts what a killed daemon had mounted aside. What it cannot unmount is left to doctor.
func (m *Manager) sweepScratch() {
	entries, err := os.ReadDir(m.scratch)
	if err != nil {
		m.log.Error("directory of short-lived mounts not read", "error", err)
		return
	}
	for _, entry := range entries {
		dir := filepath.Join(m.scratch, entry.Name())
		err := m.unmount(dir)
		if err == nil {
			err = m.host.RemoveMountpoint(dir)
		}
		if err != nil {
			m.log.Warn("mount of an earlier life not ended", "mountpoint", dir, "error", err)
		}
	}
}

// dropEnded drops the holders that another boot ended.
func (m *Manager) dropEnded(ctx context.Context) error {
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		holders, err := tx.Holders("")
		if err != nil {
			return err
		}
		for _, h := range holders {
			if h.Boot == m.boot {
				continue
			}
			if err := tx.DeleteHolder(h.Volume, h.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachIn calls fn for each volume in a state.
func (m *Manager) eachIn(state metadata.State, fn func(metadata.Volume)) error {
	var volumes []metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		volumes, err = tx.Volumes()
		return err
	})
	for _, v := range volumes {
		if v.State == state {
			fn(v)
		}
	}
	return err
}

// Run does the work that no request waits for, until ctx is done: it finishes deletions that were cut short and
// settles volumes without holders, at once and each minute, and soon after an Unmount that did not wait for it.
func (m *Manager) Run(ctx context.Context) {
	var soon sync.WaitGroup
	defer soon.Wait()
	soon.Go(func() { m.settleQueued(ctx) })
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		m.Tidy(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Tidy does once what Run does each minute.
func (m *Manager) Tidy(ctx context.Context) {
	err := m.eachIn(metadata.Removing, func(v metadata.Volume) {
		if ctx.Err() != nil {
			return
		}
		if err := m.Delete(ctx, v.ID, false); err != nil {
			m.log.Error("deletion not finished", "volume", v.Name, "error", err)
		}
	})
	if err == nil {
		err = m.eachIn(metadata.Creating, func(v metadata.Volume) { m.undoUnattended(ctx, v) })
	}
	if err == nil {
		err = m.eachIn(metadata.Ready, func(v metadata.Volume) {
			if ctx.Err() == nil && m.unsettled(ctx, v) {
				m.settleAgain(ctx, v)
			}
		})
	}
	if err != nil {
		m.log.Error("tidying failed", "error", err)
	}
}

// undoUnattended undoes a creation that no request works on: one that could not be undone when it failed or at the
// start.
func (m *Manager) undoUnattended(ctx context.Context, v metadata.Volume) {
	ctx, cancel := context.WithTimeout(ctx, probeWait) // whoever works on it has the lock
	defer cancel()
	v, release, err := m.acquire(ctx, v.ID)
	if err != nil {
		return
	}
	defer release()
	if v.State == metadata.Creating {
		m.undoAbandoned(context.WithoutCancel(ctx), v, time.Now())
	}
}

// unsettled reports whether a volume is active though it has no holder. It takes no lock: settleAgain looks
// again under the volume's.
func (m *Manager) unsettled(ctx context.Context, v metadata.Volume) bool {
	pool, err := m.Pool(v)
	if err != nil {
		return false
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil || info.Path == "" {
		return false
	}
	holders, err := m.holders(v)
	return err == nil && len(holders) == 0
}

func (m *Manager) settleAgain(ctx context.Context, v metadata.Volume) {
	v, release, err := m.acquireReady(ctx, v.ID)
	if err != nil {
		return // deleted meanwhile
	}
	defer release()
	if _, err := m.settleWith(ctx, v, toTidy, hasty); err != nil {
		m.log.Error("volume not settled", "volume", v.Name, "error", err)
	}
}
