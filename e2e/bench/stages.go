package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/metadata"
)

// stages times the parts of create and mount one by one, with the code that the daemon uses, on a pool of its own.
func (b *bench) stages(ctx context.Context, whole row) (err error) {
	root := filepath.Join(b.dir, "stages")
	if err := os.MkdirAll(filepath.Join(root, "dir"), 0o711); err != nil {
		return err
	}
	store, err := metadata.Open(root)
	if err != nil {
		return err
	}
	b.later(store.Close)
	pool, err := loop.Open(ctx, loop.Config{Root: root, Size: 10 << 30})
	if err != nil {
		return err
	}
	b.later(func() error { return pool.Detach(context.Background()) })
	names := []string{}
	times := map[string]*sample{}
	for range b.pick(60, 15) {
		if err := b.timeStages(ctx, store, pool, filepath.Join(root, "dir"), func(name string, do func() error) error {
			if times[name] == nil {
				names, times[name] = append(names, name), &sample{}
			}
			return times[name].time(do)
		}); err != nil {
			return err
		}
	}
	sum, parts := 0.0, []string{}
	for _, name := range names {
		p50 := times[name].quantile(0.5)
		sum += p50
		parts = append(parts, fmt.Sprintf("%s %s", name, number(p50)))
	}
	b.report.note("Stages of create and mount, one volume at a time, p50 in ms: %s; together %s of the %s that a client waits for.",
		strings.Join(parts, ", "), number(sum), number(whole.ours.median()))
	return nil
}

// timeStages makes, mounts and removes one volume in the steps of internal/volume, calling timed for each.
func (b *bench) timeStages(ctx context.Context, store *metadata.Store, pool *loop.Pool, dir string, timed func(string, func() error) error) (err error) {
	const size = 10 << 30
	ext4, err := fs.Lookup("ext4")
	if err != nil {
		return err
	}
	id, path := blockdev.NewID(), ""
	defer func() {
		err = errors.Join(err, fs.Unmount(dir), pool.Deactivate(context.WithoutCancel(ctx), id), pool.Remove(context.WithoutCancel(ctx), id))
	}()
	v := metadata.Volume{ID: string(id), Name: string(id), Device: string(id), Pool: "loop", Size: size, Filesystem: "ext4", State: metadata.Creating}
	put := func() error {
		return store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) })
	}
	activate := func() (err error) {
		path, err = pool.Activate(ctx, id, blockdev.ReadWrite)
		return err
	}
	mount := func() error { return ext4.Mount(path, dir, nil) }
	steps := []struct {
		name string
		do   func() error
	}{
		{"record", put},
		{"image", func() error { return pool.Create(ctx, id, size, blockdev.Record(`{}`)) }},
		{"attach", activate},
		{"mkfs", func() error { return ext4.Make(ctx, b.runner, path, 0, 0) }},
		{"mount aside", mount},
		{"empty root", func() error { return fs.FinishRoot(dir, 0, 0, 0o755) }},
		{"unmount", func() error { return fs.Unmount(dir) }},
		{"detach", func() error { return pool.Deactivate(ctx, id) }},
		{"record ready", func() error { v.State = metadata.Ready; return put() }},
		{"attach again", activate},
		{"mount", mount},
		{"record holder", func() error {
			return store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutHolder(metadata.Holder{Volume: v.ID, ID: holder}) })
		}},
	}
	for _, step := range steps {
		if err := timed(step.name, step.do); err != nil {
			return fmt.Errorf("stage %s: %w", step.name, err)
		}
	}
	return nil
}
