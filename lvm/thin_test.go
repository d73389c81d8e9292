//go:build vm

package lvm_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/lvm"
)

// seeded returns random numbers from ORLOP_SEED, or new ones, and tells the seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ORLOP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, differ blockdev.Differ, id blockdev.ID) []byte {
	t.Helper()
	reader, err := differ.Open(t.Context(), id)
	must(t, err)
	b, err := io.ReadAll(io.NewSectionReader(reader, 0, reader.Size()))
	must(t, err)
	must(t, reader.Close())
	return b
}

// Between two snapshots a device is written, discarded and overwritten, in pieces that chunks know nothing of. What
// Diff tells leads from each to the other, and another volume, made of the space that was given back, shows none of it.
func TestNothingThatChangedBetweenSnapshotsIsLeftOut(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "pool", "64M") // small, so that chunks are used again
	pool := openPool(t, lvm.Config{VG: vg, ThinPool: "pool"})
	differ, _ := pool.Differ()
	rng := seeded(t)
	const size = int64(16) << 20
	id := blockdev.NewID()
	must(t, pool.Create(t.Context(), id, size, nil))
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	must(t, err)
	previous := blockdev.ID("")
	old := make([]byte, size)
	for round := range 6 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		for i := range 40 {
			offset := rng.Int64N(size/512) * 512
			length := min(512*(1+rng.Int64N(400)), size-offset)
			if i%3 == 2 {
				must(t, unix.Fdatasync(int(f.Fd()))) // a discard passes by what is only in memory
				must(t, discard(f, offset, length))
				continue
			}
			_, err := f.WriteAt(bytes.Repeat([]byte(fmt.Sprintf("secret%2d", round)), int(length/8)), offset)
			must(t, err)
		}
		must(t, f.Sync())
		must(t, f.Close())
		snapshot := blockdev.NewID()
		must(t, pool.Clone(t.Context(), snapshot, id, nil))
		must(t, pool.Seal(t.Context(), snapshot))
		now := content(t, differ, snapshot)
		got := bytes.Clone(old)
		told := int64(0)
		must(t, differ.Diff(t.Context(), previous, snapshot, func(e blockdev.Extent) error {
			clear(got[e.Offset:e.End()])
			if e.Kind == blockdev.Data {
				copy(got[e.Offset:e.End()], now[e.Offset:e.End()])
			} else if len(bytes.Trim(now[e.Offset:e.End()], "\x00")) > 0 {
				t.Errorf("%+v is no hole", e)
			}
			told += e.Length
			return nil
		}))
		if !bytes.Equal(got, now) {
			t.Fatalf("round %d: what differs does not lead from one snapshot to the next", round)
		}
		t.Logf("round %d: %d bytes differ", round, told)
		if previous != "" {
			must(t, pool.Remove(t.Context(), previous)) // its chunks are free for others
		}
		stranger := blockdev.NewID()
		must(t, pool.Create(t.Context(), stranger, size, nil))
		node, err := pool.Activate(t.Context(), stranger, blockdev.ReadWrite)
		must(t, err)
		w, err := os.OpenFile(node, os.O_RDWR, 0)
		must(t, err)
		for offset := int64(0); offset < size/4; offset += chunk {
			_, err := w.WriteAt([]byte("x"), offset) // makes the thin pool allocate the chunk
			must(t, err)
		}
		must(t, w.Sync())
		must(t, w.Close())
		must(t, pool.Deactivate(t.Context(), stranger))
		if bytes.Contains(content(t, differ, stranger), []byte("secret")) {
			t.Fatal("a new volume shows another's old bytes")
		}
		must(t, pool.Remove(t.Context(), stranger))
		previous, old = snapshot, now
	}
	must(t, pool.Deactivate(t.Context(), id))
	must(t, pool.Remove(t.Context(), id))
	must(t, pool.Remove(t.Context(), previous))
}

func discard(f *os.File, offset, length int64) error {
	span := [2]uint64{uint64(offset), uint64(length)}
	return ioctlPointer(f, unix.BLKDISCARD, &span)
}

