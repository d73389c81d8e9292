package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
)

// writerCommand as the first argument makes the program write one backup, so that what the engine takes can be told from
// what the rest of the program does.
const writerCommand = "write-backup"

// lineage of all backups that are written here.
const lineage = "bench"

// A written is what the writer prints.
type written struct {
	Record   string
	Read     int64 // bytes of the image
	New      int64 // bytes of these in chunks that were not known
	Requests int64 // to the store
	Seconds  float64
}

// changed is one line of orlop snapshot diff.
type changed struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`
}

// writeBackup backs an image up to the repository in a directory, with what stands on standard input, the output of orlop
// snapshot diff, as what changed since the base.
func writeBackup(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet(writerCommand, flag.ContinueOnError)
	dir, keyFile := flags.String("repository", "", "directory"), flags.String("key", "", "file of the key; none: unencrypted")
	cache, image := flags.String("cache", "", "directory"), flags.String("image", "", "file")
	base := flags.String("base", "", "record that standard input tells of")
	if err := flags.Parse(args); err != nil {
		return err
	}
	extents, err := readExtents(os.Stdin)
	if err != nil {
		return err
	}
	source, err := os.Open(*image)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	r, counter, err := openRepository(ctx, *dir, *keyFile, *cache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, counter.directory.Close()) }()
	backup := repo.NewBackup()
	backup.Lineage, backup.Size, backup.Created = lineage, info.Size(), time.Now().UTC()
	backup.Volume, backup.Snapshot = repo.Named{ID: lineage, Name: lineage}, repo.Named{ID: *image, Name: filepath.Base(*image)}
	begin := time.Now()
	w, err := r.Backup(ctx, repo.BackupSpec{
		Backup: *backup, Source: source, Base: *base,
		Extents: func(_ context.Context, on *repo.Backup, fn func(repo.Extent) error) error {
			if on == nil && *base != "" {
				return fmt.Errorf("backup %s is not there", *base)
			}
			for _, e := range extents {
				if err := fn(e); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	if w.Mistrust != nil {
		return w.Mistrust
	}
	return json.NewEncoder(os.Stdout).Encode(written{w.Record, w.Stats.Read, w.Stats.New, counter.requests.Load(), time.Since(begin).Seconds()})
}

func readExtents(r io.Reader) (extents []repo.Extent, err error) {
	for lines := json.NewDecoder(r); ; {
		var e changed
		if err := lines.Decode(&e); errors.Is(err, io.EOF) {
			return extents, nil
		} else if err != nil {
			return nil, err
		}
		extents = append(extents, repo.Extent{Offset: e.Offset, Length: e.Length, Hole: e.Kind == "hole"})
	}
}

// openRepository opens a repository as a daemon would, with all that a host remembers in cache.
func openRepository(ctx context.Context, dir, keyFile, cache string) (*repo.Repository, *counted, error) {
	var key *repo.Key
	if keyFile != "" {
		var err error
		if key, err = repo.ReadKeyFile(keyFile); err != nil {
			return nil, nil, err
		}
	}
	origin, err := repo.LocalOrigin()
	if err != nil {
		return nil, nil, err
	}
	directory, err := dirstore.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	objects := &counted{Store: directory, directory: directory}
	r, err := repo.Open(ctx, objects, key, repo.From(origin), repo.CacheIn(cache),
		repo.RememberedBy(repo.NewMemoryFile(filepath.Join(cache, "known.json"))))
	if err != nil {
		return nil, nil, errors.Join(err, directory.Close())
	}
	return r, objects, nil
}

// counted counts the requests to a store.
type counted struct {
	store.Store

	directory *dirstore.Store
	requests  atomic.Int64
}

func (c *counted) Put(ctx context.Context, name string, data []byte) error {
	c.requests.Add(1)
	return c.Store.Put(ctx, name, data)
}

func (c *counted) Get(ctx context.Context, name string) ([]byte, error) {
	c.requests.Add(1)
	return c.Store.Get(ctx, name)
}

func (c *counted) GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	c.requests.Add(1)
	return c.Store.GetRange(ctx, name, offset, length)
}

func (c *counted) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	c.requests.Add(1)
	return c.Store.List(ctx, prefix, fn)
}
