//go:build root

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// A generation is one backup of a volume, and what its snapshot was.
type generation struct {
	url string
	sum imageSum
}

// The host and all its volumes are lost. Another one, that knows nothing, has each generation back as it was.
func TestEveryGenerationComesBackOnAnotherHost(t *testing.T) {
	pools := map[string]func(*testing.T, ...string) *host{"reflink": onReflink, "built-in": onExt4}
	for pool, on := range pools {
		for _, encrypted := range []bool{true, false} {
			if encrypted == (pool == "built-in") && often(0, 1) == 0 {
				continue // each of them once will do
			}
			t.Run(fmt.Sprintf("%s/encrypted=%t", pool, encrypted), func(t *testing.T) {
				aloneInCache(t)
				v := newVault(t, t.TempDir(), encrypted)
				made := backUpGenerations(t, on(t), v)
				aloneInCache(t)
				restoreGenerations(t, on(t), v, made)
			})
		}
	}
}

// roundTripFilesystems are those of the volumes, by their names.
var roundTripFilesystems = []string{"ext4", "xfs"}

// backUpGenerations fills two volumes and backs them up again and again under load, by turns as create and as run do it. Then
// the host is gone.
func backUpGenerations(t *testing.T, h *host, v vault) map[string][]generation {
	t.Helper()
	h.start(t)
	seed := seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	made := map[string][]generation{}
	var group sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer group.Wait()
	defer stop()
	for _, name := range roundTripFilesystems {
		h.must(t, "create", name, "--size", map[string]string{"ext4": "100M", "xfs": "300M"}[name], "--fs", name, "--uid", "7", "--mode", "0750", "--label", "kind="+name)
		dir := h.must(t, "mount", name)
		fill(t, filepath.Join(dir, "base"), seed, 8<<20)
		group.Go(func() { churn(ctx, filepath.Join(dir, "churn"), seed) })
	}
	for i := range often(3, 10) {
		for _, name := range roundTripFilesystems {
			changeVolume(t, h, name, i, random)
			var url string
			if i%2 == 0 {
				url = h.backUp(t, v, name).URL
			} else {
				report, got := h.run(t, v, name)
				if got.code != 0 || !report.OK || len(report.Volumes) != 1 {
					t.Fatalf("%s", got)
				}
				url = report.Volumes[0].URL
			}
			made[name] = append(made[name], generation{url, sumImage(t, h.newestImage(t, name))})
		}
	}
	stop()
	group.Wait()
	h.wantQuiet(t)
	for _, name := range roundTripFilesystems {
		h.must(t, "umount", name)
		h.must(t, "delete", name) // the managed snapshots go along
	}
	h.dismantle(t)
	return made
}

// churn overwrites random blocks of a file until it is told to stop.
func churn(ctx context.Context, path string, seed uint64) {
	f, err := os.Create(path)
	if err != nil {
		return
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(seed, 2))
	block := noise(seed, 4096)
	for ctx.Err() == nil {
		if _, err := f.WriteAt(block, random.Int64N(256)*4096); err != nil || f.Sync() != nil {
			return
		}
	}
}

// changeVolume writes, overwrites and deletes files of a mounted volume, and now and then discards what is free.
func changeVolume(t *testing.T, h *host, name string, i int, random *rand.Rand) {
	t.Helper()
	dir := filepath.Join(h.root, "mounts", name)
	fill(t, filepath.Join(dir, fmt.Sprintf("file-%d", i)), random.Uint64(), 1+random.IntN(4<<20))
	f, err := os.OpenFile(filepath.Join(dir, "base"), os.O_WRONLY, 0)
	check(t, err)
	defer f.Close()
	for range 20 {
		_, err := f.WriteAt(noise(random.Uint64(), 1+random.IntN(16<<10)), random.Int64N(8<<20))
		check(t, err)
	}
	if i > 0 {
		check(t, os.Remove(filepath.Join(dir, fmt.Sprintf("file-%d", i-1))))
	}
	if random.IntN(2) == 0 {
		check(t, f.Truncate(random.Int64N(8<<20)))
	}
	check(t, f.Sync())
	if random.IntN(2) == 0 {
		h.must(t, "trim", name)
	}
}

// restoreGenerations restores each of them in random order, so that some begin with nothing and others as a copy of an older
// or a newer one.
func restoreGenerations(t *testing.T, h *host, v vault, made map[string][]generation) {
	t.Helper()
	h.start(t)
	for _, name := range roundTripFilesystems {
		all := made[name]
		for _, i := range rand.Perm(len(all)) {
			volume := fmt.Sprintf("%s-%d", name, i)
			h.restore(t, v, all[i].url, volume)
			wantRestored(t, fmt.Sprintf("generation %d of %s", i, name), h.image(t, volume), all[i].sum)
			view := h.view(t, volume)
			if view.Filesystem != name || view.Labels["kind"] != name || view.Size != all[i].sum.size {
				t.Errorf("%+v", view)
			}
			dir := h.must(t, "mount", volume) // replays the journal
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o750 {
				t.Errorf("%v, %v", info, err)
			}
			h.must(t, "umount", volume)
			h.wantSound(t, volume)
		}
		wantOldLineage(t, h, v, name, len(all)-1)
		wantInPlace(t, h, v, name, all)
	}
	h.wantQuiet(t)
}

// wantOldLineage fails unless the first backup of a restored volume reads only what changed.
func wantOldLineage(t *testing.T, h *host, v vault, name string, last int) {
	t.Helper()
	volume := fmt.Sprintf("%s-%d", name, last)
	again := h.backUp(t, v, volume)
	if !again.Incremental || again.Read > 4<<20 {
		t.Errorf("the first backup of the restored %s: %+v", volume, again)
	}
	if again.VolumeID != h.view(t, volume).ID {
		t.Errorf("%+v", again)
	}
}

// wantInPlace gives one volume the content of each generation, one after the other. What it replaces stays as a snapshot.
func wantInPlace(t *testing.T, h *host, v vault, name string, all []generation) {
	t.Helper()
	volume := name + "-0"
	for i, g := range slices.Backward(all) {
		h.must(t, v.with("backup", "restore", g.url, volume, "--in-place")...)
		wantRestored(t, fmt.Sprintf("generation %d in place of %s", i, volume), h.image(t, volume), g.sum)
		h.must(t, "mount", volume)
		h.must(t, "umount", volume)
		h.wantSound(t, volume)
	}
	kept := 0
	for _, s := range h.snapshots(t, volume) {
		if !s.Managed {
			kept++
		}
	}
	if kept != len(all) {
		t.Errorf("%d replaced states are kept, want %d: %+v", kept, len(all), h.snapshots(t, volume))
	}
}
