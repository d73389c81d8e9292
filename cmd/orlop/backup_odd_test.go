//go:build root

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/daemon"
)

// startBackups makes a running host with a small volume, and a destination.
func startBackups(t *testing.T) (*host, vault) {
	t.Helper()
	aloneInCache(t)
	h := startHost(t)
	smallVolume(t, h, "db")
	return h, newVault(t, t.TempDir(), true)
}

// write changes a volume that is not mounted, and returns what it holds then.
func (h *host) write(t *testing.T, name string, seed uint64) imageSum {
	t.Helper()
	fill(t, filepath.Join(h.must(t, "mount", name), "file"), seed, 1<<20)
	h.must(t, "umount", name)
	return sumImage(t, h.image(t, name))
}

// Whatever becomes of the snapshot that the last backup was made of, the next backup is right: it reads everything.
func TestABackupWhoseBaseIsGoneOrDamagedReadsEverything(t *testing.T) {
	h, v := startBackups(t)
	h.backUp(t, v, "db")
	for i, harm := range []func(image string){
		func(image string) { check(t, os.Remove(image)) },
		func(image string) { check(t, os.Truncate(image, 1<<20)) },
		func(image string) { check(t, os.Truncate(image, 0)) },
		func(string) { h.must(t, "snapshot", "delete", h.managed(t, "db")[0].ID) },
	} {
		image := h.newestImage(t, "db")
		command(t, "chattr", "-i", image)
		harm(image)
		want := h.write(t, "db", uint64(i+2))
		made := h.backUp(t, v, "db")
		if made.Incremental {
			t.Errorf("harm %d: %+v", i, made)
		}
		h.restore(t, v, made.URL, "restored")
		wantRestored(t, "restored", h.image(t, "restored"), want)
		h.must(t, "delete", "restored")
		if managed := h.managed(t, "db"); len(managed) != 1 {
			t.Errorf("harm %d: %+v", i, managed)
		}
		h.wantQuiet(t)
	}
}

// A restore begins as a copy of a snapshot that is near, and fetches what that has not. It is right however damaged that is.
func TestARestoreNextToADamagedSnapshotIsRight(t *testing.T) {
	h, v := startBackups(t)
	url, want := h.backUp(t, v, "db").URL, sumImage(t, h.newestImage(t, "db"))
	if done := h.restore(t, v, url, "restored"); done.Fetched > 0 || done.Present < 1<<20 {
		t.Errorf("%+v", done)
	}
	h.must(t, "delete", "restored")
	for _, harm := range []func(image string){
		func(image string) { // as a bad disk does, silently
			f, err := os.OpenFile(image, os.O_WRONLY, 0)
			check(t, err)
			_, err = f.WriteAt(noise(9, 8<<20), 4096)
			check(t, errors.Join(err, f.Close()))
		},
		func(image string) { check(t, os.Truncate(image, 1<<20)) },
		func(image string) { check(t, os.Remove(image)) },
	} {
		image := h.newestImage(t, "db")
		command(t, "chattr", "-i", image)
		harm(image)
		h.restore(t, v, url, "restored")
		wantRestored(t, "restored", h.image(t, "restored"), want)
		h.must(t, v.with("backup", "restore", url, "restored", "--in-place")...)
		wantRestored(t, "restored in place", h.image(t, "restored"), want)
		h.must(t, "delete", "restored", "--snapshots")
		h.must(t, "snapshot", "delete", h.managed(t, "db")[0].ID)
		h.backUp(t, v, "db")
	}
	h.wantQuiet(t)
}

func TestTheSnapshotToBackUpVanishes(t *testing.T) {
	h, v := startBackups(t)
	h.must(t, "snapshot", "create", "db", "--name", "mine")
	image := h.snapshotImage(t, "db@mine")
	made := h.backUp(t, v, "db@mine")
	if again := h.backUp(t, v, "db@mine"); !again.Existed || again.URL != made.URL {
		t.Errorf("%+v", again)
	}
	check(t, os.Remove(image))
	other := newVault(t, t.TempDir(), false)
	h.orlop("backup", "create", "db@mine", "--dest", other.dir).wants(t, 3, "db@mine", "missing")
	h.must(t, "snapshot", "delete", "db@mine")
	h.orlop(v.with("backup", "create", "db@mine", "--dest", v.dir)...).wants(t, 3, "mine", "not found")
	h.orlop(v.with("backup", "create", "nothing", "--dest", v.dir)...).wants(t, 3, `"nothing"`)
	h.wantRun(t, v, "--all")
	h.wantQuiet(t)
}

