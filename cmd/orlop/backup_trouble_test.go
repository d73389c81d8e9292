//go:build root

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup"
)

// smallVolume makes a volume with a file in it.
func smallVolume(t *testing.T, h *host, name string) {
	t.Helper()
	h.must(t, "create", name, "--size", "16M")
	fill(t, filepath.Join(h.must(t, "mount", name), "file"), 1, 1<<20)
	h.must(t, "umount", name)
}

// reported finds what a run says of a volume.
func (r runReport) of(t *testing.T, name string) volumeReport {
	t.Helper()
	for _, v := range r.Volumes {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("no word of %s: %+v", name, r)
	return volumeReport{}
}

// wantRun fails unless a run has succeeded for all volumes.
func (h *host) wantRun(t *testing.T, v vault, args ...string) runReport {
	t.Helper()
	report, got := h.run(t, v, args...)
	if got.code != 0 || !report.OK {
		t.Fatalf("%s", got)
	}
	return report
}

// The disk of a destination fails while a backup is written to it. What was committed is there once the disk is, and the next
// run has it all.
func TestADestinationThatFailsInTheMiddleLosesNothing(t *testing.T) {
	h, _ := startMidway(t)
	smallVolume(t, h, "web")
	disk := scratchDisk(t, "xfs", gib)
	device := strings.TrimSpace(command(t, "findmnt", "-n", "-o", "SOURCE", disk))
	v := newVault(t, filepath.Join(disk, "nas"), true)
	first := h.wantRun(t, v, "web").of(t, "web").URL
	p := h.caughtBackup(t, v, 0)
	command(t, "xfs_io", "-x", "-c", "shutdown", disk)
	p.wait(t).wants(t, 1, `"db"`, v.dir, "input/output error")
	report, got := h.run(t, v, "--all")
	got.wants(t, 1, v.dir)
	if report.OK || report.of(t, "db").Result != resultFailed || report.of(t, "web").Result != resultFailed {
		t.Errorf("%s", got)
	}
	h.wantQuiet(t)
	check(t, unix.Unmount(disk, 0)) // the daemon has let go of it
	if managed := h.managed(t, "db"); len(managed) > 0 {
		t.Errorf("%+v", managed)
	}
	t.Run("not mounted", func(t *testing.T) { // a repository must not be made on the disk below
		for _, dir := range []string{v.dir, disk} {
			gone := vault{dir: dir, key: v.key}
			report, got := h.run(t, gone, "--all")
			if got.wants(t, 3, dir); len(report.Volumes) != 2 || report.OK {
				t.Errorf("%s", got)
			}
			h.orlop(gone.with("backup", "create", "db", "--dest", dir)...).wants(t, 3, dir)
		}
		h.orlop(v.with("backup", "restore", first, "again")...).wants(t, 3, v.dir, "mounted")
		if left := names(t, disk); len(left) > 0 {
			t.Errorf("made where the disk should be mounted: %q", left)
		}
	})
	check(t, unix.Mount(device, disk, "xfs", unix.MS_NOATIME, "discard"))
	h.wantRun(t, v, "--all")
	h.restore(t, v, first, "again")
	quietly(t, v.with("backup", "verify", v.dir, "--data")...)
	h.wantQuiet(t)
}

// The directory is renamed away and back: what is written goes with it, or fails.
func TestADestinationThatIsRenamedInTheMiddleLosesNothing(t *testing.T) {
	h, v := startMidway(t)
	p := h.caughtBackup(t, v, 0)
	check(t, os.Rename(v.dir, v.dir+"-away"))
	got := p.wait(t)
	if got.code != 0 && !strings.Contains(got.stderr, v.dir) {
		t.Errorf("%s", got)
	}
	h.orlop(v.with("backup", "create", "db", "--dest", v.dir)...).wants(t, 3, v.dir)
	check(t, os.Rename(v.dir+"-away", v.dir))
	h.wantRun(t, v, "--all")
	quietly(t, v.with("backup", "verify", v.dir, "--data")...)
	h.wantQuiet(t)
}

// One volume does not fit, the others do. Once there is room, what was uploaded of it is used.
func TestAFullDestinationFailsOnlyWhatDoesNotFit(t *testing.T) {
	h, _ := startMidway(t)
	smallVolume(t, h, "web")
	smallVolume(t, h, "again")
	disk := tmpfs(t, "size=60M")
	v := newVault(t, filepath.Join(disk, "nas"), true)
	first := h.wantRun(t, v, "web").of(t, "web")
	report, got := h.run(t, v, "--all")
	got.wants(t, 5, `"db"`, v.dir, "no space")
	if text := report.of(t, "db").Error; !strings.HasPrefix(text, `back up volume "db": destination `+v.url()+" is full: ") {
		t.Errorf("the full disk is not named: %s", text)
	}
	if findings := h.orlop("doctor").stdout; !strings.Contains(strings.Join(strings.Fields(findings), " "), "fix: orlop backup create db --dest "+v.url()+" --key-file "+v.key[1]) {
		t.Errorf("doctor's remedy lacks the key: %s", findings)
	}
	if report.OK || report.of(t, "db").Result != resultFailed {
		t.Errorf("%s", got)
	}
	quietly(t, v.with("backup", "verify", v.dir, "--data")...)
	for _, name := range []string{"web", "again"} { // the order is not db's alone
		if report.of(t, name).Result != resultDone {
			t.Logf("%s", report.of(t, name).Error)
		}
	}
	if managed := h.managed(t, "db"); len(managed) > 0 {
		t.Errorf("%+v", managed)
	}
	remount(t, disk, 0, "size=400M")
	if got := h.backUp(t, v, "db"); !got.Resumed || got.Incremental {
		t.Errorf("%+v", got)
	}
	h.wantRun(t, v, "--all")
	h.restore(t, v, first.URL, "restored")
	h.wantQuiet(t)
}

// A pool that is too small takes no part of a volume: nothing is left for what a person asked for, and for Docker a volume that
// says why, takes no space and is restored once there is room.
func TestARestoreThatFillsThePoolGivesTheSpaceBack(t *testing.T) {
	h, v := startMidway(t)
	h.must(t, "resize", "db", "--size", "700M")
	dir := h.must(t, "mount", "db")
	for i := range 4 {
		fill(t, filepath.Join(dir, fmt.Sprint("more-", i)), uint64(i+2), midwayBytes)
	}
	h.must(t, "umount", "db")
	url := h.backUp(t, v, "db").URL
	h.must(t, "delete", "db")
	h.dismantle(t)

	disk := scratchDisk(t, "xfs", 400*mib)
	small := newHost(t, "--root", filepath.Join(disk, "root"))
	small.root = filepath.Join(disk, "root")
	small.start(t)
	small.orlop(v.with("backup", "restore", url, "db")...).wants(t, 5, `"db"`, "full")
	if images := small.images(t); len(images) > 0 || small.orlop("inspect", "db").code != 3 {
		t.Errorf("left: %q", images)
	}
	request := dockerRequest{Name: "db", Opts: map[string]string{"backup": url, "key-file": v.key[1]}}
	got, err := small.ask(t.Context(), "Create", request)
	if err != nil || !strings.Contains(got.Err, "full") {
		t.Errorf("%+v, %v", got, err)
	}
	for range 2 {
		if view := small.view(t, "db"); view.State != "failed" || !strings.Contains(view.Restore.Error, "full") || view.Used != 0 {
			t.Errorf("%+v", view)
		}
		got, err = small.ask(t.Context(), "Mount", dockerRequest{Name: "db", ID: "1"})
		if err != nil || !strings.Contains(got.Err, "restore") || !strings.Contains(got.Err, "full") {
			t.Errorf("%+v, %v", got, err)
		}
		small.stop(t)
		small.start(t)
	}
	for _, args := range [][]string{{"mount", "db"}, {"snapshot", "create", "db"}, {"resize", "db", "--size", "1G"}, {"create", "copy", "--from", "db"}} {
		if got := small.orlop(args...); got.code == 0 || !strings.Contains(got.stderr, "restore") {
			t.Errorf("%q: %s", args, got)
		}
	}
	command(t, "rm", "-rf", filepath.Join(small.root, "ballast"))
	small.must(t, "delete", "db")
	small.wantQuiet(t)
}

// The backup goes while it is restored: the restore says so, or is done.
func TestABackupThatIsDeletedWhileItIsRestored(t *testing.T) {
	h, v := startMidway(t)
	url := h.backUp(t, v, "db", "--drop-snapshot").URL
	p, _ := h.midway(t, "restore", 0, v.with("backup", "restore", url, "restored")...)
	quietly(t, v.with("backup", "delete", url)...)
	quietly(t, v.with("backup", "prune", v.dir)...)
	if got := p.wait(t); got.code == 0 {
		h.must(t, "mount", "restored")
		h.must(t, "umount", "restored")
		h.wantSound(t, "restored")
	} else {
		got.wants(t, 3, "restored", "deleted")
		h.orlop("inspect", "restored").wants(t, 3)
	}
	h.wantQuiet(t)
}

// And it goes while a restore waits for the next daemon: nothing is left of it, or for Docker a volume that says why.
func TestABackupThatIsDeletedBeforeItsRestoreIsResumed(t *testing.T) {
	h, v := startMidway(t)
	url := h.backUp(t, v, "db", "--drop-snapshot").URL
	again := func() { h.must(t, "delete", "restored") }
	p := caught(t, again, func() (*pending, bool) {
		return h.midway(t, "restore", 0, v.with("backup", "restore", url, "restored")...)
	})
	h.stop(t)
	quietly(t, v.with("backup", "delete", url)...)
	quietly(t, v.with("backup", "prune", v.dir)...)
	h.start(t)
	p.wait(t).wants(t, 3, "not found")
	awaitHolds(t, "the end of the resumed restore", func() bool { return h.orlop("inspect", "restored").code == 3 })
	if images := h.images(t); len(images) != 2 {
		t.Errorf("left: %q", images)
	}
	h.wantQuiet(t)
}

// Someone prunes all the time, and someone else backs up: both succeed, and the newest backup is whole.
func TestPruneDuringBackups(t *testing.T) {
	h, v := startMidway(t)
	stop, pruned := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(pruned)
		for {
			if err := elsewhere(v.with("backup", "prune", v.dir, "--keep-last", "1")...); err != nil {
				pruned <- err
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	var last backup.Made
	for i := range often(4, 20) {
		dir := h.must(t, "mount", "db")
		fill(t, filepath.Join(dir, "new"), uint64(i+10), 4<<20)
		h.must(t, "umount", "db")
		last = h.backUp(t, v, "db")
	}
	close(stop)
	if err := <-pruned; err != nil {
		t.Fatal(err)
	}
	want := sumImage(t, h.newestImage(t, "db"))
	h.restore(t, v, last.URL, "restored")
	wantRestored(t, "restored", h.image(t, "restored"), want)
	quietly(t, v.with("backup", "verify", v.dir, "--data")...)
	h.wantQuiet(t)
}
