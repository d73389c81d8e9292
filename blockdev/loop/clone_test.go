//go:build root

package loop_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	"orlop/internal/fault"
)

// eachKind runs a test on a pool of each kind of filesystem.
func eachKind(t *testing.T, fn func(t *testing.T, pool *loop.Pool)) {
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) { fn(t, openPool(t, loop.Config{Dir: makeFilesystem(t, fstype, gib)})) })
	}
}

// scatter makes an active device of twice that many extents, half of which it shares with another device.
func scatter(t *testing.T, pool *loop.Pool, id, shared blockdev.ID, count int) (path string) {
	t.Helper()
	size := int64(count) * 8192
	path = activated(t, pool, id, size)
	writeBlocks(t, path, 0, size, size)
	if err := errors.Join(pool.Clone(t.Context(), shared, id, nil), pool.Sync(t.Context(), shared)); err != nil {
		t.Fatal(err)
	}
	writeBlocks(t, path, 4096, 8192, size)
	return path
}

// writeBlocks writes blocks that are step bytes apart, or the whole file if that is its size.
func writeBlocks(t *testing.T, path string, first, step, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{byte(first>>12) + 1}, 4096)
	if step == size {
		b = bytes.Repeat(b, int(size/4096))
	}
	for offset := first; offset < size && err == nil; offset += step {
		_, err = f.WriteAt(b, offset)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	left, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	right, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(left, right) {
		t.Fatalf("%s differs from %s", a, b)
	}
}

