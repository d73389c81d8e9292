package backup

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A world is a Manager on a pool in memory and with a repository in a directory. Its clock is the test's.
type world struct {
	*Manager
	store  *metadata.Store
	memory *blockdevtest.Memory
	to     Target
	clock  time.Time
	random *rand.ChaCha8
}

// volumeSize is the size of a world's volumes in bytes.
const volumeSize = 1 << 20

func newWorld(t *testing.T) *world {
	t.Helper()
	root := inMemory(t)
	store, err := metadata.Open(inMemory(t))
	check(t, err)
	memory := blockdevtest.NewMemory()
	t.Cleanup(func() { memory.Close(); check(t, store.Close()) })
	w := &world{store: store, memory: memory, clock: time.Date(2030, 4, 1, 0, 0, 0, 0, time.UTC), random: rand.NewChaCha8([32]byte{1})}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	volumes, err := volume.New(volume.Config{
		Root: root, Store: store, Boot: "boot", Log: log, Pools: []volume.Pool{{Name: "pool", UUID: "uuid", Pool: memory}},
	})
	check(t, err)
	snapshots := snapshot.New(snapshot.Config{Store: store, Volumes: volumes, Log: log})
	check(t, store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutPool(metadata.Pool{Name: "pool", UUID: "uuid"}) }))
	at, err := destination.Parse(inMemory(t))
	check(t, err)
	state := inMemory(t)
	r, err := destination.OpenOrInit(t.Context(), at, destination.Options{StateDir: state}, false)
	check(t, err)
	check(t, r.Close())
	w.to = Target{Destination: at}
	w.Manager = New(Config{Store: store, Volumes: volumes, Snapshots: snapshots, Jobs: job.New(store, log), StateDir: state, Version: "test", Log: log})
	w.now = func() time.Time { return w.clock }
	return w
}

// inMemory is a directory that costs no writes to a disk.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "orlop-backup-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

// addVolume makes a volume that nobody can mount.
func (w *world) addVolume(t *testing.T, name string) metadata.Volume {
	t.Helper()
	v := metadata.Volume{
		ID: "id-of-" + name, Name: name, Lineage: "id-of-" + name, Device: string(blockdev.NewID()), Pool: "pool", PoolUUID: "uuid",
		Size: volumeSize, Filesystem: "ext4", State: metadata.Ready,
	}
	check(t, w.memory.Create(t.Context(), blockdev.ID(v.Device), v.Size, nil))
	check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
		if err := tx.PutDevice(metadata.Device{ID: v.Device, Pool: "pool", Kind: metadata.KindVolume, Size: v.Size}); err != nil {
			return err
		}
		return tx.PutVolume(v)
	}))
	return v
}

// write changes a block of a volume, and returns all that it holds then.
func (w *world) write(t *testing.T, v metadata.Volume) (content []byte) {
	t.Helper()
	path, err := w.memory.Activate(t.Context(), blockdev.ID(v.Device), blockdev.ReadWrite)
	check(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	block := make([]byte, 4096)
	_, _ = w.random.Read(block)
	_, err = f.WriteAt(block, int64(w.random.Uint64()%(volumeSize/4096))*4096)
	check(t, err)
	content = make([]byte, volumeSize)
	_, err = f.ReadAt(content, 0)
	check(t, err)
	check(t, f.Close())
	check(t, w.memory.Deactivate(t.Context(), blockdev.ID(v.Device)))
	return content
}

// back backs up a volume.
func (w *world) back(t *testing.T, v metadata.Volume, policy repo.Policy) (made Made) {
	t.Helper()
	j, joined, err := w.Start(t.Context(), Request{Volume: v.ID, To: w.to, Policy: policy})
	check(t, err)
	j, err = w.jobs.Wait(t.Context(), j.ID)
	check(t, err)
	if joined || j.Error != nil {
		t.Fatalf("joined %t: %+v", joined, j.Error)
	}
	check(t, json.Unmarshal(j.Result, &made))
	return made
}

// open opens the world's repository.
func (w *world) open(t *testing.T) *destination.Repository {
	t.Helper()
	return w.openAt(t, w.to)
}

// content restores a backup.
func content(t *testing.T, r *destination.Repository, b *repo.Backup) []byte {
	t.Helper()
	file, err := os.CreateTemp(inMemory(t), "")
	check(t, err)
	defer file.Close()
	check(t, file.Truncate(b.Size))
	_, err = r.Restore(t.Context(), repo.Restore{Backup: b, Target: repo.FileTarget{File: file}})
	check(t, err)
	var data bytes.Buffer
	_, err = io.Copy(&data, file)
	check(t, err)
	return data.Bytes()
}
