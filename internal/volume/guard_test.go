package volume

import (
	"strings"
	"testing"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/fault"
)

func TestGuardRefusesWhatTakesSpaceAndNothingElse(t *testing.T) {
	ctx, memory := t.Context(), blockdevtest.NewMemory()
	g := guard{memory, "fast"}
	id := blockdev.NewID()
	if err := g.Create(ctx, id, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	memory.SetFull(true)
	for name, err := range map[string]error{
		"create":  g.Create(ctx, blockdev.NewID(), 1<<20, nil),
		"prepare": g.Prepare(ctx, blockdev.NewID(), id, nil),
		"clone":   g.Clone(ctx, blockdev.NewID(), id, nil),
		"grow":    g.Grow(ctx, id, 1<<21),
	} {
		if !fault.Is(err, fault.ErrNoSpace) || !strings.Contains(err.Error(), `pool "fast": memory is 100% full`) {
			t.Errorf("%s: %v, want %v naming the pool and its layer", name, err, fault.ErrNoSpace)
		}
	}
	if err := g.Grow(ctx, id, 1<<20); err != nil {
		t.Errorf("grow to the size that it has: %v", err)
	}
	if err := g.Remove(ctx, id); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func TestMarksArePassedOnceUntilUseIsClearlyBelow(t *testing.T) {
	reached := 0
	for _, step := range []struct {
		used float64
		want int
	}{{0, 0}, {0.80, 0}, {0.801, 1}, {0.799, 1}, {0.801, 1}, {0.79, 0}, {0.96, 2}, {0.945, 2}, {0.93, 1}, {0.5, 0}} {
		if reached = passed(step.used, reached); reached != step.want {
			t.Errorf("at %v: %d marks are passed, want %d", step.used, reached, step.want)
		}
	}
}

// TestBallastNeverCausesWhatItIsFor compares the marks of disks of every size.
func TestBallastNeverCausesWhatItIsFor(t *testing.T) {
	for size := int64(1) << 20; size < 1<<50; size *= 2 {
		m := marksOf(size)
		if m.ballast > maxBallast || m.ballast > size/100 || m.enough-m.ballast < 2*m.low || m.low > maxLow || m.last >= m.low {
			t.Errorf("marks of a disk of %d bytes: %+v", size, m)
		}
	}
}
