package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/metadata"
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

// Trim tells a volume's device which blocks its filesystem does not use, and returns how many bytes the pool got back:
// less than what the filesystem has free, since most of that never took space, and nothing for blocks that snapshots
// share. Other writers may change the count. A volume that is not mounted is mounted meanwhile. The work itself holds no
// lock.
func (m *Manager) Trim(ctx context.Context, id string) (bytes int64, err error) {
	dir, err := m.beginTrim(ctx, id)
	if err != nil {
		return 0, err
	}
	var before allocation
	if err = fs.Sync(dir); err == nil {
		before = m.allocation(ctx, id)
		_, err = fs.Trim(dir)
	}
	bytes = m.allocation(ctx, id).since(before)
	if failed := m.endTrim(ctx, id); err == nil {
		err = failed
	}
	return bytes, err
}

// An allocation is what a volume takes and what is left beside it.
type allocation struct {
	used   int64 // bytes that the volume's device has in the pool
	shared bool  // perhaps with snapshots
	space  blockdev.Space
}

// allocation looks at a volume. What cannot be read counts as nothing.
func (m *Manager) allocation(ctx context.Context, id string) (a allocation) {
	var v metadata.Volume
	err := m.store.View(func(tx *metadata.Tx) (err error) {
		if v, err = tx.Volume(id); err != nil {
			return err
		}
		snapshots, err := tx.Snapshots(id)
		a.shared = len(snapshots) > 0
		return err
	})
	if err != nil {
		return allocation{}
	}
	pool, err := m.Pool(v)
	if err != nil {
		return allocation{}
	}
	if info, err := pool.Stat(ctx, blockdev.ID(v.Device)); err == nil {
		a.used = info.Used
	}
	if space, err := pool.Space(ctx); err == nil {
		a.space = space
	}
	return a
}

// since returns the bytes that the pool got back since before.
func (a allocation) since(before allocation) int64 {
	bytes := before.used - a.used
	if a.shared && a.space.Layer == before.space.Layer {
		bytes = min(bytes, a.space.Free-before.space.Free)
	}
	return max(bytes, 0)
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
	return m.settleNow(ctx, v, toTidy)
}
