package snapshot

import (
	"context"
	"time"

	"orlop/blockdev"
	"orlop/internal/undo"
	"orlop/metadata"
)

// KeepRestored takes a managed snapshot of a volume that was just filled from a backup and is not ready yet, so that the
// next backup of the volume reads only what changed since. The caller holds the volume's lock, and nothing writes its device.
// The snapshot is ready once the transaction that the caller commits has run what KeepRestored returns; without that, it
// is undone by recovery.
func (m *Manager) KeepRestored(ctx context.Context, v metadata.Volume, repository, backup string) (ready func(*metadata.Tx) error, err error) {
	pool, err := m.volumes.Pool(v)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	s := metadata.Snapshot{
		ID: string(blockdev.NewID()), Name: "restored-" + stamp(now), Device: string(blockdev.NewID()), Size: v.Size,
		Managed: true, Repository: repository, Backup: backup, Consistency: metadata.Unmounted, State: metadata.Creating,
		Created: now, Volume: v,
	}
	s.Volume.State = metadata.Ready
	done := m.work(s.Device)
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("note work", func(context.Context) error { done(); return nil })
	device := metadata.Device{ID: s.Device, Pool: v.Pool, Parent: v.Device, Kind: metadata.KindSnapshot, Size: s.Size}
	err = m.store.Update(ctx, func(tx *metadata.Tx) error {
		if s.Name, err = unusedName(tx, v.ID, s.Name); err != nil {
			return err
		}
		if err := tx.PutSnapshot(s); err != nil {
			return err
		}
		return tx.PutDevice(device)
	})
	if err != nil {
		return nil, err
	}
	u.Push("create snapshot", func(ctx context.Context) error { return m.erase(ctx, s) })
	record, err := m.volumes.DescribeSnapshot(s)
	if err != nil {
		return nil, err
	}
	if err := cloneSealed(ctx, pool, blockdev.ID(s.Device), blockdev.ID(v.Device), record); err != nil {
		return nil, err
	}
	if err := pool.Sync(ctx, blockdev.ID(s.Device)); err != nil {
		return nil, err
	}
	sealed, err := m.seal(ctx, pool, s)
	if err != nil {
		return nil, err
	}
	return func(tx *metadata.Tx) error {
		done()
		return putReady(tx, sealed)
	}, nil
}