func TestTwoPoolsOfOneGroupKeepToThemselves(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "one", "64M")
	one := openPool(t, lvm.Config{VG: vg, ThinPool: "one"})
	two := openPool(t, lvm.Config{VG: vg, ThinPool: "two", Create: 64 << 20})
	if one.UUID() == two.UUID() {
		t.Fatalf("both are %s", one.UUID())
	}
	command(t, "lvcreate", "--yes", "--wipesignatures", "n", "--zero", "n", "--size", "4M", "--name", "orlop-01890a5d-ac96-774b-bcce-0000000000ff", vg) // a name like ours
	ids := map[*lvm.Pool]blockdev.ID{}
	for _, pool := range []*lvm.Pool{one, two} {
		ids[pool] = blockdev.NewID()
		must(t, pool.Create(t.Context(), ids[pool], 4<<20, nil))
	}
	for pool, id := range ids {
		infos, err := pool.List(t.Context())
		if err != nil || len(infos) != 1 || infos[0].ID != id {
			t.Errorf("%+v, %v", infos, err)
		}
	}
	if err := one.Create(t.Context(), "01890a5d-ac96-774b-bcce-0000000000ff", 4<<20, nil); !fault.Is(err, fault.ErrExists) {
		t.Errorf("a stranger has the name: %v", err)
	}
	must(t, one.Remove(t.Context(), "01890a5d-ac96-774b-bcce-0000000000ff"))
	must(t, one.Remove(t.Context(), ids[two]))
	if out := command(t, "lvs", "--noheadings", "-o", "lv_name", vg); !strings.Contains(out, "0000000000ff") || !strings.Contains(out, string(ids[two])) {
		t.Errorf("another's volume is gone: %s", out)
	}
	if _, err := lvm.Open(t.Context(), lvm.Config{VG: vg, ThinPool: "one", UUID: one.UUID()}); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	for pool, id := range ids {
		must(t, pool.Remove(t.Context(), id))
		must(t, pool.Detach(t.Context()))
	}
	if out := command(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name"); strings.Contains(out, "tpool") {
		t.Errorf("still active: %s", out)
	}
}

// A thin pool that runs full fails the writes; its volumes can be read, nothing new is made, and room helps.
func TestFullThinPoolIsToldAndComesBack(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "small", "16M")
	pool := openPool(t, lvm.Config{VG: vg, ThinPool: "small"})
	id := blockdev.NewID()
	must(t, pool.Create(t.Context(), id, 4<<20, nil))
	fill(t, pool)
	space, err := pool.Space(t.Context())
	if err != nil || space.Used() < 1 || !strings.Contains(space.Layer, "data of thin pool") {
		t.Errorf("%+v, %v", space, err)
	}
	for _, err := range []error{pool.Create(t.Context(), blockdev.NewID(), 4<<20, nil), pool.Clone(t.Context(), blockdev.NewID(), id, nil)} {
		if !fault.Is(err, fault.ErrNoSpace) || !strings.Contains(err.Error(), "lvextend") {
			t.Error(err)
		}
	}
	if _, err := pool.Activate(t.Context(), id, blockdev.ReadOnly); err != nil {
		t.Error(err)
	}
	must(t, pool.Deactivate(t.Context(), id))
	command(t, "lvextend", "--size", "+16M", vg+"/small")
	if space, err = pool.Space(t.Context()); err != nil || space.Used() > 0.6 {
		t.Errorf("after lvextend %+v, %v", space, err)
	}
	clone := blockdev.NewID()
	must(t, pool.Clone(t.Context(), clone, id, nil))
	must(t, pool.Remove(t.Context(), clone))
	must(t, pool.Remove(t.Context(), id))
}

func TestThinPoolWhoseMetadataIsFullIsTold(t *testing.T) {
	vg := group(t)
	command(t, "lvcreate", "--type", "thin-pool", "--size", "64M", "--poolmetadatasize", "2M", "--chunksize", "64k", "--yes", "--name", "narrow", vg)
	pool := openPool(t, lvm.Config{VG: vg, ThinPool: "narrow"})
	id := blockdev.NewID()
	must(t, pool.Create(t.Context(), id, 4<<20, nil))
	device := strings.ReplaceAll(vg, "-", "--") + "-narrow-tpool"
	told := false
	var err error
	for number := 1000; number < 3000 && err == nil; number++ { // each takes a block
		_, err = try("dmsetup", "message", device, "0", fmt.Sprint("create_thin ", number))
		if space, spaceErr := pool.Space(t.Context()); spaceErr == nil && space.Used() > 0.95 && strings.Contains(space.Layer, "metadata of thin pool") {
			told = true // the guard refuses from here on
		}
	}
	space, spaceErr := pool.Space(t.Context())
	t.Logf("%v; then space %+v, %v", err, space, spaceErr)
	if err == nil || !told {
		t.Errorf("told that it is nearly full: %v", told)
	}
	if err := pool.Clone(t.Context(), blockdev.NewID(), id, nil); !fault.Is(err, fault.ErrNoSpace) || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("clone: %v", err)
	} else {
		t.Log(err)
	}
	if info, err := pool.Stat(t.Context(), id); err != nil || info.Size != 4<<20 {
		t.Errorf("%+v, %v", info, err)
	}
}

