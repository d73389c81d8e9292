// Package loop is the pool of sparse images on loop devices. Images live in a directory of a filesystem that can
// reflink (XFS, btrfs). Where the data root's own filesystem cannot, the pool keeps an XFS of its own in one sparse
// file there and mounts it: the built-in pool.
//
// On disk, in the pool's directory: orlop-pool.json is the identity marker, images/<id>.img a device and
// images/<id>.json its record, written before the image and removed after it; images/<id>.part becomes the image when
// Clone has finished it.
package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/undo"
)

const (
	blockSize = 4096 // of the loop devices: fits disks with sectors of 512 and 4096 bytes
	imageExt  = ".img"
	recordExt = ".json"
	partExt   = ".part" // of an image until it is whole
	tempExt   = ".tmp"  // of a file until it is whole
)

// BlockSize is the logical block size in bytes of every device of this package's pools.
const BlockSize = blockSize

// A Pool keeps devices as images in one directory. It satisfies blockdev.Pool.
type Pool struct {
	dir    string // holds the marker
	images string
	uuid   string
	xfs    bool     // images can be opened for invisible I/O
	file   *backing // the built-in pool's own device; nil for a plain directory

	mu     sync.Mutex
	active map[blockdev.ID]*os.File // open loop devices: an open one cannot be freed by AUTOCLEAR
}

var _ blockdev.Pool = (*Pool)(nil)

