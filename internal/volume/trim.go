package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"orlop/fs"
)

// trimWait is how long a deletion waits for a trim of its volume, which the kernel cannot be told to end.
const trimWait = 20 * time.Second

// trims are the trims under way, by volume ID. A volume that is being trimmed is not unmounted, though it has no holder
// for that: most trims are nobody's wish, and a holder would outlive a crash.
type trims struct {
	mu   sync.Mutex
	byID map[string]*trimming
}

type trimming struct {
	count int
	over  chan struct{} // closed when count is back at zero
}

func (t *trims) begin(volume string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID = map[string]*trimming{}
	}
	if t.byID[volume] == nil {
		t.byID[volume] = &trimming{over: make(chan struct{})}
	}
	t.byID[volume].count++
}

func (t *trims) end(volume string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.byID[volume]
	if now.count--; now.count == 0 {
		delete(t.byID, volume)
		close(now.over)
	}
}

// await tells whether nobody trims a volume, or does not any more within limit. The caller holds the volume's lock, so
// that no trim begins meanwhile.
func (t *trims) await(volume string, limit time.Duration) bool {
	t.mu.Lock()
	now := t.byID[volume]
	t.mu.Unlock()
	if now == nil {
		return true
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-now.over:
		return true
	case <-timer.C:
		return false
	}
}

// Trim tells a volume's device which blocks its filesystem does not use, so that their space comes back, and
// returns their bytes. A volume that is not mounted is mounted meanwhile. The work itself holds no lock.
func (m *Manager) Trim(ctx context.Context, id string) (bytes int64, err error) {
	dir, err := m.beginTrim(ctx, id)
	if err != nil {
		return 0, err
	}
	bytes, err = fs.Trim(dir)
	if failed := m.endTrim(ctx, id); err == nil {
		err = failed
	}
	return bytes, err
}

// beginTrim mounts a volume for a trim, which endTrim must follow, and returns where.
func (m *Manager) beginTrim(ctx context.Context, id string) (dir string, err error) {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return "", err
	}
	defer release()
	if err := m.mount(ctx, v); err != nil {
		return "", fmt.Errorf("mount volume %q: %w", v.Name, err)
	}
	m.trims.begin(v.ID)
	return m.Mountpoint(v.Name), nil
}

// endTrim settles the volume of a trim that is done. First it tells a deletion that waits for that with the lock.
func (m *Manager) endTrim(ctx context.Context, id string) error {
	m.trims.end(id)
	v, release, err := m.acquireReady(context.WithoutCancel(ctx), id)
	if err != nil {
		return nil //nolint:nilerr // it was deleted meanwhile
	}
	defer release()
	return m.settleNow(ctx, v)
}
