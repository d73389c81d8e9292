package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"orlop/blockdev"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A RestoreRequest asks for a backup to become a volume.
type RestoreRequest struct {
	URL     destination.URL
	KeyFile string // as in a Target

	Credentials destination.Credentials // as in a Target

	// Spec completes the specification of the new volume, given the backup. Its result says the name, the pool and
	// what else the volume does not take from the backup; its size may exceed the backup's.
	Spec func(b *repo.Backup) (volume.Spec, error)

	Docker bool // a restore that fails leaves the volume, in state failed, instead of nothing
}

// Restored is the result of a restore.
type Restored struct {
	Volume   string `json:"volume"` // name
	VolumeID string `json:"volume_id"`
	Backup   string `json:"backup"`    // URL
	BackupID string `json:"backup_id"` //
	repo.Restored
	Warnings []string `json:"warnings"`
}

// Restore records a new volume and begins a job that fills it from a backup. Where that volume is just being restored from
// the same backup, the job that does it is returned and joined is true; where such a restore failed, it begins again. It
// fails with fault.ErrExists if there is another volume of the name, and as destination.Open and Find do. A job of a daemon
// that dies is begun again by Resume.
func (m *Manager) Restore(ctx context.Context, q RestoreRequest) (j metadata.Job, joined bool, err error) {
	r, release, err := m.opened(ctx, Target{q.URL.Destination, q.KeyFile, q.Credentials})
	if err != nil {
		return j, false, err
	}
	defer release()
	b, err := r.Find(ctx, q.URL, r.RememberedDamage().Hurts)
	if err != nil {
		return j, false, err
	}
	spec, err := q.Spec(b)
	if err != nil {
		return j, false, err
	}
	origin := metadata.Restore{URL: r.Destination.URL(b).String(), Backup: b.ID(), KeyFile: q.KeyFile, Credentials: q.Credentials.File, Docker: q.Docker}
	if spec.Size > b.Size {
		origin.Size = spec.Size
	}
	spec.Size, spec.Lineage, spec.MkfsParams, spec.Restore = b.Size, b.Lineage, b.MkfsParams, &origin
	v, err := m.volumes.AnnounceRestore(ctx, spec)
	if fault.Is(err, fault.ErrExists) {
		v, err = m.again(ctx, spec, err)
	}
	if err != nil {
		return j, false, fmt.Errorf("restore backup %s: %w", b.ID(), err)
	}
	return m.startRestore(ctx, v, q.Credentials)
}

// again returns the volume that has a restore's name already, if it is being restored from the same backup or its restore
// failed. Otherwise it fails with exists.
func (m *Manager) again(ctx context.Context, spec volume.Spec, exists error) (v metadata.Volume, err error) {
	err = m.store.View(func(tx *metadata.Tx) error { v, err = tx.VolumeNamed(spec.Name); return err })
	switch {
	case err != nil:
		return v, err
	case v.State == metadata.Restoring && v.Restore.Backup == spec.Restore.Backup:
		return v, nil
	case v.State == metadata.Failed && v.Lineage == spec.Lineage && v.Size == spec.Size:
		r := *spec.Restore
		r.Docker = r.Docker || v.Restore.Docker
		return m.volumes.RestoreAgain(ctx, v.ID, r)
	}
	return v, exists
}

// RestoreKey is the key of the job that restores a volume, given by its ID.
func RestoreKey(volume string) string { return KindRestore + "/" + volume }

// startRestore begins the job that fills a volume in state restoring. Credentials that are keys are in no record: a job of a later
// process does with those of that process.
func (m *Manager) startRestore(ctx context.Context, v metadata.Volume, from destination.Credentials) (metadata.Job, bool, error) {
	u, err := destination.ParseURL(v.Restore.URL)
	if err != nil {
		return metadata.Job{}, false, err
	}
	spec := job.Spec{Kind: KindRestore, Key: RestoreKey(v.ID), Volume: v.Name, VolumeID: v.ID, Destination: u.Destination.String()}
	return m.jobs.Start(ctx, spec, func(ctx context.Context, progress func(done, total int64)) (any, error) {
		done, err := m.restore(ctx, v, u, from, progress)
		if err != nil {
			err = fmt.Errorf("restore volume %q: %w", v.Name, err)
			return nil, errors.Join(err, m.giveUp(ctx, v, err))
		}
		return done, nil
	})
}

