package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
)

const (
	commandAim = 100 // ms, of a quiet volume's snapshot
	stallAim   = 30  // ms, of its writers
	worstAim   = 300 // ms, of a volume whose image has a million extents
)

// snapshots measures how long a snapshot takes, and the longest that a writer waits meanwhile. The peer is the same by
// hand: freeze, copy the image by reference at once, thaw.
func (b *bench) snapshots(ctx context.Context) error {
	d, err := b.newDaemon("snapshots", "--pool-size", "40G")
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	for _, size := range []int{1, 10, 100} {
		for _, data := range []int{0, 1, 2} { // GB
			if data >= size {
				continue
			}
			name := fmt.Sprintf("%d GiB, %d GB of data", size, data)
			if err := b.snapshotsOf(ctx, d, name, size, func(dir string) error { return fill(ctx, b, dir, int64(data)*1e9, false) }, 0); err != nil {
				return err
			}
		}
	}
	counts := []int{10_000, 100_000, 1_000_000}
	for _, extents := range counts[:b.pick(3, 2)] {
		name := fmt.Sprintf("%d extents, random writes", extents)
		if err := b.snapshotsOf(ctx, d, name, 10, func(dir string) error { return fill(ctx, b, dir, int64(extents)*4096, true) }, extents); err != nil {
			return err
		}
	}
	return nil
}

// snapshotsOf measures snapshots of a volume of size GiB, filled by fill. With extents it is first scattered into that
// many, and written to at random all the time.
func (b *bench) snapshotsOf(ctx context.Context, d *daemon, what string, size int, fill func(dir string) error, extents int) (err error) {
	name := "snap" + strconv.Itoa(len(b.report.rows))
	if err := d.create(ctx, name, map[string]string{"size": strconv.Itoa(size) + "G"}); err != nil {
		return err
	}
	dir, err := d.mount(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		_, failed := d.orlop(ctx, "delete", "--snapshots", name)
		err = errors.Join(err, failed)
	}()
	defer func() { err = errors.Join(err, d.unmount(ctx, name)) }()
	if err := fill(dir); err != nil {
		return err
	}
	stallGoal := float64(stallAim)
	if extents > 0 {
		stallGoal = 0
		if extents == 1_000_000 {
			stallGoal = worstAim
		}
		if err := scatter(ctx, b, d, name, dir); err != nil {
			return err
		}
		stop, err := load(b, dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	image, err := imageOf(d, dir)
	if err != nil {
		return err
	}
	command := row{what: "snapshot: " + what, unit: "ms"}
	stall := row{what: "  longest stall of a writer", unit: "ms", below: stallGoal}
	if extents == 0 {
		command.below = commandAim
	}
	for i := range b.pick(5, runs) {
		took, waited, err := watched(dir, func() error {
			_, err := d.orlop(ctx, "snapshot", "create", name, "--name", fmt.Sprintf("s%d", i))
			return err
		})
		if err != nil {
			return err
		}
		command.ours, stall.ours = append(command.ours, took), append(stall.ours, waited)
		took, waited, err = watched(dir, func() error { return byHand(dir, image, filepath.Join(d.root, "pool", "peer")) })
		if err != nil {
			return err
		}
		command.peer, stall.peer = append(command.peer, took), append(stall.peer, waited)
	}
	b.report.add(command, stall)
	return nil
}

// fill makes a file of bytes in dir, and with direct writes it past the cache.
func fill(ctx context.Context, b *bench, dir string, bytes int64, direct bool) error {
	if bytes == 0 {
		return nil
	}
	flag := "--direct=0"
	if direct {
		flag = "--direct=1"
	}
	_, err := b.runner.Run(ctx, "fio", "--name=fill", "--rw=write", "--bs=1M", "--end_fsync=1", "--fallocate=none", flag,
		"--filename="+filepath.Join(dir, dataFile), "--size="+strconv.FormatInt(bytes, 10))
	return err
}

// scatter writes every other block of the file anew after a snapshot, which puts each of them elsewhere in the pool.
func scatter(ctx context.Context, b *bench, d *daemon, name, dir string) error {
	if _, err := d.orlop(ctx, "snapshot", "create", name, "--name", "base"); err != nil {
		return err
	}
	_, err := b.runner.Run(ctx, "fio", "--name=scatter", "--rw=write:4k", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=32",
		"--fallocate=none", "--filename="+filepath.Join(dir, dataFile))
	return err
}

// load writes to random blocks of the file until stop is called.
func load(b *bench, dir string) (stop func() error, err error) {
	cmd := exec.Command("fio", "--name=load", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=4", "--rate_iops=2000",
		"--time_based", "--runtime=3600", "--fallocate=none", "--filename="+filepath.Join(dir, dataFile))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its exit status tells of the signal
		close(ended)
	}()
	stop = func() error {
		select {
		case <-ended:
			return errors.New("the load ended early")
		default:
		}
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(stopLimit):
			err = errors.Join(err, errors.New("the load does not end"))
		}
		return err
	}
	b.later(func() error { _ = cmd.Process.Kill(); return nil }) // if it is still there
	return stop, nil
}

// imageOf returns the image that the volume mounted at dir is on.
func imageOf(d *daemon, dir string) (string, error) {
	table, err := fs.Table(dir)
	if err != nil || len(table) == 0 {
		return "", errors.Join(err, fmt.Errorf("%s is not mounted", dir))
	}
	number := table[0].Device
	file, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", unix.Major(number), unix.Minor(number)))
	return filepath.Join(d.root, "pool", "images", filepath.Base(string(file[:max(0, len(file)-1)]))), err
}

// byHand copies a mounted volume's image as a short script would.
func byHand(dir, image, copied string) (err error) {
	from, err := os.Open(image)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Create(copied)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close(), os.Remove(copied)) }()
	if err := fs.Freeze(dir); err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	return errors.Join(err, fs.Thaw(dir))
}

// probePause is between two writes of the writer that is watched.
const probePause = 200 * time.Microsecond

// watched returns how long do takes, and the longest of the writes that go on in dir meanwhile, in ms.
func watched(dir string, do func() error) (took, waited float64, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	const blocks = 1024
	if _, err := f.WriteAt(make([]byte, blocks*4096), 0); err != nil {
		return 0, 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	var over atomic.Bool
	longest := make(chan time.Duration)
	go func() {
		var most time.Duration
		buf := make([]byte, 4096)
		for !over.Load() {
			begin := time.Now()
			if _, err := f.WriteAt(buf, rand.Int64N(blocks)*4096); err != nil {
				most = time.Hour // shows
			}
			most = max(most, time.Since(begin))
			time.Sleep(probePause)
		}
		longest <- most
	}()
	begin := time.Now()
	err = do()
	took = milliseconds(time.Since(begin))
	over.Store(true)
	return took, milliseconds(<-longest), err
}
