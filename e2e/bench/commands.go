package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
)

// What "backup run --all" is measured with.
const (
	runVolumes = 200
	runChanged = 10      // of them, between two runs
	runData    = 1 << 20 // bytes in each that are overwritten then
)

// commands are those that users type: they have a daemon back up to a fresh repository.
type commands struct {
	daemon *daemon
	dir    string
}

func (b *bench) newCommands(ctx context.Context, d *daemon, dir string) (*commands, error) {
	_, err := b.initOurs(ctx, dir)
	return &commands{d, dir}, err
}

// orlop runs a command with the destination and its key.
func (c *commands) orlop(ctx context.Context, args ...string) ([]byte, cost, error) {
	argv := append([]string{c.daemon.bench.program, "--socket", c.daemon.socket("control")}, args...)
	argv = append(argv, "--dest", filepath.Join(c.dir, "repository"), "--key-file", filepath.Join(c.dir, "key"))
	return measured(ctx, c.dir, nil, nil, argv...)
}

// create backs up a volume: the daemon takes a snapshot, asks what changed since the one before, and stores that.
func (c *commands) create(ctx context.Context, volume string) (cost, error) {
	_, took, err := c.orlop(ctx, "backup", "create", volume)
	return took, err
}

// run backs up all volumes. It fails unless that many of them stored the data that is overwritten between two runs.
func (c *commands) run(ctx context.Context, volumes, changed int) (cost, error) {
	out, took, err := c.orlop(ctx, "--json", "backup", "run", "--all")
	if err != nil {
		return took, err
	}
	var answer struct {
		Volumes []struct{ Stored int64 }
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return took, err
	}
	stored := 0
	for _, v := range answer.Volumes {
		if v.Stored >= runData {
			stored++
		}
	}
	if len(answer.Volumes) != volumes || stored != changed {
		return took, fmt.Errorf("%d volumes were backed up, and %d of them stored data, not %d and %d", len(answer.Volumes), stored, volumes, changed)
	}
	return took, nil
}

// runAll measures "backup run --all" with many volumes: of all, of the few that changed, and when none did.
func (b *bench) runAll(ctx context.Context) error {
	d, err := b.newDaemon("runs", "--pool-size", "40G")
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	source := rand.NewChaCha8([32]byte{1})
	for i := range runVolumes {
		if err := d.create(ctx, runName(i), map[string]string{"size": "64M"}); err != nil {
			return err
		}
		if err := overwriteData(ctx, d, runName(i), source); err != nil {
			return err
		}
	}
	var full, some, none series
	for round := range b.pick(runs, 1) {
		c, err := b.newCommands(ctx, d, filepath.Join(b.dir, fmt.Sprintf("run-%d", round)))
		if err != nil {
			return err
		}
		for _, one := range []struct {
			changed int
			took    *series
		}{{runVolumes, &full}, {runChanged, &some}, {0, &none}} {
			for i := range one.changed {
				if one.changed == runVolumes {
					break // all are new to this repository
				}
				if err := overwriteData(ctx, d, runName((i*runVolumes/runChanged+round)%runVolumes), source); err != nil {
					return err
				}
			}
			took, err := c.run(ctx, runVolumes, one.changed)
			if err != nil {
				return err
			}
			*one.took = append(*one.took, took.seconds)
		}
	}
	what := fmt.Sprintf("backup run --all, %d volumes", runVolumes)
	b.report.add(
		row{what: what + ": first", unit: "s", ours: full},
		row{what: fmt.Sprintf("%s: %d changed", what, runChanged), unit: "s", ours: some},
		row{what: what + ": nothing changed", unit: "s", ours: none})
	return nil
}

func runName(i int) string { return fmt.Sprintf("run-%03d", i) }

// overwriteData writes random bytes to the file of a volume that is not mounted.
func overwriteData(ctx context.Context, d *daemon, volume string, source *rand.ChaCha8) error {
	dir, err := d.mount(ctx, volume)
	if err != nil {
		return err
	}
	err = copyTo(filepath.Join(dir, dataFile), io.LimitReader(source, runData))
	return errors.Join(err, d.unmount(ctx, volume))
}
