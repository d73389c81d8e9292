package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/fs"
)

const volumeSize = "10G"

// lifecycle measures create, mount and unmount of volumes one after the other, and Get while many are made.
func (b *bench) lifecycle(ctx context.Context) error {
	d, err := b.newDaemon("few", "--pool-size", "40G")
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	ours, err := b.oneByOne(ctx, d)
	if err != nil {
		return err
	}
	if err := b.getBesideCreates(ctx, d); err != nil {
		return err
	}
	if err := b.stages(ctx, ours); err != nil {
		return err
	}
	return d.stop(ctx, "--detach")
}

// steps are the times of one way to make and use volumes.
type steps struct{ create, mount, unmount, both sample }

// oneByOne compares the daemon with the commands that do the same by hand, in turns.
func (b *bench) oneByOne(ctx context.Context, d *daemon) (row, error) {
	var ours, hand struct{ create50, create99, mount, unmount, both series }
	for range runs {
		var viaDocker, byHand steps
		for i := range b.pick(50, 15) {
			if err := throughDocker(ctx, d, fmt.Sprintf("one-%d", i), &viaDocker); err != nil {
				return row{}, err
			}
			if err := b.byHand(ctx, &byHand); err != nil {
				return row{}, err
			}
		}
		ours.create50 = append(ours.create50, viaDocker.create.quantile(0.5))
		ours.create99 = append(ours.create99, viaDocker.create.quantile(0.99))
		ours.mount = append(ours.mount, viaDocker.mount.quantile(0.5))
		ours.unmount = append(ours.unmount, viaDocker.unmount.quantile(0.5))
		ours.both = append(ours.both, viaDocker.both.quantile(0.5))
		hand.create50 = append(hand.create50, byHand.create.quantile(0.5))
		hand.create99 = append(hand.create99, byHand.create.quantile(0.99))
		hand.mount = append(hand.mount, byHand.mount.quantile(0.5))
		hand.unmount = append(hand.unmount, byHand.unmount.quantile(0.5))
		hand.both = append(hand.both, byHand.both.quantile(0.5))
	}
	both := row{what: "create and mount, p50", unit: "ms", ours: ours.both, peer: hand.both, below: 100,
		explanation: "see the stages below"}
	b.report.add(
		row{what: "create 10 GiB ext4, p50", unit: "ms", ours: ours.create50, peer: hand.create50},
		row{what: "create 10 GiB ext4, p99", unit: "ms", ours: ours.create99, peer: hand.create99},
		row{what: "first mount, p50", unit: "ms", ours: ours.mount, peer: hand.mount},
		row{what: "unmount, p50", unit: "ms", ours: ours.unmount, peer: hand.unmount},
		both)
	b.report.note("The peer of create, mount and unmount is the same by hand: truncate, losetup, mkfs.ext4 and mount as commands.")
	return both, nil
}

func throughDocker(ctx context.Context, d *daemon, name string, s *steps) error {
	begin := time.Now()
	if err := s.create.time(func() error { return d.create(ctx, name, map[string]string{"size": volumeSize}) }); err != nil {
		return err
	}
	if err := s.mount.time(func() error { _, err := d.mount(ctx, name); return err }); err != nil {
		return err
	}
	s.both = append(s.both, time.Since(begin))
	if err := s.unmount.time(func() error { return d.unmount(ctx, name) }); err != nil {
		return err
	}
	return d.remove(ctx, name)
}

