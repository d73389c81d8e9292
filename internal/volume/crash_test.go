//go:build root

package volume

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"orlop/internal/fault"
)

// A daemon may die on any line. Each operation is cut short before and after each of its effects on the records,
// the pool and the host; then another life begins, and everything that was acknowledged must be there, the
// operation undone or done, and nothing left over. The pools and the kernel are real.
func TestEveryOperationSurvivesACrashAtEveryStep(t *testing.T) {
	s := newSite(t)
	for _, o := range operations {
		t.Run(o.label(), func(t *testing.T) {
			t.Parallel()
			before, after, effects := o.rehearse(t, s)
			for i, effect := range effects {
				for _, side := range []string{"before", "after"} {
					t.Run(fmt.Sprintf("%s-%d-%s", side, i+1, effect), func(t *testing.T) {
						w := o.world(t, s)
						*w.cut = cut{at: i + 1, after: side == "after"}
						died, err := w.cut.run(func() error { return o.run(t.Context(), w) })
						if got := w.effects[len(w.effects)-1]; !died || got != effect {
							t.Fatalf("the operation did not come to die at %s: last was %s, error %v", effect, got, err)
						}
						w.die(t)
						w.begin(t)
						w.wantSound(t)
						w.wantWitness(t)
						got := w.picture(t)
						wantOneOf(t, got, o.allowed(before, after)...)
						w.wantContent(t)
						o.wantRepeatable(t, w, got, after)
						w.wantRelease(t)
					})
				}
			}
		})
	}
}

// The same, but the effect is followed by a power cut below the pool: the journal of the filesystem that holds the
// images is not written, the operation goes on and fails, or does not, and the machine starts again. What has been
// answered must be so afterwards. The metadata lies on another disk.
func TestEveryOperationSurvivesAPowerCutAtEveryStep(t *testing.T) {
	s := newSite(t)
	for _, o := range operations {
		t.Run(o.label(), func(t *testing.T) {
			before, after, effects := o.rehearse(t, s)
			for i, effect := range effects {
				t.Run(fmt.Sprintf("after-%d-%s", i+1, effect), func(t *testing.T) {
					w := o.world(t, s)
					*w.cut = cut{at: i + 1, after: true, act: func() { s.goDown(t) }}
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
					w.wantRelease(t)
				})
			}
		})
	}
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

// rehearse runs the operation as if nothing happened, and returns what is to be seen in the life before it, what in
// the life after it, and its effects.
func (o operation) rehearse(t *testing.T, s *site) (before, after picture, effects []string) {
	t.Helper()
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
	effects = slices.Clone(w.effects)
	if len(effects) == 0 {
		t.Fatal("the operation has no effect")
	}
	w.die(t)
	w.life(t, func() {
		w.wantSound(t)
		w.wantWitness(t)
		after = w.picture(t)
	})
	w.raze(t)
	fmt.Printf("%s: %d effects: %s\n", o.name, len(effects), strings.Join(effects, " "))
	return before, after, effects
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
