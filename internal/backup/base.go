package backup

import (
	"context"
	"errors"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
	"orlop/metadata"
)

// A base is a snapshot of this host whose content a backup in the repository has, so that only what differs from it must be
// read. The zero base is none.
type base struct {
	backup   *repo.Backup
	snapshot metadata.Snapshot
	same     bool // the snapshot is the one to be backed up: there is nothing to do
	release  func()
}

func (b base) record() string {
	if b.backup == nil {
		return ""
	}
	return b.backup.Record
}

func (b base) unpin() {
	if b.release != nil {
		b.release()
	}
}

// base finds the newest backup whose snapshot this host still has, and pins that. Backups and snapshots are matched by
// their IDs, and by those of their volume: a name says nothing. They are those of a head that was the newest lately: each request
// to a repository costs.
func (m *Manager) base(ctx context.Context, r *destination.Repository, s metadata.Snapshot, head *repo.Head, damage repo.Damage) (found base, err error) {
	snapshots, err := m.snapshotsOf(s.Volume.ID)
	if err != nil {
		return found, err
	}
	for _, b := range head.Backups() { // by their sequence: the last match is the newest
		if damage.Hurts(b) {
			continue
		}
		for _, candidate := range snapshots {
			if !holds(candidate, b) || candidate.Volume.PoolUUID != s.Volume.PoolUUID || !m.usable(ctx, candidate) {
				continue
			}
			found.backup, found.snapshot = b, candidate
			if candidate.ID == s.ID && candidate.Backup == "" {
				found.same = true
				return found, nil
			}
		}
	}
	if found.backup == nil {
		return found, nil
	}
	if _, found.release, err = m.volumes.Pin(found.snapshot.ID, "a backup to "+r.Destination.String()); err != nil {
		if fault.Is(err, fault.ErrInUse) || fault.Is(err, fault.ErrNotFound) { // it is just being deleted
			return base{}, nil
		}
		return base{}, err
	}
	return found, nil
}

// usable reports whether a snapshot can be read. One that is damaged is as good as none: more is read, or fetched, without it.
func (m *Manager) usable(ctx context.Context, s metadata.Snapshot) bool {
	if s.State != metadata.Ready {
		return false
	}
	err := m.snapshots.CheckDevice(ctx, s)
	if err != nil {
		m.log.Warn("snapshot is of no use", "volume", s.Volume.Name, "snapshot", s.Name, "error", err)
	}
	return err == nil
}

// holds reports whether a snapshot's content is that of a backup: the backup was made of it, or the volume was restored
// from the backup just before.
func holds(s metadata.Snapshot, b *repo.Backup) bool {
	return s.Backup == b.ID() || s.ID == b.Snapshot.ID && s.Volume.ID == b.Volume.ID
}

func (m *Manager) snapshotsOf(volume string) (snapshots []metadata.Snapshot, err error) {
	err = m.store.View(func(tx *metadata.Tx) error { snapshots, err = tx.Snapshots(volume); return err })
	return snapshots, err
}

// managed returns the snapshots of a volume that were taken for a repository and are ready.
func (m *Manager) managed(r *destination.Repository, volume string) ([]metadata.Snapshot, error) {
	snapshots, err := m.snapshotsOf(volume)
	var managed []metadata.Snapshot
	for _, s := range snapshots {
		if s.Managed && s.Repository == r.ID().String() && s.State == metadata.Ready {
			managed = append(managed, s)
		}
	}
	return managed, err
}

// dropUnknown deletes the snapshots that were taken for backups which were never committed, by the newest head.
func (m *Manager) dropUnknown(ctx context.Context, r *destination.Repository, v metadata.Volume, head *repo.Head) error {
	managed, err := m.managed(r, v.ID)
	if err != nil {
		return err
	}
	for _, s := range managed {
		known := false
		for _, b := range head.Backups() {
			known = known || holds(s, b)
		}
		if known {
			continue
		}
		if err := m.dropSnapshot(ctx, s); err != nil && !fault.Is(err, fault.ErrInUse) {
			return err
		}
	}
	return nil
}

// dropOlder deletes the snapshots that were taken for earlier backups of a volume to a repository.
func (m *Manager) dropOlder(ctx context.Context, r *destination.Repository, newest metadata.Snapshot) error {
	managed, err := m.managed(r, newest.Volume.ID)
	failed := []error{err}
	for _, s := range managed {
		if s.ID != newest.ID {
			failed = append(failed, m.dropSnapshot(ctx, s))
		}
	}
	return errors.Join(failed...)
}

// dropSnapshot deletes a snapshot; one that is gone is no error.
func (m *Manager) dropSnapshot(ctx context.Context, s metadata.Snapshot) error {
	err := m.snapshots.Delete(ctx, s.ID)
	if fault.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}
