// Package lvm is the pool of thin volumes: one door to lvm(8), and the devices made by way of it in one thin pool of one
// volume group. LVM does what changes; what only tells how things are is asked of the kernel or remembered, so that it
// waits for no lvm command.
//
// Each device is a logical volume that carries the tag "orlop", its ID and its record in tags, and is made, described
// and removed by one lvm command, which LVM commits as a whole. No other LV is ever changed. The thin pool carries the
// pool's identity. Devices have the flag to skip activation, so that a start of the host does not activate them.
package lvm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/run"
)

// A Pool keeps devices as thin volumes in one thin pool. It satisfies blockdev.Pool.
type Pool struct {
	vg, name string // of the group and the thin pool
	uuid     string // identity
	vgUUID   string // as in the names that LVM gives its devices' UUIDs
	extent   int64  // bytes: sizes of LVs are multiples of it
	metadata string // name of the thin pool's metadata LV
	fresh    bool   // activated by this process, and not left so by an earlier one
	advice   []Advice
	lock     *os.File // held while this process uses the thin pool

	chunk int64 // bytes: the thin pool allocates in these

	lvm    commands
	tools  run.Runner // of the readers of thin metadata
	kernel kernel
	door   chan struct{} // held by whoever runs lvm commands and changes devices
	delta  chan struct{} // held by whoever has a metadata snapshot reserved

	mu      sync.Mutex
	devices map[blockdev.ID]*device // as of the last look; replaced and changed under mu, by the holder of door
	readers map[blockdev.ID]*lease
	trouble error // why the last look failed
}

var _ blockdev.Pool = (*Pool)(nil)

// UUID is the pool's identity, as in its tag.
func (p *Pool) UUID() string { return p.uuid }

// Traits describes this kind of pool.
func (p *Pool) Traits() blockdev.Traits {
	return blockdev.Traits{Kind: "lvm", InstantClone: true, Quiesces: true, Granularity: p.extent}
}

// of names an LV as lvm(8) wants it.
func (p *Pool) of(lv string) string { return p.vg + "/" + lv }

// poolTop is the name of the thin pool's own device, which is there while it is active.
func (p *Pool) poolTop() string { return mapperName(p.vg, p.name) }

// poolDevice returns the kernel's thin pool: a device below the thin pool's own or, before it has its first volume, that
// one. ok is false if it is not active.
func (p *Pool) poolDevice() (s status, ok bool, err error) {
	for _, name := range []string{p.poolTop() + "-tpool", p.poolTop()} {
		if s, ok, err = p.kernel.status("", name); err != nil || ok && s.target == "thin-pool" {
			return s, ok, err
		}
	}
	return status{}, false, nil
}

// round rounds a size in bytes up to whole extents.
func (p *Pool) round(size int64) int64 {
	return max((size+p.extent-1)/p.extent, 1) * p.extent
}

// enter waits for the door. The caller calls leave.
func (p *Pool) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("pool %s: %w", p.of(p.name), err)
	}
	select {
	case p.door <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pool %s: wait for another lvm command: %w", p.of(p.name), ctx.Err())
	}
}

func (p *Pool) leave() { <-p.door }

