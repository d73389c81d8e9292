package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// exitCodes is the exit code of each kind of failure.
var exitCodes = map[fault.Kind]int{
	fault.ErrFailed:      1,
	fault.ErrInvalid:     2,
	fault.ErrNotFound:    3,
	fault.ErrExists:      4,
	fault.ErrInUse:       4,
	fault.ErrProtected:   4,
	fault.ErrNoSpace:     5,
	fault.ErrUnreachable: 6,
	fault.ErrCorrupt:     7,
	fault.ErrUnsupported: 8,
}

// exitCode is what the process exits with after err, 0 for nil.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if code, ok := exitCodes[fault.KindOf(interrupted(err))]; ok {
		return code
	}
	return 1
}

// interrupted makes of the failure of what was cut short by ^C a plain one that says so. It returns others as they are.
func interrupted(err error) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), context.Canceled.Error(), "interrupted"))
}

// report writes an error to w, as JSON if asked to.
func report(w io.Writer, err error, asJSON bool) {
	err = withRemedy(interrupted(err))
	if !asJSON {
		fmt.Fprintf(w, "orlop: %v\n", err)
		return
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(control.NewErrorBody(err)) // there is nowhere else to say it
}

// forEach calls do for every name, tells of each failure at once, and returns the first.
func (c *cli) forEach(names []string, do func(name string) error) (first error) {
	for _, name := range names {
		err := do(name)
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		report(c.stderr, err, c.json)
	}
	if first != nil {
		return reported{first}
	}
	return nil
}

// reported is an error that the user has been told of.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }
