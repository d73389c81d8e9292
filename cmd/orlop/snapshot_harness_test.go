//go:build root

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/daemon"
	"orlop/metadata"
)

// often is how often a test repeats what it looks at: full times if ORLOP_SOAK is set.
func often(short, full int) int {
	if os.Getenv("ORLOP_SOAK") != "" {
		return full
	}
	return short
}

// snapshots is what "snapshot list" shows of a volume, or of all.
func (h *host) snapshots(t *testing.T, volume ...string) (views []daemon.SnapshotView) {
	t.Helper()
	text := h.must(t, append([]string{"--json", "snapshot", "list"}, volume...)...)
	check(t, json.Unmarshal([]byte(text), &views))
	return views
}

// image returns the file in the pool that is a volume's device.
func (h *host) image(t *testing.T, volume string) string {
	t.Helper()
	return imageIn(t, filepath.Join(h.root, "pool"), volume)
}

// imageIn returns the file in a pool that is a volume's device.
func imageIn(t *testing.T, pool, volume string) string {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(pool, "images", "*.json"))
	check(t, err)
	var found string
	for _, path := range records {
		raw, err := os.ReadFile(path)
		check(t, err)
		var record struct{ Volume *metadata.Volume }
		check(t, json.Unmarshal(raw, &record))
		if record.Volume != nil && record.Volume.Name == volume && record.Volume.State == metadata.Ready {
			found = strings.TrimSuffix(path, ".json") + ".img"
		}
	}
	if found == "" {
		t.Fatalf("no device carries volume %s", volume)
	}
	return found
}

// onClone makes a volume of a snapshot, calls fn with the directory at which it is mounted, and wants its filesystem
// without a fault afterwards: mounting it replays the journal. Then the clone is deleted.
func (h *host) onClone(t *testing.T, snap string, fn func(dir string)) {
	t.Helper()
	clone := h.must(t, "create", "--from", snap)
	dir := h.must(t, "mount", clone)
	fn(dir)
	h.must(t, "umount", clone)
	h.wantSound(t, clone)
	h.must(t, "delete", clone)
}

// wantSound fails unless the filesystem of a volume that is not mounted has no fault.
func (h *host) wantSound(t *testing.T, volume string) {
	t.Helper()
	argv := []string{"e2fsck", "-f", "-n", h.image(t, volume)}
	if h.view(t, volume).Filesystem == "xfs" {
		argv = []string{"xfs_repair", "-n", argv[3]}
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Errorf("volume %s: %q: %v\n%s", volume, argv, err, out)
	}
}

// wantWritable fails unless a file can be written to a mounted volume and synced, or hangs if it is frozen.
func (h *host) wantWritable(t *testing.T, volume string) {
	t.Helper()
	check(t, writeDurably(filepath.Join(h.root, "mounts", volume, "still-writable"), []byte("yes")))
}

// wantNoScratch fails if something is mounted aside still.
func (h *host) wantNoScratch(t *testing.T) {
	t.Helper()
	for _, dir := range h.mounts(t) {
		if strings.HasPrefix(dir, filepath.Join(h.root, "scratch")) {
			t.Errorf("mounted aside still: %s", dir)
		}
	}
	if left := names(t, filepath.Join(h.root, "scratch")); len(left) > 0 {
		t.Errorf("left in the scratch directory: %q", left)
	}
}
