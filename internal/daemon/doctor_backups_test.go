package daemon_test

import (
	"strings"
	"testing"
	"time"

	"orlop/internal/daemon"
	"orlop/metadata"
)

// backedUp records the outcome of a backup of a volume.
func (h *house) backedUp(t *testing.T, v metadata.Volume, change func(*metadata.BackupStatus)) {
	t.Helper()
	h.update(t, func(tx *metadata.Tx) error { return tx.ChangeBackups(v.ID, "file:///nas/o'r", change) })
}

// backupFindings are doctor's of a volume's backups.
func backupFindings(t *testing.T, h *house, name string, maxAge time.Duration) (found []daemon.Finding) {
	t.Helper()
	all, err := h.Doctor(t.Context(), maxAge)
	check(t, err)
	for _, f := range all {
		if f.Subject == "volume "+name && strings.Contains(f.Problem, "back") {
			found = append(found, f)
		}
	}
	return found
}

func TestDoctorReportsBackupsThatFailOrAreTooOld(t *testing.T) {
	h := newHouse(t)
	fresh, old, failing, never, left := h.put(t, "fresh"), h.put(t, "old"), h.put(t, "failing"), h.put(t, "never"), h.put(t, "left")
	left.NoBackup = true
	h.update(t, func(tx *metadata.Tx) error { return tx.PutVolume(left) })
	now := time.Now()
	h.backedUp(t, fresh, func(s *metadata.BackupStatus) { s.URL, s.Finished = "u", now.Add(-25*time.Hour) })
	h.backedUp(t, old, func(s *metadata.BackupStatus) {
		s.URL, s.KeyFile, s.Finished = "u", "/root/o.key", now.Add(-27*time.Hour)
	})
	h.backedUp(t, failing, func(s *metadata.BackupStatus) { s.URL, s.Finished, s.Error = "u", now, "the disk is gone" })
	for name, want := range map[string]string{
		"fresh": "", "old": "last backup is of", "failing": "the disk is gone", never.Name: "never backed up", "left": "",
	} {
		found := backupFindings(t, h, name, 26*time.Hour)
		switch {
		case want == "" && len(found) > 0:
			t.Errorf("volume %s: %+v, want nothing", name, found)
		case want != "" && (len(found) != 1 || !strings.Contains(found[0].Problem, want)):
			t.Errorf("volume %s: %+v, want one finding with %q", name, found, want)
		}
	}
	if found := backupFindings(t, h, "old", 26*time.Hour); len(found) == 1 && found[0].Command != `orlop backup create old --dest 'file:///nas/o'\''r' --key-file /root/o.key` {
		t.Errorf("the remedy is %s", found[0].Command)
	}
	if found := backupFindings(t, h, "failing", 0); len(found) == 1 && strings.Contains(found[0].Command, "--key-file") {
		t.Errorf("without a key: %s", found[0].Command)
	}
	if found := backupFindings(t, h, "old", 0); len(found) > 0 {
		t.Errorf("without an age: %+v", found)
	}
}

func TestVolumeShowsItsLastBackup(t *testing.T) {
	h := newHouse(t)
	v := h.put(t, "v")
	if view, err := h.Inspect(t.Context(), "v"); err != nil || view.LastBackup != nil {
		t.Errorf("without a backup: %+v, %v", view.LastBackup, err)
	}
	taken := time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)
	h.backedUp(t, v, func(s *metadata.BackupStatus) {
		s.URL, s.Created, s.Finished = "file:///d?backup=a.b", taken, taken.Add(time.Minute)
	})
	want := daemon.BackupRef{URL: "file:///d?backup=a.b", Created: "2026-12-01T10:00:00Z"}
	if view, err := h.Inspect(t.Context(), "v"); err != nil || view.LastBackup == nil || *view.LastBackup != want {
		t.Errorf("inspect: %+v, %v; want %+v", view.LastBackup, err, want)
	}
	if views, err := h.List(t.Context(), nil); err != nil || len(views) != 1 || views[0].LastBackup == nil || *views[0].LastBackup != want {
		t.Errorf("list: %+v, %v", views, err)
	}
}
