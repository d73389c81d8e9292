// Command bench measures a built orlop and, in the same run, what it is to be compared with: a filesystem on a plain
// loop device, made by hand, the host's filesystem, and restic, borg and kopia for backups. It prints a table of medians
// and asserts nothing about time.
//
//	unshare --mount bench bin/orlop
//
// It needs root, fio, restic, borg, kopia and about 45 minutes, with BENCH_QUICK=1 about 8. BENCH_ONLY names one part of it:
// lifecycle, many, disks, snapshots, backups or runs. BENCH_DIR is where it works, /var/tmp by
// default: a directory on a disk. BENCH_XFS is a directory on XFS for a second pool, to be measured too. In a mount
// namespace of its own, nobody who starts a container meanwhile gets a copy of its mounts and keeps them in use.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"orlop/fs"
	"orlop/internal/run"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if len(os.Args) > 1 && os.Args[1] == writerCommand {
		err = writeBackup(ctx, os.Args[2:])
	} else {
		err = measure(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A bench is one run of everything.
type bench struct {
	program string // the orlop binary
	dir     string // scratch
	quick   bool
	runner  run.Runner
	report  report
	undo    []func() error // what cleans up, in the order of making
}

// runs is how often each measurement is repeated; the table shows medians.
const runs = 3

func measure(ctx context.Context) (err error) {
	if len(os.Args) != 2 {
		return errors.New("usage: bench PATH-OF-ORLOP")
	}
	b := &bench{quick: os.Getenv("BENCH_QUICK") != ""}
	if b.program, err = filepath.Abs(os.Args[1]); err != nil {
		return err
	}
	home := os.Getenv("BENCH_DIR")
	if home == "" {
		home = "/var/tmp"
	}
	if b.dir, err = os.MkdirTemp(home, "orlop-bench-"); err != nil {
		return err
	}
	b.later(func() error { return sweep(b.dir) })
	if err := b.bareEnvironment(); err != nil {
		return errors.Join(err, b.cleanUp())
	}
	b.noteLoad("before it")
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	only := os.Getenv("BENCH_ONLY")
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"lifecycle", b.lifecycle}, {"many", b.many}, {"disks", b.disks}, {"snapshots", b.snapshots}, {"backups", b.backups}, {"runs", b.runAll}} {
		if only != "" && only != part.name {
			continue
		}
		if err = part.run(ctx); err != nil {
			break // what was measured before is printed
		}
	}
	b.noteLoad("at its end")
	b.report.print(os.Stdout)
	return err
}

// bareEnvironment makes every command remember things in the scratch directory, and take no settings of the caller's.
func (b *bench) bareEnvironment() error {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "ORLOP_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return os.Setenv("XDG_CACHE_HOME", filepath.Join(b.dir, "cache"))
}

// noteLoad makes the report tell how busy the machine is.
func (b *bench) noteLoad(when string) {
	text, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(text)); err == nil && len(fields) > 3 {
		b.report.note("Load average of 1, 5 and 15 minutes %s: %s.", when, strings.Join(fields[:3], ", "))
	}
}

// pick returns the number for a whole run or for a quick one.
func (b *bench) pick(whole, quick int) int {
	if b.quick {
		return quick
	}
	return whole
}

// later makes undo run at the end, whatever happens; the last one first.
func (b *bench) later(undo func() error) { b.undo = append(b.undo, undo) }

func (b *bench) cleanUp() error {
	var errs []error
	for _, undo := range slices.Backward(b.undo) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// sweep unmounts what is still mounted below dir and deletes it. Its loop devices go with their mounts. It refuses
// to delete anything while something stays mounted.
func sweep(dir string) error {
	table, err := fs.Table(dir)
	if err != nil {
		return err
	}
	for _, entry := range slices.Backward(table) {
		if err := fs.Unmount(entry.Mountpoint); err != nil {
			return fmt.Errorf("%s stays: %w", dir, err)
		}
	}
	for _, pattern := range []string{"*/pool", "*/mounts/*", "*/scratch/*"} {
		closed, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, dir := range closed {
			_ = fs.RemoveMountpoint(dir) // one with files in it is none
		}
	}
	return os.RemoveAll(dir)
}
