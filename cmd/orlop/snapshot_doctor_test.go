//go:build root

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/daemon"
	"orlop/metadata"
)

func TestDoctorFindsVolumesThatSomebodyElseHasFrozenAndThawsNone(t *testing.T) {
	h := startHost(t)
	for _, filesystem := range []string{"ext4", "xfs"} {
		h.must(t, "create", filesystem, "--size", "300M", "--fs", filesystem)
		h.must(t, "mount", filesystem)
	}
	h.must(t, "snapshot", "create", "ext4", "xfs", "--name", "s") // a freeze of ours is none afterwards
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("nothing is frozen: %+v", found)
	}
	for _, name := range []string{"ext4", "xfs"} {
		h.freeze(t, name)
		dir := filepath.Join(h.root, "mounts", name)
		for range 3 {
			if found := h.findings(t); len(found) != 1 || found[0].Subject != "volume "+name {
				t.Errorf("%+v", found)
			}
		}
		h.finds(t, "volume "+name, "its filesystem was frozen by another program", "fsfreeze --unfreeze "+dir)
		h.thaw(t, name) // fails if doctor has thawed it
		h.wantWritable(t, name)
	}
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("nothing is frozen any more: %+v", found)
	}
}

// forgetSnapshot loses a snapshot's records, as a database of yesterday would.
func (h *host) forgetSnapshot(t *testing.T, s daemon.SnapshotView) (device string) {
	t.Helper()
	h.stop(t)
	store, err := metadata.Open(h.root)
	check(t, err)
	err = store.Update(t.Context(), func(tx *metadata.Tx) error {
		record, err := tx.Snapshot(s.ID)
		device, record.State = record.Device, metadata.Removing
		return errors.Join(err, tx.PutSnapshot(record), tx.DeleteDevice(device), tx.DeleteSnapshot(s.ID))
	})
	check(t, errors.Join(err, store.Close()))
	h.start(t)
	return device
}

func TestASnapshotWhoseRecordIsLostIsAdoptedAsItsDoctorSays(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "32M", "--label", "app=shop")
	path := h.must(t, "mount", "db")
	check(t, writeDurably(filepath.Join(path, "file"), []byte("then")))
	h.must(t, "snapshot", "create", "db", "--name", "s")
	check(t, writeDurably(filepath.Join(path, "file"), []byte("now")))
	device := h.forgetSnapshot(t, h.snapshots(t, "db")[0])
	h.finds(t, "device "+device, "was snapshot s of volume db", "orlop device adopt "+device+" db-s, or orlop device delete "+device)
	h.must(t, "create", "db-s", "--size", "16M")
	h.finds(t, "device "+device, "was snapshot s of volume db", "orlop device adopt "+device+" NAME,")
	h.must(t, "delete", "db-s")

	h.must(t, "device", "adopt", device, "db-s")
	v := h.view(t, "db-s")
	if v.Size != 32*mib || v.Labels["app"] != "shop" || v.State != "ready" || v.ID == h.view(t, "db").ID {
		t.Errorf("adopted: %+v", v)
	}
	adopted := h.must(t, "mount", "db-s")
	if text, err := os.ReadFile(filepath.Join(adopted, "file")); err != nil || string(text) != "then" {
		t.Errorf("the adopted snapshot has %q, %v", text, err)
	}
	h.wantWritable(t, "db-s")
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("doctor: %+v", found)
	}
	if images := h.images(t); len(images) != 4 {
		t.Errorf("images and records: %q", images)
	}
}

// snapshotImage returns the file of a snapshot's device, made changeable.
func (h *host) snapshotImage(t *testing.T, ref string) string {
	t.Helper()
	h.stop(t)
	store, err := metadata.Open(h.root)
	check(t, err)
	var device string
	err = store.View(func(tx *metadata.Tx) error {
		all, err := tx.Snapshots("")
		for _, s := range all {
			if s.Volume.Name+"@"+s.Name == ref {
				device = s.Device
			}
		}
		return err
	})
	check(t, errors.Join(err, store.Close()))
	h.start(t)
	image := filepath.Join(h.root, "pool", "images", device+".img")
	sh(t, "chattr", "-i", image)
	return image
}

