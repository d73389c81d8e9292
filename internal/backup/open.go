package backup

import (
	"context"
	"sync"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
)

// repositories are those that are open. A process opens each one once, however many jobs use it, and closes it after the
// last: an open directory keeps its filesystem from being unmounted.
type repositories struct {
	mu   sync.Mutex
	open map[Target]*shared
}

// shared is a repository that is open, or is just being opened.
type shared struct {
	users int // guarded by repositories.mu

	opening    sync.Mutex
	repository *destination.Repository // nil until it is open
}

// opened returns the repository of a target, and what lets go of it.
func (m *Manager) opened(ctx context.Context, to Target) (r *destination.Repository, release func(), err error) {
	s := m.open.enter(to)
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.repository == nil {
		if s.repository, err = m.openTarget(ctx, to); err != nil {
			m.release(to, s)
			return nil, nil, err
		}
	}
	return s.repository, sync.OnceFunc(func() { m.release(to, s) }), nil
}

// Check opens the repository of a target, and fails as that does.
func (m *Manager) Check(ctx context.Context, to Target) error {
	_, release, err := m.opened(ctx, to)
	if err == nil {
		release()
	}
	return err
}

func (m *Manager) openTarget(ctx context.Context, to Target) (*destination.Repository, error) {
	var key *repo.Key
	if to.KeyFile != "" {
		var err error
		if key, err = repo.ReadKeyFile(to.KeyFile); err != nil {
			return nil, err
		}
	}
	warn := func(err error) {
		m.log.Warn("backup destination", "destination", to.Destination.String(), "problem", err)
	}
	return destination.Open(ctx, to.Destination, destination.Options{Key: key, StateDir: m.stateDir, Warn: warn})
}

func (r *repositories) enter(to Target) *shared {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.open[to]
	if s == nil {
		s = &shared{}
		if r.open == nil {
			r.open = map[Target]*shared{}
		}
		r.open[to] = s
	}
	s.users++
	return s
}

// release lets go of a repository, and closes it after its last user.
func (m *Manager) release(to Target, s *shared) {
	m.open.mu.Lock()
	s.users--
	last := s.users == 0
	if last {
		delete(m.open.open, to)
	}
	m.open.mu.Unlock()
	if !last || s.repository == nil {
		return
	}
	if err := s.repository.Close(); err != nil {
		m.log.Warn("cannot close backup destination", "destination", to.Destination.String(), "error", err)
	}
}
