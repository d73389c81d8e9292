package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"orlop/blockdev"
	"orlop/metadata"
)

const manyVolumes = 10_000

// many measures a daemon that knows ten thousand volumes: listing, starting and memory.
func (b *bench) many(ctx context.Context) error {
	d, err := b.newDaemon("many", "--pool-size", "40G")
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	if err := d.stop(ctx); err != nil { // the pool stays mounted
		return err
	}
	if err := fabricate(ctx, d.root, manyVolumes); err != nil {
		return err
	}
	var start, list, control, get, rss, peak series
	for range runs {
		took, err := d.start(ctx)
		if err != nil {
			return err
		}
		var lists, controls, gets sample
		for range b.pick(20, 5) {
			if err := errors.Join(lists.time(func() error { return d.listAll(ctx) }),
				controls.time(func() error { return d.listAllControl(ctx) }),
				gets.time(func() error { return d.get(ctx, manyName(manyVolumes/2)) })); err != nil {
				return err
			}
		}
		now, most, err := d.memory()
		if err != nil {
			return err
		}
		start, list, control = append(start, took.Seconds()), append(list, lists.quantile(0.5)), append(control, controls.quantile(0.5))
		get, rss, peak = append(get, gets.quantile(0.5)), append(rss, now), append(peak, most)
		if err := d.stop(ctx); err != nil {
			return err
		}
	}
	b.report.add(
		row{what: "10,000 volumes: Docker's List, p50", unit: "ms", ours: list, below: 50},
		row{what: "10,000 volumes: orlop list --json, p50", unit: "ms", ours: control},
		row{what: "10,000 volumes: Get, p50", unit: "ms", ours: get},
		row{what: "10,000 volumes: start to first answer", unit: "s", ours: start, below: 1,
			explanation: "opening the metadata checks every page and copies the file, opening the pool looks at every image"},
		row{what: "10,000 volumes: memory after that", unit: "MiB", ours: rss},
		row{what: "10,000 volumes: memory at most", unit: "MiB", ours: peak, below: 100,
			explanation: "orlop list --json holds the whole answer and its parts at once"})
	return nil
}

func manyName(i int) string { return fmt.Sprintf("volume-%05d", i) }

func (d *daemon) listAll(ctx context.Context) error {
	var answer struct{ Volumes []struct{ Name string } }
	if err := d.call(ctx, "List", nil, &answer); err != nil {
		return err
	}
	if len(answer.Volumes) != manyVolumes {
		return fmt.Errorf("docker is shown %d volumes", len(answer.Volumes))
	}
	return nil
}

func (d *daemon) listAllControl(ctx context.Context) error {
	_, err := d.orlop(ctx, "list", "--json")
	return err
}

// fabricate gives a root whose daemon has stopped n volumes that are complete but for their filesystems: records, and
// empty sparse images in the pool, which is still mounted.
func fabricate(ctx context.Context, root string, n int) (err error) {
	store, err := metadata.Open(root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var pool metadata.Pool
	err = store.View(func(tx *metadata.Tx) (err error) {
		pool, _, err = tx.Pool("loop")
		return err
	})
	if err != nil {
		return err
	}
	volumes := make([]metadata.Volume, n)
	for i := range volumes {
		id := string(blockdev.NewID())
		volumes[i] = metadata.Volume{
			ID: id, Name: manyName(i), Lineage: id, Device: string(blockdev.NewID()), Pool: pool.Name, PoolUUID: pool.UUID,
			Size: 10 << 30, Filesystem: "ext4", BlockSize: 4096, Mode: 0o755,
			Labels: map[string]string{"com.example.service": "database", "com.example.number": fmt.Sprint(i)},
			State:  metadata.Ready, Created: time.Now().UTC(),
		}
		if err := image(root, store.RootID(), volumes[i]); err != nil {
			return err
		}
	}
	return store.Update(ctx, func(tx *metadata.Tx) error {
		for _, v := range volumes {
			device := metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: v.Size}
			if err := errors.Join(tx.PutVolume(v), tx.PutDevice(device)); err != nil {
				return err
			}
		}
		return nil
	})
}

// image makes a volume's device as blockdev/loop keeps it, but does not wait until it is durable.
func image(root, rootID string, v metadata.Volume) error {
	record, err := json.Marshal(map[string]any{"format": 1, "root": rootID, "volume": v})
	if err != nil {
		return err
	}
	path := filepath.Join(root, "pool", "images", v.Device)
	if err := os.WriteFile(path+".json", record, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(path+".img", nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path+".img", v.Size)
}
