package backup

import (
	"context"
	"fmt"

	"orlop/internal/backup/destination"
	"orlop/internal/job"
	"orlop/metadata"
)

// Resume begins the restores again that an earlier daemon did not finish, and the growth of what was restored. It comes after
// the recovery of volumes, snapshots and jobs.
func (m *Manager) Resume(ctx context.Context) error {
	var volumes []metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) { volumes, err = tx.Volumes(); return err })
	if err != nil {
		return err
	}
	for _, v := range volumes {
		switch {
		case v.State == metadata.Restoring:
			_, _, err = m.startRestore(ctx, v, destination.Credentials{File: v.Restore.Credentials})
		case v.State == metadata.Ready && v.Restore != nil && v.Restore.Size > v.Size:
			_, _, err = m.startGrowth(ctx, v)
		default:
			continue
		}
		if err != nil {
			m.log.Error("cannot resume restore", "volume", v.Name, "error", err)
		}
	}
	return nil
}

// startGrowth begins the job that gives a restored volume the size that was asked for.
func (m *Manager) startGrowth(ctx context.Context, v metadata.Volume) (metadata.Job, bool, error) {
	spec := job.Spec{Kind: KindRestore, Key: RestoreKey(v.ID), Volume: v.Name, VolumeID: v.ID}
	return m.jobs.Start(ctx, spec, func(ctx context.Context, _ func(done, total int64)) (any, error) {
		if err := m.growRestored(ctx, v); err != nil {
			return nil, fmt.Errorf("grow restored volume %q: %w", v.Name, err)
		}
		return Restored{Volume: v.Name, VolumeID: v.ID, Backup: v.Restore.URL, BackupID: v.Restore.Backup, Warnings: []string{}}, nil
	})
}

// CancelRestore ends the job that restores a volume, given by its ID, and waits for its end. Without one it does nothing.
func (m *Manager) CancelRestore(ctx context.Context, volume string) error {
	j, ok := m.jobs.Running(RestoreKey(volume))
	if !ok {
		return nil
	}
	_, err := m.jobs.Cancel(ctx, j.ID)
	return err
}
