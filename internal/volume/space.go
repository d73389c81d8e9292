package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"orlop/blockdev"
	"orlop/fs"
)

// Running out of space. Sizes are promises, so a layer below the volumes can fill up under them, and then their
// filesystems get errors for what they write. In the order of need: pools that are nearly full are trimmed and
// warned of, and take on nothing more (guard.go); a host filesystem that is nearly full gets the ballast
// (ballast.go); and last, writers are stalled for a while rather than failed (stall.go).

const (
	poolEvery = 2 * time.Second        // how often a pool's space is looked at
	rootEvery = time.Second            // and the data root's
	rushEvery = 100 * time.Millisecond // and the data root's when it is short
	slack     = 0.01                   // share by which use must fall below a mark before passing it is news again
)

// spaceState is what is wrong with the space below the volumes at present.
type spaceState struct {
	mu    sync.Mutex
	pools map[string]string // by pool
	root  string            // of the data root's filesystem
}

// SpaceWarnings says what is wrong with the space below a pool's volumes, in sentences for people, or nothing. It
// tells what was so a moment ago, and waits for nobody.
func (m *Manager) SpaceWarnings(pool string) (warnings []string) {
	m.space.mu.Lock()
	defer m.space.mu.Unlock()
	if text := m.space.pools[pool]; text != "" {
		warnings = append(warnings, text)
	}
	if m.space.root != "" && m.pools[pool].OnRoot {
		warnings = append(warnings, m.space.root)
	}
	return warnings
}

// Ballast returns the bytes that the ballast in the data root holds.
func (m *Manager) Ballast() int64 { return m.ballast.held() }

// WatchSpace looks at every layer below the volumes until ctx is done, and does what they need: it trims, warns,
// lets the ballast go and takes it again, and stalls writers. What fails is logged and tried again. It ends every stall
// before it returns.
func (m *Manager) WatchSpace(ctx context.Context) {
	var watchers sync.WaitGroup
	defer watchers.Wait()
	onRoot := false
	for _, pool := range m.pools {
		if pool.Missing == nil {
			onRoot = onRoot || pool.OnRoot
			watchers.Go(func() { m.watchPool(ctx, pool) })
		}
	}
	if onRoot {
		watchers.Go(func() { m.watchRoot(ctx) })
	} else {
		watchers.Go(func() { m.releaseBallast(ctx) })
	}
}

// releaseBallast removes the ballast of an earlier configuration.
func (m *Manager) releaseBallast(ctx context.Context) {
	failed := false
	every(ctx, func() time.Duration {
		err := m.ballast.release()
		if err != nil && !failed {
			m.log.Error("cannot release ballast that no pool needs; will retry", "error", err)
		}
		failed = err != nil
		return poolEvery
	})
}

// watchPool warns once each time a pool passes a mark upwards.
func (m *Manager) watchPool(ctx context.Context, p Pool) {
	reached := 0
	every(ctx, func() time.Duration {
		space, err := p.Space(ctx)
		if err == nil && passed(space.Used(), reached) > reached {
			m.trimPool(ctx, p.Name)
			space, err = p.Space(ctx)
		}
		if err != nil {
			m.setPoolWarning(p.Name, err.Error())
			return poolEvery
		}
		now := passed(space.Used(), reached)
		text := poolWarning(space, now)
		if now > reached {
			m.log.Warn("pool is filling up", "pool", p.Name, "problem", text)
		}
		reached = now
		m.setPoolWarning(p.Name, text)
		return poolEvery
	})
}

// passed returns how many of the marks, warnAbove and refuseAbove, a use is above. Those already reached count until
// it is clearly below them.
func passed(used float64, reached int) int {
	n := 0
	for i, mark := range []float64{warnAbove, refuseAbove} {
		if used > mark || reached > i && used > mark-slack {
			n = i + 1
		}
	}
	return n
}

