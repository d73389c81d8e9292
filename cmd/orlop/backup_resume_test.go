//go:build root

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/metadata"
)

// startRestores makes a running host and the backup of a volume that takes a while to restore.
func startRestores(t *testing.T) (h *host, v vault, url string, want imageSum) {
	t.Helper()
	h, v = startMidway(t)
	want = sumImage(t, h.image(t, "db"))
	return h, v, h.backUp(t, v, "db", "--drop-snapshot").URL, want
}

// caughtRestore is the restore of a volume "new" in the middle.
func (h *host) caughtRestore(t *testing.T, v vault, url string) *pending {
	t.Helper()
	return caught(t, func() { h.must(t, "delete", "new") }, func() (*pending, bool) {
		return h.midway(t, "restore", 0, v.with("backup", "restore", url, "new")...)
	})
}

// Nobody can use the volume before it is whole, and everybody can see how far it is.
func TestAVolumeThatIsBeingRestoredIsOutOfReach(t *testing.T) {
	h, v, url, want := startRestores(t)
	p := h.caughtRestore(t, v, url)
	view := h.view(t, "new")
	if view.State == string(metadata.Restoring) && (view.Restore == nil || view.Restore.URL != url || view.Restore.Total == 0) {
		t.Errorf("%+v", view)
	}
	var refused []outcome
	for _, args := range [][]string{
		{"mount", "new"}, {"resize", "new", "--size", "1G"}, {"snapshot", "create", "new"}, {"create", "copy", "--from", "new"},
		{"set", "new", "--label", "a=b"}, v.with("backup", "create", "new", "--dest", v.dir), v.with("backup", "restore", url, "new", "--in-place"),
	} {
		got := h.orlop(args...)
		if h.jobNow(t, p.job.ID).State != string(metadata.JobRunning) {
			break
		}
		refused = append(refused, got)
	}
	for _, got := range refused {
		got.wants(t, 4, `"new"`, "restor")
	}
	joining := h.begin(t, v.with("backup", "restore", url, "new")...)
	p.wait(t).wants(t, 0)
	if got := joining.wait(t); got.code != 0 && got.code != 4 { // or it came too late
		t.Errorf("%s", got)
	}
	wantRestored(t, "new", h.image(t, "new"), want)
	t.Logf("%d refused", len(refused))
	h.wantQuiet(t)
}

func TestAnInterruptedCommandLeavesNothingOfItsRestore(t *testing.T) {
	h, v, url, _ := startRestores(t)
	p := h.caughtRestore(t, v, url)
	p.cancel()
	p.wait(t).wants(t, 1, "interrupted", "restore", `"new"`, "canceled")
	h.orlop("inspect", "new").wants(t, 3)
	if images := h.images(t); len(images) != 2 {
		t.Errorf("left: %q", images)
	}
	h.wantQuiet(t)
}

func TestAVolumeIsDeletedDuringItsRestore(t *testing.T) {
	h, v, url, _ := startRestores(t)
	for _, remove := range []func(){
		func() { h.must(t, "delete", "new") },
		func() { h.docker(t, "Remove", dockerRequest{Name: "new"}) },
	} {
		p := h.caughtRestore(t, v, url)
		remove()
		if got := p.wait(t); got.code != 1 || !strings.Contains(got.stderr, "canceled") {
			t.Errorf("%s", got)
		}
		h.orlop("inspect", "new").wants(t, 3)
		if images := h.images(t); len(images) != 2 {
			t.Errorf("left: %q", images)
		}
		h.wantQuiet(t)
	}
}

// The next daemon resumes it, and the command waits for that.
func TestARestoreThatTheDaemonsStopInterruptsIsResumed(t *testing.T) {
	h, v, url, want := startRestores(t)
	p := h.caughtRestore(t, v, url)
	h.stop(t)
	h.start(t)
	p.wait(t).wants(t, 0, "new")
	wantRestored(t, "new", h.image(t, "new"), want)
	h.wantQuiet(t)
}

// The destination is mounted later than the daemon starts, as network filesystems are.
func TestARestoreIsResumedOnceTheDestinationIsThere(t *testing.T) {
	h, v, url, want := startRestores(t)
	p := h.caughtRestore(t, v, url)
	h.stop(t)
	check(t, os.Rename(v.dir, v.dir+"-away"))
	h.start(t)
	awaitHolds(t, "the restore will be retried", func() bool { return strings.Contains(h.life.log.String(), "restore will be retried") })
	if view := h.view(t, "new"); view.State != string(metadata.Restoring) {
		t.Errorf("%+v", view)
	}
	check(t, os.Rename(v.dir+"-away", v.dir))
	p.wait(t).wants(t, 0, "new")
	wantRestored(t, "new", h.image(t, "new"), want)
	h.wantQuiet(t)
}

// The daemon died after the volume was whole, and before it had the size that was asked for.
func TestARestoredVolumeGrowsThoughTheDaemonDied(t *testing.T) {
	h, v, url, _ := startRestores(t)
	h.must(t, v.with("backup", "restore", url, "new")...)
	h.stop(t)
	store, err := metadata.Open(h.root)
	check(t, err)
	err = store.Update(t.Context(), func(tx *metadata.Tx) error {
		new, err := tx.VolumeNamed("new")
		if err != nil {
			return err
		}
		new.Restore.Size = 512 << 20
		return tx.PutVolume(new)
	})
	check(t, errors.Join(err, store.Close()))
	h.start(t)
	awaitHolds(t, "the volume has grown", func() bool { return h.view(t, "new").Size == 512<<20 })
	h.must(t, "mount", "new")
	h.must(t, "umount", "new")
	h.wantSound(t, "new")
	h.must(t, v.with("backup", "restore", url, "larger", "--size", "300M")...)
	if size := h.view(t, "larger").Size; size != 300<<20 {
		t.Errorf("%d bytes", size)
	}
	h.orlop(v.with("backup", "restore", url, "smaller", "--size", "100M")...).wants(t, 2, "size")
	h.wantQuiet(t)
}

// The metadata is lost in the middle of a restore. What it had filled must not become a volume that looks whole.
func TestHalfARestoreIsNoVolumeAfterARebuildOfTheMetadata(t *testing.T) {
	h, v, url, want := startRestores(t)
	p := h.caughtRestore(t, v, url)
	h.stop(t)
	files, err := filepath.Glob(filepath.Join(h.root, "metadata.db*"))
	check(t, err)
	for _, file := range files {
		check(t, os.Remove(file))
	}
	flags := h.flags
	h.flags = append(flags, "--rebuild-metadata")
	h.start(t)
	h.flags = flags
	got := p.wait(t)
	t.Logf("the command: %s", got)
	awaitHolds(t, "the end of the restore", func() bool {
		got := h.orlop("inspect", "new")
		return got.code == 3 || !strings.Contains(got.stdout, `"restoring"`)
	})
	if got := h.orlop("inspect", "new"); got.code == 0 {
		wantRestored(t, "new", h.image(t, "new"), want)
	} else {
		got.wants(t, 3)
	}
	h.view(t, "db")
}