// restore fills a volume, tries again what may succeed later, and grows the volume to the size that was asked for. While the
// repository is away it waits for as long as it takes, and the volume tells why: dropping it would lose the request.
func (m *Manager) restore(ctx context.Context, v metadata.Volume, u destination.URL, from destination.Credentials, progress func(done, total int64)) (done Restored, err error) {
	done = Restored{Volume: v.Name, VolumeID: v.ID, Backup: v.Restore.URL, BackupID: v.Restore.Backup, Warnings: []string{}}
	for try := 0; ; try++ {
		done.Restored, err = m.fill(ctx, v, Target{u.Destination, v.Restore.KeyFile, from}, u, progress)
		if err == nil || !mayPass(err) || try >= len(m.pauses) && !isAway(err) {
			break
		}
		pause := m.pauses[min(try, len(m.pauses)-1)]
		m.log.Warn("restore will be retried", "volume", v.Name, "in", pause, "error", err)
		if err := m.volumes.NoteRestore(ctx, v.ID, err); err != nil {
			m.log.Warn("cannot note why a restore waits", "volume", v.Name, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return done, context.Cause(ctx)
		}
	}
	if err != nil {
		return done, err
	}
	if err := m.growRestored(context.WithoutCancel(ctx), v); err != nil {
		done.Warnings = append(done.Warnings, err.Error())
	}
	return done, nil
}

// An away is the failure to open a repository that was there when the restore was asked for.
type away struct{ error }

func (a away) Unwrap() error { return a.error }

func isAway(err error) bool { return errors.As(err, new(away)) }

// mayPass reports whether a failure may pass by itself: a destination that is away for a while, or is mounted later than the
// daemon starts.
func mayPass(err error) bool {
	if isAway(err) && fault.Is(err, fault.ErrNotFound) {
		return true
	}
	switch fault.KindOf(err) {
	case fault.ErrFailed, fault.ErrUnreachable:
		return !errors.Is(err, context.Canceled)
	}
	return false
}

// fill tries once to fill a volume.
func (m *Manager) fill(ctx context.Context, v metadata.Volume, to Target, u destination.URL, progress func(done, total int64)) (stats repo.Restored, err error) {
	r, release, err := m.opened(ctx, to)
	if err != nil {
		return stats, away{err}
	}
	defer release()
	b, err := r.Find(ctx, u, nil)
	if err != nil {
		return stats, err
	}
	near, err := m.nearest(ctx, r, v, b)
	if err != nil {
		return stats, err
	}
	defer near.unpin()
	contents, err := m.contents(v, r, b, near, progress, &stats)
	if err != nil {
		return stats, err
	}
	contents.Keep = func(ctx context.Context, v metadata.Volume) (func(*metadata.Tx) error, error) {
		return m.snapshots.KeepRestored(ctx, v, r.ID().String(), b.ID())
	}
	_, err = m.volumes.Fill(ctx, v.ID, contents)
	return stats, err
}

// contents returns what fills a device with a backup's content, beginning with a copy of the nearest snapshot. Every chunk of
// that copy is checked: whoever restores may have lost data to a bad disk, and the snapshot shares its blocks.
func (m *Manager) contents(v metadata.Volume, r *destination.Repository, b *repo.Backup, near base, progress func(done, total int64), stats *repo.Restored) (c volume.Contents, err error) {
	c.Write = func(ctx context.Context, device *os.File, resumed bool) (err error) {
		blank := !resumed && near.backup == nil
		o := repo.Restore{Backup: b, Target: sparse{repo.FileTarget{File: device}, blank}, Progress: progress}
		if !blank {
			o.Found = device
		}
		*stats, err = r.Restore(ctx, o)
		return err
	}
	if near.backup == nil {
		return c, nil
	}
	pool, err := m.volumes.Pool(v)
	c.Clone = func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
		return pool.Clone(ctx, dst, blockdev.ID(near.snapshot.Device), record)
	}
	return c, err
}

// nearest finds the snapshot in a volume's pool whose content is most like that of a backup: of all whose backups are of its
// lineage, the one nearest in the order of backups. It pins it. One that is larger than the backup does not serve, as
// devices never shrink.
func (m *Manager) nearest(ctx context.Context, r *destination.Repository, v metadata.Volume, b *repo.Backup) (found base, err error) {
	snapshots, err := m.snapshotsOf("")
	if err != nil {
		return found, err
	}
	backups, err := r.BackupsOf(ctx, b.Lineage)
	if err != nil {
		return found, err
	}
	distance := func(other *repo.Backup) uint64 {
		return max(b.Sequence, other.Sequence) - min(b.Sequence, other.Sequence)
	}
	for _, other := range backups {
		if other.ChunkSize != b.ChunkSize || other.Size > b.Size || found.backup != nil && distance(other) > distance(found.backup) {
			continue
		}
		for _, s := range snapshots {
			if s.Volume.PoolUUID == v.PoolUUID && s.Volume.Lineage == b.Lineage && s.Size <= b.Size && holds(s, other) && m.usable(ctx, s) {
				found.backup, found.snapshot = other, s
			}
		}
	}
	if found.backup == nil {
		return found, nil
	}
	if _, found.release, err = m.volumes.Pin(found.snapshot.ID, "a restore of volume "+strconv.Quote(v.Name)); err != nil {
		return base{}, nil // it is just being deleted
	}
	return found, nil
}

// growRestored grows a volume that was restored to the size that was asked for.
func (m *Manager) growRestored(ctx context.Context, v metadata.Volume) error {
	if v.Restore.Size <= v.Size {
		return nil
	}
	_, err := m.volumes.Resize(ctx, v.ID, v.Restore.Size)
	return err
}

// giveUp decides what becomes of a volume whose restore ended without success: nothing of one that a person asked for, and
// for Docker one in state failed, lest it creates an empty one of the name. A restore that the end of the daemon interrupts is
// resumed, and stays as it is.
func (m *Manager) giveUp(ctx context.Context, v metadata.Volume, why error) error {
	if job.Interrupted(ctx) {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if v.Restore.Docker {
		return m.volumes.FailRestore(ctx, v.ID, why)
	}
	err := m.volumes.DropRestore(ctx, v.ID)
	if fault.Is(err, fault.ErrNotFound) {
		return nil // deleted meanwhile
	}
	return err
}
