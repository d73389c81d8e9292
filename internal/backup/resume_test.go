package backup

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"orlop/blockdev"
	"orlop/internal/backup/repo"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A restore waits for its destination for as long as it takes: one that was dropped would be lost without a word. The volume
// tells why it waits.
func TestAResumedRestoreWaitsForItsDestination(t *testing.T) {
	w := newWorld(t)
	w.pauses = []time.Duration{time.Millisecond, time.Millisecond}
	v := w.addVolume(t, "db")
	want := w.write(t, v)
	made := w.back(t, v, repo.Policy{})
	restored, err := w.volumes.AnnounceRestore(t.Context(), volume.Spec{
		Name: "new", Pool: "pool", Size: volumeSize, Filesystem: "ext4", Lineage: v.Lineage,
		Restore: &metadata.Restore{URL: made.URL, Backup: made.ID},
	})
	check(t, err)
	dir := strings.TrimPrefix(w.to.Destination.String(), "file://")
	check(t, os.Rename(dir, dir+"-away"))
	tries := w.countTries()
	check(t, w.Resume(t.Context()))
	for range 4 * len(w.pauses) {
		<-tries
	}
	if now := w.named(t, "new"); now.State != metadata.Restoring || !strings.Contains(now.Restore.Error, dir) {
		t.Errorf("%s: %+v", now.State, now.Restore)
	}
	j, running := w.jobs.Running(RestoreKey(restored.ID))
	if !running {
		t.Fatal("the restore was given up")
	}
	check(t, os.Rename(dir+"-away", dir))
	j, err = w.jobs.Wait(t.Context(), j.ID)
	check(t, err)
	if j.State != metadata.JobDone {
		t.Errorf("%+v", j)
	}
	now := w.named(t, "new")
	if now.State != metadata.Ready || now.Restore.Error != "" {
		t.Fatalf("%s: %+v", now.State, now.Restore)
	}
	path, err := w.memory.Activate(t.Context(), blockdev.ID(now.Device), blockdev.ReadOnly)
	check(t, err)
	got, err := os.ReadFile(path)
	check(t, err)
	if !bytes.Equal(got[:volumeSize], want) {
		t.Error("the volume has another content than was backed up")
	}
	check(t, w.memory.Deactivate(t.Context(), blockdev.ID(now.Device)))
	check(t, w.volumes.Delete(t.Context(), now.ID, true)) // and its mount point, which only root can remove
}

// A tryLog counts the tries of restores that are announced in a log.
type tryLog struct {
	slog.Handler
	tries chan struct{}
}

func (l tryLog) Enabled(context.Context, slog.Level) bool { return true }

func (l tryLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "restore will be retried" {
		select {
		case l.tries <- struct{}{}:
		default: // counted enough
		}
	}
	return nil
}

// countTries sends on the channel for each try of a restore that failed and is to be repeated.
func (w *world) countTries() chan struct{} {
	l := tryLog{slog.DiscardHandler, make(chan struct{})}
	w.log = slog.New(l)
	return l.tries
}

func (w *world) named(t *testing.T, name string) (v metadata.Volume) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) { v, err = tx.VolumeNamed(name); return err }))
	return v
}
