//go:build root

package volume_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"orlop/internal/fault"
)

// Both go by the same rehearsals, in the same place.
func TestEveryOperationSurvivesCrashesAndPowerCuts(t *testing.T) {
	s, seed := newSite(t), seedOf(t)
	t.Run("ACrashAtEveryStep", func(t *testing.T) { survivesACrashAtEveryStep(t, s, seed) })
	t.Run("APowerCutAtEveryStep", func(t *testing.T) { survivesAPowerCutAtEveryStep(t, s, seed) })
}

// A daemon may die on any line. Each operation is cut short before and after each of its effects on the records,
// the pool and the host; then another life begins, and everything that was acknowledged must be there, the
// operation undone or done, and nothing left over. The pools and the kernel are real.
func survivesACrashAtEveryStep(t *testing.T, s *site, seed uint64) {
	for _, o := range allOperations() {
		t.Run(o.label(), func(t *testing.T) {
			if !o.apart {
				t.Parallel()
			}
			before, after, effects := o.rehearse(t, s)
			for _, i := range o.chosen(seed, 2*len(effects), fewCrashes) {
				at, side := i/2, []string{"before", "after"}[i%2]
				t.Run(fmt.Sprintf("%s-%d-%s", side, at+1, effects[at]), func(t *testing.T) {
					w := o.world(t, s)
					w.cut.arm(at+1, side == "after", nil)
					died, err := w.cut.run(func() error { return o.run(t.Context(), w) })
					if !died || !w.reached || len(w.effects) <= at || w.effects[at] != effects[at] {
						t.Fatalf("the operation did not come to die at %s: effects %q, error %v", effects[at], w.effects, err)
					}
					w.die(t)
					w.begin(t)
					w.wantSound(t)
					w.wantWitness(t)
					got := w.picture(t)
					wantOneOf(t, got, o.allowed(before, after)...)
					w.wantContent(t)
					w.wantSizes(t)
					o.wantRepeatable(t, w, got, after)
					w.wantRelease(t)
				})
			}
		})
	}
}

// The same, but the effect is followed by a power cut below the pool: the journal of the filesystem that holds the
// images is not written, the operation goes on and fails, or does not, and the machine starts again. What has been
// answered must be so afterwards. The metadata lies on another disk.
func survivesAPowerCutAtEveryStep(t *testing.T, s *site, seed uint64) {
	for _, o := range allOperations() {
		t.Run(o.label(), func(t *testing.T) {
			before, after, effects := o.rehearse(t, s)
			for _, i := range o.chosen(seed, len(effects), fewPowerCuts) {
				t.Run(fmt.Sprintf("after-%d-%s", i+1, effects[i]), func(t *testing.T) {
					w := o.world(t, s)
					w.cut.arm(i+1, true, func() { s.goDown(t) })
					err := o.run(t.Context(), w)
					if !w.reached {
						t.Fatalf("the operation did not come to effect %d: %v", i+1, err)
					}
					w.powerCut(t)
					w.begin(t)
					w.wantSound(t)
					got, allowed := w.picture(t).afterPowerCut(), []picture{after.afterPowerCut()}
					if err != nil || o.silent {
						allowed = append(allowed, before.afterPowerCut())
					}
					wantOneOf(t, got, allowed...)
					w.wantContent(t)
					w.wantSizes(t)
					w.wantRelease(t)
				})
			}
		})
	}
}

// How many of an operation's steps are cut in an ordinary run, each time others; a soak cuts all.
const (
	fewCrashes   = 3
	fewPowerCuts = 2
)

// seedOf returns the seed of the choice of steps, new each time unless ORLOP_SEED is set, and prints it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		check(t, err)
	}
	fmt.Printf("ORLOP_SEED=%d\n", seed)
	return seed
}

// chosen returns which of n steps to cut, in order. It does not depend on what other operations there are.
func (o operation) chosen(seed uint64, n, few int) []int {
	if os.Getenv("ORLOP_SOAK") != "" || n <= few {
		few = n
	}
	name := fnv.New64a()
	_, _ = name.Write([]byte(o.name)) // never fails
	steps := rand.New(rand.NewPCG(seed, name.Sum64())).Perm(n)[:few]
	slices.Sort(steps)
	return steps
}

func (o operation) label() string { return strings.ReplaceAll(o.name, " ", "-") }

// world is a world in which the operation can begin.
func (o operation) world(t *testing.T, s *site) *world {
	t.Helper()
	w := s.newWorld(t, strings.Contains(o.name, "xfs"))
	if !o.alone {
		w.useWitness(t)
	}
	if o.setup != nil {
		o.setup(t, w)
	}
	return w
}

// A rehearsal is what an operation does if nothing happens.
type rehearsal struct {
	before, after picture // what is to be seen in the life before it, and in the life after it
	effects       []string
}

// rehearse returns the operation's rehearsal, which the site's first call for it makes.
func (o operation) rehearse(t *testing.T, s *site) (before, after picture, effects []string) {
	t.Helper()
	made, ok := s.rehearsals.Load(o.name)
	if !ok {
		made = o.rehearseOnce(t, s)
		s.rehearsals.Store(o.name, made)
	}
	r := made.(rehearsal)
	return r.before, r.after, r.effects
}

func (o operation) rehearseOnce(t *testing.T, s *site) rehearsal {
	t.Helper()
	var before picture
	w := o.world(t, s)
	w.die(t)
	w.life(t, func() {
		w.wantSound(t)
		before = w.picture(t)
	})
	w.raze(t)
	w = o.world(t, s)
	w.effects = nil
	check(t, o.run(t.Context(), w))
	effects := slices.Clone(w.effects)
	if len(effects) == 0 {
		t.Fatal("the operation has no effect")
	}
	var after picture
	w.die(t)
	w.life(t, func() {
		w.wantSound(t)
		w.wantWitness(t)
		after = w.picture(t)
	})
	w.raze(t)
	fmt.Printf("%s: %d effects: %s\n", o.name, len(effects), strings.Join(effects, " "))
	return rehearsal{before, after, effects}
}

// allowed is what may be seen in the life after one that was cut short in the operation.
func (o operation) allowed(before, after picture) []picture {
	allowed := []picture{before, after}
	if o.between != nil {
		allowed = append(allowed, o.between(before, after)...)
	}
	return allowed
}

// wantRepeatable checks that the operation, done again, completes.
func (o operation) wantRepeatable(t *testing.T, w *world, now, after picture) {
	t.Helper()
	err := o.run(t.Context(), w)
	if o.again != "" && fault.Is(err, o.again) {
		wantOneOf(t, now, after)
		err = nil
	}
	if err != nil {
		t.Errorf("again: %v", err)
	}
	if now = w.picture(t); o.counts {
		now.Epoch = after.Epoch
	}
	wantOneOf(t, now, after)
	w.wantContent(t)
}
