package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/metadata"
)

// FreezeLimit is how long writers may be held for a snapshot. Longer, and databases and health checks would call the
// volume hung.
const FreezeLimit = 10 * time.Second

// Lock takes the locks of volumes, in the order of their IDs, and returns their records in the order of ids. It fails
// with fault.ErrInUse unless each is ready. Volumes that are not ready are not waited for: whoever makes one may be
// waiting for a lock taken here.
func (m *Manager) Lock(ctx context.Context, ids ...string) (_ []metadata.Volume, release func(), err error) {
	if err := m.store.View(func(tx *metadata.Tx) error { return allReady(tx, ids, nil) }); err != nil {
		return nil, nil, err
	}
	release, err = m.locks.acquireAll(ctx, ids)
	if err != nil {
		return nil, nil, err
	}
	volumes := make([]metadata.Volume, len(ids))
	if err := m.store.View(func(tx *metadata.Tx) error { return allReady(tx, ids, volumes) }); err != nil {
		release()
		return nil, nil, err
	}
	return volumes, release, nil
}

// allReady reads the records of volumes, into out unless that is nil, and fails unless each is ready.
func allReady(tx *metadata.Tx, ids []string, out []metadata.Volume) error {
	for i, id := range ids {
		v, err := tx.Volume(id)
		if err == nil && v.State != metadata.Ready {
			err = NotReady(v)
		}
		if err != nil {
			return err
		}
		if out != nil {
			out[i] = v
		}
	}
	return nil
}

// SyncMounted writes out what the filesystem of a mounted volume has in memory, so that a freeze soon after is short.
// It holds no lock and does nothing for a volume that is not mounted here.
func (m *Manager) SyncMounted(v metadata.Volume) error {
	dir := m.Mountpoint(v.Name)
	entry, err := m.mountOf(dir)
	if err != nil || entry == nil {
		return err
	}
	return m.host.Sync(dir)
}

// Quiesce calls fn while the filesystems of the volumes, whose locks the caller holds, are whole on their devices and
// stay so: nobody has them mounted, or they are frozen. It tells for each which of the two it was. Above a pool that
// quiesces by itself nothing is frozen.
//
// The freeze lasts FreezeLimit at most: then the writers go on at once and fn's context ends, and Quiesce fails when fn
// has returned. It fails with fault.ErrInUse, without calling fn, if somebody else has frozen one of them. A freeze is
// announced first, so that the next start of a daemon that was killed ends it. When Quiesce returns nothing is frozen.
func (m *Manager) Quiesce(ctx context.Context, volumes []metadata.Volume, fn func(ctx context.Context) error) (how []metadata.Consistency, err error) {
	f := freeze{m: m, how: make([]metadata.Consistency, len(volumes)), frozen: map[string]*fs.Held{}}
	defer func() { err = errors.Join(err, f.leave(context.WithoutCancel(ctx))) }()
	for i, v := range volumes {
		if f.how[i], err = f.enter(ctx, v); err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	if len(f.targets) == 0 {
		return f.how, fn(ctx)
	}
	if err := f.announce(ctx); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, m.freezeLimit)
	defer cancel()
	stop := context.AfterFunc(limited, f.thaw) // also if the caller gives up
	defer stop()
	if err := f.freeze(); err != nil {
		return nil, err
	}
	err = fn(limited)
	late := limited.Err() // before the thaw: what was thawed early was not whole all the time
	f.thaw()
	switch {
	case late != nil && ctx.Err() == nil:
		err = fmt.Errorf("freeze exceeded its limit of %s and was released: %w", m.freezeLimit, cmp.Or(err, late))
	case err == nil:
		err = late
	}
	return f.how, err
}

// A freeze holds the writers of several volumes.
type freeze struct {
	m       *Manager
	how     []metadata.Consistency
	targets []target

	announced bool // in the metadata

	mu     sync.Mutex
	frozen map[string]*fs.Held // by mount point
	over   bool                // nothing may be frozen any more
}

// A target is a filesystem to freeze.
type target struct {
	volume metadata.Volume
	device uint64
	dir    string // where it is mounted
	aside  bool   // by this freeze
}

