//go:build root

package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
	"orlop/internal/run"
)

func TestNewFilesystemHasAnEmptyRootWithItsOwnerAndMode(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		for _, mode := range []uint32{0o700, 0o2775, 0o7777, 0o1777} {
			device, _ := newDevice(t, size)
			if err := kind.Make(t.Context(), run.Runner{}, device, 1234, 4321); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			mounted(t, kind, device, dir)
			for range 2 { // it converges
				if err := kind.RemoveLostFound(dir); err != nil {
					t.Fatal(err)
				}
				if err := FinishRoot(dir, 1234, 4321, mode); err != nil {
					t.Fatal(err)
				}
			}
			if st := stat(t, dir); st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != mode {
				t.Errorf("root is of %d:%d with mode %o, want 1234:4321 and %o", st.Uid, st.Gid, st.Mode&0o7777, mode)
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
				t.Errorf("root has %v, %v", files, err)
			}
		}
	})
}

func TestSmallestFilesystemMountsAndHasAJournal(t *testing.T) {
	for _, kind := range types {
		device, _, dir := newFilesystem(t, kind, kind.MinSize)
		mounted(t, kind, device, dir)
		if size, err := kind.Size(device); err != nil || size > kind.MinSize || size < kind.MinSize/10*9 {
			t.Errorf("%s of %d bytes shows %d, %v", kind.Name, kind.MinSize, size, err)
		}
		if kind.Name != "ext4" {
			continue
		}
		block, err := superblock(device)
		if err != nil {
			t.Fatal(err)
		}
		if features := binary.LittleEndian.Uint32(block[ext4Start+0x5c:]); features&4 == 0 { // COMPAT_HAS_JOURNAL
			t.Errorf("ext4 of %d bytes has the features %#x", kind.MinSize, features)
		}
	}
}

func TestMakeRefusesADeviceThatHoldsData(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		for _, offset := range []int64{0, 1024, mib - 1, size - 64*kib, size - 1} {
			device, image := newDevice(t, size)
			writeAt(t, device, offset, []byte{1})
			before := stat(t, image).Blocks
			err := kind.Make(t.Context(), run.Runner{}, device, 0, 0)
			if !fault.Is(err, fault.ErrExists) {
				t.Errorf("make over a byte at %d: %v", offset, err)
			}
			unix.Sync()
			if after := stat(t, image).Blocks; after != before {
				t.Errorf("the refused make over a byte at %d took the image from %d to %d blocks", offset, before, after)
			}
		}
		for _, former := range types {
			device, _, _ := newFilesystem(t, former, max(size, former.MinSize))
			if err := kind.Make(t.Context(), run.Runner{}, device, 0, 0); !fault.Is(err, fault.ErrExists) {
				t.Errorf("make over %s: %v", former.Name, err)
			}
		}
	})
}

func writeAt(t *testing.T, device string, offset int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestSizeRefusesWhatIsNotOfTheType(t *testing.T) {
	for _, kind := range types {
		blank, _ := newDevice(t, kind.MinSize)
		if size, err := kind.Size(blank); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s size of a blank device: %d, %v", kind.Name, size, err)
		}
		for _, other := range types {
			device, _, dir := newFilesystem(t, other, max(kind.MinSize, other.MinSize))
			size, err := kind.Size(device)
			if right := kind.Name == other.Name; right != (err == nil) || !right && !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("%s size of %s: %d, %v", kind.Name, other.Name, size, err)
			}
			if kind.Name == other.Name {
				continue
			}
			if err := kind.Mount(device, dir, nil); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("mount of %s as %s: %v", other.Name, kind.Name, err)
			}
		}
	}
}

// enlarge makes a device bigger, as a pool does.
func enlarge(t *testing.T, device, image string, size int64) {
	t.Helper()
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
}

func room(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks) * st.Bsize
}

