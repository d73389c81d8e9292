package daemon

import (
	"context"
	"fmt"
	"time"

	"orlop/internal/run"
	"orlop/metadata"
)

// findBackupTrouble looks for volumes whose last attempt at a backup failed, and with a maxAge above 0 for those that have no
// backup younger than that, unless they are left out of backups.
func (d *Daemon) findBackupTrouble(maxAge time.Duration) func(context.Context) ([]Finding, error) {
	return func(context.Context) (found []Finding, err error) {
		var volumes []metadata.Volume
		statuses := map[string][]metadata.BackupStatus{}
		err = d.store.View(func(tx *metadata.Tx) error {
			if volumes, err = tx.Volumes(); err != nil {
				return err
			}
			all, err := tx.Backups("")
			for _, s := range all {
				statuses[s.Volume] = append(statuses[s.Volume], s)
			}
			return err
		})
		for _, v := range volumes {
			if v.State == metadata.Ready && !v.NoBackup {
				found = append(found, backupTrouble(v, statuses[v.ID], maxAge)...)
			}
		}
		return found, err
	}
}

// backupTrouble is what is wrong with the backups of one volume.
func backupTrouble(v metadata.Volume, statuses []metadata.BackupStatus, maxAge time.Duration) (found []Finding) {
	subject := "volume " + v.Name
	var last time.Time
	command := run.Line("orlop", "backup", "create", v.Name) + " --dest URL"
	for _, s := range statuses {
		argv := []string{"orlop", "backup", "create", v.Name, "--dest", s.Destination}
		if s.KeyFile != "" {
			argv = append(argv, "--key-file", s.KeyFile)
		}
		again := run.Line(argv...)
		if s.Error != "" {
			found = append(found, Finding{mild, subject, fmt.Sprintf("its backup to %s failed: %s", s.Destination, s.Error), again})
		}
		if s.Finished.After(last) {
			last, command = s.Finished, again
		}
	}
	switch age := time.Since(last); {
	case maxAge <= 0 || !last.IsZero() && age <= maxAge:
	case last.IsZero():
		found = append(found, Finding{severe, subject, "was never backed up by this host", command})
	default:
		found = append(found, Finding{severe, subject, fmt.Sprintf("its last backup is of %s, %s ago", last.UTC().Format(time.RFC3339), age.Round(time.Minute)), command})
	}
	return found
}
