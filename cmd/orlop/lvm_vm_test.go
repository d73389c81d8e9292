//go:build root && vm

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/daemon"
)

// lvmConf is an lvm.conf without what costs time in an emulated machine and changes nothing that is tested here.
const lvmConf = `
backup { backup = 0 archive = 0 }
activation { monitoring = 0 udev_sync = 0 udev_rules = 0 }
global { thin_check_executable = "" use_lvmpolld = 0 notify_dbus = 0 event_activation = 0 }
devices { use_devicesfile = 0 filter = [ "a|^/dev/loop|", "r|.*|" ] }
`

// lvmDo runs a command of LVM's, as its user would.
func lvmDo(t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
}

// thinHost makes a group on a disk in memory, and a place for a daemon on a thin pool there.
func thinHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2g"))
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	check(t, os.WriteFile(filepath.Join(dir, "lvm.conf"), []byte(lvmConf), 0o600))
	t.Setenv("LVM_SYSTEM_DIR", dir)
	disk := filepath.Join(dir, "disk")
	lvmDo(t, "truncate", "--size", "4G", disk)
	out, err := exec.Command("losetup", "--find", "--show", disk).Output()
	check(t, err)
	device := strings.TrimSpace(string(out))
	lvmDo(t, "vgcreate", "test-vg", device)
	t.Cleanup(func() {
		lvmDo(t, "vgremove", "--force", "--yes", "test-vg")
		lvmDo(t, "losetup", "--detach", device)
	})
	lvmDo(t, "lvm", "lvcreate", "--type", "thin-pool", "--size", "256M", "--poolmetadatasize", "8M", "--chunksize", "64k", "--yes", "--name", "thin", "test-vg")
	return newHost(t, "--pool", "lvm:test-vg/thin")
}

// putText writes a file that repeats text.
func putText(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	check(t, err)
	_, err = f.WriteString(strings.Repeat(text+"\n", 10_000))
	check(t, err)
	check(t, f.Sync())
	check(t, f.Close())
}

func hasText(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != strings.Repeat(text+"\n", 10_000) {
		t.Errorf("%s does not hold %q: %d bytes, %v", path, text, len(b), err)
	}
}

// TestThinVolumesEndToEnd leads a volume in a thin pool from create to delete, by the command line and by Docker.
func TestThinVolumesEndToEnd(t *testing.T) {
	h := thinHost(t)
	h.start(t)
	h.must(t, "create", "db", "--size", "65M")
	view := h.view(t, "db")
	if view.Size != 68<<20 || view.Pool != "lvm" || view.State != "ready" {
		t.Errorf("asked for 65M in extents of 4M: %+v", view)
	}
	dir := h.must(t, "mount", "db")
	putText(t, dir+"/file", "first")
	h.must(t, "snapshot", "create", "db", "--name", "s1")
	putText(t, dir+"/file", "second")
	putText(t, dir+"/other", "other")
	h.must(t, "snapshot", "create", "db", "--name", "s2")
	if out := h.must(t, "snapshot", "diff", "db@s1", "db@s2"); !strings.Contains(out, `"data"`) {
		t.Errorf("nothing differs: %s", out)
	}
	h.must(t, "create", "copy", "--from", "db@s1")
	hasText(t, h.must(t, "mount", "copy")+"/file", "first")

	h.must(t, "resize", "db", "--size", "101M")
	if view = h.view(t, "db"); view.Size != 104<<20 || view.Problem != "" {
		t.Errorf("resized to 101M: %+v", view)
	}
	var stat unix.Statfs_t
	check(t, unix.Statfs(dir, &stat))
	if size := int64(stat.Blocks) * stat.Bsize; size < 85<<20 {
		t.Errorf("the filesystem has %d bytes", size)
	}

	h.stop(t) // a mounted volume outlives the daemon
	hasText(t, dir+"/file", "second")
	h.start(t)
	if view = h.view(t, "db"); !view.Mounted || view.Device == "" {
		t.Errorf("after a restart %+v", view)
	}
	h.must(t, "umount", "db")
	if view = h.view(t, "db"); view.Mounted || view.Device != "" {
		t.Errorf("unmounted, but %+v", view)
	}
	h.must(t, "snapshot", "restore", "db@s1")
	dir = h.must(t, "mount", "db")
	hasText(t, dir+"/file", "first")

	vault := newVault(t, filepath.Join(t.TempDir(), "backups"), true)
	h.must(t, vault.with("backup", "create", "db", "--dest", vault.dir)...)
	putText(t, dir+"/file", "third")
	url := h.must(t, vault.with("backup", "create", "db", "--dest", vault.dir)...)
	backups := vault.list(t)
	if len(backups) != 2 {
		t.Errorf("%+v", backups)
	}
	h.must(t, vault.with("backup", "restore", url, "again")...)
	hasText(t, h.must(t, "mount", "again")+"/file", "third")
	quietly(t, vault.with("backup", "verify", vault.dir, "--data")...)

	h.docker(t, "Create", dockerRequest{Name: "web", Opts: map[string]string{"driver": "lvm", "size": "32M", "fs": "ext4"}})
	mounted := h.docker(t, "Mount", dockerRequest{Name: "web", ID: "one"})
	putText(t, mounted.Mountpoint+"/page", "page")
	h.docker(t, "Unmount", dockerRequest{Name: "web", ID: "one"})
	h.docker(t, "Remove", dockerRequest{Name: "web"})

	var info daemon.Info
	check(t, json.Unmarshal([]byte(h.must(t, "info")), &info))
	if pools := info.Pools; len(pools) != 1 || pools[0].Kind != "lvm" || len(pools[0].Layers) != 2 || pools[0].Problem != "" {
		t.Errorf("%+v", pools)
	}
	for _, name := range []string{"db", "copy", "again"} {
		h.must(t, "umount", name)
		h.must(t, "delete", "--snapshots", name)
	}
	out, err := exec.Command("lvm", "lvs", "--noheadings", "-o", "lv_name", "test-vg").Output()
	check(t, err)
	if strings.Contains(string(out), "orlop-") {
		t.Errorf("left: %s", out)
	}
}

