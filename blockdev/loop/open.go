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
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/internal/undo"
)

// MinSize is the smallest size in bytes of a built-in pool.
const MinSize = int64(2) << 30

const (
	markerName = "orlop-pool.json"
	fileName   = "pool.xfs" // the built-in pool's file in the data root
	dirName    = "pool"     // where it is mounted, or the pool's directory if the root itself can reflink
)

// Config says where a pool is.
type Config struct {
	Root        string // data root: the place of the built-in pool
	Dir         string // a directory of the user's choice instead; empty for the built-in pool
	UUID        string // the identity recorded at first use; empty for a new pool
	Adopt       bool   // without a UUID: take a pool that has devices already, to rebuild lost metadata
	Size        int64  // nominal bytes of the built-in pool; 0 for the default; a larger one than it has grows it
	Preallocate bool   // allocate all of the built-in pool's file
}

// marker is the content of orlop-pool.json.
type marker struct {
	Format int    `json:"format"`
	UUID   string `json:"uuid"`
}

// Open opens a pool, making it at first use. A pool whose identity is known and not found fails with
// fault.ErrNotFound, and nothing is made: a disk may not be mounted. One that shows another identity, or images
// that the caller does not know of, fails with fault.ErrCorrupt.
func Open(ctx context.Context, c Config) (*Pool, error) {
	if c.Dir != "" {
		return openDir(c)
	}
	path, dir := filepath.Join(c.Root, fileName), filepath.Join(c.Root, dirName)
	_, err := os.Stat(path)
	switch {
	case err == nil:
		return openFile(ctx, c, path, dir)
	case !errors.Is(err, iofs.ErrNotExist):
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, markerName)); err == nil {
		return newPool(dir, c, nil)
	}
	if c.UUID != "" {
		return nil, fault.Errorf(fault.ErrNotFound, "pool %s is missing: neither %s nor %s/%s is there; is the disk mounted?", c.UUID, path, dir, markerName)
	}
	reflink, err := CanReflink(c.Root)
	if err != nil {
		return nil, err
	}
	if reflink {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
			return nil, fmt.Errorf("make pool: %w", err)
		}
		return newPool(dir, c, nil)
	}
	if err := makeFile(ctx, c, path); err != nil {
		return nil, err
	}
	p, err := openFile(ctx, c, path, dir)
	if err != nil { // nothing can be in it yet
		err = errors.Join(err, removeFile(path))
	}
	return p, err
}

func openDir(c Config) (*Pool, error) {
	info, err := os.Stat(c.Dir)
	if errors.Is(err, iofs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil, fault.Errorf(fault.ErrNotFound, "pool directory %s: no such directory; is the disk mounted?", c.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("pool directory %s: %w", c.Dir, err)
	}
	if c.UUID == "" {
		reflink, err := CanReflink(c.Dir)
		if err != nil {
			return nil, err
		}
		if !reflink {
			return nil, fault.Errorf(fault.ErrUnsupported, "pool directory %s: its filesystem cannot reflink: use one on XFS or btrfs, or --pool loop", c.Dir)
		}
	}
	return newPool(c.Dir, c, nil)
}

// identify reads the marker in dir, or writes one where none is expected and nothing is there to be lost.
func identify(dir, expected string, adopt bool) (string, error) {
	path := filepath.Join(dir, markerName)
	raw, err := os.ReadFile(path)
	if err == nil {
		var m marker
		if err := json.Unmarshal(raw, &m); err != nil || m.UUID == "" || m.Format != 1 {
			return "", fault.Errorf(fault.ErrCorrupt, "pool %s: its marker %s is damaged or of a newer orlop", dir, path)
		}
		if expected != "" && m.UUID != expected {
			return "", fault.Errorf(fault.ErrCorrupt, "pool %s: is pool %s, not %s that this root knows: is another disk mounted there?", dir, m.UUID, expected)
		}
		if expected == "" && !adopt {
			if err := refuseImages(dir); err != nil {
				return "", err
			}
		}
		return m.UUID, nil
	}
	if !errors.Is(err, iofs.ErrNotExist) {
		return "", fmt.Errorf("pool %s: %w", dir, err)
	}
	if expected != "" {
		return "", fault.Errorf(fault.ErrNotFound, "pool %s is missing: no %s in %s; is the disk mounted?", expected, markerName, dir)
	}
	if err := refuseImages(dir); err != nil {
		return "", err
	}
	id := uuid.NewString()
	raw, err = json.Marshal(marker{Format: 1, UUID: id})
	if err == nil {
		err = writeFile(path, raw)
	}
	if err != nil {
		return "", spaceFault(fmt.Errorf("mark pool %s: %w", dir, err))
	}
	return id, nil
}

// refuseImages fails with fault.ErrCorrupt if dir holds images that no metadata knows.
func refuseImages(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, "images"))
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("pool %s: %w", dir, err)
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), imageExt) {
			return fault.Errorf(fault.ErrCorrupt, "pool %s holds volumes that this root's metadata does not know: it was lost ('orlop daemon --rebuild-metadata' rebuilds it), or the pool is another root's", dir)
		}
	}
	return nil
}

