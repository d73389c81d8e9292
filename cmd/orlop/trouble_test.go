//go:build root

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/daemon"
	"orlop/metadata"
)

// findings is what doctor finds, and its exit code must fit.
func (h *host) findings(t *testing.T) (findings []daemon.Finding) {
	t.Helper()
	got := h.orlop("doctor", "--json")
	if err := json.Unmarshal([]byte(got.stdout), &findings); err != nil {
		t.Fatalf("doctor: %s: %v", got, err)
	}
	if (len(findings) > 0) != (got.code == 1) || got.stderr != "" {
		t.Errorf("doctor: %d findings, %s", len(findings), got)
	}
	return findings
}

// finds fails unless doctor finds something of subject whose problem and command contain the words.
func (h *host) finds(t *testing.T, subject, problem, command string) {
	t.Helper()
	all := h.findings(t)
	for _, f := range all {
		if strings.Contains(f.Subject, subject) && strings.Contains(f.Problem, problem) && strings.Contains(f.Command, command) {
			return
		}
	}
	t.Errorf("doctor does not find %q %q %q, but %+v", subject, problem, command, all)
}

func TestDoctorFindsWhatIsWrongAndItsCommandsMendIt(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "16M")
	if found := h.findings(t); len(found) > 0 {
		t.Fatalf("nothing is wrong yet: %+v", found)
	}
	images := filepath.Join(h.root, "pool", "images")
	device := strings.TrimSuffix(h.images(t)[0], ".img")

	stranger := filepath.Join(images, "notes.txt")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.finds(t, stranger, "not one of orlop's", "mv "+stranger)
	if err := os.Remove(stranger); err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(images, "x; touch $(basename y) 'z\n")
	if err := os.WriteFile(hostile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found := h.findings(t)
	if len(found) != 1 {
		t.Fatalf("%+v", found)
	}
	pasted := exec.Command("bash", "-c", strings.Replace(found[0].Command, "/somewhere/else", h.dir, 1))
	if out, err := pasted.CombinedOutput(); err != nil || len(names(t, images)) != 2 {
		t.Errorf("%s: %v: %s; then there were %q", found[0].Command, err, out, names(t, images))
	}

	unknown := string(blockdev.NewID())
	content, err := os.ReadFile(filepath.Join(images, device+".img"))
	if err == nil {
		err = os.WriteFile(filepath.Join(images, unknown+".img"), content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.finds(t, unknown, "unknown device", "orlop device adopt "+unknown)
	if got := h.orlop("device", "adopt", unknown, "db"); got.code != 4 {
		t.Errorf("adopted under a name that is taken: %s", got)
	}
	if got := h.must(t, "device", "adopt", unknown, "found"); got != "found" {
		t.Errorf("adopt prints %q", got)
	}
	if v := h.view(t, "found"); v.Size != 16<<20 || v.Filesystem != "ext4" || v.State != "ready" {
		t.Errorf("adopted: %+v", v)
	}
	h.must(t, "mount", "found")
	h.must(t, "umount", "found")
	h.must(t, "delete", "found")

	stale := string(blockdev.NewID())
	if err := os.WriteFile(filepath.Join(images, stale+".img"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.orlop("device", "adopt", stale, "blank"); got.code != 7 {
		t.Errorf("adopted without a filesystem: %s", got)
	}
	h.must(t, "device", "delete", stale)
	if got := h.orlop("device", "delete", device); got.code != 3 {
		t.Errorf("the device of a volume counts as unknown: %s", got)
	}

	if err := os.Truncate(filepath.Join(images, device+".img"), 1<<20); err != nil {
		t.Fatal(err)
	}
	h.finds(t, "volume db", "truncated", filepath.Join(images, device+".img")+" from a copy, or orlop delete db")
	if got := h.orlop("mount", "db"); got.code != 7 {
		t.Errorf("mounted though truncated: %s", got)
	}
	for _, args := range [][]string{{"snapshot", "create", "db"}, {"create", "copy", "--from", "db"}} {
		if got := h.orlop(args...); got.code != 7 || !strings.Contains(got.stderr, "truncated") {
			t.Errorf("orlop %q though truncated: %s", args, got)
		}
	}
	h.must(t, "delete", "db")
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("all is mended, but: %+v", found)
	}
}

func TestLostMetadataIsRebuiltFromItsCopyOrFromTheDevicesAlone(t *testing.T) {
	for _, loss := range []struct {
		name string
		do   func(t *testing.T, root string)
	}{
		{"database gone", func(t *testing.T, root string) { remove(t, root, metadata.FileName) }},
		{"database and copy gone", func(t *testing.T, root string) { remove(t, root, metadata.FileName, metadata.CopyName) }},
		{"database damaged", func(t *testing.T, root string) {
			if err := os.WriteFile(filepath.Join(root, metadata.FileName), []byte(strings.Repeat("rubbish", 8192)), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(loss.name, func(t *testing.T) {
			h := startHost(t)
			h.must(t, "create", "old", "--size", "16M", "--label", "a=b", "--protect")
			h.must(t, "mount", "old")
			file := filepath.Join(h.root, "mounts", "old", "file")
			if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.must(t, "umount", "old")
			h.stop(t)
			h.start(t) // the copy knows "old" now
			h.must(t, "create", "new", "--size", "20M")
			h.must(t, "resize", "new", "--size", "24M")
			h.must(t, "set", "new", "--label", "c=d")
			h.must(t, "create", "gone", "--size", "16M")
			h.must(t, "delete", "gone")
			before := []daemon.View{h.view(t, "new"), h.view(t, "old")}
			h.stop(t)
			loss.do(t, h.root)

			refused := begin(h.flags...)
			<-refused.done
			refused.cancel()
			if refused.code != 7 || !strings.Contains(refused.log.String(), "--rebuild-metadata") {
				t.Errorf("start without metadata: exit code %d:\n%s", refused.code, refused.log)
			}
			plain := h.flags
			h.flags = append(plain[:len(plain):len(plain)], "--rebuild-metadata")
			h.start(t)
			var after []daemon.View
			if err := json.Unmarshal([]byte(h.must(t, "list", "--json")), &after); err != nil {
				t.Fatal(err)
			}
			if len(after) != len(before) {
				t.Fatalf("rebuilt %+v", after)
			}
			for i, want := range before {
				got := after[i]
				if got.Name != want.Name || got.ID != want.ID || got.Size != want.Size || got.Created != want.Created ||
					got.Protected != want.Protected || len(got.Labels) != 1 || got.Labels["a"] != want.Labels["a"] || got.Labels["c"] != want.Labels["c"] {
					t.Errorf("rebuilt %+v, was %+v", got, want)
				}
			}
			h.must(t, "mount", "old")
			if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
				t.Errorf("after the rebuild: %q, %v", text, err)
			}
			h.must(t, "umount", "old")
			if found := h.findings(t); len(found) > 0 {
				t.Errorf("doctor: %+v", found)
			}
			h.stop(t)
			h.start(t) // with the flag still there: sound metadata stays as it is
			if v := h.view(t, "new"); v.Labels["c"] != "d" {
				t.Errorf("after another start: %+v", v)
			}
			h.must(t, "set", "old", "--unprotect")
			h.must(t, "delete", "old", "new")
		})
	}
}

// sh runs a command.
func sh(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
}

// btrfsDisk mounts a new btrfs in a sparse file, until the test's end, and returns where.
func btrfsDisk(t *testing.T) (dir string) {
	t.Helper()
	home := t.TempDir()
	image, dir := filepath.Join(home, "disk"), filepath.Join(home, "mnt")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<30), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.btrfs", "-q", image)
	sh(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		if err := fs.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func remove(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARootWhoseDiskIsNotMountedIsNoFirstStart(t *testing.T) {
	disk := ext4Disk(t, 3<<30)
	dir := filepath.Join(disk, "host")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := newHostIn(t, dir)
	h.start(t)
	h.must(t, "create", "db", "--size", "16M")
	h.must(t, "shutdown", "--detach")
	h.await(t)

	image := filepath.Join(filepath.Dir(disk), "disk")
	if err := fs.Unmount(disk); err != nil {
		t.Fatal(err)
	}
	// The daemon's sockets are not on the disk; its root is.
	refused := begin("--root", h.root, "--control-socket", image+".control", "--plugin-socket", image+".plugin")
	<-refused.done
	refused.cancel()
	if refused.code != 3 || !strings.Contains(refused.log.String(), "not mounted") {
		t.Errorf("start without the disk: exit code %d:\n%s", refused.code, refused.log)
	}
	if left := names(t, disk); len(left) > 0 {
		t.Errorf("the refused start made %q", left)
	}
	sh(t, "mount", "-o", "loop", image, disk)
	h.start(t)
	if v := h.view(t, "db"); v.State != "ready" {
		t.Errorf("after mounting the disk: %+v", v)
	}
	h.must(t, "delete", "db")
}

func TestAMissingPoolDegradesItsVolumesOnly(t *testing.T) {
	h := newHost(t)
	other := filepath.Join(btrfsDisk(t), "pool")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	h.flags = append(h.flags, "--pool", "loop", "--pool", "second=loop:"+other)
	h.start(t)
	h.must(t, "create", "here", "--size", "16M")
	h.must(t, "create", "there", "--size", "16M", "--pool", "second", "--label", "keep=me")
	h.stop(t)
	away := other + ".away"
	if err := os.Rename(other, away); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	if v := h.view(t, "here"); v.State != "ready" {
		t.Errorf("the volume of the other pool: %+v", v)
	}
	if v := h.view(t, "there"); v.State != "degraded" || !strings.Contains(v.Problem, "missing") || v.Labels["keep"] != "me" {
		t.Errorf("the volume of the missing pool: %+v", v)
	}
	got := h.docker(t, "Get", dockerRequest{Name: "there"})
	if got.Volume == nil || got.Volume.Status["state"] != "degraded" {
		t.Errorf("Get: %+v", got.Volume)
	}
	for _, args := range [][]string{{"mount", "there"}, {"delete", "there"}, {"resize", "there", "--size", "20M"}, {"create", "x", "--pool", "second", "--size", "16M"}} {
		if got := h.orlop(args...); got.code != 3 || !strings.Contains(got.stderr, "missing") {
			t.Errorf("orlop %q: %s", args, got)
		}
	}
	if got, err := h.ask(t.Context(), "Remove", dockerRequest{Name: "there"}); err != nil || !strings.Contains(got.Err, "missing") {
		t.Errorf("Docker would forget the volume: %+v, %v", got, err)
	}
	h.finds(t, "pool second", "no such directory", "systemctl restart orlop")
	h.must(t, "mount", "here")
	h.must(t, "umount", "here")
	h.stop(t)
	if err := os.Rename(away, other); err != nil {
		t.Fatal(err)
	}
	h.start(t)
	if v := h.view(t, "there"); v.State != "ready" {
		t.Errorf("with the pool back: %+v", v)
	}
	h.must(t, "delete", "here", "there")
}
