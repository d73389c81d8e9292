package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/internal/undo"
)

const (
	createLimit = 10 * time.Minute // for making a thin pool: LVM zeroes all of its metadata

	toolLimit = 10 * time.Minute  // for a reader of thin metadata: it reads all of a device's
	lookEvery = time.Minute       // between looks at what LVM has
	lockDir   = "/run/lock/orlop" // holds a file for each thin pool, locked by its daemon
)

// Config says which thin pool a Pool is.
type Config struct {
	VG, ThinPool string
	UUID         string // the identity recorded at first use; empty for a new pool
	Adopt        bool   // without a UUID: take a thin pool that has devices already, to rebuild lost metadata
	Create       int64  // bytes of the thin pool, which is made if it is not there and has no UUID; 0 to make none
}

// An Advice is something about a thin pool's configuration that will be trouble one day, and what to do.
type Advice struct{ Problem, Command string }

// nameRule is what LVM allows as names of groups and volumes.
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9_.+][a-zA-Z0-9_.+-]{0,126}$`)

// ParsePlace reads "VG/THINPOOL". It fails with fault.ErrInvalid on what cannot be names of LVM's.
func ParsePlace(place string) (vg, thinPool string, err error) {
	vg, thinPool, _ = strings.Cut(place, "/")
	for _, name := range []string{vg, thinPool} {
		if !nameRule.MatchString(name) || name == "." || name == ".." {
			return "", "", fault.Errorf(fault.ErrInvalid, "%q: must be VG/THINPOOL, two names of LVM's", place)
		}
	}
	return vg, thinPool, nil
}

// Open opens the pool of thin volumes in a thin pool, which it activates, and finishes what a process that was killed
// left half done. A thin pool whose identity is known and that is not there fails with fault.ErrNotFound, and nothing is
// made: a disk may be missing. One that shows another identity, or devices that the caller does not know of, fails with
// fault.ErrCorrupt; one that another process uses with fault.ErrInUse; one that cannot be used, and why, with
// fault.ErrUnsupported.
func Open(ctx context.Context, c Config) (p *Pool, err error) {
	for _, command := range []string{"lvm", "thin_delta", "thin_dump", "thin_ls"} {
		if _, err := run.Find(command); err != nil {
			return nil, err
		}
	}
	return open(ctx, c, deviceMapper{}, lockDir)
}

func open(ctx context.Context, c Config, k kernel, locks string) (_ *Pool, err error) {
	p := &Pool{
		vg: c.VG, name: c.ThinPool, lvm: newCommands(), tools: newTools(), kernel: k,
		door: make(chan struct{}, 1), delta: make(chan struct{}, 1),
		devices: map[blockdev.ID]*device{}, readers: map[blockdev.ID]*lease{},
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	facts, err := p.facts(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := p.suits(facts); err != nil {
		return nil, err
	}
	if err := p.takeLock(locks); err != nil {
		return nil, err
	}
	u.Push("unlock thin pool", func(context.Context) error { return p.lock.Close() })
	superseded, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.identify(ctx, c, facts); err != nil {
		return nil, err
	}
	if err := p.activatePool(ctx); err != nil {
		return nil, err
	}
	u.Push("deactivate thin pool", p.deactivatePool)
	if err := p.tidy(ctx, superseded); err != nil {
		return nil, err
	}
	p.advice = p.advise(ctx, facts)
	return p, nil
}

// facts reads about the thin pool, and makes it if it is to be made.
func (p *Pool) facts(ctx context.Context, c Config) (row, error) {
	rows, err := p.lvm.report(ctx, poolFields, p.vg)
	if fault.Is(err, fault.ErrNotFound) {
		return nil, fault.Errorf(fault.ErrNotFound, "volume group %s: %w: is its disk attached? 'vgs' lists the groups, 'vgcreate %s DISK' makes one", p.vg, err, p.vg)
	}
	if err != nil {
		return nil, fmt.Errorf("volume group %s: %w", p.vg, err)
	}
	if facts, found := rowNamed(rows, p.name); found {
		return facts, nil
	}
	switch {
	case c.UUID != "":
		return nil, fault.Errorf(fault.ErrNotFound, "thin pool %s is missing: volume group %s has no such LV: was it renamed or removed? 'lvs %s' lists them", p.of(p.name), p.vg, p.vg)
	case c.Create == 0:
		return nil, fault.Errorf(fault.ErrNotFound, "thin pool %s: volume group %s has no such LV: make it with 'lvcreate --type thin-pool --size 100G --name %s %s', or start the daemon with --create-thin-pool 100G",
			p.of(p.name), p.vg, p.name, p.vg)
	}
	if err := p.createThinPool(ctx, c.Create); err != nil {
		return nil, fmt.Errorf("make thin pool %s: %w", p.of(p.name), err)
	}
	if rows, err = p.lvm.report(ctx, poolFields, p.vg); err != nil {
		return nil, err
	}
	facts, found := rowNamed(rows, p.name)
	if !found {
		return nil, fmt.Errorf("make thin pool %s: lvm did not make it", p.of(p.name))
	}
	return facts, nil
}

func rowNamed(rows []row, name string) (row, bool) {
	i := slices.IndexFunc(rows, func(r row) bool { return r["lv_name"] == name })
	if i < 0 {
		return nil, false
	}
	return rows[i], true
}

const (
	newChunk    = int64(64) << 10 // bytes: small, so that a snapshot copies little and a backup reads little
	largeChunk  = int64(512) << 10
	largePool   = int64(8) << 40  // bytes from which newChunk would need too much metadata
	perChunk    = 64              // bytes of metadata, at most, for a chunk that is in use
	perDevice   = int64(16) << 10 // bytes of metadata that a device has alone
	deviceCount = 10_000          // volumes and snapshots that a new thin pool is to have room for
	maxMetadata = int64(15) << 30 // bytes: the kernel uses no more than 15.8 GiB
)

// metadataSize returns the chunk and the size of the metadata in bytes of a new thin pool of size bytes.
func metadataSize(size int64) (chunk, metadata int64) {
	chunk = newChunk
	if size > largePool {
		chunk = largeChunk
	}
	metadata = size/chunk*perChunk + deviceCount*perDevice
	return chunk, min((metadata+1<<20-1)>>20<<20, maxMetadata)
}

func (p *Pool) createThinPool(ctx context.Context, size int64) error {
	chunk, metadata := metadataSize(size)
	argv := slices.Concat([]string{"lvcreate", "--type", "thin-pool", "--size", sizeArg(size), "--poolmetadatasize", sizeArg(metadata),
		"--chunksize", sizeArg(chunk), "--zero", "y", "--discards", "passdown", "--yes", "--name", p.name}, p.lvm.config(), []string{p.vg})
	slow := p.lvm
	slow.change.Limit = createLimit
	_, err := slow.run(ctx, argv...)
	return err
}

// suits fails if the thin pool cannot be used, and says why.
func (p *Pool) suits(facts row) (err error) {
	name := p.of(p.name)
	unsupported := func(format string, args ...any) error { return fault.Errorf(fault.ErrUnsupported, format, args...) }
	switch {
	case facts["segtype"] != "thin-pool":
		return unsupported("%s is not a thin pool: its type is %q: name another, or one that is not there with --create-thin-pool", name, facts["segtype"])
	case facts["vg_lock_type"] != "" && facts["vg_lock_type"] != "none":
		return unsupported("volume group %s is shared by way of lvmlockd (lock type %q): a thin pool belongs to one host: run 'vgchange --lock-type none %s'", p.vg, facts["vg_lock_type"], p.vg)
	case facts.is("vg_exported"):
		return unsupported("volume group %s is exported: run 'vgimport %s'", p.vg, p.vg)
	case facts["vg_permissions"] == "read-only":
		return unsupported("volume group %s is read-only", p.vg)
	case facts.is("vg_partial"):
		return fault.Errorf(fault.ErrNotFound, "volume group %s lacks a disk: attach it ('vgs -o +vg_missing_pv_count %s', 'pvs')", p.vg, p.vg)
	case facts["lv_permissions"] == "read-only":
		return unsupported("thin pool %s is read-only: run 'lvchange --permission rw %s'", name, name)
	case facts.is("lv_check_needed"):
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s needs a check of its metadata: run 'lvchange --activate n %s' and 'lvconvert --repair %s'", name, name, name)
	case facts["zero"] != "zero" && facts["zero"] != "1":
		return unsupported("thin pool %s does not zero new blocks: a volume would show what others deleted: run 'lvchange --zero y %s'", name, name)
	}
	if p.extent, err = facts.bytes("vg_extent_size"); err != nil {
		return err
	}
	if p.chunk, err = facts.bytes("chunk_size"); err != nil {
		return err
	}
	if p.extent == 0 || p.chunk == 0 {
		return fmt.Errorf("report of lvm: extents of %d bytes, chunks of %d", p.extent, p.chunk)
	}
	p.vgUUID = plain(facts["vg_uuid"])
	p.metadata = strings.Trim(facts["metadata_lv"], "[]")
	return nil
}

// plain is a UUID of LVM's as in the UUIDs of its devices, without dashes.
func plain(uuid string) string { return strings.ReplaceAll(uuid, "-", "") }

func (p *Pool) mapperUUID(lvUUID string) string { return "LVM-" + p.vgUUID + plain(lvUUID) }

// lvUUID returns the UUID of an LV, without dashes, of its device's.
func (p *Pool) lvUUID(mapperUUID string) string {
	return strings.TrimPrefix(mapperUUID, "LVM-"+p.vgUUID)
}

// takeLock keeps other processes of this host away from the thin pool.
func (p *Pool) takeLock(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("lock thin pool %s: %w", p.of(p.name), err)
	}
	path := filepath.Join(dir, "lvm-"+p.vg+"-"+p.name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock thin pool %s: %w", p.of(p.name), err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fault.Errorf(fault.ErrInUse, "thin pool %s: another orlop daemon uses it: give each a thin pool of its own", p.of(p.name))
		}
		return fmt.Errorf("lock thin pool %s: %w", p.of(p.name), err)
	}
	p.lock = f
	return nil
}

// identify reads the thin pool's identity, or gives it one where none is expected and nothing is there to be lost.
func (p *Pool) identify(ctx context.Context, c Config, facts row) error {
	name := p.of(p.name)
	found, marked := valueOf(facts.tags(), tagPool)
	switch {
	case marked && c.UUID != "" && found != c.UUID:
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s: is pool %s, not %s that this root knows: is another disk attached?", name, found, c.UUID)
	case !marked && c.UUID != "":
		return fault.Errorf(fault.ErrNotFound, "pool %s is missing: thin pool %s does not carry the tag %s%s: was it re-created?", c.UUID, name, tagPool, c.UUID)
	case c.UUID == "" && (!marked || !c.Adopt) && len(p.devices) > 0:
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s holds volumes that this root's metadata does not know: it was lost ('orlop daemon --rebuild-metadata' rebuilds it), or the pool is another root's", name)
	case marked:
		p.uuid = found
		return nil
	}
	p.uuid = uuid.NewString()
	if _, err := p.lvm.run(ctx, slices.Concat([]string{"lvchange", "--addtag", tagPool + p.uuid}, p.lvm.config(), []string{name})...); err != nil {
		return fmt.Errorf("mark thin pool %s: %w", name, err)
	}
	return nil
}

// activatePool activates the thin pool, which then stays active without volumes, so that the kernel can be asked.
func (p *Pool) activatePool(ctx context.Context) error {
	if _, ok, err := p.kernel.status("", p.poolTop()); err != nil || ok {
		return err
	}
	said, err := p.lvm.run(ctx, slices.Concat([]string{"lvchange", "--activate", "y"}, p.lvm.config(), []string{p.of(p.name)})...)
	if err != nil {
		return fmt.Errorf("activate thin pool %s: %w", p.of(p.name), err)
	}
	p.fresh = true
	if _, ok, err := p.poolDevice(); err != nil || !ok {
		return fault.Join(err, fmt.Errorf("activate thin pool %s: lvm did not activate it: see volume_list in /etc/lvm/lvm.conf: %s", p.of(p.name), lastLines(said)))
	}
	return nil
}

// deactivatePool undoes activatePool, unless a device is active.
func (p *Pool) deactivatePool(ctx context.Context) error {
	if !p.fresh {
		return nil
	}
	return p.releasePool(ctx)
}

func (p *Pool) releasePool(ctx context.Context) error {
	_, err := p.lvm.run(ctx, slices.Concat([]string{"lvchange", "--activate", "n"}, p.lvm.config(), []string{p.of(p.name)})...)
	if err != nil {
		return fmt.Errorf("deactivate thin pool %s: %w", p.of(p.name), err)
	}
	return nil
}

// tidy finishes what a process that was killed left, and reads what each device uses. A pool that cannot be written is
// opened all the same: its volumes can be read.
func (p *Pool) tidy(ctx context.Context, superseded []string) error {
	s, err := p.poolStatus()
	if err != nil {
		return err
	}
	if p.broken(s) != nil {
		return nil
	}
	if err := p.releaseStale(); err != nil {
		return err
	}
	if err := p.finishReplacing(ctx, superseded); err != nil {
		return err
	}
	for id, d := range p.devices {
		s, ok, err := p.active(*d)
		if err != nil {
			return err
		}
		if ok && d.sealed && s.opens == 0 { // a reader's
			if err := p.stop(ctx, id); err != nil {
				return err
			}
		}
	}
	if len(p.devices) == 0 {
		return nil
	}
	return p.measure(ctx)
}

// advise looks for what will be trouble one day.
func (p *Pool) advise(ctx context.Context, facts row) (advice []Advice) {
	name := p.of(p.name)
	threshold, err := p.lvm.setting(ctx, "activation/thin_pool_autoextend_threshold")
	if percent, parseErr := strconv.Atoi(threshold); err == nil && parseErr == nil && percent >= 100 {
		advice = append(advice, Advice{"thin pool " + name + " does not extend itself when it fills up: thin_pool_autoextend_threshold is 100 in /etc/lvm/lvm.conf",
			"set activation/thin_pool_autoextend_threshold=70 and thin_pool_autoextend_percent=20 in /etc/lvm/lvm.conf"})
	}
	if rows, err := p.lvm.report(ctx, poolFields, name); err == nil && len(rows) > 0 { // now that it is active
		facts = rows[0]
	}
	if facts["seg_monitor"] != "monitored" {
		advice = append(advice, Advice{"thin pool " + name + " is not monitored by dmeventd: it will not extend itself", "lvchange --monitor y " + name})
	}
	if facts["discards"] == "ignore" {
		advice = append(advice, Advice{"thin pool " + name + " ignores discards: space that volumes free does not come back", "lvchange --discards passdown " + name + ", while it is inactive"})
	}
	size, sizeErr := facts.bytes("vg_mda_size")
	free, freeErr := facts.bytes("vg_mda_free")
	if sizeErr == nil && freeErr == nil && free < size/4 {
		advice = append(advice, Advice{"the metadata area of volume group " + p.vg + " is nearly full: it limits the number of volumes and snapshots",
			"delete volumes or snapshots, or move them to a group made with vgcreate --metadatasize 64m"})
	}
	return advice
}

// Advice returns what about the thin pool's configuration will be trouble one day, as of Open.
func (p *Pool) Advice() []Advice { return p.advice }

// BlockSize returns the logical block size of the pool's devices in bytes.
func (p *Pool) BlockSize() (int, error) {
	s, ok, err := p.poolDevice()
	if err == nil && !ok {
		err = p.inactive()
	}
	if err != nil {
		return 0, err
	}
	f, err := os.Open(s.path())
	if err != nil {
		return 0, fmt.Errorf("block size of thin pool %s: %w", p.of(p.name), err)
	}
	defer f.Close()
	size, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return 0, fmt.Errorf("block size of thin pool %s: %w", p.of(p.name), err)
	}
	return size, nil
}

// Watch looks at what LVM has once a minute until ctx is done: others may rename, extend or remove LVs, and disks may
// fail. What it finds shows in Stat and Space.
func (p *Pool) Watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if p.enter(ctx) == nil {
			_, _ = p.look(ctx) // Space tells of the error
			p.leave()
		}
	}
}

// Close lets go of the thin pool. It and its active devices stay active.
func (p *Pool) Close() { _ = p.lock.Close() }

// Detach deactivates the thin pool. It fails with fault.ErrInUse, and changes nothing, while a device is active.
// After a success the pool cannot be used any more.
func (p *Pool) Detach(ctx context.Context) error {
	infos, err := p.List(ctx)
	if err != nil {
		return err
	}
	if active := len(slices.DeleteFunc(infos, func(i blockdev.Info) bool { return i.Path == "" })); active > 0 {
		return fault.Errorf(fault.ErrInUse, "detach thin pool %s: %d devices are active", p.of(p.name), active)
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.leave()
	return p.releasePool(ctx)
}

// Abandon undoes Open as far as it changed the host: it is Close, and deactivates a thin pool that Open activated, unless
// a device is active.
func (p *Pool) Abandon(ctx context.Context) error {
	defer p.Close()
	if !p.fresh {
		return nil
	}
	if err := p.Detach(ctx); !fault.Is(err, fault.ErrInUse) {
		return err
	}
	return nil
}

// lastLines is what a command said, on one line.
func lastLines(said string) string {
	return strings.Join(strings.Split(strings.TrimSpace(said), "\n"), "; ")
}
