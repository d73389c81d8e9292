package protocoltest_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"orlop/internal/backup/repo/protocoltest"
)

// seed returns ORLOP_SEED, or a new one, and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	value := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if value, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	t.Logf("ORLOP_SEED=%d", value)
	return value
}

// histories returns how many histories a test runs.
func histories() int {
	if os.Getenv("ORLOP_SOAK") != "" {
		return 20_000
	}
	return 2_000
}

// run runs one history of the model and returns what went wrong, and what was seen.
func run(seed uint64, history int, broken protocoltest.Mutation) (seen map[string]int, err error) {
	w := protocoltest.NewWorld(seed, history)
	err = w.Run(protocoltest.NewModel(w, broken))
	return w.Seen, err
}

// steps are those that a run of all histories must reach, or it proves little.
var steps = []string{
	"backup committed",
	"backup read",
	"base marked that is a record no more",
	"collection begun again with an old listing",
	"collection marked again",
	"collection that had nothing to write",
	"compaction committed",
	"compaction fenced",
	"compaction marked again",
	"fenced writer found out at its commit",
	"head cleaned up between list and get",
	"head lost to another",
	"head read that never was in the chain",
	"head read too old to conclude from",
	"late delete arrived",
	"late put created its object",
	"late put found its name taken",
	"living process taken for dead",
	"lost reply to a head found again",
	"object of a live pack referred to",
	"objects no longer live written anew before the commit",
	"old head number created again",
	"pack missing, head read again",
	"pack of an adopted session taken over",
	"process crashed",
	"reader resolved a moved object again",
	"reader told that its backup was deleted meanwhile",
	"session adopted",
	"session fenced",
	"session with a base fenced",
	"subtree of a base taken as given",
	"upload refused for no reason sent again",
	"writer found its record committed",
	"writer slept past the clean-up of its own number",
}

func TestNoHistoryLosesABackup(t *testing.T) {
	seed, seen := seed(t), map[string]int{}
	for i := range histories() {
		reached, err := run(seed, i, protocoltest.Whole)
		if err != nil {
			logHistory(t, seed, i)
			t.Fatalf("history %d with ORLOP_SEED=%d: %v", i, seed, err)
		}
		for step, count := range reached {
			seen[step] += count
		}
	}
	for _, step := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%9d %s", seen[step], step)
	}
	for _, step := range steps {
		if seen[step] == 0 {
			t.Errorf("never reached in %d histories with ORLOP_SEED=%d: %s", histories(), seed, step)
		}
	}
}

// logHistory runs a history once more and prints how it ended.
func logHistory(t *testing.T, seed uint64, history int) {
	t.Helper()
	var trace []string
	w := protocoltest.NewWorld(seed, history)
	w.Trace = func(step string) { trace = append(trace, step) }
	if err := w.Run(protocoltest.NewModel(w, protocoltest.Whole)); err == nil {
		t.Error("the history went well when it was run again")
	}
	for _, step := range trace[max(0, len(trace)-1000):] {
		t.Log(step)
	}
}

func TestEachMutationIsCaught(t *testing.T) {
	seed := seed(t)
	for _, mutation := range protocoltest.Mutations {
		t.Run(fmt.Sprintf("Rule%d/%s", mutation.Rule, mutation.Name), func(t *testing.T) {
			for i := range histories() {
				if _, err := run(seed, i, mutation.Mutation); err != nil {
					t.Logf("%s: caught in history %d: %v", mutation.Broken, i, err)
					return
				}
			}
			t.Errorf("%s: not caught in %d histories with ORLOP_SEED=%d", mutation.Broken, histories(), seed)
		})
	}
}

func TestEachRuleHasAMutation(t *testing.T) {
	for rule := range 9 {
		if !slices.ContainsFunc(protocoltest.Mutations, func(m protocoltest.Case) bool { return m.Rule == rule }) {
			t.Errorf("rule %d has none", rule)
		}
	}
}

func TestOneSeedMakesOneHistory(t *testing.T) {
	seed := seed(t)
	for i := range 50 {
		first, _ := run(seed, i, protocoltest.Whole)
		again, _ := run(seed, i, protocoltest.Whole)
		if !maps.Equal(first, again) {
			t.Errorf("history %d with ORLOP_SEED=%d: saw %v, then %v", i, seed, first, again)
		}
	}
}
