package fault_test

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"orlop/internal/fault"
)

func TestOutermostKindCounts(t *testing.T) {
	inner := fault.Errorf(fault.ErrNotFound, "device %d: %w", 7, io.EOF)
	wrapped := fmt.Errorf("activate: %w", inner)
	replaced := fault.Errorf(fault.ErrCorrupt, "mount: %w", wrapped)
	for _, c := range []struct {
		err  error
		kind fault.Kind
		text string
	}{
		{nil, "", ""},
		{io.EOF, fault.ErrFailed, "EOF"},
		{inner, fault.ErrNotFound, "device 7: EOF"},
		{wrapped, fault.ErrNotFound, "activate: device 7: EOF"},
		{replaced, fault.ErrCorrupt, "mount: activate: device 7: EOF"},
		{fmt.Errorf("start: %w", replaced), fault.ErrCorrupt, "start: mount: activate: device 7: EOF"},
		{errors.Join(io.EOF, inner), fault.ErrNotFound, "EOF\ndevice 7: EOF"},
	} {
		if kind := fault.KindOf(c.err); kind != c.kind {
			t.Errorf("%v is %q, want %q", c.err, kind, c.kind)
		}
		if c.err == nil {
			continue
		}
		if c.err.Error() != c.text {
			t.Errorf("%q, want %q", c.err, c.text)
		}
		if !fault.Is(c.err, c.kind) || fault.Is(c.err, fault.ErrInUse) {
			t.Errorf("%v: Is disagrees with KindOf", c.err)
		}
	}
	if !errors.Is(replaced, fault.ErrNotFound) || !errors.Is(replaced, io.EOF) || fault.Is(replaced, fault.ErrNotFound) {
		t.Error("the cause is for errors.Is to find, its kind is replaced")
	}
	if fault.Is(nil, "") {
		t.Error("no error is of a kind")
	}
}

func TestErrorsThatAreJoinedAreOfTheKindOfTheFirst(t *testing.T) {
	damage := fault.Errorf(fault.ErrCorrupt, "damage")
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	for _, test := range []struct {
		errs []error
		kind fault.Kind
	}{
		{nil, ""},
		{[]error{nil, nil}, ""},
		{[]error{io.EOF, damage}, fault.ErrFailed},
		{[]error{nil, damage, io.EOF}, fault.ErrCorrupt},
		{[]error{full, damage}, fault.ErrNoSpace},
	} {
		got := fault.Join(test.errs...)
		if kind := fault.KindOf(got); kind != test.kind {
			t.Errorf("%q: kind %q, want %q", test.errs, kind, test.kind)
		}
		for _, err := range test.errs {
			if err != nil && !errors.Is(got, err) {
				t.Errorf("%q is lost: %v", err, got)
			}
		}
	}
}
