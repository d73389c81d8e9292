// Package undo reverses the finished steps of an operation that failed half-way.
package undo

import (
	"context"
	"fmt"
	"time"
)

// limit bounds one undo step, so that a stuck device cannot hold its caller for ever.
const limit = 30 * time.Second

// A Stack holds what to do to reverse the steps taken so far. The zero Stack is empty and ready. It is not
// safe for concurrent use. It does not survive a crash: what recovery needs must stand in the metadata.
type Stack struct {
	steps []step
}

type step struct {
	name string
	undo func(context.Context) error
}

// Push adds the reversal of a step that has just succeeded.
func (s *Stack) Push(name string, undo func(context.Context) error) {
	s.steps = append(s.steps, step{name, undo})
}

// Unwind runs the pushed steps, last first, if *err is set, and forgets them. It goes on after ctx is cancelled
// and after a step that fails; a failed step's message is added to *err, whose kind stays.
func (s *Stack) Unwind(ctx context.Context, err *error) {
	steps := s.steps
	s.steps = nil
	if *err == nil {
		return
	}
	for i := len(steps) - 1; i >= 0; i-- {
		stepCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		if failed := steps[i].undo(stepCtx); failed != nil {
			*err = fmt.Errorf("%w (and undoing %q failed: %v)", *err, steps[i].name, failed)
		}
		cancel()
	}
}
