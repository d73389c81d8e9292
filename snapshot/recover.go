package snapshot

import (
	"context"
	"fmt"
	"time"

	"orlop/metadata"
)

// tidyEvery is how often what could not be finished is tried again.
const tidyEvery = time.Minute

// Recover brings what a crash left to a state in which requests may be answered: snapshots that were being taken are
// undone, what a rollback replaced is kept, and copies for rollbacks that did not happen are removed. What cannot be
// recovered now, its pool missing say, is logged and left as it is. It comes after volume.Manager.Recover.
func (m *Manager) Recover(ctx context.Context) error { return m.settle(ctx, false) }

// Run finishes in the background, at once and each minute until ctx is done, what no request waits for: deletions that
// were cut short, the removal of replaced devices, and what failed before.
func (m *Manager) Run(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
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
	if err := m.settle(ctx, true); err != nil {
		m.log.Error("tidying of snapshots failed", "error", err)
	}
}

// settle finishes or undoes what no operation of this process works on. What only frees space can wait until requests
// are answered, and is left out unless all is set.
func (m *Manager) settle(ctx context.Context, all bool) error {
	var snapshots []metadata.Snapshot
	var devices []metadata.Device
	pools := map[string]metadata.Pool{}
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		if snapshots, err = tx.Snapshots(""); err != nil {
			return err
		}
		if devices, err = tx.Devices(); err != nil {
			return err
		}
		known, err := tx.Pools()
		for _, pool := range known {
			pools[pool.Name] = pool
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read snapshots: %w", err)
	}
	for _, s := range snapshots {
		if ctx.Err() == nil && !m.isBusy(s.Device) {
			m.settleSnapshot(ctx, s.ID, all)
		}
	}
	for _, d := range devices {
		if ctx.Err() == nil && m.isAbandoned(d) && (all || d.Kind != metadata.KindTrash) {
			m.settleDevice(ctx, d, pools[d.Pool].UUID)
		}
	}
	return nil
}

// isAbandoned tells whether a device belongs to nobody: it was made for a rollback that did not happen, or a rollback
// has replaced it.
func (m *Manager) isAbandoned(d metadata.Device) bool {
	return (d.Kind == metadata.KindIncoming || d.Kind == metadata.KindTrash) && !m.isBusy(d.ID)
}

// Abandoned returns the devices that Tidy is to remove and that no operation works on: once it has run, those that it
// could not remove.
func (m *Manager) Abandoned() (devices []metadata.Device, err error) {
	var all []metadata.Device
	err = m.store.View(func(tx *metadata.Tx) error {
		all, err = tx.Devices()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	for _, d := range all {
		if m.isAbandoned(d) && m.remains(d) { // in this order: an operation may have just ended
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// remains tells whether a device's record is still there and of the same kind.
func (m *Manager) remains(d metadata.Device) bool {
	var now metadata.Device
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		now, err = tx.Device(d.ID)
		return err
	})
	return err == nil && now.Kind == d.Kind
}

// settleDevice removes a device that belongs to nobody. It reads the record again: the operation that worked on the
// device until just now may have made it a volume's.
func (m *Manager) settleDevice(ctx context.Context, d metadata.Device, poolUUID string) {
	if !m.remains(d) {
		return
	}
	pool, err := m.volumes.Pool(metadata.Volume{Name: "of device " + d.ID, Pool: d.Pool, PoolUUID: poolUUID})
	if err == nil {
		err = m.dispose(ctx, pool, d.ID)
	}
	if err != nil {
		m.log.Error("device not removed", "device", d.ID, "kind", d.Kind, "error", err)
	}
}

// settleSnapshot finishes or undoes one snapshot. It reads the record again: an operation may have just finished.
func (m *Manager) settleSnapshot(ctx context.Context, id string, all bool) {
	var s metadata.Snapshot
	var v metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		if s, err = tx.Snapshot(id); err == nil {
			v, err = tx.Volume(s.Volume.ID)
		}
		return err
	})
	if err != nil || v.State == metadata.Removing {
		return // gone, or goes with its volume
	}
	switch {
	case s.State == metadata.Creating:
		if err = m.erase(ctx, s); err == nil {
			m.log.Warn("snapshot undone that was cut short", "volume", s.Volume.Name, "snapshot", s.Name)
		}
	case s.State == metadata.Keeping:
		pool, poolErr := m.volumes.Pool(s.Volume)
		if err = poolErr; err == nil {
			err = m.keep(ctx, pool, s)
		}
	case s.State == metadata.Removing && all:
		err = m.erase(ctx, s)
	}
	if err != nil {
		m.log.Error("snapshot not settled", "volume", s.Volume.Name, "snapshot", s.Name, "state", s.State, "error", err)
	}
}
