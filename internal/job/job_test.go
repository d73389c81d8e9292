package job

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"orlop/internal/fault"
	"orlop/metadata"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newManager(t *testing.T) (*Manager, *metadata.Store) {
	t.Helper()
	store, err := metadata.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(store, quiet()), store
}

var spec = Spec{Kind: "backup", Key: "backup/v/r", Volume: "v", VolumeID: "1", Destination: "file:///d"}

// untilDone is work that reports its progress and then waits to be ended.
func untilDone(begun chan<- struct{}) Work {
	return func(ctx context.Context, progress func(done, total int64)) (any, error) {
		progress(3, 7)
		close(begun)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
}

func TestJobTellsItsProgressAndItsResultSurvivesTheManager(t *testing.T) {
	m, store := newManager(t)
	begun, proceed := make(chan struct{}), make(chan struct{})
	j, joined, err := m.Start(t.Context(), spec, func(_ context.Context, progress func(done, total int64)) (any, error) {
		progress(3, 7)
		close(begun)
		<-proceed
		return map[string]int{"stored": 5}, nil
	})
	if err != nil || joined {
		t.Fatalf("Start: joined %t, %v", joined, err)
	}
	<-begun
	if now, err := m.Get(j.ID[:8]); err != nil || now.Done != 3 || now.Total != 7 || now.State != metadata.JobRunning {
		t.Errorf("while it runs: %+v, %v; want 3 of 7, running", now, err)
	}
	close(proceed)
	if done, err := m.Wait(t.Context(), j.ID); err != nil || done.State != metadata.JobDone {
		t.Errorf("Wait: %+v, %v", done, err)
	}
	later, err := New(store, quiet()).Get(j.ID)
	if err != nil || string(later.Result) != `{"stored":5}` || later.Ended.IsZero() {
		t.Errorf("another manager sees %+v, %v", later, err)
	}
}

func TestSecondRequestOfOneKeyJoinsTheFirst(t *testing.T) {
	m, _ := newManager(t)
	begun := make(chan struct{})
	first, _, err := m.Start(t.Context(), spec, untilDone(begun))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	second, joined, err := m.Start(t.Context(), spec, func(context.Context, func(done, total int64)) (any, error) {
		t.Error("the second request ran beside the first")
		return nil, nil
	})
	if err != nil || !joined || second.ID != first.ID {
		t.Errorf("second request: %s, joined %t, %v; want %s, joined", second.ID, joined, err, first.ID)
	}
	if ended, err := m.Cancel(t.Context(), first.ID); err != nil || ended.State != metadata.JobCanceled {
		t.Errorf("Cancel: %s, %v; want canceled", ended.State, err)
	}
	third, joined, err := m.Start(t.Context(), spec, func(context.Context, func(done, total int64)) (any, error) { return nil, nil })
	if err != nil || joined {
		t.Errorf("a request after the end: joined %t, %v", joined, err)
	}
	if j, err := m.Wait(t.Context(), third.ID); err != nil || j.State != metadata.JobDone {
		t.Errorf("third: %s, %v", j.State, err)
	}
}

func TestFailureKeepsItsKindAndMessage(t *testing.T) {
	m, _ := newManager(t)
	j, _, err := m.Start(t.Context(), spec, func(context.Context, func(done, total int64)) (any, error) {
		return nil, fault.Errorf(fault.ErrNoSpace, "pool %q is full", "loop")
	})
	if err != nil {
		t.Fatal(err)
	}
	j, err = m.Wait(t.Context(), j.ID)
	want := metadata.JobError{Kind: fault.ErrNoSpace, Message: `pool "loop" is full`}
	if err != nil || j.State != metadata.JobFailed || j.Error == nil || *j.Error != want {
		t.Errorf("job %+v, %v; want failed with %+v", j, err, want)
	}
}

func TestStopInterruptsJobsAndLetsNoneBegin(t *testing.T) {
	m, _ := newManager(t)
	begun := make(chan struct{})
	j, _, err := m.Start(t.Context(), spec, untilDone(begun))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	m.Stop(time.Minute)
	if j, err = m.Get(j.ID); err != nil || j.State != metadata.JobInterrupted {
		t.Errorf("after Stop: %s, %v; want interrupted", j.State, err)
	}
	if _, _, err := m.Start(t.Context(), spec, untilDone(nil)); err == nil {
		t.Error("a job began after Stop")
	}
}

func TestRecoverEndsTheJobsOfADaemonThatWasKilled(t *testing.T) {
	m, store := newManager(t)
	begun := make(chan struct{})
	j, _, err := m.Start(t.Context(), spec, untilDone(begun))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	t.Cleanup(func() { m.Stop(time.Minute) })
	next := New(store, quiet())
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := next.Get(j.ID); err != nil || now.State != metadata.JobInterrupted || now.Error == nil {
		t.Errorf("after the next start: %+v, %v; want interrupted", now, err)
	}
}

func TestOldJobsAreForgotten(t *testing.T) {
	m, store := newManager(t)
	var last string
	for range kept + 2*trimEvery {
		j, _, err := m.Start(t.Context(), spec, func(context.Context, func(done, total int64)) (any, error) { return nil, errors.New("failed") })
		if err == nil {
			_, err = m.Wait(t.Context(), j.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		last = j.ID
	}
	if err := New(store, quiet()).Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	jobs, err := m.List()
	if err != nil || len(jobs) != kept || jobs[kept-1].ID != last {
		t.Errorf("%d jobs on record, %v; want the newest %d", len(jobs), err, kept)
	}
}
