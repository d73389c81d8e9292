//go:build root

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"orlop/internal/control"
)

// The steps of the load. A soak in which the daemon was never killed in one of them has not shown enough.
var crashSteps = []string{
	"start", "create", "docker create", "create xfs", "mount", "docker mount", "write", "umount", "docker unmount",
	"resize", "resize mounted", "set", "trim", "delete", "docker remove",
	"snapshot", "snapshot mounted", "snapshot group", "snapshot delete", "create from snapshot", "create from volume",
	"restore", "restore and discard", "delete with snapshots",
}

const (
	crashKills     = 12
	crashKillsSoak = 200
	crashWorkers   = 4
	crashVolumes   = 2 // of each worker
)

// The daemon is killed at random moments under load, from four workers at both its sockets, and started again. What
// it has acknowledged is there then, with every synced byte; what it has not is as before or as asked for; and in
// the end nothing is left over.
func TestKilledDaemonLosesNothingAndLeaksNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	fmt.Printf("ORLOP_SEED=%d\n", seed)
	kills := often(crashKills, crashKillsSoak)
	h := newCrashHost(t)
	l := newLoad(h, seed)
	done := 0
	for ; done < kills || kills == crashKillsSoak && len(l.missing()) > 0 && done < 5*kills; done++ {
		l.killOnce(t)
		if t.Failed() {
			t.Fatalf("at kill %d with ORLOP_SEED=%d", done+1, seed)
		}
	}
	fmt.Printf("%d kills of %d; in flight then: %s\n", done, kills, l.summary())
	if missing := l.missing(); kills == crashKillsSoak && len(missing) > 0 {
		t.Errorf("never killed in: %q", missing)
	}
	l.wantNothingLeft(t)
}

// A load is what the workers do and know.
type load struct {
	host    *crashHost
	rng     *rand.Rand // of the one that kills
	workers []*worker

	answered atomic.Int64 // steps

	mu   sync.Mutex
	hits map[string]int // kills, by step that was in flight
}

func newLoad(h *crashHost, seed uint64) *load {
	l := &load{host: h, rng: rand.New(rand.NewPCG(seed, 0)), hits: map[string]int{}}
	for i := range crashWorkers {
		w := &worker{load: l, rng: rand.New(rand.NewPCG(seed, uint64(i)+1))}
		for k := range crashVolumes {
			w.volumes = append(w.volumes, &crashVolume{name: fmt.Sprintf("w%d-%d", i, k)})
		}
		l.workers = append(l.workers, w)
	}
	return l
}

func (l *load) volumes() (all []*crashVolume) {
	for _, w := range l.workers {
		all = append(all, w.volumes...)
	}
	return all
}

func (l *load) hit(step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hits[step]++
}

func (l *load) wasHit(step string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hits[step] > 0
}

func (l *load) missing() (steps []string) {
	for _, step := range crashSteps {
		if !l.wasHit(step) {
			steps = append(steps, step)
		}
	}
	return steps
}

func (l *load) summary() string {
	var parts []string
	for _, step := range crashSteps {
		parts = append(parts, fmt.Sprintf("%s %d", step, l.hits[step]))
	}
	return strings.Join(parts, ", ")
}

// killOnce starts the daemon, checks what it finds, lets the workers loose, and kills it. Now and then it dies while
// it starts.
func (l *load) killOnce(t *testing.T) {
	if l.rng.IntN(4) == 0 {
		l.host.begin(t)
		<-time.After(time.Duration(l.rng.IntN(60)) * time.Millisecond)
		if l.host.kill(t); !l.host.wasReady() {
			l.hit("start")
		}
	}
	l.host.begin(t)
	l.host.awaitReady(t)
	l.verify(t)
	l.wantOneHeld(t)
	if t.Failed() {
		return
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	for _, w := range l.workers {
		group.Go(func() { w.work(t, stop) })
	}
	// Each step has its own length, which is another on a busy machine: the moment comes after any number of answers.
	answers := l.answered.Load() + l.rng.Int64N(3*crashWorkers)
	awaitHolds(t, "the workers get answers", func() bool { return l.answered.Load() >= answers || t.Failed() })
	<-time.After(time.Duration(l.rng.IntN(50_000)) * time.Microsecond)
	for _, w := range l.workers {
		if w.writing.Load() {
			l.hit("write") // which knows nothing of the daemon, and may not notice
		}
	}
	l.host.kill(t)
	close(stop)
	group.Wait()
}

// verify compares what there is with what the workers know, after what they do not know is settled: a step may concern
// two volumes.
func (l *load) verify(t *testing.T) {
	t.Helper()
	volumes := l.volumes()
	pending := make([]*crashStep, len(volumes))
	for i, v := range volumes {
		pending[i] = v.settle(t, l.host)
	}
	for i, v := range volumes {
		v.verify(t, l.host, pending[i])
	}
	if got := l.host.orlop("doctor"); got.code != 0 {
		t.Errorf("doctor: %s", got)
	}
}

// wantNothingLeft lets go of every volume, checks its filesystem, deletes it, and looks for what is left.
func (l *load) wantNothingLeft(t *testing.T) {
	h := l.host
	h.begin(t)
	h.awaitReady(t)
	l.verify(t)
	for _, v := range l.volumes() {
		v.letGo(t, h)
	}
	removeCopies := l.copyEverySnapshot(t)
	h.wantCleanImages(t)
	removeCopies()
	for _, v := range l.volumes() {
		if v.exists {
			check(t, h.post("/volumes/delete", control.Request{Name: v.name, Snapshots: true}, nil))
		}
	}
	if got := h.orlop("doctor"); got.code != 0 {
		t.Errorf("doctor: %s", got)
	}
	if left := h.images(t); len(left) > 0 {
		t.Errorf("left in the pool: %q", left)
	}
	if left := slices.DeleteFunc(h.mounts(t), func(dir string) bool { return dir == h.pool() }); len(left) > 0 {
		t.Errorf("left mounted: %q", left)
	}
	for _, dir := range []string{"mounts", "scratch"} {
		if left := names(t, h.path("root", dir)); len(left) > 0 {
			t.Errorf("left in %s: %q", dir, left)
		}
	}
	if got := h.orlop("shutdown", "--detach"); got.code != 0 {
		t.Errorf("shutdown --detach: %s", got)
	}
	h.awaitEnd(t)
	h.wantDetached(t)
	h.wantNoRecords(t)
}