// The new volume has the name, and nothing else, of the old one.
func TestAVolumeRecreatedUnderItsOldNameBeginsAnew(t *testing.T) {
	h, v := startBackups(t)
	first := h.backUp(t, v, "db")
	old := sumImage(t, h.newestImage(t, "db"))
	h.must(t, "delete", "db")
	smallVolume(t, h, "db")
	want := h.write(t, "db", 77)
	second := h.backUp(t, v, "db", "--drop-snapshot")
	if second.Incremental || strings.Split(second.ID, ".")[0] == strings.Split(first.ID, ".")[0] {
		t.Errorf("%+v after %+v", second, first)
	}
	if h.wantRun(t, v, "--all", "--keep-last", "1"); len(v.list(t)) != 2 { // of each lineage one
		t.Errorf("%+v", v.list(t))
	}
	h.orlop(v.with("backup", "restore", v.url()+"?volume=db", "which")...).wants(t, 2, first.ID[:8], second.ID[:8], "backup=")
	h.restore(t, v, first.URL, "old")
	wantRestored(t, "old", h.image(t, "old"), old)
	h.restore(t, v, v.list(t)[1].URL, "new")
	wantRestored(t, "new", h.image(t, "new"), want)
	h.wantQuiet(t)
}

// Which of two volumes of one name comes back has to be said. Once it has been, all volumes are there.
func TestEveryVolumeIsRestoredOnceOneOfEachNameWasChosen(t *testing.T) {
	h, v := startBackups(t)
	first := h.backUp(t, v, "db")
	old := sumImage(t, h.newestImage(t, "db"))
	h.must(t, "delete", "db")
	h.restoreAll(t, v).wants(t, 0) // there is only one yet
	h.must(t, "delete", "db")
	smallVolume(t, h, "db")
	h.write(t, "db", 77)
	second := h.backUp(t, v, "db")
	h.must(t, "delete", "db")
	h.restoreAll(t, v).wants(t, 2, `"db"`, first.VolumeID, second.VolumeID, "backup=")
	smallVolume(t, h, "db") // and this is none of them
	h.restoreAll(t, v).wants(t, 2, `"db"`, "backup=")
	h.must(t, "delete", "db")
	h.must(t, v.with("backup", "restore", first.URL)...)
	if got := h.restoreAll(t, v); got.code != 0 || got.stdout != "db: was restored before\n" {
		t.Errorf("%s", got)
	}
	wantRestored(t, "db", h.image(t, "db"), old)
	h.wantQuiet(t)
}

// Hosts that share a repository may have volumes of the same names.
func TestEveryVolumeOfOneHostIsRestored(t *testing.T) {
	p := newBackupPlace(t)
	h := startHost(t)
	v := vault{p.dir, []string{"--key-file", p.key}}
	me, err := os.Hostname()
	check(t, err)
	smallVolume(t, h, "db")
	h.backUp(t, v, "db")
	want := sumImage(t, h.newestImage(t, "db"))
	p.back("db", "id-1", backupTime, contents(1)) // by host h1
	p.back("web", "id-2", backupTime, contents(2))
	h.must(t, "delete", "db")
	h.restoreAll(t, v, "--host", "").wants(t, 2, "--host")
	h.restoreAll(t, v, "--host", "nobody").wants(t, 3, `"nobody"`)
	h.orlop(v.with("backup", "restore", p.url()+"?volume=db", "--host", me)...).wants(t, 2, "--all")
	if got := h.restoreAll(t, v, "--host", me); got.code != 0 || !strings.HasPrefix(got.stdout, "db: restored") || strings.Contains(got.stdout, "web") {
		t.Errorf("%s", got)
	}
	wantRestored(t, "db", h.image(t, "db"), want)
	h.wantQuiet(t)
}

// restoreAll restores every volume of a vault.
func (h *host) restoreAll(t *testing.T, v vault, flags ...string) outcome {
	t.Helper()
	return h.orlop(v.with(append([]string{"backup", "restore", v.dir, "--all"}, flags...)...)...)
}

