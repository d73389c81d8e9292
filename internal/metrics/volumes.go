package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"orlop/internal/daemon"
)

var (
	volumes     = describe("orlop_volumes", "Volumes by what \"orlop list\" shows as their state.", "pool", "state")
	size        = describe("orlop_volume_size_bytes", "Size of a volume.", "volume", "pool")
	used        = describe("orlop_volume_used_bytes", "Bytes that the pool has allocated for a volume.", "volume", "pool")
	fsSize      = describe("orlop_volume_fs_size_bytes", "Size of the filesystem of a mounted volume.", "volume", "pool")
	fsFree      = describe("orlop_volume_fs_free_bytes", "Bytes left in the filesystem of a mounted volume.", "volume", "pool")
	fsFiles     = describe("orlop_volume_fs_files", "Inodes in the filesystem of a mounted volume.", "volume", "pool")
	fsFilesFree = describe("orlop_volume_fs_files_free", "Inodes left in the filesystem of a mounted volume.", "volume", "pool")
	snapshots   = describe("orlop_snapshots", "Snapshots by what \"orlop snapshot list\" shows as their state.", "pool", "state")
	shared      = describe("orlop_snapshots_used_bytes", "Bytes that the pool has allocated for snapshots, those that they share with others included.", "pool")
	mounted     = describe("orlop_mounted_volumes", "Volumes that are mounted.")
	kept        = describe("orlop_kept_volumes", "Volumes mounted without a holder because something uses them still.")
	ungrown     = describe("orlop_ungrown_volumes", "Volumes that could not be grown to the size wanted and are used at the size that they have.")
	holders     = describe("orlop_holders", "Mounts of volumes that were asked for and not let go.", "kind")
	layerSize   = describe("orlop_pool_size_bytes", "Size of a layer below a pool's volumes.", "pool", "layer")
	layerFree   = describe("orlop_pool_free_bytes", "Bytes left in a layer below a pool's volumes.", "pool", "layer")
	readErrors  = describe("orlop_read_failures", "Parts of this answer that are absent because they could not be read.")

	descriptions = []*prometheus.Desc{volumes, size, used, fsSize, fsFree, fsFiles, fsFilesFree, snapshots, shared, mounted, kept, ungrown, holders, layerSize, layerFree, readErrors,
		lastBackup, backupDuration, backupRead, backupStored, backupFailed, backupFailures}
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// usualStates are shown of every pool even with nothing in them, so that an alert has a series to look at.
var usualStates = []string{"ready", "degraded"}

// collect reads volumes from one view of the metadata, and the space below them.
func (m *Metrics) collect(ctx context.Context, ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	failures := 0
	if err := m.collectVolumes(ctx, send); err != nil {
		m.log.Error("metrics lack the volumes", "error", err)
		failures++
	}
	if err := m.collectBackups(ch, send); err != nil {
		m.log.Error("metrics lack the backups", "error", err)
		failures++
	}
	layers, err := m.daemon.Layers(ctx)
	if err != nil {
		m.log.Error("metrics lack the space of a layer", "error", err)
		failures++
	}
	for _, layer := range layers {
		send(layerSize, float64(layer.Size), layer.Pool, layer.Name)
		send(layerFree, float64(layer.Free), layer.Pool, layer.Name)
	}
	send(readErrors, float64(failures))
}

func (m *Metrics) collectVolumes(ctx context.Context, send func(*prometheus.Desc, float64, ...string)) error {
	views, err := m.daemon.List(ctx, nil)
	if err != nil {
		return err
	}
	states := m.states()
	m.collectSnapshots(views, send)
	kinds := map[string]int{"docker": 0, "user": 0}
	nMounted, nKept, nUngrown := 0, 0, 0
	for _, v := range views {
		states[poolState{v.Pool, v.State}]++
		send(size, float64(v.Size), v.Name, v.Pool)
		send(used, float64(v.Used), v.Name, v.Pool)
		if v.Mounted {
			nMounted++
		}
		if v.FillView != nil {
			send(fsSize, float64(v.FSSize), v.Name, v.Pool)
			send(fsFree, float64(v.FSFree), v.Name, v.Pool)
			send(fsFiles, float64(v.Inodes), v.Name, v.Pool)
			send(fsFilesFree, float64(v.InodesFree), v.Name, v.Pool)
		}
		if v.Kept {
			nKept++
		}
		if v.WantedSize > 0 {
			nUngrown++
		}
		for _, h := range v.Holders {
			kinds[h.Kind]++
		}
	}
	for key, n := range states {
		send(volumes, float64(n), key.pool, key.state)
	}
	for kind, n := range kinds {
		send(holders, float64(n), kind)
	}
	send(mounted, float64(nMounted))
	send(kept, float64(nKept))
	send(ungrown, float64(nUngrown))
	return nil
}

// poolState is what volumes and snapshots are counted by.
type poolState struct{ pool, state string }

// states returns counts of nothing, in every pool and usual state.
func (m *Metrics) states() map[poolState]int {
	states := map[poolState]int{}
	for _, pool := range m.daemon.Pools() {
		for _, state := range usualStates {
			states[poolState{pool, state}] = 0
		}
	}
	return states
}

// collectSnapshots counts the volumes' snapshots, which are in their volumes' pools.
func (m *Metrics) collectSnapshots(views []daemon.View, send func(*prometheus.Desc, float64, ...string)) {
	states, bytes := m.states(), map[string]int64{}
	for _, pool := range m.daemon.Pools() {
		bytes[pool] = 0
	}
	for _, v := range views {
		for _, s := range v.Snapshots {
			states[poolState{v.Pool, s.State}]++
			bytes[v.Pool] += s.Used
		}
	}
	for key, n := range states {
		send(snapshots, float64(n), key.pool, key.state)
	}
	for pool, n := range bytes {
		send(shared, float64(n), pool)
	}
}
