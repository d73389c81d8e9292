package volume

import (
	"context"
	"sync"
	"time"
)

// Settling later. Docker waits for the answer to each Unmount, and a docker cp into a running container sends two. So
// an Unmount does not wait to see whether the namespace that uses the volume is about to end, as it is when its
// container has just stopped: the background looks again, and holds no lock in between.

// laterPauses are the pauses before each further look. After the last one the volume is left to the minute's round.
var laterPauses = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}

// laterQueue is how many volumes may wait for the background to notice them.
const laterQueue = 256

// settleLater has a volume settled again soon. It never waits: what is too much is left to the minute's round.
func (m *Manager) settleLater(id string) {
	select {
	case m.later <- id:
	default:
	}
}

// settleQueued settles what settleLater was told of, until ctx is done.
func (m *Manager) settleQueued(ctx context.Context) {
	var looks sync.WaitGroup
	defer looks.Wait()
	for {
		select {
		case id := <-m.later:
			looks.Go(func() { m.settleSoon(ctx, id) })
		case <-ctx.Done():
			return
		}
	}
}

// settleSoon looks at a volume, with a pause before each look, until nothing that may let go soon uses it.
func (m *Manager) settleSoon(ctx context.Context, id string) {
	for _, pause := range laterPauses {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		if !m.usedElsewhere(ctx, id) {
			return
		}
	}
}

// usedElsewhere settles a volume after an Unmount, and reports whether it could not because something uses it that may let
// go soon: another mount namespace, or another mount point.
func (m *Manager) usedElsewhere(ctx context.Context, id string) bool {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return false // deleted meanwhile
	}
	defer release()
	result, err := m.settleWith(ctx, v, toUnmount, hasty)
	if err != nil {
		m.log.Error("volume not settled", "volume", v.Name, "error", err)
	}
	return result.inUse()
}