// TestBackupsAreRestoredToTheOtherKindOfPool goes from images to thin volumes, whose sizes are whole extents, and back.
func TestBackupsAreRestoredToTheOtherKindOfPool(t *testing.T) {
	h := thinHost(t)
	h.flags = append(h.flags, "--pool", "loop")
	h.start(t)
	vault := newVault(t, filepath.Join(t.TempDir(), "backups"), true)
	h.must(t, "create", "db", "--size", "65M", "--pool", "loop")
	putText(t, h.must(t, "mount", "db")+"/file", "first")
	url := h.must(t, vault.with("backup", "create", "db", "--dest", vault.dir)...)

	h.must(t, vault.with("backup", "restore", url, "thin", "--pool", "lvm")...)
	dir := h.must(t, "mount", "thin")
	hasText(t, dir+"/file", "first")
	for _, text := range []string{"second", "third"} { // of which the first has the restored state as its base
		putText(t, dir+"/file", text)
		url = h.must(t, vault.with("backup", "create", "thin", "--dest", vault.dir)...)
	}
	if view := h.view(t, "thin"); view.Problem != "" || view.State != "ready" || view.Pool != "lvm" {
		t.Errorf("%+v", view)
	}
	h.must(t, vault.with("backup", "restore", url, "image", "--pool", "loop")...)
	hasText(t, h.must(t, "mount", "image")+"/file", "third")
	quietly(t, vault.with("backup", "verify", vault.dir, "--data")...)
	for _, name := range []string{"db", "thin", "image"} {
		h.must(t, "umount", name)
		h.must(t, "delete", "--snapshots", name)
	}
}

// TestThinPoolThatFillsUpOrGoesMissing has the guard refuse, the doctor tell, and volumes of a missing pool stay known.
func TestThinPoolThatFillsUpOrGoesMissing(t *testing.T) {
	h := thinHost(t)
	h.start(t)
	h.must(t, "create", "big", "--size", "250M")
	dir := h.must(t, "mount", "big")
	f, err := os.Create(dir + "/fill")
	check(t, err)
	for b := make([]byte, 1<<20); ; {
		if _, err = f.Write(b); err != nil {
			break
		}
		if info, statErr := f.Stat(); statErr != nil || info.Size() >= 220<<20 {
			break
		}
	}
	check(t, f.Sync())
	check(t, f.Close())
	if got := h.orlop("create", "filler", "--size", "40M"); got.code != 0 || !strings.Contains(got.stderr, "warning: data of thin pool test-vg/thin is 8") {
		t.Errorf("in a pool that is filling up: %s", got)
	}
	got := h.orlop("mount", "filler")
	dir = strings.TrimSuffix(got.stdout, "\n")
	f, err = os.Create(dir + "/fill")
	check(t, err)
	b := make([]byte, 1<<20)
	for range 25 {
		if _, err := f.Write(b); err != nil {
			break
		}
	}
	check(t, f.Sync())
	check(t, f.Close())
	got = h.orlop("create", "more", "--size", "10M")
	if got.code != 5 || !strings.Contains(got.stderr, "data of thin pool test-vg/thin is ") || !strings.Contains(got.stderr, "lvextend") {
		t.Errorf("in a full pool: %s", got)
	}
	if got := h.orlop("doctor"); got.code != 1 || !strings.Contains(got.stdout, "data of thin pool") || !strings.Contains(got.stdout, "thin_pool_autoextend_threshold") {
		t.Errorf("doctor: %s", got)
	}
	for _, name := range []string{"filler", "big"} {
		h.must(t, "umount", name)
	}
	h.must(t, "shutdown", "--detach")
	if code := h.await(t); code != 0 {
		t.Errorf("ended with %d", code)
	}
	lvmDo(t, "lvrename", "test-vg", "thin", "elsewhere")
	h.start(t)
	view := h.view(t, "big")
	if !strings.Contains(view.Problem, "thin pool test-vg/thin is missing") {
		t.Errorf("%+v", view)
	}
	if got := h.docker(t, "Get", dockerRequest{Name: "big"}); got.Volume == nil {
		t.Errorf("docker forgets it: %+v", got)
	}
	if got := h.orlop("mount", "big"); got.code != 3 || !strings.Contains(got.stderr, "missing") {
		t.Errorf("mount: %s", got)
	}
	h.stop(t)
	lvmDo(t, "lvrename", "test-vg", "elsewhere", "thin")
	h.start(t)
	for _, name := range []string{"filler", "big"} {
		h.must(t, "delete", name)
	}
}
