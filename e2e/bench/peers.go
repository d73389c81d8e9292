package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// A peer is another program that backs up files, with what of its ways is best for an image: encrypted, compressed as fast
// as it can, everything in a directory of its own.
type peer struct {
	name    string
	env     func(dir string) []string
	init    func(repository string) []string
	backup  func(repository, name, image string) []string
	restore func(repository, name, image string) []string // into the present directory, or below it
}

var peers = []peer{
	{
		name: "restic",
		env: func(dir string) []string {
			return []string{"RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + filepath.Join(dir, "cache"), "HOME=" + dir}
		},
		init: func(repository string) []string {
			return []string{"restic", "-q", "-r", repository, "init", "--repository-version", "2"}
		},
		backup: func(repository, name, image string) []string {
			return []string{"restic", "-q", "-r", repository, "backup", "--tag", name, image}
		},
		restore: func(repository, name, image string) []string {
			return []string{"restic", "-q", "-r", repository, "restore", "latest", "--tag", name, "--target", "."}
		},
	},
	{
		// Chunks of one size are what its manual says of images. Their flags would make what is restored immutable, as snapshots are.
		name: "borg",
		env: func(dir string) []string {
			return []string{"BORG_PASSPHRASE=bench", "BORG_BASE_DIR=" + dir, "HOME=" + dir}
		},
		init: func(repository string) []string {
			return []string{"borg", "init", "-e", "repokey", repository}
		},
		backup: func(repository, name, image string) []string {
			return []string{"borg", "create", "-C", "zstd,1", "--chunker-params", "fixed,4194304", "--sparse", "--noflags", repository + "::" + name, image}
		},
		restore: func(repository, name, _ string) []string {
			return []string{"borg", "extract", "--sparse", repository + "::" + name}
		},
	},
}

// A peerRun is one fresh repository of a peer.
type peerRun struct {
	peer
	dir string
}

func (p peer) begin(ctx context.Context, dir string) (*peerRun, error) {
	r := &peerRun{p, dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_, _, err := measured(ctx, dir, p.env(dir), nil, p.init(r.repository())...)
	return r, err
}

func (r *peerRun) repository() string { return filepath.Join(r.dir, "repository") }

func (r *peerRun) save(ctx context.Context, name, image string) (cost, error) {
	_, c, err := measured(ctx, r.dir, r.env(r.dir), nil, r.backup(r.repository(), name, image)...)
	return c, err
}

// load restores an image, and returns where it is.
func (r *peerRun) load(ctx context.Context, name, image string) (path string, c cost, err error) {
	dir := filepath.Join(r.dir, "restored")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", cost{}, err
	}
	if _, c, err = measured(ctx, dir, r.env(r.dir), nil, r.peer.restore(r.repository(), name, image)...); err != nil {
		return "", cost{}, err
	}
	path = filepath.Join(dir, image)
	if _, err := os.Stat(path); err != nil {
		return "", cost{}, fmt.Errorf("%s restored nothing: %w", r.name, err)
	}
	return path, c, nil
}
