package metrics

import "github.com/prometheus/client_golang/prometheus"

var (
	lastBackup     = describe("orlop_backup_last_success_timestamp_seconds", "When this host last backed a volume up to a destination, in Unix time.", "volume", "destination")
	backupDuration = describe("orlop_backup_duration_seconds", "How long the last backup of a volume to a destination took.", "volume", "destination")
	backupRead     = describe("orlop_backup_read_bytes", "Bytes of the volume that its last backup to a destination read.", "volume", "destination")
	backupStored   = describe("orlop_backup_stored_bytes", "Bytes that the last backup of a volume added to a destination.", "volume", "destination")
	backupFailed   = describe("orlop_backup_failed", "1 if the last attempt to back a volume up to a destination failed, else 0.", "volume", "destination")
	backupFailures = describe("orlop_backup_failures_total", "Attempts to back a volume up to a destination that failed.", "volume", "destination")
)

// collectBackups reads how the backups of volumes stand.
func (m *Metrics) collectBackups(ch chan<- prometheus.Metric, send func(*prometheus.Desc, float64, ...string)) error {
	statuses, err := m.daemon.BackupStatuses()
	if err != nil {
		return err
	}
	for _, s := range statuses {
		labels := []string{s.Volume, s.Destination}
		failed := 0.0
		if s.Error != "" {
			failed = 1
		}
		send(backupFailed, failed, labels...)
		ch <- prometheus.MustNewConstMetric(backupFailures, prometheus.CounterValue, float64(s.Failures), labels...)
		if s.Last.IsZero() {
			continue
		}
		send(lastBackup, float64(s.Last.UnixMilli())/1000, labels...)
		send(backupDuration, s.Duration.Seconds(), labels...)
		send(backupRead, float64(s.Read), labels...)
		send(backupStored, float64(s.Stored), labels...)
	}
	return nil
}
