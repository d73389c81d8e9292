// Package snapshot takes point-in-time copies of volumes, and makes volumes of them: snapshots, clones, rollbacks and
// changed extents. It stands on the one copying primitive of a pool, blockdev.Pool.Clone, and on
// volume.Manager.Quiesce, which makes the copied filesystem whole.
//
// As everywhere, what is about to be done is recorded first: a daemon killed on any line finds in the metadata what to
// undo or to finish. Snapshots and volumes are named by their IDs here.
package snapshot

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A RunHook runs a command that a user has set for a volume's snapshots, with additional environment variables.
type RunHook func(ctx context.Context, argv, env []string) error

// Config is what a Manager needs.
type Config struct {
	Store   Store
	Volumes *volume.Manager
	RunHook RunHook // nil: the daemon's owner does not allow hooks
	Log     *slog.Logger
}

// A Store is what a Manager needs of a metadata.Store.
type Store interface {
	View(fn func(*metadata.Tx) error) error
	Update(ctx context.Context, fn func(*metadata.Tx) error) error
}

// A Manager operates on snapshots. It is safe for concurrent use.
type Manager struct {
	store   Store
	volumes *volume.Manager
	hook    RunHook
	log     *slog.Logger

	mu   sync.Mutex
	busy map[string]bool // IDs of the devices that an operation of this process works on
}

// New returns a Manager on c. Recover must have succeeded before anything else is called.
func New(c Config) *Manager {
	return &Manager{store: c.Store, volumes: c.Volumes, hook: c.RunHook, log: c.Log, busy: map[string]bool{}}
}

// HooksAllowed tells whether the daemon's owner allows commands to be run before and after snapshots.
func (m *Manager) HooksAllowed() bool { return m.hook != nil }

// work keeps Tidy from a device until done is called.
func (m *Manager) work(device string) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy[device] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.busy, device)
	}
}

func (m *Manager) isBusy(device string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.busy[device]
}

// ready reads a volume's record and fails with fault.ErrInUse unless it is ready.
func (m *Manager) ready(id string) (v metadata.Volume, err error) {
	err = m.store.View(func(tx *metadata.Tx) error {
		v, err = tx.Volume(id)
		return err
	})
	if err == nil && v.State != metadata.Ready {
		err = volume.NotReady(v)
	}
	return v, err
}

// statVolume returns what the pool knows of a volume's device, and fails with fault.ErrCorrupt if that was truncated: a
// copy would hide it.
func (m *Manager) statVolume(ctx context.Context, pool blockdev.Pool, v metadata.Volume) (blockdev.Info, error) {
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err == nil && info.Size < v.Size {
		err = m.volumes.Truncated(v, info.Size)
	}
	if err != nil {
		err = fmt.Errorf("volume %q: %w", v.Name, err)
	}
	return info, err
}

// CheckDevice fails with fault.ErrCorrupt if a snapshot's device is smaller than it was, and with fault.ErrNotFound if it is
// gone.
func (m *Manager) CheckDevice(ctx context.Context, s metadata.Snapshot) error {
	pool, err := m.volumes.Pool(s.Volume)
	if err != nil {
		return err
	}
	return refuseTruncated(ctx, pool, s)
}

// refuseTruncated fails with fault.ErrCorrupt if a snapshot's device is smaller than it was, with fault.ErrNotFound if it
// is gone.
func refuseTruncated(ctx context.Context, pool blockdev.Pool, s metadata.Snapshot) error {
	info, err := pool.Stat(ctx, blockdev.ID(s.Device))
	if err == nil && info.Size < s.Size {
		err = fault.Errorf(fault.ErrCorrupt, "device %s has %d bytes and had %d: it was truncated", s.Device, info.Size, s.Size)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", title(s), err)
	}
	return nil
}

// title names a snapshot for people.
func title(s metadata.Snapshot) string { return s.Volume.Name + "@" + s.Name }