func TestGrowExtendsAFilesystemInUse(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, image, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir)
		f, err := os.Create(filepath.Join(dir, "open"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		before := room(t, dir)
		enlarge(t, device, image, 4*size)
		err = kind.Grow(device, dir, 4*size)
		if !kind.GrowsMounted() {
			if err == nil || room(t, dir) != before {
				t.Errorf("said to be impossible for this process, but: %v", err)
			}
			return
		}
		for range 3 { // it converges
			if err != nil {
				t.Fatal(err)
			}
			if now := room(t, dir); now < before+3*size/10*9 {
				t.Errorf("room of %d bytes, grown from %d to %d: %d", before, size, 4*size, now)
			}
			err = kind.Grow(device, dir, 4*size)
		}
		if _, err := f.WriteString("still writable"); err != nil {
			t.Error(err)
		}
		if err := errors.Join(f.Close(), Unmount(dir)); err != nil {
			t.Fatal(err)
		}
		if now, err := kind.Size(device); err != nil || now > 4*size || now < 4*size-mib {
			t.Errorf("grown to %d, the superblock shows %d, %v", 4*size, now, err)
		}
	})
}

func TestGrowOfXFSToOddSizesConverges(t *testing.T) {
	kind, err := Lookup("xfs")
	if err != nil {
		t.Fatal(err)
	}
	device, image, dir := newFilesystem(t, kind, 300*mib)
	mounted(t, kind, device, dir)
	for _, size := range []int64{300*mib + 4096, 300*mib + 16*mib, 600*mib + 4096, 600*mib + 4096, 1 * gib} {
		enlarge(t, device, image, size)
		if err := kind.Grow(device, dir, size); err != nil {
			t.Errorf("to %d bytes: %v", size, err)
		}
	}
	if now := room(t, dir); now < 900*mib {
		t.Errorf("grown to 1 GiB: room of %d bytes", now)
	}
}

func TestGrowOfflineExtendsAFilesystemNobodyUses(t *testing.T) {
	kind, err := Lookup("ext4")
	if err != nil {
		t.Fatal(err)
	}
	device, image, dir := newFilesystem(t, kind, 64*mib)
	if err := kind.Mount(device, dir, nil); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	enlarge(t, device, image, 256*mib)
	for range 2 { // it converges
		if _, err := kind.GrowOffline(t.Context(), run.Runner{}, device, 256*mib); err != nil {
			t.Fatal(err)
		}
		if size, err := kind.Size(device); err != nil || size != 256*mib {
			t.Fatalf("grown to 256 MiB, the superblock shows %d, %v", size, err)
		}
	}
	mounted(t, kind, device, dir)
	if content, err := os.ReadFile(kept); err != nil || string(content) != "content" {
		t.Errorf("after growing: %q, %v", content, err)
	}
}

func TestRepairLeavesASoundFilesystemAlone(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, _, _ := newFilesystem(t, kind, size)
		if done, _, err := kind.Repair(t.Context(), run.Runner{}, device); done || err != nil {
			t.Errorf("repair: %t, %v", done, err)
		}
	})
}

// failedByKernel is an ext4 that the kernel has found an error in, and its mount.
func failedByKernel(t *testing.T) (kind Type, device, dir string) {
	t.Helper()
	kind, err := Lookup("ext4")
	if err != nil {
		t.Fatal(err)
	}
	device, _, dir = newFilesystem(t, kind, 64*mib)
	mounted(t, kind, device, dir)
	if entry(t, dir).ReadOnly || hasErrors(stat(t, dir).Dev) {
		t.Fatal("a new filesystem has an error")
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("test"), 0o200); err != nil {
		t.Fatal(err)
	}
	return kind, device, dir
}

