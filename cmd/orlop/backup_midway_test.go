//go:build root

package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/daemon"
	"orlop/metadata"
)

// midwayBytes is how much the volumes hold of which a backup or a restore is to be caught in the middle.
const midwayBytes = 96 << 20

// startMidway makes a running host with a volume that takes a while to back up, and a destination.
func startMidway(t *testing.T) (*host, vault) {
	t.Helper()
	aloneInCache(t)
	h := startHost(t)
	h.must(t, "create", "db", "--size", "256M")
	fill(t, filepath.Join(h.must(t, "mount", "db"), "file"), 1, midwayBytes)
	h.must(t, "umount", "db")
	return h, newVault(t, t.TempDir(), true)
}

// A pending is a command that waits for a job.
type pending struct {
	cancel context.CancelFunc // ^C
	job    daemon.JobView     // as it was in the middle
	ended  chan outcome
}

func (p *pending) wait(t *testing.T) outcome {
	t.Helper()
	select {
	case got := <-p.ended:
		return got
	case <-time.After(crashLimit):
		t.Fatal("the command has not ended")
		return outcome{}
	}
}

// begin starts a command and returns at once.
func (h *host) begin(t *testing.T, args ...string) *pending {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &pending{cancel: cancel, ended: make(chan outcome, 1)}
	go func() { p.ended <- invokeUntil(ctx, append([]string{"--socket", h.control}, args...)...) }()
	t.Cleanup(cancel)
	return p
}

// midway starts a command, and returns when its job is in the middle, more than least bytes of it done. ok is false if the job was done too soon.
func (h *host) midway(t *testing.T, kind string, least int64, args ...string) (p *pending, ok bool) {
	t.Helper()
	known := len(h.jobs(t))
	p = h.begin(t, args...)
	for {
		jobs := h.jobs(t)[known:]
		for _, j := range jobs {
			if j.Kind != kind {
				continue
			}
			if p.job = j; j.State != string(metadata.JobRunning) {
				return p, false
			}
			if j.Done > least && j.Done < j.Total {
				return p, true
			}
		}
		select {
		case got := <-p.ended:
			p.ended <- got
			return p, false
		case <-time.After(time.Millisecond):
		}
	}
}

// jobNow is how a job stands.
func (h *host) jobNow(t *testing.T, id string) (j daemon.JobView) {
	t.Helper()
	check(t, json.Unmarshal([]byte(h.must(t, "job", "inspect", id)), &j))
	return j
}

// caught is midway for what must be caught in the middle: again, where it was done too soon.
func caught(t *testing.T, again func(), start func() (*pending, bool)) *pending {
	t.Helper()
	for range 20 {
		p, ok := start()
		if ok {
			return p
		}
		if got := p.wait(t); got.code != 0 {
			t.Fatalf("%s", got)
		}
		again()
	}
	t.Fatal("never caught in the middle")
	return nil
}

// caughtBackup is a backup of db in the middle.
func (h *host) caughtBackup(t *testing.T, v vault, least int64) *pending {
	t.Helper()
	again := func() {
		for _, s := range h.managed(t, "db") { // without a base all is read
			h.must(t, "snapshot", "delete", "db@"+s.Name)
		}
	}
	return caught(t, again, func() (*pending, bool) {
		return h.midway(t, "backup", least, v.with("backup", "create", "db", "--dest", v.dir)...)
	})
}

