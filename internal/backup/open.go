package backup

import (
	"context"
	"sync"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
)

// repositories are those that are open. Each destination is opened once for all jobs that use it, and closed after the last:
// an open directory keeps its filesystem from being unmounted.
//
// Two destinations may be one directory, through a symbolic link or a bind mount, and two directories may have a repository of
// the same ID, since one is a copy. So repositories are not shared by their IDs, but all know of each other's runs.
type repositories struct {
	runs *repo.Runs

	mu   sync.Mutex
	open map[place]*shared
}

// A place is where a repository is, and the IDs of the key that opens it, which may be in several files, and of the credentials
// for its bucket.
type place struct {
	at          destination.Destination
	key         string
	credentials string
}

// shared is a repository that is open, or is just being opened.
type shared struct {
	users int // guarded by repositories.mu

	opening    sync.Mutex
	repository *destination.Repository // nil until it is open
}

// opened returns the repository of a target, and what lets go of it.
func (m *Manager) opened(ctx context.Context, to Target) (r *destination.Repository, release func(), err error) {
	at := place{at: to.Destination}
	var key *repo.Key
	if to.KeyFile != "" {
		if key, err = repo.ReadKeyFile(to.KeyFile); err != nil {
			return nil, nil, err
		}
		at.key = key.ID()
	}
	if to.Destination.IsBucket() {
		at.credentials = to.Credentials.ID()
	}
	s := m.open.enter(at)
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.repository == nil {
		warn := func(err error) { m.log.Warn("backup destination", "destination", at.at.String(), "problem", err) }
		s.repository, err = destination.Open(ctx, at.at, destination.Options{Key: key, Credentials: to.Credentials, StateDir: m.stateDir, Runs: m.open.runs, Warn: warn})
		if err != nil {
			m.release(at, s)
			return nil, nil, err
		}
	}
	return s.repository, sync.OnceFunc(func() { m.release(at, s) }), nil
}

// Check opens the repository of a target, and fails as that does.
func (m *Manager) Check(ctx context.Context, to Target) error {
	_, release, err := m.opened(ctx, to)
	if err == nil {
		release()
	}
	return err
}

func (r *repositories) enter(at place) *shared {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.open[at]
	if s == nil {
		s = &shared{}
		if r.open == nil {
			r.open = map[place]*shared{}
		}
		r.open[at] = s
	}
	s.users++
	return s
}

// release lets go of a repository, and closes it after its last user.
func (m *Manager) release(at place, s *shared) {
	m.open.mu.Lock()
	s.users--
	last := s.users == 0
	if last {
		delete(m.open.open, at)
	}
	m.open.mu.Unlock()
	if !last || s.repository == nil {
		return
	}
	if err := s.repository.Close(); err != nil {
		m.log.Warn("cannot close backup destination", "destination", at.at.String(), "error", err)
	}
}
