package volume

import (
	"context"
	"time"

	"github.com/dustin/go-humanize"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

const (
	warnAbove   = 0.80 // share of a layer in use above which everybody is told
	refuseAbove = 0.95 // and above which pools take on nothing more
)

const (
	trimLimit = 30 * time.Second // for the volumes of one pool together, as far as the kernel can be stopped
	trimPause = time.Minute      // before a full pool's volumes are trimmed again
)

// guard is a pool that takes on nothing more, no device, no copy and no growth, while any layer below it is nearly
// full: then it fails with fault.ErrNoSpace, naming the layer. What is so already succeeds. Sizes are promises, so
// what counts is the space that is really in use.
type guard struct {
	blockdev.Pool
	name string
}

func (g guard) Create(ctx context.Context, id blockdev.ID, size int64, record blockdev.Record) error {
	if err := g.room(ctx); err != nil {
		return err
	}
	return g.Pool.Create(ctx, id, size, record)
}

func (g guard) Prepare(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	if err := g.room(ctx); err != nil {
		return err
	}
	return g.Pool.Prepare(ctx, dst, src, record)
}

func (g guard) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	if err := g.room(ctx); err != nil {
		return err
	}
	return g.Pool.Clone(ctx, dst, src, record)
}

func (g guard) Grow(ctx context.Context, id blockdev.ID, size int64) error {
	info, err := g.Stat(ctx, id)
	if err != nil {
		return err
	}
	if info.Size < size {
		if err := g.room(ctx); err != nil {
			return err
		}
	}
	return g.Pool.Grow(ctx, id, size)
}

// room fails with fault.ErrNoSpace if the pool may take on nothing more.
func (g guard) room(ctx context.Context) error { return room(ctx, g.name, g.Pool) }

func room(ctx context.Context, name string, pool blockdev.Pool) error {
	space, err := pool.Space(ctx)
	if err != nil {
		return err
	}
	if space.Used() <= refuseAbove {
		return nil
	}
	return fault.Errorf(fault.ErrNoSpace, "pool %q: %s; create, clone and resize are refused above %.0f%% usage: %s, then try again",
		name, fullness(space), 100*refuseAbove, space.Remedy)
}

// repairSpace is how many bytes the layers below must have left for a filesystem to be repaired.
const repairSpace = int64(64) << 20

// roomToRepair fails with fault.ErrNoSpace if a filesystem on device needs a repair and there is no space for what
// that writes: e2fsck does damage where its writes fail.
func (m *Manager) roomToRepair(ctx context.Context, v metadata.Volume, kind fs.Type, device string) error {
	failed, err := kind.Failed(device)
	if err != nil || !failed {
		return err
	}
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	space, err := pool.Space(ctx)
	if err == nil && space.Free < repairSpace {
		err = fault.Errorf(fault.ErrNoSpace, "its filesystem needs a check, and that needs space, but %s: %s, then mount it again", fullness(space), space.Remedy)
	}
	return err
}

// fullness says how full a layer is.
func fullness(s blockdev.Space) string {
	return s.Layer + " is " + humanize.FtoaWithDigits(100*s.Used(), 1) + "% full (" +
		humanize.IBytes(uint64(max(s.Free, 0))) + " of " + humanize.IBytes(uint64(max(s.Size, 0))) + " left)"
}

// makeRoom trims the volumes of a pool that would refuse: what their filesystems have freed without telling may be
// enough. It takes their locks, so the caller holds none. It does nothing if that was tried in the last minute.
func (m *Manager) makeRoom(ctx context.Context, name string) {
	pool, known := m.pools[name]
	if !known || pool.Missing != nil || room(ctx, name, pool) == nil {
		return
	}
	m.trimming.Lock()
	defer m.trimming.Unlock()
	if time.Since(m.trimmed[name]) < trimPause {
		return
	}
	m.trimPool(ctx, name)
	m.trimmed[name] = time.Now()
}

// MakeRoomFor trims the volumes of a volume's pool if that would refuse to take on more: what their filesystems have
// freed without telling may be enough. It takes their locks, so the caller holds none.
func (m *Manager) MakeRoomFor(ctx context.Context, id string) {
	var v metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.Volume(id)
		return err
	})
	if err == nil {
		m.makeRoom(ctx, v.Pool)
	}
}

// trimPool trims a pool's volumes that are mounted, unless writers are stalled: a trim would wait for their end.
func (m *Manager) trimPool(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, trimLimit)
	defer cancel()
	mounted, err := m.Mounted()
	if err != nil {
		m.log.Error("pool not trimmed", "pool", name, "error", err)
		return
	}
	err = m.eachIn(metadata.Ready, func(v metadata.Volume) {
		if _, is := mounted[m.Mountpoint(v.Name)]; !is || v.Pool != name || ctx.Err() != nil || m.stalls.any() {
			return
		}
		bytes, err := m.Trim(ctx, v.ID)
		switch {
		case err == nil:
			m.log.Info("volume trimmed because its pool is nearly full", "volume", v.Name, "bytes", bytes)
		case !fault.Is(err, fault.ErrUnsupported):
			m.log.Warn("volume not trimmed", "volume", v.Name, "error", err)
		}
	})
	if err != nil {
		m.log.Error("pool not trimmed", "pool", name, "error", err)
	}
}
