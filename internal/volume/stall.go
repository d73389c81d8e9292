package volume

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/fs"
	"orlop/metadata"
)

// Stalling. A filesystem whose host has no space gets errors for what it writes, and goes read-only. A frozen one
// makes its writers wait, and loses nothing. So at the last mark the mounted volumes are frozen until space is back,
// for stallLimit at most: longer, and the kernel and the containers' health checks would call them hung.
//
// A freeze is announced in the metadata first, so that the next start of a daemon that was killed ends it. While a
// volume is frozen this process reads and unmounts it, after a thaw, but never writes to it: it would wait itself.

const (
	stallLimit    = time.Minute
	stallLockWait = 2 * time.Second // for a volume that is just being mounted or unmounted
	stallAtOnce   = 8               // volumes that are frozen at the same time
)

// stalls are the volumes that are frozen for want of space.
type stalls struct {
	mu      sync.Mutex
	devices map[string]uint64 // number of the device, by volume ID
	atMost  time.Duration     // instead of stallLimit, for tests
}

func (s *stalls) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.devices) > 0
}

func (s *stalls) limit() time.Duration {
	if s.atMost > 0 {
		return s.atMost
	}
	return stallLimit
}

func (s *stalls) add(volume string, device uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices == nil {
		s.devices = map[string]uint64{}
	}
	s.devices[volume] = device
}

func (s *stalls) list() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make(map[string]uint64, len(s.devices))
	for volume, device := range s.devices {
		list[volume] = device
	}
	return list
}

func (s *stalls) drop(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, volume)
}

// stallByMarks begins and ends stalls. One that lasted as long as may be is not repeated before space is back.
func (m *Manager) stallByMarks(ctx context.Context, free int64, marks marks, w *rootWatch) {
	stalled := !w.since.IsZero()
	switch {
	case free >= marks.low:
		w.over = false
		if stalled {
			if m.stalls.any() {
				m.log.Info("writers go on: the host filesystem has space again", "root", m.root, "free", free)
			}
			m.unstallAll()
			w.since = time.Time{}
		}
	case stalled && time.Since(w.since) >= m.stalls.limit():
		if m.stalls.any() {
			m.log.Error("writers go on and will get errors: the host filesystem is still full", "root", m.root, "free", free)
		}
		m.unstallAll()
		w.since, w.over = time.Time{}, true
	case !stalled && !w.over && free < marks.last:
		w.since = time.Now()
		m.stallAll(ctx)
	}
}

// stallAll freezes the mounted volumes that take space from the data root's filesystem.
func (m *Manager) stallAll(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(stallAtOnce)
	mounted, err := m.Mounted()
	if err == nil {
		err = m.eachIn(metadata.Ready, func(v metadata.Volume) {
			entry, is := mounted[m.Mountpoint(v.Name)]
			if is && m.pools[v.Pool].OnRoot && !entry.ReadOnly {
				group.Go(func() error { m.stall(ctx, v.ID); return nil })
			}
		})
	}
	_ = group.Wait() // each logs its own failure
	if err != nil {
		m.log.Error("writers not stalled", "error", err)
		return
	}
	if n := len(m.stalls.list()); n > 0 {
		m.log.Error("host filesystem is full: writers are stalled; free space there", "root", m.root, "volumes", n, "limit", m.stalls.limit())
	}
}

// stall freezes one volume. It passes over one whose lock is held: that is being mounted, unmounted or changed.
func (m *Manager) stall(ctx context.Context, id string) {
	wait, cancel := context.WithTimeout(ctx, stallLockWait)
	defer cancel()
	v, release, err := m.acquireReady(wait, id)
	if err != nil {
		return
	}
	defer release()
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry == nil || entry.ReadOnly {
		return
	}
	intent := metadata.Intent{Volume: v.ID, Boot: m.boot, Device: entry.Device}
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutIntent(intent) }); err != nil {
		m.log.Error("writers not stalled", "volume", v.Name, "error", err)
		return
	}
	m.stalls.add(v.ID, entry.Device)
	if err := fs.Freeze(entry.Mountpoint); err != nil {
		m.log.Error("writers not stalled", "volume", v.Name, "error", err)
		m.stalls.drop(v.ID) // not ours to thaw
		m.withdraw(ctx, v.ID)
	}
}

// unstallAll thaws what stallAll froze. It takes no lock: whoever holds one may be waiting for this.
func (m *Manager) unstallAll() {
	for volume := range m.stalls.list() {
		if err := m.unstall(context.Background(), volume); err != nil {
			m.log.Error("volume not thawed", "volume_id", volume, "error", err)
		}
	}
}

// unstall thaws a volume if it is stalled. A volume that is to be unmounted must be thawed first, or its filesystem
// would live on unseen.
func (m *Manager) unstall(ctx context.Context, volume string) error {
	device, stalled := m.stalls.list()[volume]
	if !stalled {
		return nil
	}
	if err := m.thawDevice(device); err != nil {
		return err
	}
	m.stalls.drop(volume)
	m.withdraw(ctx, volume)
	return nil
}

// withdraw removes the announcement of a freeze. If that fails the next start thaws once more, which does no harm.
func (m *Manager) withdraw(ctx context.Context, volume string) {
	err := m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error { return tx.DeleteIntent(volume) })
	if err != nil {
		m.log.Error("announcement of a freeze not withdrawn", "volume_id", volume, "error", err)
	}
}