// While a disk is missing nothing new is made, with LVM's words; volumes on the other disks stay.
func TestMissingDiskIsToldInLVMsWords(t *testing.T) {
	vg := group(t)
	second := disk(t, "1G")
	command(t, "vgextend", vg, second)
	thinPool(t, vg, "pool", "64M")
	c := lvm.Config{VG: vg, ThinPool: "pool"}
	pool := openPool(t, c)
	id := blockdev.NewID()
	must(t, pool.Create(t.Context(), id, 4<<20, nil))
	command(t, "losetup", "--detach", second)
	err := pool.Create(t.Context(), blockdev.NewID(), 4<<20, nil)
	if err == nil || !strings.Contains(err.Error(), "PV") {
		t.Errorf("with a disk missing: %v", err)
	}
	t.Log(err)
	if info, err := pool.Stat(t.Context(), id); err != nil || info.Size != 4<<20 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := pool.Activate(t.Context(), id, blockdev.ReadWrite); err != nil {
		t.Errorf("a volume on the disk that is there: %v", err)
	}
	must(t, pool.Deactivate(t.Context(), id))
	c.UUID = pool.UUID()
	pool.Close()
	_, err = lvm.Open(t.Context(), c)
	if !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "lacks a disk") {
		t.Errorf("opened with a disk missing: %v", err)
	}
	command(t, "vgreduce", "--removemissing", vg)
	pool = openPool(t, c)
	must(t, pool.Remove(t.Context(), id))
	if _, err := lvm.Open(t.Context(), lvm.Config{VG: "no-such-group", ThinPool: "pool"}); !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "not found") {
		t.Errorf("no group: %v", err)
	}
}

// Others may rename a volume that is in use, or remove one.
func TestVolumesRenamedAndRemovedBehindItsBack(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "pool", "64M")
	pool := openPool(t, lvm.Config{VG: vg, ThinPool: "pool"})
	kept, gone := blockdev.NewID(), blockdev.NewID()
	for _, id := range []blockdev.ID{kept, gone} {
		must(t, pool.Create(t.Context(), id, 4<<20, blockdev.Record(`{}`)))
	}
	before, err := pool.Activate(t.Context(), kept, blockdev.ReadWrite)
	must(t, err)
	command(t, "lvrename", vg, "orlop-"+string(kept), "mine")
	command(t, "lvremove", "--yes", vg+"/orlop-"+string(gone))
	info, err := pool.Stat(t.Context(), kept)
	if err != nil || info.Path == before || !strings.HasSuffix(info.Path, "-mine") {
		t.Errorf("was %s: %+v, %v", before, info, err)
	}
	if err := pool.Remove(t.Context(), kept); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("active under another name: %v", err)
	}
	_, err = pool.Activate(t.Context(), gone, blockdev.ReadWrite)
	if !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), string(gone)) {
		t.Error(err)
	}
	must(t, pool.Remove(t.Context(), gone))
	must(t, pool.Deactivate(t.Context(), kept))
	clone := blockdev.NewID()
	must(t, pool.Clone(t.Context(), clone, kept, nil))
	must(t, pool.Remove(t.Context(), clone))
	must(t, pool.Remove(t.Context(), kept))
}

// udev and the like open devices for a moment: that keeps none active.
func TestDeactivateWaitsForThoseWhoOnlyLook(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "pool", "64M")
	pool := openPool(t, lvm.Config{VG: vg, ThinPool: "pool"})
	id := blockdev.NewID()
	must(t, pool.Create(t.Context(), id, 4<<20, nil))
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- pool.Deactivate(t.Context(), id) }()
	select {
	case err := <-done:
		t.Errorf("ended while the device was open: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	must(t, f.Close())
	must(t, <-done)
	if info, err := pool.Stat(t.Context(), id); err != nil || info.Path != "" {
		t.Errorf("%+v, %v", info, err)
	}
	must(t, pool.Remove(t.Context(), id))
}
