//go:build root

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// imageOf returns the path of a volume's image, which is the only one there is.
func imageOf(t *testing.T, h *host) string {
	t.Helper()
	images := slices.DeleteFunc(h.images(t), func(name string) bool { return !strings.HasSuffix(name, ".img") })
	if len(images) != 1 {
		t.Fatalf("images %q, want one", images)
	}
	return filepath.Join(h.root, "pool", "images", images[0])
}

func TestGetAnswersAndMountFailsWhileTheImageIsAway(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M", "--label", "app=shop")
	image := imageOf(t, h)
	away := filepath.Join(h.root, "pool", "away")
	if err := os.Rename(image, away); err != nil {
		t.Fatal(err)
	}
	got := h.docker(t, "Get", dockerRequest{Name: "a"})
	if got.Volume == nil || got.Volume.Status["state"] != "degraded" || got.Volume.Status["problem"] == "" || got.Volume.Mountpoint != "" {
		t.Errorf("%+v", got.Volume)
	}
	if created, err := time.Parse(time.RFC3339, got.Volume.CreatedAt); err != nil || time.Since(created) > time.Hour {
		t.Errorf("CreatedAt %q: %v", got.Volume.CreatedAt, err)
	}
	if got, err := h.ask(t.Context(), "Mount", dockerRequest{Name: "a", ID: "x"}); err != nil || got.status != http.StatusInternalServerError || !strings.Contains(got.Err, `"a"`) {
		t.Errorf("Mount: %+v, %v", got, err)
	}
	h.docker(t, "Create", dockerRequest{Name: "a"})
	h.docker(t, "Path", dockerRequest{Name: "a"})
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "x"})
	if list := h.docker(t, "List", dockerRequest{}); len(list.Volumes) != 1 {
		t.Errorf("List: %+v", list)
	}
	if got := h.orlop("mount", "a"); got.code != 3 {
		t.Errorf("orlop mount: %s", got)
	}
	if view := h.view(t, "a"); view.State != "degraded" || view.Problem == "" || view.Mounted || len(view.Holders) != 0 || view.Labels["app"] != "shop" {
		t.Errorf("%+v", view)
	}
	if err := os.Rename(away, image); err != nil {
		t.Fatal(err)
	}
	if got := h.docker(t, "Get", dockerRequest{Name: "a"}); got.Volume.Status["state"] != "ready" {
		t.Errorf("%+v", got.Volume)
	}
	h.docker(t, "Mount", dockerRequest{Name: "a", ID: "x"})
}

func TestAnImageThatGoesAwayWhileMountedLeavesNoDevice(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	path := h.docker(t, "Mount", dockerRequest{Name: "a", ID: "x"}).Mountpoint
	if err := os.Remove(imageOf(t, h)); err != nil {
		t.Fatal(err)
	}
	if got := h.docker(t, "Get", dockerRequest{Name: "a"}); got.Volume.Status["state"] != "degraded" || got.Volume.Mountpoint != path {
		t.Errorf("%+v", got.Volume)
	}
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "x"})
	if devices := h.devices(t); len(devices) != 1 {
		t.Errorf("loop devices %q, want the pool's only", devices)
	}
	h.docker(t, "Remove", dockerRequest{Name: "a"})
	if got := h.must(t, "list", "--json"); got != "[]" {
		t.Errorf("%s", got)
	}
}

func TestAnImageThatIsNoFilesystemIsCorrupt(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	image := imageOf(t, h)
	if err := os.Truncate(image, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	got := h.orlop("mount", "a", "--json")
	if got.code != 7 || got.failure(t).Error.Kind != fault.ErrCorrupt {
		t.Errorf("%s", got)
	}
	if devices := h.devices(t); len(devices) != 1 {
		t.Errorf("loop devices %q, want the pool's only", devices)
	}
	h.must(t, "delete", "a")
}

// TestMountAccounting plays what Docker sends on the ways that docker.md lists; the kernel's table tells the truth.
func TestMountAccountingFollowsDocker(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	path := filepath.Join(h.root, "mounts", "a")
	mounted := func() bool { return slices.Contains(h.mounts(t), path) }
	step := func(call, id string, want bool) {
		t.Helper()
		got := h.docker(t, call, dockerRequest{Name: "a", ID: id})
		if call == "Mount" && got.Mountpoint != path {
			t.Errorf("Mount(%s) answered %q", id, got.Mountpoint)
		}
		if mounted() != want {
			t.Errorf("after %s(%s): mounted %t, want %t", call, id, !want, want)
		}
	}
	step("Mount", "a", true)
	step("Mount", "b", true) // two containers
	step("Unmount", "a", true)
	step("Mount", "b", true) // docker cp
	step("Unmount", "unknown", true)
	step("Unmount", "b", false)
	step("Unmount", "b", false) // the one that follows a cp
	f, err := os.Open(mountedFile(t, h, step))
	if err != nil {
		t.Fatal(err)
	}
	step("Unmount", "c", true) // in use all the same: kept
	if view := h.view(t, "a"); !view.Kept {
		t.Errorf("%+v", view)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	step("Unmount", "anything", false)
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil || stat.Mode&0o777 != 0 {
		t.Errorf("the mount directory has mode %o while nothing is mounted (%v)", stat.Mode&0o777, err)
	}
}

func mountedFile(t *testing.T, h *host, step func(call, id string, want bool)) string {
	t.Helper()
	step("Mount", "c", true)
	file := filepath.Join(h.root, "mounts", "a", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
