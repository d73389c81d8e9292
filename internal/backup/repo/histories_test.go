package repo

import (
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"orlop/internal/backup/repo/protocoltest"
)

// historySteps are those that a run of all histories must reach, or it proves little.
var historySteps = []string{
	"backup committed",
	"backup on a base",
	"backup read",
	"backup run again",
	"backup with adopted packs committed",
	"compaction committed",
	"late delete arrived",
	"late put created its object",
	"late put found its name taken",
	"living process taken for dead",
	"old head number created again",
	"pack collected",
	"process crashed",
	"session ended by a collection",
}

func TestNoHistoryOfTheRealRepositoryLosesABackup(t *testing.T) {
	t.Parallel()
	seed, histories := uint64(time.Now().UnixNano()), 30
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	if soaking() {
		histories = 2000
	}
	most := 10 * histories // some steps are rare
	t.Logf("ORLOP_SEED=%d", seed)
	var (
		next    atomic.Int64
		seen    = map[string]int{}
		mu      sync.Mutex // guards seen
		workers sync.WaitGroup
	)
	missing := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.ContainsFunc(historySteps, func(step string) bool { return seen[step] == 0 })
	}
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; (i < histories || i < most && missing()) && !t.Failed(); i = int(next.Add(1)) - 1 {
				steps := runHistory(t, seed, i)
				mu.Lock()
				for step, count := range steps {
					seen[step] += count
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		return
	}
	for _, step := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%9d %s", seen[step], step)
	}
	for _, step := range historySteps {
		if seen[step] == 0 {
			t.Errorf("never reached in %d histories with ORLOP_SEED=%d: %s", most, seed, step)
		}
	}
}

// runHistory returns how often each step was reached.
func runHistory(t *testing.T, seed uint64, i int) map[string]int {
	w := protocoltest.NewWorld(seed, i)
	var trace []string
	w.Trace = func(step string) { trace = append(trace, step) }
	engine, err := newEngine(w)
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := w.Run(engine); err != nil {
		t.Errorf("history %d with ORLOP_SEED=%d: %v\n%s", i, seed, err, strings.Join(trace[max(0, len(trace)-400):], "\n"))
	}
	return w.Seen
}
