package daemon_test

import (
	"log/slog"
	"testing"
	"time"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/backup"
	"orlop/internal/daemon"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A house is a daemon with a pool in memory: everything but mounting works.
type house struct {
	*daemon.Daemon
	root      string
	store     *metadata.Store
	pool      *blockdevtest.Memory
	volumes   *volume.Manager
	snapshots *snapshot.Manager
}

const (
	poolID = "0d1c1f0e-96a5-4c5c-8c06-9a7a1f3f3a01"
	mib    = int64(1) << 20
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{root: t.TempDir(), pool: blockdevtest.NewMemory()}
	t.Cleanup(h.pool.Close)
	log := slog.New(slog.DiscardHandler)
	var err error
	h.store, err = metadata.Open(h.root)
	check(t, err)
	t.Cleanup(func() { check(t, h.store.Close()) })
	pool := volume.Pool{Name: "fast", UUID: poolID, Pool: h.pool}
	h.volumes, err = volume.New(volume.Config{Root: h.root, Store: h.store, Pools: []volume.Pool{pool}, Boot: "boot", Log: log})
	check(t, err)
	h.snapshots = snapshot.New(snapshot.Config{Store: h.store, Volumes: h.volumes, Log: log})
	jobs := job.New(h.store, log)
	h.Daemon, err = daemon.New(daemon.Config{
		Version: "1", Root: h.root, Store: h.store, Volumes: h.volumes, Snapshots: h.snapshots, Jobs: jobs,
		Backups:     backup.New(backup.Config{Store: h.store, Volumes: h.volumes, Snapshots: h.snapshots, Jobs: jobs, Log: log}),
		DefaultSize: 1 << 30, DefaultFS: "ext4",
		Pools: []daemon.Pool{{Pool: pool, Kind: "memory", Spec: "memory", BlockSize: 4096}},
	})
	check(t, err)
	return h
}

// update changes the metadata.
func (h *house) update(t *testing.T, fn func(tx *metadata.Tx) error) {
	t.Helper()
	check(t, h.store.Update(t.Context(), fn))
}

// put records a volume and makes its device.
func (h *house) put(t *testing.T, name string) metadata.Volume {
	t.Helper()
	id := string(blockdev.NewID())
	v := metadata.Volume{
		ID: id, Name: name, Lineage: id, Device: string(blockdev.NewID()), Pool: "fast", PoolUUID: poolID,
		Size: 16 * mib, Filesystem: "ext4", State: metadata.Ready, Created: time.Now().UTC(),
	}
	check(t, h.pool.Create(t.Context(), blockdev.ID(v.Device), v.Size, nil))
	h.update(t, func(tx *metadata.Tx) error {
		if err := tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: v.Size}); err != nil {
			return err
		}
		return tx.PutVolume(v)
	})
	return v
}

// take takes a snapshot.
func (h *house) take(t *testing.T, v metadata.Volume, spec snapshot.Spec) metadata.Snapshot {
	t.Helper()
	s, err := h.snapshots.Create(t.Context(), []string{v.ID}, spec)
	check(t, err)
	return s[0]
}