// newPool opens the pool in dir, which file is mounted at if it is a built-in one.
func newPool(dir string, c Config, file *backing) (*Pool, error) {
	id, err := identify(dir, c.UUID, c.Adopt)
	if err != nil {
		return nil, err
	}
	p := &Pool{dir: dir, images: filepath.Join(dir, "images"), uuid: id, file: file, active: map[blockdev.ID]*os.File{}}
	if err := os.Mkdir(p.images, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	p.xfs = stat.Type == unix.XFS_SUPER_MAGIC
	if err := p.reopen(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// UUID is the pool's identity, as in its marker.
func (p *Pool) UUID() string { return p.uuid }

// Dir is the directory that holds the pool's marker and images.
func (p *Pool) Dir() string { return p.dir }

// GrowthError returns why the built-in pool's filesystem could not be grown to the size asked for when the pool was
// opened, or nil. The pool works at the size that it has.
func (p *Pool) GrowthError() error {
	if p.file == nil {
		return nil
	}
	return p.file.ungrown
}

// Close lets go of the devices. Those that are mounted stay as they are; the others are freed by the kernel.
func (p *Pool) Close() {
	p.closeDevices()
	if p.file != nil {
		p.file.close()
	}
}

func (p *Pool) closeDevices() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, f := range p.active {
		_ = f.Close() // a read-only use of a device node: nothing to lose
		delete(p.active, id)
	}
}

// Traits describes this kind of pool.
func (p *Pool) Traits() blockdev.Traits {
	return blockdev.Traits{Kind: "loop", InstantClone: true}
}

func (p *Pool) image(id blockdev.ID) string  { return filepath.Join(p.images, string(id)+imageExt) }
func (p *Pool) record(id blockdev.ID) string { return filepath.Join(p.images, string(id)+recordExt) }
func (p *Pool) part(id blockdev.ID) string   { return filepath.Join(p.images, string(id)+partExt) }

// roundUp rounds a size in bytes up to whole blocks of the loop device.
func roundUp(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// Create makes the record and then a sparse image.
func (p *Pool) Create(ctx context.Context, id blockdev.ID, size int64, record blockdev.Record) (err error) {
	if err := p.refuseExisting(id); err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("remove record", func(context.Context) error { return removeFile(p.record(id)) })
	if err := p.writeRecord(id, record); err != nil {
		return err
	}
	f, err := os.OpenFile(p.image(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return spaceFault(fmt.Errorf("make device %s: %w", id, err))
	}
	u.Push("remove image", func(context.Context) error { return removeFile(p.image(id)) })
	if err := errors.Join(f.Truncate(roundUp(size)), f.Sync(), f.Close()); err != nil {
		return spaceFault(fmt.Errorf("make device %s: %w", id, err))
	}
	return syncDir(p.images)
}

// Describe replaces a device's record, by rename.
func (p *Pool) Describe(_ context.Context, id blockdev.ID, record blockdev.Record) error {
	if _, err := p.stat(id); err != nil {
		return err
	}
	return p.writeRecord(id, record)
}

func (p *Pool) writeRecord(id blockdev.ID, record blockdev.Record) error {
	if err := writeFile(p.record(id), record); err != nil {
		return spaceFault(fmt.Errorf("describe device %s: %w", id, err))
	}
	return nil
}

// Sync writes the image and its directory entry to stable storage.
func (p *Pool) Sync(_ context.Context, id blockdev.ID) error {
	if _, err := p.stat(id); err != nil {
		return err
	}
	f, err := os.Open(p.image(id))
	if err != nil {
		return p.notFound(id, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return spaceFault(fmt.Errorf("sync device %s: %w", id, err))
	}
	return syncDir(p.images)
}

// Grow extends the image, and the loop device if the image is active.
func (p *Pool) Grow(_ context.Context, id blockdev.ID, size int64) error {
	stat, err := p.stat(id)
	if err != nil {
		return err
	}
	if size = roundUp(size); stat.Size < size {
		if isSealed(stat) {
			return fault.Errorf(fault.ErrProtected, "grow device %s: it is sealed", id)
		}
		if err := extend(p.image(id), size); err != nil {
			return spaceFault(fmt.Errorf("grow device %s: %w", id, err))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if device := p.active[id]; device != nil {
		// Also when the image has the size already: an earlier call may have come this far only.
		if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
			return fmt.Errorf("grow device %s: set capacity of %s: %w", id, device.Name(), err)
		}
	}
	return nil
}

// extend makes a file longer, durably.
func extend(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// Replace renames the image of by to that of id. The record of by goes last: with it alone Remove still finds the device.
func (p *Pool) Replace(_ context.Context, id, by blockdev.ID) error {
	for _, each := range []blockdev.ID{id, by} {
		stat, err := p.stat(each)
		if err != nil {
			return err
		}
		if isSealed(stat) {
			return fault.Errorf(fault.ErrProtected, "replace device %s by %s: %s is sealed", id, by, each)
		}
		device, err := p.find(each)
		if err != nil {
			return err
		}
		if device != "" {
			return fault.Errorf(fault.ErrInUse, "replace device %s by %s: %s is active as %s", id, by, each, device)
		}
	}
	f, err := os.Open(p.image(by))
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(p.image(by), p.image(id))
	}
	if err == nil {
		err = syncDir(p.images) // the new data, before anything of by goes
	}
	if err == nil {
		err = removeFile(p.record(by))
	}
	if err != nil {
		return spaceFault(fmt.Errorf("replace device %s by %s: %w", id, by, err))
	}
	return syncDir(p.images)
}

// Remove deletes the image, or what there is of it, and then its record.
func (p *Pool) Remove(_ context.Context, id blockdev.ID) error {
	if _, err := blockdev.ParseID(string(id)); err != nil {
		return err
	}
	device, err := p.find(id)
	if err != nil {
		return err
	}
	if device != "" {
		return fault.Errorf(fault.ErrInUse, "remove device %s: active as %s", id, device)
	}
	if err := unseal(p.image(id)); err != nil {
		return fmt.Errorf("remove device %s: %w", id, err)
	}
	for _, path := range []string{p.part(id), p.image(id), p.record(id), p.record(id) + tempExt} {
		if err := removeFile(path); err != nil {
			return fmt.Errorf("remove device %s: %w", id, err)
		}
	}
	return syncDir(p.images)
}

// stat looks at the image of a device, which every method does that must find it: an ID that was never minted
// could lead out of the directory.
func (p *Pool) stat(id blockdev.ID) (stat unix.Stat_t, err error) {
	if _, err := blockdev.ParseID(string(id)); err != nil {
		return stat, err
	}
	if err := unix.Stat(p.image(id), &stat); err != nil {
		return stat, p.notFound(id, err)
	}
	return stat, nil
}

// Stat describes a device.
func (p *Pool) Stat(_ context.Context, id blockdev.ID) (blockdev.Info, error) {
	stat, err := p.stat(id)
	if err != nil {
		return blockdev.Info{}, err
	}
	info := blockdev.Info{ID: id, Size: stat.Size, Used: stat.Blocks * 512}
	p.mu.Lock()
	if device := p.active[id]; device != nil {
		info.Path = device.Name()
	}
	p.mu.Unlock()
	return info, nil
}

// List describes every device, by its age. One whose image is gone, or not whole yet, is listed with size 0.
func (p *Pool) List(ctx context.Context) ([]blockdev.Info, error) {
	entries, err := os.ReadDir(p.images)
	if err != nil {
		return nil, fmt.Errorf("list pool %s: %w", p.dir, err)
	}
	var infos []blockdev.Info
	seen := map[blockdev.ID]bool{}
	for _, entry := range entries {
		ext := filepath.Ext(entry.Name())
		id, err := blockdev.ParseID(strings.TrimSuffix(entry.Name(), ext))
		if err != nil || ext != imageExt && ext != partExt && ext != recordExt || seen[id] {
			continue // not ours to name; doctor lists foreign files
		}
		seen[id] = true
		info, err := p.Stat(ctx, id)
		if fault.Is(err, fault.ErrNotFound) {
			info = blockdev.Info{ID: id}
		} else if err != nil {
			return nil, err
		}
		if record, err := os.ReadFile(p.record(id)); err == nil && json.Valid(record) {
			info.Record = record
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Space looks at the pool's filesystem and, for a built-in pool, at the host's below it.
func (p *Pool) Space(context.Context) (blockdev.Space, error) {
	p.mu.Lock() // not while Detach unmounts: even a glance keeps the filesystem in use
	defer p.mu.Unlock()
	pool, err := statSpace(p.dir)
	pool.Layer, pool.Remedy = "pool filesystem "+p.dir, "delete volumes, or free space there or enlarge it"
	if p.file != nil {
		pool.Remedy = "delete volumes, or restart the daemon with a larger --pool-size"
	}
	if err != nil || p.file == nil || p.file.preallocated {
		return pool, err
	}
	root := filepath.Dir(p.file.path)
	host, err := statSpace(root)
	host.Layer, host.Remedy = "host filesystem "+root, "free space there or enlarge it, or delete volumes"
	if err != nil || host.Used() > pool.Used() {
		return host, err
	}
	return pool, nil
}

// DrawsOn tells whether the pool's images take their space, when they are written, from the filesystem of dir.
func (p *Pool) DrawsOn(dir string) (bool, error) {
	below := p.dir
	if p.file != nil {
		below = p.file.path
	}
	its, err := fileAt(below)
	if err != nil {
		return false, fmt.Errorf("pool %s: %w", p.dir, err)
	}
	there, err := fileAt(dir)
	if err != nil {
		return false, fmt.Errorf("pool %s: %w", p.dir, err)
	}
	return its.device == there.device && (p.file == nil || !p.file.preallocated), nil
}

func statSpace(dir string) (space blockdev.Space, err error) {
	space.Size, space.Free, err = fs.Space(dir)
	return space, err
}

func (p *Pool) notFound(id blockdev.ID, err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return fault.Errorf(fault.ErrNotFound, "device %s: image is missing: %s", id, p.image(id))
	}
	return fmt.Errorf("device %s: %w", id, err)
}

// spaceFault gives errors that tell of a full disk their kind.
func spaceFault(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Errorf(fault.ErrNoSpace, "%w", err)
	}
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return spaceFault(fmt.Errorf("sync directory %s: %w", path, err))
	}
	return nil
}

// writeFile replaces path: temporary file, fsync, rename, fsync of the directory.
func writeFile(path string, content []byte) (err error) {
	temp := path + tempExt
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, removeFile(temp))
	}
	return syncDir(filepath.Dir(path))
}

// CanReflink tells whether files in dir can share blocks.
func CanReflink(dir string) (bool, error) {
	files := [2]*os.File{}
	for i := range files {
		f, err := os.CreateTemp(dir, ".orlop-probe-*")
		if err != nil {
			return false, fmt.Errorf("probe %s for reflink: %w", dir, err)
		}
		defer f.Close()
		defer os.Remove(f.Name())
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, blockSize)); err != nil {
		return false, spaceFault(fmt.Errorf("probe %s for reflink: %w", dir, err))
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil, nil
}

// mountedAt returns what is mounted at dir itself, or nil.
func mountedAt(dir string) (mounted *fs.Entry, err error) {
	table, err := fs.Table(dir)
	if err != nil {
		return nil, err
	}
	for i := range table {
		if table[i].Mountpoint == dir {
			mounted = &table[i]
		}
	}
	return mounted, nil
}