// A backing is the built-in pool's own device: an XFS in a file on a loop device.
type backing struct {
	path         string // of the file
	dir          string // where it is mounted
	device       *os.File
	preallocated bool
	fresh        bool  // mounted by this process, and not left so by an earlier one
	ungrown      error // why its filesystem is smaller than the file; nil if it is not
}

func (b *backing) close() { _ = b.device.Close() }

// makeFile makes the built-in pool's file. It appears under its name only when it is whole.
func makeFile(ctx context.Context, c Config, path string) (err error) {
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	size := c.Size
	if size == 0 {
		space, err := statSpace(c.Root)
		if err != nil {
			return err
		}
		size = max(space.Free/10*9, MinSize)
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make pool file: %w", err)
	}
	u.Push("remove pool file", func(context.Context) error { return removeFile(temp) })
	if err := errors.Join(f.Truncate(roundUp(size)), f.Close()); err != nil {
		return spaceFault(fmt.Errorf("make pool file of %d bytes: %w", size, err))
	}
	xfs, err := fs.Lookup("xfs")
	if err != nil {
		return err
	}
	if err := xfs.Make(ctx, run.Runner{}, temp, 0, 0); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("make pool file: %w", err)
	}
	u.Push("remove pool file", func(context.Context) error { return removeFile(path) })
	f, err = os.Open(path)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return spaceFault(fmt.Errorf("make pool file: %w", err))
	}
	return syncDir(c.Root)
}

// openFile attaches and mounts the built-in pool, unless an earlier daemon left it so, and brings it to its size.
func openFile(ctx context.Context, c Config, path, dir string) (p *Pool, err error) {
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if err := growFile(c, path); err != nil {
		return nil, err
	}
	wanted, err := fileAt(path)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	device, err := attach(ctx, path, false, blockdev.ReadWrite)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	b := &backing{path: path, dir: dir, device: device, preallocated: c.Preallocate}
	u.Push("close pool device", func(context.Context) error { b.close(); return nil })
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return nil, fmt.Errorf("open pool: set capacity of %s: %w", device.Name(), err)
	}
	if err := b.mount(wanted, &u); err != nil {
		return nil, err
	}
	b.ungrown = b.grow()
	return newPool(dir, c, b)
}

// refuseOvercommit fails with fault.ErrNoSpace if what f lacks to be wholly allocated at size bytes is not free: a
// preallocation that stops half-way would leave the disk full.
func refuseOvercommit(f *os.File, size int64) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return fmt.Errorf("preallocate pool: %w", err)
	}
	space, err := statSpace(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	if lacking := size - stat.Blocks*512; lacking > space.Free {
		return fault.Errorf(fault.ErrNoSpace, "preallocate pool of %d bytes: no space: %d more bytes are needed and %d free", size, lacking, space.Free)
	}
	return nil
}

