//go:build root

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/metadata"
)

// wantGrownOrRefused resizes a volume: whatever comes of it, the volume has its file, and the size that it is said to
// have.
func (h *host) wantGrownOrRefused(t *testing.T, name, size string, bytes int64) {
	t.Helper()
	before := h.view(t, name)
	got := h.orlop("resize", name, "--size", size)
	want := map[bool]int64{true: bytes, false: before.Size}[got.code == 0]
	if view := h.view(t, name); view.Size != want || view.State != "ready" || view.Mounted != before.Mounted || len(view.Holders) != len(before.Holders) {
		t.Errorf("after %s: %+v, before: %+v", got, view, before)
	}
	if !before.Mounted {
		h.must(t, "mount", name)
		defer h.must(t, "umount", name)
	}
	h.wantFile(t, name, "precious")
}

func TestGrowthPutsNoVolumeOutOfReach(t *testing.T) {
	h := startHost(t)
	for _, test := range []struct {
		from, to string
		bytes    int64
	}{{"8M", "10G", 10 << 30}, {"16M", "100G", 100 << 30}, {"8M", "1G", 1 << 30}} {
		h.must(t, "create", "e", "--size", test.from)
		h.keepFile(t, "e", "precious")
		h.wantGrownOrRefused(t, "e", test.to, test.bytes)
		h.must(t, "mount", "e")
		h.wantGrownOrRefused(t, "e", test.to, test.bytes)
		h.must(t, "umount", "e")
		h.must(t, "delete", "e")
	}
	h.must(t, "create", "full", "--size", "64M")
	h.keepFile(t, "full", "precious")
	dir := strings.TrimSpace(h.must(t, "mount", "full"))
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h.wantGrownOrRefused(t, "full", "128M", 128<<20)
	h.must(t, "umount", "full")
	h.wantGrownOrRefused(t, "full", "256M", 256<<20)
	if size := h.view(t, "full").Size; size != 256<<20 {
		t.Errorf("without a free inode it has %d bytes", size)
	}
}

// TestVolumeRecordedLargerThanItCanGrowIsMountedAndDoctorMendsIt: older versions recorded sizes before anything grew. Whether
// resize2fs can grow the ext4 depends on its version; the xfs would get too many groups.
func TestVolumeRecordedLargerThanItCanGrowIsMountedAndDoctorMendsIt(t *testing.T) {
	for _, test := range []struct {
		fs, made string
		size     int64 // bytes, as made
		recorded int64 // bytes
		wanted   string
		may      bool // the growth may succeed
	}{
		{"ext4", "8M", 8 << 20, 10 << 30, "10 GiB", true},
		{"xfs", "320M", 320 << 20, 64 << 30, "64 GiB", false},
	} {
		t.Run(test.fs, func(t *testing.T) {
			h := startHost(t)
			h.must(t, "create", "e", "--size", test.made, "--fs", test.fs)
			h.keepFile(t, "e", "precious")
			h.stop(t)
			store, err := metadata.Open(h.root)
			if err != nil {
				t.Fatal(err)
			}
			err = store.Update(t.Context(), func(tx *metadata.Tx) error {
				v, err := tx.VolumeNamed("e")
				if err != nil {
					return err
				}
				v.Size = test.recorded
				return tx.PutVolume(v)
			})
			if err := errors.Join(err, store.Close()); err != nil {
				t.Fatal(err)
			}
			h.start(t)
			h.must(t, "mount", "e")
			h.wantFile(t, "e", "precious")
			view := h.view(t, "e")
			if test.may && view.WantedSize == 0 {
				if found := h.findings(t); view.Size != test.recorded || view.State != "ready" || len(found) > 0 {
					t.Errorf("grown, but %+v, %+v", view, found)
				}
				return
			}
			if view.Size != test.size || view.State != "degraded" || !strings.Contains(h.must(t, "list"), "degraded") {
				t.Errorf("%+v", view)
			}
			mends := fmt.Sprintf("orlop resize e --size %d", test.size)
			h.finds(t, "volume e", "could not be grown to "+test.wanted, mends)
			h.must(t, strings.Fields(mends)[1:]...)
			if found := h.findings(t); len(found) > 0 || h.view(t, "e").State != "ready" {
				t.Errorf("after its command, doctor finds %+v", found)
			}
			h.wantFile(t, "e", "precious")
		})
	}
}
