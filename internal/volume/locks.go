package volume

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// locks holds one lock per volume ID, for as long as somebody holds or wants it.
type locks struct {
	mu   sync.Mutex
	byID map[string]*lock
}

type lock struct {
	token chan struct{} // full while the lock is held
	users int           // holders and waiters
}

// acquire waits for a volume's lock until ctx is done. Who takes several must do so in the order of IDs.
func (l *locks) acquire(ctx context.Context, id string) (release func(), err error) {
	l.mu.Lock()
	if l.byID == nil {
		l.byID = map[string]*lock{}
	}
	k := l.byID[id]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		l.byID[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.byID, id)
		}
	}
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another operation on the volume: %w", ctx.Err())
	}
}

// acquireAll takes several volumes' locks in the order of their IDs, each once.
func (l *locks) acquireAll(ctx context.Context, ids []string) (release func(), err error) {
	sorted := slices.Compact(slices.Sorted(slices.Values(ids)))
	var held []func()
	release = func() {
		for _, one := range held {
			one()
		}
	}
	for _, id := range sorted {
		one, err := l.acquire(ctx, id)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, one)
	}
	return release, nil
}
