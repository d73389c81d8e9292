package metrics_test

import (
	"testing"
	"time"

	"orlop/metadata"
)

func TestBackupsOfEachVolumeAndDestinationAreShown(t *testing.T) {
	h := newHouse(t)
	h.put(t, "db", metadata.Ready, false)
	err := h.store.Update(t.Context(), func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed("db")
		if err != nil {
			return err
		}
		err = tx.ChangeBackups(v.ID, "file:///nas", func(s *metadata.BackupStatus) {
			s.URL, s.Finished, s.Duration, s.Read, s.Stored = "u", time.Unix(1796112000, 0), 1500*time.Millisecond, 4096, 1024
		})
		if err != nil {
			return err
		}
		return tx.ChangeBackups(v.ID, "file:///other", func(s *metadata.BackupStatus) { s.Failures, s.Error = 3, "gone" })
	})
	if err != nil {
		t.Fatal(err)
	}
	h.wantLines(t,
		`orlop_backup_last_success_timestamp_seconds{destination="file:///nas",volume="db"} 1.796112e+09`,
		`orlop_backup_duration_seconds{destination="file:///nas",volume="db"} 1.5`,
		`orlop_backup_read_bytes{destination="file:///nas",volume="db"} 4096`,
		`orlop_backup_stored_bytes{destination="file:///nas",volume="db"} 1024`,
		`orlop_backup_failed{destination="file:///nas",volume="db"} 0`,
		`orlop_backup_failures_total{destination="file:///nas",volume="db"} 0`,
		`orlop_backup_failed{destination="file:///other",volume="db"} 1`,
		`orlop_backup_failures_total{destination="file:///other",volume="db"} 3`,
	)
}
