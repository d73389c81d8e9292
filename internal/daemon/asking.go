package daemon

import (
	"context"
	"sync"
	"time"

	"orlop/fs"
)

// askLimit bounds how long a filesystem is waited for that is asked about itself.
const askLimit = 2 * time.Second

// asking counts the questions to filesystems whose answers are outstanding although nothing waits for them any more. A
// filesystem is not asked again meanwhile. It is safe for concurrent use.
type asking struct {
	mu      sync.Mutex
	overdue map[string]int
}

// ask calls question, which may hang in the kernel, and waits for its answer for askLimit. ok is false if there is none by
// then, if the question failed, or if an earlier one of the same key is outstanding.
func ask[T any](ctx context.Context, a *asking, key string, question func() (T, error)) (answer T, ok bool) {
	if a.isOverdue(key) {
		return answer, false
	}
	type reply struct {
		answer T
		err    error
	}
	replies, over := make(chan reply), make(chan struct{})
	go func() { // it ends with the system call, which cannot be interrupted
		answer, err := question()
		select {
		case replies <- reply{answer, err}:
		case <-over:
			a.count(key, -1)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	select {
	case r := <-replies:
		return r.answer, r.err == nil
	case <-ctx.Done():
		a.count(key, 1)
		close(over)
		return answer, false
	}
}

func (a *asking) isOverdue(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.overdue[key] > 0
}

func (a *asking) count(key string, more int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.overdue == nil {
		a.overdue = map[string]int{}
	}
	if a.overdue[key] += more; a.overdue[key] == 0 {
		delete(a.overdue, key)
	}
}

// isFrozen reports whether the filesystem of a mounted volume is frozen. One that does not answer in time, which may be
// writing out, or cannot be asked, does not count as frozen.
func (d *Daemon) isFrozen(ctx context.Context, v View) bool {
	kind, err := fs.Lookup(v.Filesystem)
	if err != nil {
		return false
	}
	frozen, ok := ask(ctx, &d.asking, "frozen "+v.Mountpoint, func() (bool, error) { return kind.Frozen(v.Mountpoint) })
	return ok && frozen
}
