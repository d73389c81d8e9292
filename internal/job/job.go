// Package job runs long work behind the requests that ask for it: with progress, cancellation, and results that survive
// the daemon. A job is recorded before it begins and when it ends. Work that must outlive the daemon is started again
// by whoever owns it; the job itself then ends as interrupted.
package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"orlop/internal/fault"
	"orlop/metadata"

	"github.com/google/uuid"
)

// kept is how many ended jobs stay on record, at least; trimEvery is how many end between two trims.
const (
	kept      = 1000
	trimEvery = 100
)

// Causes with which the context of a job ends.
var (
	errCanceled    = errors.New("canceled")
	errInterrupted = errors.New("interrupted: the daemon is stopping")
)

// errEnded is the failure of a job whose daemon was killed.
var errEnded = errors.New("interrupted: the daemon ended")

// A Store is what a Manager needs of a metadata.Store.
type Store interface {
	View(fn func(*metadata.Tx) error) error
	Update(ctx context.Context, fn func(*metadata.Tx) error) error
}

// A Manager runs jobs. It is safe for concurrent use.
type Manager struct {
	store Store
	log   *slog.Logger

	mu      sync.Mutex // guards what follows; nothing is waited for under it
	running map[string]*running
	stopped bool
	ended   int
	work    sync.WaitGroup
}

// running is a job of this process. It stays known after its end if that could not be recorded.
type running struct {
	job    metadata.Job // its progress is that of the last report
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at the end
}

// New returns a Manager on a store. Recover must have succeeded before anything is started.
func New(store Store, log *slog.Logger) *Manager {
	return &Manager{store: store, log: log, running: map[string]*running{}}
}

// Recover ends the jobs of an earlier daemon as interrupted.
func (m *Manager) Recover(ctx context.Context) error {
	err := m.store.Update(ctx, func(tx *metadata.Tx) error {
		jobs, err := tx.Jobs("")
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if j.State != metadata.JobRunning {
				continue
			}
			j.State, j.Ended = metadata.JobInterrupted, time.Now().UTC()
			j.Error = metadata.NewJobError(errEnded)
			if err := tx.PutJob(j); err != nil {
				return err
			}
		}
		return trim(tx)
	})
	if err != nil {
		return fmt.Errorf("recover jobs: %w", err)
	}
	return nil
}

// trim forgets the oldest jobs beyond those that are kept.
func trim(tx *metadata.Tx) error {
	jobs, err := tx.Jobs("")
	for i := 0; err == nil && i < len(jobs)-kept; i++ {
		if jobs[i].State != metadata.JobRunning {
			err = tx.DeleteJob(jobs[i].ID)
		}
	}
	return err
}

// A Spec says what a job is.
type Spec struct {
	Kind        string // "backup", "restore"
	Key         string // two jobs of one key never run at once
	Volume      string // name; for people
	VolumeID    string
	Snapshot    string // ID of the snapshot that was named; empty for none
	Destination string // URL, without secrets
}

// Work is what a job does. It returns soon after ctx is done. It reports progress in bytes, as often as it likes; total
// is 0 while unknown. What it returns is recorded as JSON, and holds no secret.
type Work func(ctx context.Context, progress func(done, total int64)) (result any, err error)

// Start starts a job and returns at once. If one of the same key runs already, it returns that one instead, and joined
// is true. It fails with fault.ErrUnreachable once Stop was called: the next daemon takes the request.
func (m *Manager) Start(ctx context.Context, spec Spec, work Work) (j metadata.Job, joined bool, err error) {
	j = metadata.Job{
		ID: uuid.Must(uuid.NewV7()).String(), Kind: spec.Kind, Key: spec.Key, Volume: spec.Volume, VolumeID: spec.VolumeID,
		Snapshot: spec.Snapshot, Destination: spec.Destination, State: metadata.JobRunning, Started: time.Now().UTC(),
	}
	jobCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &running{job: j, cancel: cancel, done: make(chan struct{})}
	if other, err := m.enter(r); other != nil || err != nil {
		cancel(nil)
		if err != nil {
			return metadata.Job{}, false, err
		}
		return m.snapshot(other), true, nil
	}
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutJob(j) }); err != nil {
		m.leave(r)
		return metadata.Job{}, false, fmt.Errorf("record job: %w", err)
	}
	go func() {
		result, err := work(jobCtx, func(done, total int64) { m.progress(r, done, total) })
		m.end(jobCtx, r, result, err)
	}()
	return j, false, nil
}

// enter makes a job known, unless another of its key runs, which it returns.
func (m *Manager) enter(r *running) (other *running, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, fault.Errorf(fault.ErrUnreachable, "%w", errInterrupted)
	}
	for _, other := range m.running {
		if other.job.Key == r.job.Key && other.job.State == metadata.JobRunning {
			return other, nil
		}
	}
	m.running[r.job.ID] = r
	m.work.Add(1)
	return nil, nil
}

// leave undoes enter for a job that did not begin.
func (m *Manager) leave(r *running) {
	m.mu.Lock()
	delete(m.running, r.job.ID)
	m.mu.Unlock()
	r.cancel(nil)
	close(r.done)
	m.work.Done()
}

