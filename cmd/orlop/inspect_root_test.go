//go:build root

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestInspectLeadsFromAVolumeToItsImageDeviceAndFilesystem(t *testing.T) {
	h := startHost(t)
	for _, filesystem := range []string{"ext4", "xfs"} {
		h.must(t, "create", filesystem, "--size", "300M", "--fs", filesystem)
		view := h.view(t, filesystem)
		if view.Image != h.image(t, filesystem) || view.DeviceID != strings.TrimSuffix(filepath.Base(view.Image), ".img") || view.Device != "" {
			t.Errorf("%s: %+v", filesystem, view)
		}
		uuid, err := exec.Command("blkid", "-p", "-o", "value", "-s", "UUID", view.Image).Output()
		if err != nil || view.FSUUID != strings.TrimSpace(string(uuid)) {
			t.Errorf("%s: UUID %s, blkid finds %s, %v", filesystem, view.FSUUID, uuid, err)
		}
		h.must(t, "mount", filesystem)
		device := h.view(t, filesystem).Device
		backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
		if err != nil || strings.TrimSpace(string(backing)) != view.Image {
			t.Errorf("%s: on %s, whose file is %s, %v", filesystem, device, backing, err)
		}
		h.must(t, "umount", filesystem)
	}
}

func TestTroubleWithAnImageNamesItsPathAndWhatHelps(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "16M")
	image := h.image(t, "db")
	content, err := os.ReadFile(image) // the copy that doctor asks for; the pool has a filesystem of its own
	check(t, err)
	check(t, os.Remove(image))
	h.finds(t, "volume db", "image is missing: "+image, "restore "+image+" from a copy, or orlop delete db")
	for _, args := range [][]string{{"mount", "db"}, {"snapshot", "create", "db"}} {
		if got := h.orlop(args...); got.code != 3 || !strings.Contains(got.stderr, image) {
			t.Errorf("%q: %s", args, got)
		}
	}
	if table := h.must(t, "list"); !strings.Contains(table, "degraded") || !strings.Contains(table, "\n  device ") || !strings.Contains(table, image) {
		t.Errorf("the table does not tell why:\n%s", table)
	}
	check(t, os.WriteFile(image, content, 0o600)) // as doctor says
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("restored, and doctor finds %+v", found)
	}
	check(t, os.Remove(image))
	if got := h.must(t, "delete", "db"); got != "db" { // as doctor says
		t.Errorf("delete prints %q", got)
	}
}

func TestListFiltersByPoolStateAndMount(t *testing.T) {
	h := startHost(t)
	for _, name := range []string{"a", "b", "c"} {
		h.must(t, "create", name, "--size", "16M", "--label", "of="+name)
	}
	h.must(t, "mount", "b")
	check(t, os.Remove(h.image(t, "c")))
	for filters, want := range map[string]string{
		"pool=loop": "a\nb\nc", "pool=other": "", "state=ready": "a\nb", "state=degraded": "c", "mounted": "b", "mounted=true": "b",
		"mounted=false": "a\nc", "mounted=false state=ready": "a", "label=of=b mounted": "b", "label=of=a mounted": "", "label=of": "a\nb\nc",
	} {
		args := []string{"list", "-q"}
		for _, filter := range strings.Fields(filters) {
			args = append(args, "-f", filter)
		}
		if got := h.must(t, args...); got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
	for _, filter := range []string{"mounted=perhaps", "pool=", "state=", "size=1", "pool", "label=", "label==x", ""} {
		if got := h.orlop("list", "--filter", filter); got.code != 2 || !strings.Contains(got.stderr, "pool=<name>") {
			t.Errorf("%q: %s", filter, got)
		}
	}
	if got := h.orlop("list", "-q", "b", "nope", "a"); got.code != 3 || got.stdout != "b\na\n" || got.stderr != "orlop: volume \"nope\": not found\n" {
		t.Errorf("%s", got)
	}
}