func TestDamagedSnapshotsAreDegradedNamedByDoctorAndCanBeDeleted(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "16M")
	for _, name := range []string{"gone", "short"} {
		h.must(t, "snapshot", "create", "db", "--name", name)
	}
	check(t, os.Remove(h.snapshotImage(t, "db@gone")))
	check(t, os.Truncate(h.snapshotImage(t, "db@short"), 1<<20))
	for name, problem := range map[string]string{"gone": "image is missing", "short": "truncated"} {
		h.finds(t, "snapshot db@"+name, problem, "orlop snapshot delete db@"+name)
		for _, args := range [][]string{{"create", "x", "--from", "db@" + name}, {"snapshot", "restore", "db@" + name}, {"snapshot", "diff", "db@" + name}} {
			if got := h.orlop(args...); got.code != 3 && got.code != 7 || !strings.Contains(got.stderr, problem) {
				t.Errorf("orlop %q: %s", args, got)
			}
		}
	}
	for _, s := range h.snapshots(t, "db") {
		if s.State != "degraded" || s.Problem == "" {
			t.Errorf("%+v", s)
		}
	}
	if v := h.view(t, "db"); v.State != "ready" || len(v.Snapshots) != 2 {
		t.Errorf("the volume: %+v", v)
	}
	h.must(t, "snapshot", "delete", "db@gone", "db@short")
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("doctor: %+v", found)
	}
	if images := h.images(t); len(images) != 2 {
		t.Errorf("left: %q", images)
	}
}

// fragment fills a file from offset on with pieces of 4 KiB with holes in between, more than count of them: it writes some
// and clones those over and over.
func fragment(t *testing.T, path string, offset int64, count int) {
	t.Helper()
	const piece, stride = 4096, 8192
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	pieces := 1600
	for i := range pieces {
		_, err := f.WriteAt(make([]byte, piece), offset+int64(i)*stride)
		check(t, err)
	}
	check(t, f.Sync())
	for ; pieces <= count; pieces *= 2 {
		length := int64(pieces) * stride
		check(t, unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
			Src_fd: int64(f.Fd()), Src_offset: uint64(offset), Src_length: uint64(length), Dest_offset: uint64(offset + length),
		}))
	}
}

func TestDoctorFindsAnImageInVeryManyPiecesAndItsCommandMendsIt(t *testing.T) {
	h := startHost(t, "--pool-size", "8G")
	h.must(t, "create", "db", "--size", "4G")
	path := h.must(t, "mount", "db")
	check(t, writeDurably(filepath.Join(path, "file"), []byte("content")))
	h.must(t, "umount", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s") // sealed, and shares the rest
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("not in pieces yet: %+v", found)
	}
	fragment(t, h.image(t, "db"), 256*mib, 200_000) // up to 1.9 GiB, where the filesystem has copies of its superblock only
	h.finds(t, "volume db", "pieces", fmt.Sprintf("orlop create NEW --size %d --fs ext4", 4*gib))

	h.must(t, "create", "new", "--size", fmt.Sprint(4*gib), "--fs", "ext4")
	if out, err := exec.Command("cp", "-a", h.must(t, "mount", "db")+"/.", h.must(t, "mount", "new")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(h.root, "mounts", "new", "file")); err != nil || string(text) != "content" {
		t.Errorf("the copy has %q, %v", text, err)
	}
	h.must(t, "umount", "db")
	h.must(t, "delete", "--snapshots", "db")
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("doctor: %+v", found)
	}
}

// TestDoctorFindsWhatARollbackReplacedWhileSomethingUsesIt, and nothing any more once that has let go.
func TestDoctorFindsWhatARollbackReplacedWhileSomethingUsesIt(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "16M")
	id := string(blockdev.NewID())
	image := filepath.Join(h.root, "pool", "images", id+".img")
	sh(t, "cp", "--reflink=auto", h.image(t, "db"), image)
	dir := t.TempDir()
	sh(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	h.stop(t)
	store, err := metadata.Open(h.root)
	check(t, err)
	err = store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.PutDevice(metadata.Device{ID: id, Pool: "loop", Kind: metadata.KindTrash, Size: 16 * mib})
	})
	check(t, errors.Join(err, store.Close()))
	h.start(t)
	found := h.findings(t)
	if !strings.Contains(fmt.Sprint(found), "what a rollback replaced is not removed; it is retried every minute: something uses /dev/loop") {
		t.Errorf("%+v", found)
	}
	check(t, unix.Unmount(dir, 0))
	h.stop(t)
	h.start(t)
	awaitHolds(t, "the device is removed, and its record after it", func() bool {
		_, err := os.Stat(image)
		return errors.Is(err, os.ErrNotExist) && len(h.findings(t)) == 0
	})
}