func TestARestoreOverAnExistingNameChangesNothing(t *testing.T) {
	h, v := startBackups(t)
	url := h.backUp(t, v, "db").URL
	want := h.write(t, "db", 5)
	for _, args := range [][]string{{"backup", "restore", url}, {"backup", "restore", url, "db"}} {
		h.orlop(v.with(args...)...).wants(t, 4, `"db"`, "exists", "--in-place")
	}
	h.orlop(append([]string{"create", "db", "--backup", url}, v.key...)...).wants(t, 4, `"db"`)
	h.docker(t, "Create", dockerRequest{Name: "db", Opts: map[string]string{"backup": url, "key-file": v.key[1]}})
	wantRestored(t, "db", h.image(t, "db"), want)
	h.must(t, "mount", "db")
	h.orlop(v.with("backup", "restore", url, "db", "--in-place")...).wants(t, 4, `"db"`, "orlop mount")
	h.must(t, "umount", "db")
	h.orlop(v.with("backup", "restore", url, "no such", "--in-place")...).wants(t, 2)
	h.orlop(v.with("backup", "restore", url, "nothing", "--in-place")...).wants(t, 3, `"nothing"`)
	h.orlop(v.with("backup", "restore", v.url()+"?backup=nonsense", "x")...).wants(t, 3, "nonsense")
	h.orlop(v.with("backup", "restore", v.url()+"?volume=nothing", "x")...).wants(t, 3, "nothing")
	if images := h.images(t); len(images) != 4 { // the volume and its managed snapshot
		t.Errorf("%q", images)
	}
	h.wantQuiet(t)
}

// A larger backup in the place of a smaller volume, and the other way round.
func TestARestoreInPlaceKeepsTheLargerSize(t *testing.T) {
	h, v := startBackups(t)
	url := h.backUp(t, v, "db").URL
	h.must(t, "create", "large", "--size", "64M")
	h.must(t, "create", "small", "--size", "8M")
	h.must(t, v.with("backup", "restore", url, "large", "--in-place", "--discard-current")...)
	h.must(t, v.with("backup", "restore", url, "small", "--in-place")...)
	for name, size := range map[string]int64{"large": 64 << 20, "small": 16 << 20} {
		dir := h.must(t, "mount", name)
		if info, err := os.Stat(filepath.Join(dir, "file")); err != nil || info.Size() != 1<<20 {
			t.Errorf("%s: %v", name, err)
		}
		if view := h.view(t, name); view.Size != size || view.FillView == nil || view.Problem != "" {
			t.Errorf("%+v", view)
		}
		h.must(t, "umount", name)
		h.wantSound(t, name)
		h.backUp(t, v, name)
	}
	if kept := h.snapshots(t, "large"); len(kept) != 1 {
		t.Errorf("%+v", kept)
	}
	h.wantQuiet(t)
}

// One volume of three is damaged: the others are backed up, --quiet tells of the failure only, and the exit code is its.
func TestOneDamagedVolumeKeepsNoOtherFromItsBackup(t *testing.T) {
	h, v := startBackups(t)
	smallVolume(t, h, "broken")
	smallVolume(t, h, "web")
	h.must(t, "create", "left-out", "--size", "16M", "--no-backup")
	check(t, os.Remove(h.image(t, "broken")))
	if view := h.view(t, "broken"); view.State != "degraded" {
		t.Fatalf("%+v", view)
	}
	report, got := h.run(t, v, "--all")
	if got.code == 0 || report.OK || len(report.Volumes) != 3 {
		t.Errorf("%s", got)
	}
	for name, result := range map[string]string{"db": resultDone, "broken": resultFailed, "web": resultDone} {
		if v := report.of(t, name); v.Result != result || (result == resultFailed) != (v.Error != "") {
			t.Errorf("%+v", v)
		}
	}
	quiet := h.orlop(v.with("backup", "run", "--all", "--quiet", "--dest", v.dir)...)
	if quiet.wants(t, got.code, `"broken"`); quiet.stdout != "" || strings.Count(quiet.stderr, "\n") != 1 {
		t.Errorf("%s", quiet)
	}
	if only := h.wantRun(t, v, "db", "web"); len(only.Volumes) != 2 {
		t.Errorf("%+v", only)
	}
	h.orlop(v.with("backup", "run", "nothing", "web", "--dest", v.dir)...).wants(t, 3, `"nothing"`, "web: ")
}

