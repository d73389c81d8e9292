package repo

import (
	"maps"
	"os"
	"slices"
	"strconv"
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
	seed, histories := uint64(time.Now().UnixNano()), 60
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	if os.Getenv("ORLOP_SOAK") != "" {
		histories = 2000
	}
	t.Logf("ORLOP_SEED=%d", seed)
	seen := map[string]int{}
	for i := range histories {
		w := protocoltest.NewWorld(seed, i)
		var trace []string
		w.Trace = func(step string) { trace = append(trace, step) }
		engine, err := newEngine(w)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Run(engine); err != nil {
			for _, step := range trace[max(0, len(trace)-400):] {
				t.Log(step)
			}
			t.Fatalf("history %d with ORLOP_SEED=%d: %v", i, seed, err)
		}
		for step, count := range w.Seen {
			seen[step] += count
		}
	}
	for _, step := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%9d %s", seen[step], step)
	}
	for _, step := range historySteps {
		if seen[step] == 0 {
			t.Errorf("never reached in %d histories with ORLOP_SEED=%d: %s", histories, seed, step)
		}
	}
}