// find returns a copy of what is known of a device.
func (p *Pool) find(id blockdev.ID) (device, error) {
	if _, err := blockdev.ParseID(string(id)); err != nil {
		return device{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.devices[id]
	switch {
	case d == nil:
		return device{}, fault.Errorf(fault.ErrNotFound, "device %s: no logical volume in %s carries the tag %s%s", id, p.of(p.name), tagID, id)
	case d.twin != "":
		return device{}, fault.Errorf(fault.ErrCorrupt, "device %s: both %s and %s carry its tag: remove it from the copy: lvchange --deltag %s %s",
			id, p.of(d.lv), p.of(d.twin), tagOurs, p.of(d.twin))
	}
	return *d, nil
}

// keep changes what is known of a device. The caller holds the door.
func (p *Pool) keep(id blockdev.ID, change func(*device)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.devices[id]; d != nil {
		change(d)
	}
}

// look reads all devices from LVM. The caller holds the door.
func (p *Pool) look(ctx context.Context) (superseded []string, err error) {
	rows, err := p.lvm.report(ctx, volumeFields, p.vg)
	var devices map[blockdev.ID]*device
	if err == nil {
		devices, superseded, err = devicesOf(rows, p.name)
	}
	if err != nil {
		err = fmt.Errorf("read volume group %s: %w", p.vg, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = err
	if err != nil {
		return nil, err
	}
	for id, d := range devices {
		if old := p.devices[id]; old != nil {
			d.used = old.used
		}
	}
	p.devices = devices
	return superseded, nil
}

// command runs the lvm command that argv makes for a device's LV and, if that has been renamed since the last look, once
// more with the new name. It fails with fault.ErrNotFound if others have removed the LV. The caller holds the door.
func (p *Pool) command(ctx context.Context, id blockdev.ID, argv func(lv string) []string) (said string, err error) {
	d, err := p.find(id)
	if err != nil {
		return "", err
	}
	said, err = p.lvm.run(ctx, argv(p.of(d.lv))...)
	if err == nil || ctx.Err() != nil {
		return said, err
	}
	if _, lookErr := p.look(ctx); lookErr != nil {
		return said, fault.Errorf(fault.KindOf(err), "%w (and then %w)", err, lookErr)
	}
	now, findErr := p.find(id)
	switch {
	case findErr != nil:
		return said, fault.Errorf(fault.KindOf(findErr), "%w: %w", findErr, err)
	case now.lv != d.lv:
		return p.lvm.run(ctx, argv(p.of(now.lv))...)
	}
	return said, err
}

// active returns the kernel's view of a device; ok is false if it is not active there.
func (p *Pool) active(d device) (s status, ok bool, err error) {
	if d.uuid == "" {
		return p.kernel.status("", mapperName(p.vg, d.lv))
	}
	return p.kernel.status(p.mapperUUID(d.uuid), "")
}

// Stat describes a device, as of the last look at LVM and as the kernel has it now.
func (p *Pool) Stat(_ context.Context, id blockdev.ID) (blockdev.Info, error) {
	d, err := p.find(id)
	if err != nil {
		return blockdev.Info{}, err
	}
	return p.describe(id, d)
}

func (p *Pool) describe(id blockdev.ID, d device) (blockdev.Info, error) {
	info := blockdev.Info{ID: id, Size: d.size, Used: d.used}
	s, ok, err := p.active(d)
	if err != nil {
		return info, fmt.Errorf("device %s: %w", id, err)
	}
	if !ok {
		return info, nil
	}
	if used, known := mapped(s.params); known {
		info.Used = used
		p.mu.Lock()
		if now := p.devices[id]; now != nil {
			now.used = used
		}
		p.mu.Unlock()
	}
	if !p.lent(id) {
		info.Path = s.path()
	}
	return info, nil
}

// List describes every device, by its age, as Stat does. A device that two LVs say to be is listed with size 0.
func (p *Pool) List(context.Context) ([]blockdev.Info, error) {
	p.mu.Lock()
	all := make(map[blockdev.ID]device, len(p.devices))
	for id, d := range p.devices {
		all[id] = *d
	}
	p.mu.Unlock()
	infos := make([]blockdev.Info, 0, len(all))
	for id, d := range all {
		info := blockdev.Info{ID: id}
		if d.twin == "" {
			var err error
			if info, err = p.describe(id, d); err != nil {
				return nil, err
			}
		}
		info.Record = d.record
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b blockdev.Info) int { return compare(a.ID, b.ID) })
	return infos, nil
}

func compare(a, b blockdev.ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// lvName is the name that a new device's LV gets.
func lvName(id blockdev.ID) string { return tagOurs + "-" + string(id) }

// size is how lvm(8) is told a size in bytes.
func sizeArg(size int64) string { return strconv.FormatInt(size, 10) + "b" }
