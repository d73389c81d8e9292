package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	scaleChunks  = 8192 // with data, in each image
	scaleChanged = 10   // of them, between two backups
	scaleData    = 4096 // bytes in a chunk
)

// scale measures the engine alone: an image with the same data in it at three sizes, and ten chunks changed.
func (b *bench) scale(ctx context.Context) error {
	for _, size := range []struct {
		name  string
		bytes int64
	}{{"10 GiB", 10 << 30}, {"100 GiB", 100 << 30}, {"1 TiB", 1 << 40}} {
		if err := b.scaleOf(ctx, size.name, size.bytes); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scaleOf(ctx context.Context, name string, size int64) (err error) {
	dir := filepath.Join(b.dir, "scale")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if _, err := b.initOurs(ctx, dir); err != nil {
		return err
	}
	path := filepath.Join(dir, "image")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	source := rand.NewChaCha8([32]byte{})
	all, err := scatterData(f, source, size, 0, 1, scaleChunks)
	if err != nil {
		return err
	}
	w, _, err := b.write(ctx, dir, path, "", all)
	if err != nil {
		return err
	}
	var seconds, engine, requests, read, memory series
	for i := range b.pick(2*runs+1, runs) {
		diff, err := scatterData(f, source, size, i, scaleChunks/scaleChanged, scaleChanged)
		if err != nil {
			return err
		}
		var c cost
		if w, c, err = b.write(ctx, dir, path, w.Record, diff); err != nil {
			return err
		}
		seconds, memory = append(seconds, c.seconds*1000), append(memory, c.memory)
		engine = append(engine, w.Seconds*1000)
		requests, read = append(requests, float64(w.Requests)), append(read, float64(w.Read)/1024)
	}
	what := fmt.Sprintf("backup: 10 chunks changed in %s", name)
	b.report.add(
		row{what: what, unit: "ms", ours: seconds},
		row{what: "  of it, the backup itself", unit: "ms", ours: engine},
		row{what: "  requests to the store", unit: "", ours: requests},
		row{what: "  read", unit: "KiB", ours: read},
		row{what: "  memory at most", unit: "MiB", ours: memory},
	)
	return nil
}

// scatterData writes random bytes to the chunk first of the scaleChunks that are spread evenly over an image, and to each
// step-th behind it until there are count, and returns where, as orlop snapshot diff would.
func scatterData(f *os.File, source *rand.ChaCha8, size int64, first, step, count int) (diff []byte, err error) {
	data := make([]byte, scaleData)
	for i := range count {
		_, _ = source.Read(data) // never fails
		at := size / scaleChunks * int64(first+i*step)
		if _, err := f.WriteAt(data, at); err != nil {
			return nil, err
		}
		line, err := json.Marshal(changed{at, scaleData, "data"})
		if err != nil {
			return nil, err
		}
		diff = append(append(diff, line...), '\n')
	}
	return diff, nil
}
