package backup

import (
	"context"
	"fmt"

	"orlop/blockdev"
	"orlop/internal/backup/destination"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// RestoreInPlace begins a job that gives a volume, by its ID, the content of a backup. What the volume holds now becomes a
// snapshot of it, unless discard is set. The volume must not be in use when the job begins and when it ends; a job that fails
// or is interrupted leaves it as it was. The volume keeps its ID, name, size if that is larger, labels and settings.
func (m *Manager) RestoreInPlace(ctx context.Context, u destination.URL, to Target, id string, discard bool) (j metadata.Job, joined bool, err error) {
	v, err := m.volume(id)
	if err != nil {
		return j, false, err
	}
	if v.State != metadata.Ready {
		return j, false, volume.NotReady(v)
	}
	r, release, err := m.opened(ctx, to)
	if err != nil {
		return j, false, err
	}
	defer release()
	b, err := r.Find(ctx, u, r.RememberedDamage().Hurts)
	if err != nil {
		return j, false, err
	}
	spec := job.Spec{Kind: KindRestore, Key: RestoreKey(v.ID), Volume: v.Name, VolumeID: v.ID, Destination: u.Destination.String()}
	return m.jobs.Start(ctx, spec, func(ctx context.Context, progress func(done, total int64)) (any, error) {
		done, err := m.replace(ctx, v, to, r.Destination.URL(b), discard, progress)
		if err != nil {
			return nil, fmt.Errorf("restore volume %q in place: %w", v.Name, err)
		}
		return done, nil
	})
}

func (m *Manager) replace(ctx context.Context, v metadata.Volume, to Target, u destination.URL, discard bool, progress func(done, total int64)) (done Restored, err error) {
	done = Restored{Volume: v.Name, VolumeID: v.ID, Backup: u.String(), BackupID: u.Backup, Warnings: []string{}}
	r, release, err := m.opened(ctx, to)
	if err != nil {
		return done, err
	}
	defer release()
	b, err := r.Find(ctx, u, nil)
	if err != nil {
		return done, err
	}
	near, err := m.nearest(ctx, r, v, b)
	if err != nil {
		return done, err
	}
	defer near.unpin()
	contents, err := m.contents(v, r, b, near, progress, &done.Restored)
	if err != nil {
		return done, err
	}
	pool, err := m.volumes.Pool(v)
	if err != nil {
		return done, err
	}
	next, old, err := m.snapshots.Replace(ctx, snapshot.Replacement{
		Volume: v.ID, Size: b.Size,
		Fill: func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
			return volume.FillDevice(ctx, volume.Device{Pool: pool, PoolName: v.Pool, ID: dst, Size: b.Size, Record: record}, contents)
		},
		Change: func(v *metadata.Volume) {
			v.Filesystem, v.MkfsParams, v.BlockSize = b.Filesystem, b.MkfsParams, b.BlockSize
			v.Restore = &metadata.Restore{URL: u.String(), Backup: b.ID()}
		},
	}, discard)
	if err != nil {
		return done, err
	}
	m.log.Info("volume restored in place", "volume", next.Name, "backup", b.ID(), "replaced", old.Name)
	return done, nil
}