// growFile extends the file to the size asked for, and allocates it if told to.
func growFile(c Config, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	size := max(info.Size(), roundUp(c.Size))
	if c.Preallocate {
		if err := refuseOvercommit(f, size); err != nil {
			return err
		}
	}
	if size > info.Size() {
		if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
			return spaceFault(fmt.Errorf("grow pool to %d bytes: %w", size, err))
		}
	}
	if c.Preallocate {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			return spaceFault(fmt.Errorf("preallocate pool of %d bytes: %w", size, err))
		}
	}
	return nil
}

func (b *backing) mount(wanted file, u *undo.Stack) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(b.device.Fd()), &stat); err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	mounted, err := mountedAt(b.dir)
	switch {
	case err != nil:
		return err
	case mounted != nil && mounted.Device == stat.Rdev:
		b.preallocated = b.preallocated && !mounted.Discard // discards would give the space back
		return nil
	case mounted != nil:
		return fault.Errorf(fault.ErrInUse, "open pool: something else than %s is mounted at %s", b.path, b.dir)
	}
	if err := fs.MakeMountpoint(b.dir); err != nil {
		return err
	}
	u.Push("remove mount point", func(context.Context) error { return fs.RemoveMountpoint(b.dir) })
	if err := fs.MountPool(b.device.Name(), b.dir, !b.preallocated); err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	b.fresh = true
	u.Push("unmount pool", func(context.Context) error { return fs.Unmount(b.dir) })
	if now, ok := backs(b.device); !ok || now != wanted {
		return fmt.Errorf("open pool: %s is no longer %s", b.device.Name(), b.path)
	}
	return nil
}

// grow brings the filesystem to its file's size.
func (b *backing) grow() error {
	xfs, err := fs.Lookup("xfs")
	if err != nil {
		return err
	}
	info, err := os.Stat(b.path)
	if err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	return xfs.Grow(b.device.Name(), b.dir, info.Size())
}

// detachTries is how often Detach tries, 50 ms apart: a mount namespace that is just ending lets go a little later.
const detachTries = 20

// Detach unmounts the built-in pool, removes its mount point and frees its loop device; other pools have nothing to
// detach. It fails with fault.ErrInUse, and the pool goes on as before, while a device is active or something uses
// the pool's filesystem. After a success the pool cannot be used any more.
func (p *Pool) Detach(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if active := len(p.active); active > 0 {
		return fault.Errorf(fault.ErrInUse, "detach pool %s: %d devices are active", p.dir, active)
	}
	if p.file == nil {
		return nil
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for try := 1; ; try++ {
		err := p.file.release(ctx)
		if !fault.Is(err, fault.ErrInUse) || try == detachTries {
			if err != nil {
				return fmt.Errorf("detach pool: %w", err)
			}
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("detach pool: %w", ctx.Err())
		}
	}
}

// Abandon undoes Open as far as it changed the host: it is Close, and detaches a built-in pool that Open attached, unless
// something uses a device of it. The pool's file stays.
func (p *Pool) Abandon(ctx context.Context) error {
	if p.file == nil || !p.file.fresh {
		p.Close()
		return nil
	}
	p.closeDevices()
	err := p.Detach(ctx)
	if err != nil {
		p.file.close()
	}
	if fault.Is(err, fault.ErrInUse) {
		return nil
	}
	return err
}

// release unmounts the pool and frees its device, or leaves it mounted.
func (b *backing) release(ctx context.Context) error {
	wanted, err := fileAt(b.path)
	if err != nil {
		return err
	}
	if err := fs.Unmount(b.dir); err != nil {
		return err
	}
	still, err := detach(ctx, b.device, wanted)
	if err != nil {
		if still == nil {
			return err
		}
		b.device = still
		return errors.Join(err, fs.MountPool(still.Name(), b.dir, !b.preallocated))
	}
	return fs.RemoveMountpoint(b.dir)
}