func TestAWrongKeyReachesNothing(t *testing.T) {
	h, v := startBackups(t)
	url := h.backUp(t, v, "db").URL
	wrong := filepath.Join(t.TempDir(), "wrong")
	quietly(t, "key", "create", wrong)
	file := filepath.Join(t.TempDir(), "no-key")
	check(t, os.WriteFile(file, []byte("rubbish"), 0o600))
	for _, test := range []struct {
		flags []string
		code  int
		says  string
	}{
		{[]string{"--key-file", wrong}, 7, "key"}, {nil, 2, "--key-file"},
		{[]string{"--key-file", file}, 2, file}, {[]string{"--key-file", filepath.Join(file, "x")}, 1, file},
		{[]string{"--key-file", filepath.Join(t.TempDir(), "gone")}, 3, "gone"},
	} {
		for _, args := range [][]string{
			{"backup", "create", "db", "--dest", v.dir}, {"backup", "run", "--all", "--dest", v.dir}, {"backup", "restore", url, "new"},
			{"create", "new", "--backup", url},
		} {
			got := h.orlop(append(args, test.flags...)...)
			if got.code == 0 || !strings.Contains(got.stderr, test.says) {
				t.Errorf("%v %v: %s", args, test.flags, got)
			}
			if got.code != test.code {
				t.Errorf("%v %v: want exit code %d: %s", args, test.flags, test.code, got)
			}
		}
	}
	if managed := h.managed(t, "db"); len(managed) != 1 || len(h.images(t)) != 4 {
		t.Errorf("left: %+v, %q", managed, h.images(t))
	}
	plain := newVault(t, t.TempDir(), false)
	h.orlop("backup", "create", "db", "--dest", plain.dir, "--key-file", v.key[1]).wants(t, 2, "not encrypted")
	h.backUp(t, plain, "db")
	h.wantRun(t, v, "--all")
	h.wantQuiet(t)
}

// What the program prints can be pasted, whatever the destination is called.
func TestDestinationsThatNeedQuoting(t *testing.T) {
	h, _ := startBackups(t)
	for _, name := range []string{"a place", "it's", "up=x&y", "ä%20#1", "*"} {
		v := newVault(t, filepath.Join(t.TempDir(), name), false)
		url := h.must(t, v.with("backup", "create", "db", "--dest", v.dir)...)
		h.wantRun(t, v, "--all")
		h.must(t, v.with("backup", "restore", url, "restored")...)
		if view := h.view(t, "restored"); view.State != "ready" || view.Restore.URL != url {
			t.Errorf("%+v, want %s", view.Restore, url)
		}
		h.must(t, "delete", "restored")
		check(t, os.Rename(v.dir, v.dir+"-gone"))
		got := h.orlop(v.with("backup", "create", "db", "--dest", v.dir)...)
		got.wants(t, 3)
		if strings.Contains(got.stderr, "orlop backup init "+v.url()) {
			t.Errorf("not quoted: %s", got)
		}
	}
	if managed := h.managed(t, "db"); len(managed) != 5 { // one of each repository
		t.Errorf("%+v", managed)
	}
	h.wantQuiet(t)
}

// A run that nothing changed for reads nothing, and the volume's own policy wins over the flags.
func TestAVolumesOwnPolicyWins(t *testing.T) {
	h, v := startBackups(t)
	smallVolume(t, h, "web")
	h.must(t, "set", "web", "--keep", "last:3")
	for range 5 {
		report := h.wantRun(t, v, "--all", "--keep-last", "1")
		for _, each := range report.Volumes {
			if each.Result != resultDone {
				t.Errorf("%+v", each)
			}
		}
	}
	counts := map[string]int{}
	for _, b := range v.list(t) {
		counts[b.Volume]++
	}
	if counts["db"] != 1 || counts["web"] != 3 {
		t.Errorf("%v", counts)
	}
	report := h.wantRun(t, v, "--all")
	for _, each := range report.Volumes {
		if each.Read > 1<<20 || each.Stored > 64<<10 || (len(each.Removed) > 0) != (each.Name == "web") {
			t.Errorf("nothing changed, and without flags only web has a policy: %+v", each)
		}
	}
	h.must(t, "set", "web", "--keep", "")
	var view daemon.View
	if view = h.view(t, "web"); view.Keep != "" || view.LastBackup == nil {
		t.Errorf("%+v", view)
	}
}