// enter finds out how a volume is made whole, and mounts it aside if another mount namespace holds it.
func (f *freeze) enter(ctx context.Context, v metadata.Volume) (metadata.Consistency, error) {
	pool, err := f.m.Pool(v)
	if err != nil {
		return "", err
	}
	info, err := pool.Stat(ctx, blockdev.ID(v.Device))
	if err != nil {
		return "", err
	}
	if info.Path == "" {
		return metadata.Unmounted, nil // nothing is active without the lock that the caller holds
	}
	if pool.Traits().Quiesces {
		return metadata.Quiesced, nil
	}
	number, err := deviceNumber(info.Path)
	if err != nil {
		return "", err
	}
	dir := f.m.Mountpoint(v.Name)
	mounted, err := f.m.isOurs(dir, info.Path)
	if err != nil {
		return "", err
	}
	if mounted {
		f.targets = append(f.targets, target{volume: v, device: number, dir: dir})
		return metadata.Frozen, nil
	}
	claimed, err := claim(info.Path)
	if err != nil || claimed {
		return metadata.Unmounted, err
	}
	if dir, err = f.m.mountAside(v, info.Path); err != nil {
		return "", err
	}
	f.targets = append(f.targets, target{volume: v, device: number, dir: dir, aside: true})
	return metadata.Frozen, nil
}

// claim tells whether nobody has the device at path mounted, in any namespace, or claimed otherwise.
func claim(path string) (bool, error) {
	// A command that is just being started has a copy of every descriptor for a moment; not of this one, which
	// would claim the device still when it is to be mounted.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return false, fmt.Errorf("claim device: %w", err)
	}
	return true, nil
}

// mountAside mounts a volume that only another mount namespace has mounted, at a directory of its own.
func (m *Manager) mountAside(v metadata.Volume, path string) (dir string, err error) {
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(m.scratch, v.ID)
	if err := m.host.MakeMountpoint(dir); err != nil {
		return "", err
	}
	if err = m.host.Mount(kind, path, dir, nil); errors.Is(err, unix.EBUSY) {
		err = m.host.Mount(kind, path, dir, []string{"ro"}) // there it is read-only
	}
	if err != nil {
		err = errors.Join(err, m.host.RemoveMountpoint(dir))
	}
	return dir, err
}

// announce records what is to be frozen. It fails with fault.ErrInUse if a freeze of the volume is recorded already.
func (f *freeze) announce(ctx context.Context) error {
	err := f.m.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, t := range f.targets {
			if _, taken, err := tx.Intent(t.volume.ID); err != nil {
				return err
			} else if taken {
				return fault.Errorf(fault.ErrInUse, "volume %q: is frozen already: its host filesystem is full, or a thaw failed: see 'orlop doctor'", t.volume.Name)
			}
			if err := tx.PutIntent(metadata.Intent{Volume: t.volume.ID, Boot: f.m.boot, Device: t.device}); err != nil {
				return err
			}
		}
		return nil
	})
	f.announced = err == nil
	return err
}

// freeze freezes all targets at once: the time that each one's writers wait is that of the slowest.
func (f *freeze) freeze() error {
	errs := make([]error, len(f.targets))
	var all sync.WaitGroup
	for i, t := range f.targets {
		all.Go(func() { errs[i] = f.freezeOne(t) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (f *freeze) freezeOne(t target) error {
	held, err := f.m.host.Freeze(t.dir)
	if err != nil {
		return fmt.Errorf("volume %q: %w", t.volume.Name, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen[t.dir] = held
	if f.over {
		f.thawAll()
	}
	return nil
}

// thaw lets the writers go on. It may be called several times, at the same time too.
func (f *freeze) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.thawAll()
}

// thawAll thaws what is frozen. The caller holds f.mu.
func (f *freeze) thawAll() {
	for dir, held := range f.frozen {
		if err := f.m.host.EndFreeze(held); err != nil {
			f.m.log.Error("volume not thawed", "mountpoint", dir, "error", err)
			continue
		}
		delete(f.frozen, dir)
	}
}

// leave ends what enter and announce began. A filesystem that cannot be thawed stays announced.
func (f *freeze) leave(ctx context.Context) error {
	f.thaw()
	f.mu.Lock()
	left := f.frozen
	f.frozen = nil
	f.mu.Unlock()
	var errs []error
	var thawed []target
	for _, t := range f.targets {
		if held := left[t.dir]; held != nil {
			_ = held.Close() // so that it can be unmounted once a person has thawed it
			errs = append(errs, fmt.Errorf("volume %q: cannot be thawed: run %s", t.volume.Name, run.Line("fsfreeze", "--unfreeze", t.dir)))
			continue
		}
		thawed = append(thawed, t)
	}
	if f.announced {
		errs = append(errs, f.m.store.Update(ctx, func(tx *metadata.Tx) error {
			for _, t := range thawed {
				if err := tx.DeleteIntent(t.volume.ID); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, t := range thawed {
		if t.aside {
			errs = append(errs, f.m.leaveScratch(t.volume))
		}
	}
	return errors.Join(errs...)
}