func TestAVolumeIsNotDeletedDuringItsBackup(t *testing.T) {
	h, v := startMidway(t)
	p := h.caughtBackup(t, v, 0)
	for _, args := range [][]string{{"delete", "db"}, {"delete", "db", "--snapshots"}, {"snapshot", "delete", "db@" + h.managed(t, "db")[0].Name}} {
		h.orlop(args...).wants(t, 4, "db", "in use by a backup to "+v.url())
	}
	got, err := h.ask(t.Context(), "Remove", dockerRequest{Name: "db"})
	if err != nil || !strings.Contains(got.Err, "backup") {
		t.Errorf("%+v, %v", got, err)
	}
	// Everything else goes on.
	h.must(t, "mount", "db")
	h.wantWritable(t, "db")
	h.must(t, "resize", "db", "--size", "288M")
	h.must(t, "snapshot", "create", "db", "--name", "meanwhile")
	h.must(t, "umount", "db")
	running := h.jobNow(t, p.job.ID).State
	p.wait(t).wants(t, 0)
	if running != string(metadata.JobRunning) {
		t.Log("the backup was done before the end of what was done meanwhile")
	}
	h.wantQuiet(t)
	h.must(t, "delete", "db", "--snapshots")
}

func TestASecondRequestJoinsTheBackupThatRuns(t *testing.T) {
	h, v := startMidway(t)
	first := h.caughtBackup(t, v, 0)
	before := len(h.jobs(t))
	second := h.begin(t, v.with("backup", "create", "db", "--dest", v.dir)...)
	third := h.begin(t, v.with("backup", "run", "db", "--dest", v.dir)...)
	outcomes := []outcome{first.wait(t), second.wait(t), third.wait(t)}
	for _, got := range outcomes {
		got.wants(t, 0)
	}
	joined := slices.ContainsFunc(h.jobs(t)[before:], func(j daemon.JobView) bool { return j.Kind == "backup" })
	if !joined && (outcomes[1].stdout != outcomes[0].stdout || len(v.list(t)) != 1) {
		t.Errorf("%q", outcomes)
	}
	if managed := h.managed(t, "db"); len(managed) != 1 {
		t.Errorf("%+v", managed)
	}
}

// Whoever began the backup has it canceled, and whoever joined it only stops waiting.
func TestInterruptedCommandsCancelTheBackupThatTheyBegan(t *testing.T) {
	h, v := startMidway(t)
	p := h.caughtBackup(t, v, 0)
	p.cancel()
	p.wait(t).wants(t, 1, "interrupted", "backup", `"db"`, "canceled")
	if j := h.jobNow(t, p.job.ID); j.State != string(metadata.JobCanceled) {
		t.Errorf("%+v", j)
	}
	h.wantQuiet(t)
	if managed := h.managed(t, "db"); len(managed) > 0 || len(v.list(t)) > 0 {
		t.Errorf("%+v", managed)
	}
	p = h.caughtBackup(t, v, 0)
	joining := h.begin(t, v.with("backup", "create", "db", "--dest", v.dir)...)
	joining.cancel()
	if got := joining.wait(t); got.code == 1 && !strings.Contains(got.stderr, "interrupted") || got.code > 1 {
		t.Errorf("%s", got)
	}
	p.wait(t).wants(t, 0)
}

// SIGTERM ends it at once, and the next run has what was uploaded. The command is told, and waits for the next daemon.
func TestABackupThatTheDaemonsStopInterruptsIsResumed(t *testing.T) {
	h, v := startMidway(t)
	p := h.caughtBackup(t, v, 48<<20) // a pack is uploaded
	h.stop(t)
	h.start(t)
	if j := h.jobNow(t, p.job.ID); j.State != string(metadata.JobInterrupted) || j.Error == nil {
		t.Errorf("%+v", j)
	}
	p.wait(t).wants(t, 0, v.url())
	if text := h.must(t, "job", "list"); strings.Count(text, "interrupted") != 1 {
		t.Errorf("%s", text)
	}
	last := h.jobs(t)[len(h.jobs(t))-1]
	if !strings.Contains(string(last.Result), `"resumed": true`) || !strings.Contains(string(last.Result), "&volume=db") {
		t.Errorf("%s", last.Result)
	}
	h.wantQuiet(t)
	if managed := h.managed(t, "db"); len(managed) != 1 || len(v.list(t)) != 1 {
		t.Errorf("%+v", managed)
	}
}
