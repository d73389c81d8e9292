//go:build root

package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
	"orlop/internal/run"
)

// usage is UsageAt for what has to succeed.
func usage(t *testing.T, dir string) Usage {
	t.Helper()
	got, err := UsageAt(dir, entry(t, dir).Device)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestUsageCountsBytesAndInodesAsDfDoes(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir)
		before := usage(t, dir)
		if all, free, err := Space(dir); err != nil || before.Size != all || before.Free != free || before.Size > size || before.Free > before.Size {
			t.Errorf("%+v, the space is %d of %d bytes, %v", before, free, all, err)
		}
		for i := range 100 {
			check(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 32<<10), 0o600))
		}
		check(t, Sync(dir))
		after := usage(t, dir)
		if after.Size != before.Size || before.Free-after.Free < 100*32<<10 {
			t.Errorf("after 100 files of 32 KiB: %+v, before %+v", after, before)
		}
		if used := (after.Inodes - after.FreeInodes) - (before.Inodes - before.FreeInodes); used != 100 {
			t.Errorf("100 files took %d inodes: %+v, before %+v", used, after, before)
		}
	})
}

func TestUsageIsNeverThatOfTheFilesystemBelow(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir)
		id := entry(t, dir).Device
		check(t, Unmount(dir))
		if got, err := UsageAt(dir, id); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// TestUsageWaitsForNoFreezeAndNoDevice: of a frozen filesystem with a writer waiting, and of one whose device does not answer,
// because the filesystem with its image is frozen.
func TestUsageWaitsForNoFreezeAndNoDevice(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, below := newFilesystem(t, kind, 3*size)
		mounted(t, kind, device, below)
		image, above := filepath.Join(below, "image"), filepath.Join(t.TempDir(), "above")
		check(t, os.WriteFile(image, nil, 0o600))
		check(t, os.Truncate(image, size))
		check(t, os.Mkdir(above, 0o700))
		check(t, kind.Make(t.Context(), run.Runner{}, image, 0, 0))
		loop := losetup(t, "--find", "--show", image)
		mounted(t, kind, loop, above)
		losetup(t, "--detach", loop) // with the mount
		for _, frozen := range []string{above, below} {
			check(t, Freeze(frozen))
			started, written := make(chan struct{}), make(chan error)
			go func() {
				close(started)
				written <- writeThrough(filepath.Join(above, "file"))
			}()
			<-started
			for range 100 {
				if got := usage(t, above); got.Size == 0 || got.Inodes == 0 {
					t.Errorf("%+v", got)
				}
			}
			select {
			case err := <-written:
				t.Errorf("written although %s is frozen: %v", frozen, err)
			default:
			}
			check(t, Thaw(frozen))
			if err := <-written; err != nil {
				t.Error(err)
			}
		}
	})
}

// writeThrough writes 1 MiB to a new file and waits until the device has it.
func writeThrough(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_SYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(make([]byte, mib))
	return err
}