// byHand does with commands on the host's filesystem what orlop does for a volume.
func (b *bench) byHand(ctx context.Context, s *steps) (err error) {
	image, dir := filepath.Join(b.dir, "hand.img"), filepath.Join(b.dir, "hand")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	device := ""
	defer func() { err = errors.Join(err, b.putAway(dir, device, image)) }()
	command := func(argv ...string) error {
		out, err := b.runner.Run(ctx, argv...)
		if argv[0] == "losetup" && err == nil {
			device = strings.TrimSpace(string(out))
		}
		return err
	}
	begin := time.Now()
	err = s.create.time(func() error {
		if err := command("truncate", "--size", volumeSize, image); err != nil {
			return err
		}
		if err := command("losetup", "--find", "--show", "--direct-io=on", image); err != nil {
			return err
		}
		return command("mkfs.ext4", "-q", "-F", "-E", "nodiscard", device)
	})
	if err != nil {
		return err
	}
	if err := s.mount.time(func() error { return command("mount", device, dir) }); err != nil {
		return err
	}
	s.both = append(s.both, time.Since(begin))
	attached := device
	return s.unmount.time(func() error {
		err := command("umount", dir)
		if err == nil {
			device = ""
			_, err = b.runner.Run(ctx, "losetup", "--detach", attached)
		}
		return err
	})
}

// putAway removes what byHand or plainLoop has left: a mount, a loop device and its file.
func (b *bench) putAway(dir, device, image string) error {
	var errs []error
	if device != "" {
		errs = append(errs, fs.Unmount(dir))
		_, err := b.runner.Run(context.Background(), "losetup", "--detach", device)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(image))...)
}

const (
	creators = 8
	getPause = time.Millisecond // Docker does not ask without a breath
)

// getBesideCreates measures Get with nothing else to do, and while volumes are made in parallel.
func (b *bench) getBesideCreates(ctx context.Context, d *daemon) error {
	if err := d.create(ctx, "asked", map[string]string{"size": volumeSize}); err != nil {
		return err
	}
	var quiet50, quiet99, busy50, busy99, idle99 series
	for i := range runs {
		quiet := sample{}
		for range 200 {
			if err := quiet.time(func() error { return d.get(ctx, "asked") }); err != nil {
				return err
			}
			<-time.After(getPause)
		}
		busy, idle, err := b.getUnderLoad(ctx, d, i)
		if err != nil {
			return err
		}
		quiet50, quiet99 = append(quiet50, quiet.quantile(0.5)), append(quiet99, quiet.quantile(0.99))
		busy50, busy99 = append(busy50, busy.quantile(0.5)), append(busy99, busy.quantile(0.99))
		idle99 = append(idle99, idle.quantile(0.99))
	}
	b.report.add(
		row{what: fmt.Sprintf("Get beside %d creates, p50", creators), unit: "ms", ours: busy50, peer: quiet50},
		row{what: fmt.Sprintf("Get beside %d creates, p99", creators), unit: "ms", ours: busy99, peer: quiet99, below: 2,
			explanation: fmt.Sprintf("a call that does nothing, Capabilities, took %s ms (p99) at that time: the creates have the processors", number(idle99.median()))})
	b.report.note("The peer of Get is Get with nothing else to do.")
	return d.remove(ctx, "asked")
}

// getUnderLoad returns the times of Get while creators work, and of Capabilities, which does nothing.
func (b *bench) getUnderLoad(ctx context.Context, d *daemon, turn int) (busy, idle sample, err error) {
	group, ctx := errgroup.WithContext(ctx)
	made := make(chan struct{})
	group.Go(func() error {
		defer close(made)
		return b.createInParallel(ctx, d, turn)
	})
	group.Go(func() error {
		for {
			select {
			case <-made:
				return nil
			case <-time.After(getPause):
			}
			if err := busy.time(func() error { return d.get(ctx, "asked") }); err != nil {
				return err
			}
			if err := idle.time(func() error { return d.call(ctx, "Capabilities", nil, nil) }); err != nil {
				return err
			}
		}
	})
	err = group.Wait()
	return busy, idle, err
}

func (b *bench) createInParallel(ctx context.Context, d *daemon, turn int) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range creators {
		group.Go(func() error {
			for j := range b.pick(8, 3) {
				if err := d.create(ctx, fmt.Sprintf("par-%d-%d-%d", turn, i, j), map[string]string{"size": volumeSize}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