func TestPrepareCopiesImagesOfManyExtentsOnly(t *testing.T) {
	eachKind(t, func(t *testing.T, pool *loop.Pool) {
		few, many, shared := blockdev.NewID(), blockdev.NewID(), blockdev.NewID()
		activated(t, pool, few, 16*mib)
		scatter(t, pool, many, shared, 1500)
		ofFew, ofMany := blockdev.NewID(), blockdev.NewID()
		if err := errors.Join(pool.Prepare(t.Context(), ofFew, few, nil), pool.Prepare(t.Context(), ofMany, many, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(pool.Part(ofFew)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an image of no extents was copied: %v", err)
		}
		sameFiles(t, pool.Part(ofMany), pool.Image(many))
		if _, err := os.Stat(pool.Image(ofMany)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the image is there before it is whole: %v", err)
		}
		if err := pool.Remove(t.Context(), ofMany); err != nil {
			t.Fatal(err)
		}
		if left, err := filepath.Glob(filepath.Join(pool.Dir(), "images", string(ofMany)+"*")); err != nil || len(left) > 0 {
			t.Errorf("removed, and there are %v, %v", left, err)
		}
	})
}

func TestCloneDropsWhatIsLeftOfAnotherPreparedCopy(t *testing.T) {
	eachKind(t, func(t *testing.T, pool *loop.Pool) {
		old, shared, src, dst := blockdev.NewID(), blockdev.NewID(), blockdev.NewID(), blockdev.NewID()
		scatter(t, pool, old, shared, 1500)
		path := activated(t, pool, src, 8*mib)
		writeBlocks(t, path, mib, 3*mib, 8*mib)
		err := errors.Join(pool.Prepare(t.Context(), dst, old, nil), pool.Clone(t.Context(), dst, src, nil), pool.Sync(t.Context(), dst))
		if err != nil {
			t.Fatal(err)
		}
		sameFiles(t, pool.Image(dst), pool.Image(src))
		info, err := pool.Stat(t.Context(), dst)
		if err != nil || info.Used > mib {
			t.Errorf("a copy of three blocks has %d bytes, %v", info.Used, err)
		}
	})
}

// TestSealedImageIsImmutable also after a seal that a crash cut short, or a person's chattr.
func TestSealedImageIsImmutable(t *testing.T) {
	eachKind(t, func(t *testing.T, pool *loop.Pool) {
		for _, half := range []func(f *os.File) error{
			func(*os.File) error { return nil },
			func(f *os.File) error { return f.Chmod(0o400) },
			func(f *os.File) error { return setFlags(f, 0x10) },
			func(f *os.File) error { return errors.Join(f.Chmod(0o400), setFlags(f, 0x10)) },
		} {
			id := blockdev.NewID()
			if err := pool.Create(t.Context(), id, 8*mib, nil); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(pool.Image(id))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := errors.Join(half(f), pool.Seal(t.Context(), id)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.OpenFile(pool.Image(id), os.O_WRONLY, 0); !errors.Is(err, unix.EPERM) {
				t.Errorf("open a sealed image to write: %v", err)
			}
			if err := os.Remove(pool.Image(id)); !errors.Is(err, unix.EPERM) {
				t.Errorf("remove a sealed image behind the pool's back: %v", err)
			}
			if _, err := pool.Activate(t.Context(), id, blockdev.ReadWrite); !fault.Is(err, fault.ErrProtected) {
				t.Errorf("activate to be written: %v", err)
			}
			if err := errors.Join(setFlags(f, 0), pool.Remove(t.Context(), id)); err != nil { // as if a first try was cut short
				t.Error(err)
			}
		}
	})
}

func setFlags(f *os.File, flags int) error {
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// TestDiffSeesThroughABlockThatChangedHands lets both files show the same place, each at its time, with different
// bytes. An overwritten third file, which keeps the place, stands for a filesystem that moves extents.
func TestDiffSeesThroughABlockThatChangedHands(t *testing.T) {
	dir := makeFilesystem(t, "xfs", gib)
	files := map[string]*os.File{}
	for name, text := range map[string]string{"from": "x", "to": "y", "elsewhere": "x", "keeper": "-"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = f.WriteString(string(bytes.Repeat([]byte(text), 4096)))
		if err := errors.Join(err, f.Sync()); err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	clone := func(to, from string) {
		if err := unix.IoctlFileClone(int(files[to].Fd()), int(files[from].Fd())); err != nil {
			t.Fatal(err)
		}
	}
	looks := 0
	between := func() {
		if looks++; looks > 1 {
			return
		}
		// from moves elsewhere; its former place gets what to holds, and to moves there
		clone("keeper", "from")
		clone("from", "elsewhere")
		_, err := files["keeper"].WriteAt(bytes.Repeat([]byte("y"), 4096), 0)
		if err := errors.Join(err, files["keeper"].Sync()); err != nil {
			t.Fatal(err)
		}
		clone("to", "keeper")
	}
	extents := diffFiles(t, files["from"], files["to"], between)
	if want := []blockdev.Extent{{Length: 4096}}; looks != 2 || !slices.Equal(extents, want) {
		t.Errorf("after %d looks: %v, want %v", looks, extents, want)
	}
	if again := diffFiles(t, files["keeper"], files["to"], func() {}); len(again) > 0 {
		t.Errorf("the place did not change hands: %v", again)
	}
}

func diffFiles(t *testing.T, from, to *os.File, between func()) (extents []blockdev.Extent) {
	t.Helper()
	err := loop.DiffFiles(t.Context(), from, to, between, func(e blockdev.Extent) error { extents = append(extents, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return extents
}

// TestDiffOmitsNothingDuringABalance moves every extent of a btrfs between the looks at the maps.
func TestDiffOmitsNothingDuringABalance(t *testing.T) {
	pool := openPool(t, loop.Config{Dir: makeFilesystem(t, "btrfs", 2*gib)})
	volume, base, snapshot := blockdev.NewID(), blockdev.NewID(), blockdev.NewID()
	path := scatter(t, pool, volume, base, 1500)
	writeBlocks(t, path, 4096, 64<<10, 6*mib)
	if err := errors.Join(pool.Clone(t.Context(), snapshot, volume, nil), pool.Seal(t.Context(), base), pool.Seal(t.Context(), snapshot)); err != nil {
		t.Fatal(err)
	}
	differ, _ := pool.Differ()
	var readers [2]blockdev.Reader
	var files [2]*os.File
	for i, id := range []blockdev.ID{base, snapshot} {
		reader, err := differ.Open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		f, err := os.Open(pool.Image(id))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		readers[i], files[i] = reader, f
	}
	quiet := diffFiles(t, files[0], files[1], func() {})
	extents := diffFiles(t, files[0], files[1], func() {
		if out, err := exec.Command("btrfs", "balance", "start", "--full-balance", pool.Dir()).CombinedOutput(); err != nil {
			t.Fatalf("balance: %v: %s", err, out)
		}
	})
	if covered(extents) <= covered(quiet) {
		t.Errorf("the balance moved nothing: %d bytes differ with it, %d without", covered(extents), covered(quiet))
	}
	for _, told := range [][]blockdev.Extent{quiet, extents} {
		got, want := make([]byte, readers[0].Size()), make([]byte, readers[1].Size())
		for i, b := range [][]byte{got, want} {
			if _, err := readers[i].ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		for _, e := range told {
			copy(got[e.Offset:e.End()], want[e.Offset:e.End()])
		}
		if !bytes.Equal(got, want) {
			t.Error("a difference was omitted")
		}
	}
}

func covered(extents []blockdev.Extent) (bytes int64) {
	for _, e := range extents {
		bytes += e.Length
	}
	return bytes
}

// TestImagesAreCopiedAfterTheirDirectoryChangedItsCopyOnWrite has an image from before "chattr +C", and one from between
// that and "chattr -C".
func TestImagesAreCopiedAfterTheirDirectoryChangedItsCopyOnWrite(t *testing.T) {
	pool := openPool(t, loop.Config{Dir: makeFilesystem(t, "btrfs", gib)})
	images := filepath.Join(pool.Dir(), "images")
	for i, flag := range []string{"+C", "-C"} {
		id := blockdev.NewID()
		path := activated(t, pool, id, 16*mib)
		writeBlocks(t, path, 0, 16*mib, 16*mib)
		if out, err := exec.Command("chattr", flag, images).CombinedOutput(); err != nil {
			t.Fatalf("chattr %s: %v: %s", flag, err, out)
		}
		for range 2 { // the second is a copy of the first
			copied := blockdev.NewID()
			err := errors.Join(pool.Prepare(t.Context(), copied, id, nil), pool.Clone(t.Context(), copied, id, nil), pool.Sync(t.Context(), copied))
			if err != nil {
				t.Fatalf("image %d: %v", i, err)
			}
			id = copied
		}
	}
}