func TestFilesystemWithAnErrorShowsAsReadOnly(t *testing.T) {
	_, _, dir := failedByKernel(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err == nil {
		t.Fatal("the filesystem is still writable: this test proves nothing")
	}
	if !hasErrors(stat(t, dir).Dev) {
		t.Error("its error is not seen, which some kernels show no other sign of")
	}
	if e := entry(t, dir); !e.ReadOnly {
		table, _ := os.ReadFile("/proc/self/mountinfo")
		t.Errorf("%+v; the kernel's table:\n%s", e, table)
	}
}

func TestRepairClearsAnErrorThatTheKernelRecorded(t *testing.T) {
	kind, device, dir := failedByKernel(t)
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if done, _, err := kind.Repair(t.Context(), run.Runner{}, device); !done || err != nil {
		t.Fatalf("repair: %t, %v", done, err)
	}
	if done, _, err := kind.Repair(t.Context(), run.Runner{}, device); done || err != nil {
		t.Fatalf("repair of what is repaired: %t, %v", done, err)
	}
	mounted(t, kind, device, dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// A check that repairs wants a lost+found, for which these have no room. It called them damaged.
func TestRepairOfAFullFilesystemNeedsNoLostAndFound(t *testing.T) {
	for name, fill := range map[string]func(dir string) error{
		"inodes": func(dir string) error {
			for i := 0; ; i++ {
				if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
					return err
				}
			}
		},
		"blocks": func(dir string) error {
			f, err := os.Create(filepath.Join(dir, "file"))
			if err != nil {
				return err
			}
			defer f.Close()
			for _, length := range []int64{mib, 4096} {
				for err = nil; err == nil; {
					_, err = f.Write(make([]byte, length))
				}
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			kind, err := Lookup("ext4")
			if err != nil {
				t.Fatal(err)
			}
			device, _, dir := newFilesystem(t, kind, 16*mib)
			mounted(t, kind, device, dir)
			if err := kind.RemoveLostFound(dir); err != nil {
				t.Fatal(err)
			}
			if err := fill(dir); !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error"), []byte("test"), 0o200); err != nil {
				t.Fatal(err)
			}
			if err := Unmount(dir); err != nil {
				t.Fatal(err)
			}
			if done, _, err := kind.Repair(t.Context(), run.Runner{}, device); !done || err != nil {
				t.Fatalf("repair: %t, %v", done, err)
			}
			mounted(t, kind, device, dir)
		})
	}
}

func TestRepairLeavesADecisionToAPerson(t *testing.T) {
	kind, device, dir := failedByKernel(t)
	block, err := superblock(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	// The inodes of the first group follow its descriptors: wipe them, the root directory's included.
	if binary.LittleEndian.Uint32(block[ext4Start+0x18:]) != 2 {
		t.Fatal("not of 4 KiB blocks")
	}
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	descriptor := make([]byte, 64)
	_, err = f.ReadAt(descriptor, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	inodes := int64(binary.LittleEndian.Uint32(descriptor[8:])) * 4096
	writeAt(t, device, inodes, make([]byte, 4096))
	done, _, err := kind.Repair(t.Context(), run.Runner{}, device)
	if done || !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("repair: %t, %v", done, err)
	}
	image, readErr := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if readErr != nil {
		t.Fatal(readErr)
	}
	if want := "run: e2fsck -f " + strings.TrimSpace(string(image)) + ": "; !strings.Contains(err.Error(), want) {
		t.Errorf("the device may be detached by then; want %q in: %v", want, err)
	}
}

func TestTrimGivesFreedSpaceBack(t *testing.T) {
	eachType(t, func(t *testing.T, kind Type, size int64) {
		device, image, dir := newFilesystem(t, kind, size)
		mounted(t, kind, device, dir, "nodiscard")
		file := filepath.Join(dir, "file")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Repeat([]byte("data"), int(20*mib/4))); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		full := stat(t, image).Blocks * 512
		if full < 20*mib {
			t.Fatalf("20 MiB written, %d in the image", full)
		}
		// Not Remove: XFS frees the blocks of a removed file some time later.
		if err := errors.Join(f.Truncate(0), f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		freed, err := Trim(dir) // which writes the filesystem out; sync(2) would wait for every other one on the machine too
		if err != nil || freed < 20*mib {
			t.Errorf("trim: %d, %v", freed, err)
		}
		if now := stat(t, image).Blocks * 512; now > full-20*mib+mib {
			t.Errorf("image of %d bytes has %d after the trim", full, now)
		}
	})
}