func (m *Manager) progress(r *running, done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.job.Done, r.job.Total = done, total
}

func (m *Manager) snapshot(r *running) metadata.Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	return r.job
}

// end records how a job ended. A job whose work succeeded is done, whoever wanted it to stop.
func (m *Manager) end(ctx context.Context, r *running, result any, failed error) {
	defer m.work.Done()
	j := m.snapshot(r)
	j.State, j.Ended = metadata.JobDone, time.Now().UTC()
	cause := context.Cause(ctx)
	if result != nil && failed == nil {
		j.Result, failed = encode(result)
	}
	switch {
	case failed == nil:
	case errors.Is(cause, errCanceled):
		j.State, failed = metadata.JobCanceled, errCanceled
	case errors.Is(cause, errInterrupted):
		j.State, failed = metadata.JobInterrupted, errInterrupted
	default:
		j.State = metadata.JobFailed
	}
	if failed != nil {
		j.Error = metadata.NewJobError(failed)
	}
	r.cancel(nil)
	m.mu.Lock()
	r.job = j
	m.ended++
	trimming := m.ended%trimEvery == 0
	m.mu.Unlock()
	err := m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error {
		if err := tx.PutJob(j); err != nil || !trimming {
			return err
		}
		return trim(tx)
	})
	if err != nil {
		m.log.Error("cannot record end of job", "job", j.ID, "kind", j.Kind, "volume", j.Volume, "state", j.State, "error", err)
	} else {
		m.mu.Lock()
		delete(m.running, j.ID)
		m.mu.Unlock()
	}
	close(r.done)
}

// encode returns JSON in which the & of a URL stays as it is.
func encode(result any) (json.RawMessage, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(result); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return bytes.TrimSpace(text.Bytes()), nil
}

// Get returns a job by its ID or the beginning of it, with its present progress. It fails with fault.ErrNotFound, and
// with fault.ErrInvalid if several IDs begin so.
func (m *Manager) Get(id string) (metadata.Job, error) {
	if id == "" {
		return metadata.Job{}, fault.Errorf(fault.ErrInvalid, "job: no ID given")
	}
	jobs, err := m.list(id)
	switch {
	case err != nil:
		return metadata.Job{}, err
	case len(jobs) == 0:
		return metadata.Job{}, fault.Errorf(fault.ErrNotFound, "job %q: not found", id)
	case len(jobs) > 1:
		return metadata.Job{}, fault.Errorf(fault.ErrInvalid, "job %q: ambiguous: %s and %s begin so", id, jobs[0].ID, jobs[1].ID)
	}
	return jobs[0], nil
}

// List returns every job on record, by age.
func (m *Manager) List() ([]metadata.Job, error) { return m.list("") }

func (m *Manager) list(prefix string) (jobs []metadata.Job, err error) {
	err = m.store.View(func(tx *metadata.Tx) error {
		jobs, err = tx.Jobs(prefix)
		return err
	})
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range jobs {
		if r, ok := m.running[jobs[i].ID]; ok {
			jobs[i] = r.job
		}
	}
	return jobs, nil
}

// Running returns the job of a key that runs now; ok is false if none does.
func (m *Manager) Running(key string) (j metadata.Job, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		if r.job.Key == key && r.job.State == metadata.JobRunning {
			return r.job, true
		}
	}
	return metadata.Job{}, false
}

// Wait waits until a job, given by its ID, has ended, or for ctx, and returns how it stands then. That ctx is done is no
// error: the job's state tells.
func (m *Manager) Wait(ctx context.Context, id string) (metadata.Job, error) {
	m.mu.Lock()
	r := m.running[id]
	m.mu.Unlock()
	if r != nil {
		select {
		case <-r.done:
			return m.snapshot(r), nil
		case <-ctx.Done():
		}
	}
	return m.Get(id)
}

// Cancel ends a job, given by its ID or the beginning of it, and waits until it has ended or ctx is done. It returns the
// job as it is then. One that has ended is returned as it is.
func (m *Manager) Cancel(ctx context.Context, id string) (metadata.Job, error) {
	j, err := m.Get(strings.TrimSpace(id))
	if err != nil {
		return j, err
	}
	m.mu.Lock()
	r := m.running[j.ID]
	m.mu.Unlock()
	if r != nil {
		r.cancel(errCanceled)
	}
	return m.Wait(ctx, j.ID)
}

// Stop ends every job as interrupted, waits until they have ended or limit is over, and lets no other begin. A job whose
// destination hangs may outlast the limit: its record says that it runs, until the next Recover.
func (m *Manager) Stop(limit time.Duration) {
	m.mu.Lock()
	m.stopped = true
	for _, r := range m.running {
		r.cancel(errInterrupted)
	}
	m.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		m.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(limit):
		m.log.Warn("jobs have not ended yet", "waited", limit)
	}
}

// Continue lets jobs begin again after Stop.
func (m *Manager) Continue() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = false
}

// Interrupted reports whether the context of a job ended because the daemon stops, so that what the job did goes on after the
// next start.
func Interrupted(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errInterrupted) }
