package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A peer is another program that backs up files, with what of its ways is best for an image: encrypted, compressed as fast
// as it can, everything in a directory of its own.
type peer struct {
	name    string
	env     func(dir string) []string
	version []string
	init    func(repository string) [][]string
	backup  func(repository, name, image string) []string
	restore func(repository, name, image string) []string // into the present directory, or below it
}

var peers = []peer{
	{
		name: "restic",
		env: func(dir string) []string {
			return []string{"RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + filepath.Join(dir, "cache"), "HOME=" + dir}
		},
		version: []string{"restic", "version"},
		init: func(repository string) [][]string {
			return [][]string{{"restic", "-q", "-r", repository, "init", "--repository-version", "2"}}
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
		version: []string{"borg", "--version"},
		init: func(repository string) [][]string {
			return [][]string{{"borg", "init", "-e", "repokey", repository}}
		},
		backup: func(repository, name, image string) []string {
			return []string{"borg", "create", "-C", "zstd,1", "--chunker-params", "fixed,4194304", "--sparse", "--noflags", repository + "::" + name, image}
		},
		restore: func(repository, name, _ string) []string {
			return []string{"borg", "extract", "--sparse", repository + "::" + name}
		},
	},
	{
		// By default it does not compress, and finds the bounds of its chunks by their content, which takes longer and finds
		// nothing in an image, where nothing moves.
		name: "kopia",
		env: func(dir string) []string {
			return []string{
				"KOPIA_PASSWORD=bench", "KOPIA_CONFIG_PATH=" + filepath.Join(dir, "config"), "KOPIA_CACHE_DIRECTORY=" + filepath.Join(dir, "cache"),
				"KOPIA_LOG_DIR=" + filepath.Join(dir, "log"), "KOPIA_CHECK_FOR_UPDATES=false", "HOME=" + dir,
			}
		},
		version: []string{"kopia", "--version"},
		init: func(repository string) [][]string {
			return [][]string{
				{"kopia", "repository", "create", "filesystem", "--path", repository, "--object-splitter", "FIXED-4M"},
				{"kopia", "policy", "set", "--global", "--compression", "zstd-fastest"},
			}
		},
		backup: func(_, _, image string) []string {
			return []string{"kopia", "snapshot", "create", "--no-progress", image}
		},
		restore: func(_, _, image string) []string {
			return []string{"kopia", "snapshot", "restore", "--no-progress", "--write-sparse-files", "--snapshot-time", "latest", image, "." + image}
		},
	},
}

// notePeers makes the report name the peers' versions. It fails if a peer is missing, before anything is measured.
func (b *bench) notePeers(ctx context.Context) error {
	var versions []string
	for _, p := range peers {
		out, _, err := measured(ctx, b.dir, p.env(b.dir), nil, p.version...)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		first, _, _ = strings.Cut(first, " build:") // kopia's has more, of which it knows nothing here
		if !strings.Contains(first, p.name) {
			first = p.name + " " + first
		}
		versions = append(versions, first)
	}
	b.report.note("The peers of backups are %s.", strings.Join(versions, "; "))
	return nil
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
	for _, argv := range p.init(r.repository()) {
		if _, _, err := measured(ctx, dir, p.env(dir), nil, argv...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *peerRun) repository() string { return filepath.Join(r.dir, "repository") }

func (r *peerRun) save(ctx context.Context, one stage) (cost, error) {
	_, c, err := measured(ctx, r.dir, r.env(r.dir), nil, r.backup(r.repository(), one.name, one.image)...)
	return c, err
}

func (r *peerRun) load(ctx context.Context, last stage) (path string, c cost, err error) {
	dir := filepath.Join(r.dir, "restored")
	path = filepath.Join(dir, last.image)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil { // kopia makes no directories above a file
		return "", cost{}, err
	}
	if _, c, err = measured(ctx, dir, r.env(r.dir), nil, r.restore(r.repository(), last.name, last.image)...); err != nil {
		return "", cost{}, err
	}
	// What is restored has to be on the disk: ours is, when the command ends.
	begin := time.Now()
	file, err := os.Open(path)
	if err != nil {
		return "", cost{}, fmt.Errorf("%s restored nothing: %w", r.name, err)
	}
	err = errors.Join(file.Sync(), file.Close())
	c.seconds += time.Since(begin).Seconds()
	return path, c, err
}
