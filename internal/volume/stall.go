package volume

import (
	"context"
	"sync"
	"time"

	"orlop/fs"
	"orlop/metadata"
)

// Stalling. A filesystem whose host has no space gets errors for what it writes, and goes read-only. A frozen one
// makes its writers wait, and loses nothing. So at the last mark the mounted volumes are frozen until space is back,
// for stallLimit at most: longer, and the kernel and the containers' health checks would call them hung.
//
// A freeze writes out what its filesystem has in memory, which may take as long as it likes. So each volume is frozen
// and thawed by itself, and none waits for another.
//
// A freeze is announced in the metadata first, so that the next start of a daemon that was killed ends it. While a
// volume is frozen this process reads and unmounts it, after a thaw, but never writes to it: it would wait itself.

const (
	stallLimit    = time.Minute
	stallLockWait = 2 * time.Second // for a volume that is just being mounted or unmounted
	stallAtOnce   = 8               // freezes that are just being made
)

// stalls are the volumes that are frozen, or just being frozen, for want of space.
type stalls struct {
	mu      sync.Mutex
	byID    map[string]*stall // by volume ID
	cancel  func()            // ends the present stalls
	running sync.WaitGroup    // one for each of them, from before it begins until after its end
	atMost  time.Duration     // instead of stallLimit, for tests
}

type stall struct {
	mu   sync.Mutex // held while it begins and while it is ended
	held *fs.Held   // nil if it was never frozen
	over bool
}

func (s *stalls) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byID) > 0
}

func (s *stalls) limit() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.atMost > 0 {
		return s.atMost
	}
	return stallLimit
}

func (s *stalls) add(volume string, one *stall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]*stall{}
	}
	s.byID[volume] = one
}

// of returns a volume's stall, or nil.
func (s *stalls) of(volume string) *stall {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[volume]
}

func (s *stalls) drop(volume string, one *stall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[volume] == one {
		delete(s.byID, volume)
	}
}

// begin returns a context for new stalls, which ends with the next call of end.
func (s *stalls) begin(ctx context.Context) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
	ctx, s.cancel = context.WithCancel(ctx)
	return ctx
}

// end ends the present stalls, and waits for none.
func (s *stalls) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
		s.cancel = nil
	}
}

// stallByMarks begins and ends stalls. They are not repeated before space is back, however long they lasted.
func (m *Manager) stallByMarks(ctx context.Context, free int64, marks marks, w *rootWatch) {
	switch {
	case free >= marks.low && w.stalled:
		if m.stalls.any() {
			m.log.Info("writers go on: the host filesystem has space again", "root", m.root, "free", free)
		}
		m.stalls.end()
		w.stalled = false
	case free < marks.last && !w.stalled:
		w.stalled = true
		m.stallAll(ctx)
	}
}

// stallAll begins to freeze the mounted volumes that take space from the data root's filesystem, and waits for none.
func (m *Manager) stallAll(ctx context.Context) {
	ctx = m.stalls.begin(ctx)
	mounted, err := m.Mounted()
	if err != nil {
		m.log.Error("writers not stalled", "error", err)
		return
	}
	atOnce, n := make(chan struct{}, stallAtOnce), 0
	err = m.eachIn(metadata.Ready, func(v metadata.Volume) {
		entry, is := mounted[m.Mountpoint(v.Name)]
		if is && m.pools[v.Pool].OnRoot && !entry.ReadOnly {
			n++
			m.stalls.running.Go(func() { m.stall(ctx, v.ID, atOnce) })
		}
	})
	if err != nil {
		m.log.Error("writers not stalled", "error", err)
	}
	if n > 0 {
		m.log.Error("host filesystem is full: writers are stalled; free space there", "root", m.root, "volumes", n, "limit", m.stalls.limit())
	}
}

// stall freezes one volume until ctx is done or the limit is over.
func (m *Manager) stall(ctx context.Context, id string, atOnce chan struct{}) {
	select {
	case atOnce <- struct{}{}:
	case <-ctx.Done():
		return
	}
	over := time.NewTimer(m.stalls.limit()) // from here on: writers wait already while the freeze is made
	defer over.Stop()
	one := m.beginStall(ctx, id)
	<-atOnce
	if one == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-over.C:
		if m.stalls.of(id) == one { // it was not unmounted
			m.log.Error("writers go on and will get errors: the host filesystem is still full", "volume_id", id, "root", m.root)
		}
	}
	if err := m.endStall(id, one); err != nil {
		m.log.Error("volume not thawed", "volume_id", id, "error", err)
	}
}

// beginStall freezes one volume, and returns nil if it did not. It passes over one whose lock is held: that is being
// mounted, unmounted or changed.
func (m *Manager) beginStall(ctx context.Context, id string) *stall {
	wait, cancel := context.WithTimeout(ctx, stallLockWait)
	defer cancel()
	v, release, err := m.acquireReady(wait, id)
	if err != nil {
		return nil
	}
	defer release()
	if one := m.stalls.of(v.ID); one != nil {
		return one // it could not be ended
	}
	entry, err := m.mountOf(m.Mountpoint(v.Name))
	if err != nil || entry == nil || entry.ReadOnly {
		return nil
	}
	intent := metadata.Intent{Volume: v.ID, Boot: m.boot, Device: entry.Device}
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutIntent(intent) }); err != nil {
		m.log.Error("writers not stalled", "volume", v.Name, "error", err)
		return nil
	}
	one := &stall{}
	one.mu.Lock()
	defer one.mu.Unlock()
	m.stalls.add(v.ID, one)
	if one.held, err = m.host.Freeze(entry.Mountpoint); err != nil {
		m.log.Error("writers not stalled", "volume", v.Name, "error", err)
		m.stalls.drop(v.ID, one) // not ours to thaw
		m.withdraw(ctx, v.ID)
		return nil
	}
	return one
}

// unstall ends a volume's stall if there is one. A volume that is to be unmounted must be thawed first, or its
// filesystem would live on unseen.
func (m *Manager) unstall(volume string) error {
	if one := m.stalls.of(volume); one != nil {
		return m.endStall(volume, one)
	}
	return nil
}

// endStall ends a stall, once, so that it never thaws what somebody has frozen since. It takes no volume's lock: whoever holds
// that may be waiting for this.
func (m *Manager) endStall(volume string, one *stall) error {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.over {
		return nil
	}
	if one.held != nil {
		if err := m.host.EndFreeze(one.held); err != nil {
			return err
		}
	}
	one.over = true
	m.stalls.drop(volume, one)
	m.withdraw(context.Background(), volume)
	return nil
}

// withdraw removes the announcement of a freeze. If that fails the next start thaws once more, which does no harm.
func (m *Manager) withdraw(ctx context.Context, volume string) {
	err := m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error { return tx.DeleteIntent(volume) })
	if err != nil {
		m.log.Error("announcement of a freeze not withdrawn", "volume_id", volume, "error", err)
	}
}
