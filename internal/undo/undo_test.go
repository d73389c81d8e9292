package undo_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"orlop/internal/fault"
	"orlop/internal/undo"
)

// attempt takes three steps, the last of which ends with err.
func attempt(ctx context.Context, err error, undone *[]string) (result error) {
	var u undo.Stack
	defer u.Unwind(ctx, &result)
	for _, name := range []string{"first", "second", "third"} {
		u.Push(name, func(ctx context.Context) error {
			*undone = append(*undone, name)
			if _, limited := ctx.Deadline(); !limited || ctx.Err() != nil {
				return errors.New("wrong context")
			}
			if name == "second" {
				return fault.Errorf(fault.ErrInUse, "stuck")
			}
			return nil
		})
	}
	return err
}

func TestFailureUndoesEveryStepLastFirst(t *testing.T) {
	cause := fault.Errorf(fault.ErrNoSpace, "full")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ctx := range []context.Context{t.Context(), cancelled} {
		var undone []string
		err := attempt(ctx, cause, &undone)
		if !slices.Equal(undone, []string{"third", "second", "first"}) {
			t.Errorf("undone %q", undone)
		}
		if !errors.Is(err, cause) || !fault.Is(err, fault.ErrNoSpace) || err.Error() != `full (and undoing "second" failed: stuck)` {
			t.Errorf("%v", err)
		}
	}
}

func TestSuccessUndoesNothing(t *testing.T) {
	var undone []string
	if err := attempt(t.Context(), nil, &undone); err != nil || len(undone) > 0 {
		t.Errorf("%v, undone %q", err, undone)
	}
}

func TestUnwoundStackIsEmpty(t *testing.T) {
	var u undo.Stack
	count := 0
	u.Push("step", func(context.Context) error { count++; return nil })
	err := errors.New("failed")
	u.Unwind(t.Context(), &err)
	u.Unwind(t.Context(), &err)
	if count != 1 || err.Error() != "failed" {
		t.Errorf("undone %d times, %v", count, err)
	}
}