func poolWarning(space blockdev.Space, marks int) string {
	switch marks {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%s: %s", fullness(space), space.Remedy)
	}
	return fmt.Sprintf("%s; create, clone and resize are refused: %s", fullness(space), space.Remedy)
}

func (m *Manager) setPoolWarning(pool, text string) {
	m.space.mu.Lock()
	defer m.space.mu.Unlock()
	if m.space.pools == nil {
		m.space.pools = map[string]string{}
	}
	m.space.pools[pool] = text
}

// watchRoot keeps the ballast and stalls writers by the marks of the data root's filesystem.
func (m *Manager) watchRoot(ctx context.Context) {
	w := rootWatch{}
	every(ctx, func() time.Duration { return m.lookAtRoot(ctx, &w) })
	m.stalls.end()
	m.stalls.running.Wait()
}

// rootWatch is what watchRoot remembers from one look to the next.
type rootWatch struct {
	low     bool   // below the low mark, as last logged
	failed  string // why the ballast could not be taken, as last logged
	stalled bool   // writers have been stalled, and space has not come back since
}

func (m *Manager) lookAtRoot(ctx context.Context, w *rootWatch) (next time.Duration) {
	size, free, err := fs.Space(m.root)
	if err != nil {
		m.setRootWarning(err.Error())
		return rootEvery
	}
	marks := marksOf(size)
	held := m.ballast.held() >= marks.ballast/10*9 // the size of some filesystems varies a little
	if free < marks.low && m.ballast.held() > 0 {
		m.letGo(free)
		return rushEvery
	}
	if free >= marks.enough && !held {
		held = m.takeBallast(marks, w)
	}
	m.stallByMarks(ctx, free, marks, w)
	if free < marks.low && !w.low {
		m.log.Error("host filesystem is nearly full and the ballast is spent: free space there", "root", m.root, "free", free)
	}
	w.low = free < marks.low
	m.setRootWarning(m.rootWarning(free, held, marks, w))
	if free < 4*marks.low || m.stalls.any() {
		return rushEvery
	}
	return rootEvery
}

func (m *Manager) letGo(free int64) {
	bytes := m.ballast.held()
	if err := m.ballast.release(); err != nil {
		m.log.Error("ballast not released", "error", err)
		return
	}
	m.log.Error("host filesystem is nearly full: ballast released; free space there", "root", m.root, "free", free, "ballast", bytes)
}

func (m *Manager) takeBallast(marks marks, w *rootWatch) bool {
	err := m.ballast.take(marks.ballast)
	if err == nil {
		m.log.Info("ballast taken", "bytes", marks.ballast)
		w.failed = ""
		return true
	}
	if err.Error() != w.failed { // not each time it is tried
		m.log.Error("no ballast", "error", err)
		w.failed = err.Error()
	}
	return false
}

// rootWarning says what is wrong with the data root's filesystem.
func (m *Manager) rootWarning(free int64, held bool, marks marks, w *rootWatch) string {
	left := fmt.Sprintf("host filesystem %s has %s left", m.root, humanize.IBytes(uint64(free)))
	switch {
	case m.stalls.any():
		return fmt.Sprintf("%s: writers are stalled for up to %s; free space there now", left, m.stalls.limit())
	case held:
		return ""
	case free < marks.low:
		return left + " and the ballast is spent: writes are about to fail; free space there now"
	case w.failed != "":
		return w.failed
	}
	return fmt.Sprintf("%s, too little for the ballast of %s: free space there until %s are left",
		left, humanize.IBytes(uint64(marks.ballast)), humanize.IBytes(uint64(marks.enough)))
}

func (m *Manager) setRootWarning(text string) {
	m.space.mu.Lock()
	defer m.space.mu.Unlock()
	m.space.root = text
}

// every calls look at once and then after each pause that it returns, until ctx is done.
func every(ctx context.Context, look func() time.Duration) {
	timer := time.NewTimer(look())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			timer.Reset(look())
		case <-ctx.Done():
			return
		}
	}
}