// stamp is the present time as part of a name, in UTC.
func stamp(now time.Time) string { return now.UTC().Format("20060102T150405Z") }

// unusedName returns base, or base with a number that makes it new among a volume's snapshots.
func unusedName(tx *metadata.Tx, volume, base string) (string, error) {
	name := base
	for n := 2; ; n++ {
		_, err := tx.SnapshotNamed(volume, name)
		if fault.Is(err, fault.ErrNotFound) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

// Delete deletes a snapshot. It fails with fault.ErrInUse if something reads it or it is just being taken. After a
// crash the deletion is finished in the background.
func (m *Manager) Delete(ctx context.Context, id string) error {
	var s metadata.Snapshot
	err := m.volumes.UpdateUnpinned(ctx, func(tx *metadata.Tx, pinned func(string) string) (err error) {
		if s, err = tx.Snapshot(id); err != nil {
			return err
		}
		switch why := pinned(id); {
		case why != "":
			return fault.Errorf(fault.ErrInUse, "snapshot %s: in use by %s", title(s), why)
		case s.State == metadata.Creating, s.State == metadata.Keeping && m.isBusy(s.Device):
			return fault.Errorf(fault.ErrInUse, "snapshot %s: is being taken", title(s))
		case s.State == metadata.Removing:
			return nil
		}
		s.State = metadata.Removing
		return tx.PutSnapshot(s)
	})
	if err != nil {
		return err
	}
	if err := m.erase(ctx, s); err != nil {
		return fmt.Errorf("delete snapshot %s (it will be tried again): %w", title(s), err)
	}
	m.log.Info("snapshot deleted", "volume", s.Volume.Name, "snapshot", s.Name, "id", s.ID)
	return nil
}

// erase removes a snapshot's device and then its record. It may be repeated.
func (m *Manager) erase(ctx context.Context, s metadata.Snapshot) error {
	pool, err := m.volumes.Pool(s.Volume)
	if err != nil {
		return err
	}
	if err := volume.RemoveDevice(ctx, pool, s.Device); err != nil {
		return err
	}
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := tx.DeleteDevice(s.Device); err != nil {
			return err
		}
		return tx.DeleteSnapshot(s.ID)
	})
}

// Diff calls fn, by rising offset, for each extent in which the snapshot to differs from the snapshot from, with its
// kind in to; without from, for each that has data. Extents may cover equal bytes but omit none that differ. It fails
// with fault.ErrInvalid if the two do not come from one volume, and with fault.ErrUnsupported if the pool cannot tell.
// Both stay until it returns.
func (m *Manager) Diff(ctx context.Context, from, to string, fn func(blockdev.Extent) error) error {
	newer, unpin, err := m.volumes.Pin(to, "a comparison")
	if err != nil {
		return err
	}
	defer unpin()
	compared := []metadata.Snapshot{newer}
	var base blockdev.ID
	if from != "" {
		older, unpin, err := m.volumes.Pin(from, "a comparison")
		if err != nil {
			return err
		}
		defer unpin()
		if older.Volume.Lineage != newer.Volume.Lineage || older.Volume.PoolUUID != newer.Volume.PoolUUID {
			return fault.Errorf(fault.ErrInvalid, "snapshots %s and %s: are not of one volume or its copies in one pool", title(older), title(newer))
		}
		base = blockdev.ID(older.Device)
		compared = append(compared, older)
	}
	pool, err := m.volumes.Pool(newer.Volume)
	if err != nil {
		return err
	}
	differ, can := pool.Differ()
	if !can {
		return fault.Errorf(fault.ErrUnsupported, "pool %q: cannot tell what differs between snapshots", newer.Volume.Pool)
	}
	for _, s := range compared {
		if err := refuseTruncated(ctx, pool, s); err != nil {
			return err
		}
	}
	return differ.Diff(ctx, base, blockdev.ID(newer.Device), fn)
}
