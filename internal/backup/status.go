package backup

import (
	"context"
	"errors"
	"time"

	"orlop/internal/backup/destination"
	"orlop/metadata"
)

// status returns what this host knows of a volume's backups at a destination.
func (m *Manager) status(volume string, to Target) (known metadata.BackupStatus) {
	err := m.store.View(func(tx *metadata.Tx) error {
		all, err := tx.Backups(volume)
		for _, s := range all {
			if s.Destination == to.Destination.String() {
				known = s
			}
		}
		return err
	})
	if err != nil {
		m.log.Error("cannot read status of backups", "volume", volume, "error", err)
	}
	return known
}

// recordSuccess notes a backup that was committed. That it cannot be noted fails no backup.
func (m *Manager) recordSuccess(ctx context.Context, v metadata.Volume, to Target, r *destination.Repository, made Made, took time.Duration) {
	m.note(ctx, v, to, func(s *metadata.BackupStatus) {
		s.Repository, s.URL, s.Finished, s.Error = r.ID().String(), made.URL, m.now().UTC(), ""
		s.Created, _ = time.Parse(time.RFC3339Nano, made.Created)
		s.Duration, s.Read, s.Stored = took, made.Read, made.Stored
		if made.Existed {
			s.Stored = 0
		}
	})
}

// recordFailure notes an attempt that failed, unless somebody ended it.
func (m *Manager) recordFailure(ctx context.Context, v metadata.Volume, to Target, failed error) {
	if ctx.Err() != nil || errors.Is(failed, context.Canceled) {
		return
	}
	m.note(ctx, v, to, func(s *metadata.BackupStatus) {
		s.Failures++
		s.Failed, s.Error = m.now().UTC(), failed.Error()
	})
}

func (m *Manager) note(ctx context.Context, v metadata.Volume, to Target, change func(*metadata.BackupStatus)) {
	err := m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error {
		if _, err := tx.Volume(v.ID); err != nil {
			return err // deleted meanwhile
		}
		return tx.ChangeBackups(v.ID, to.Destination.String(), func(s *metadata.BackupStatus) {
			s.KeyFile = to.KeyFile
			change(s)
		})
	})
	if err != nil {
		m.log.Error("cannot record status of backup", "volume", v.Name, "error", err)
	}
}
