// Package fault names the kinds of failure that callers act on. A kind is decided once, at the edge that
// knows it, and read in two places only: the exit codes of the command line and the HTTP status table.
package fault

import (
	"errors"
	"fmt"
	"syscall"
)

// A Kind classifies a failure. It is an error itself, so that errors.Is(err, fault.ErrNotFound) tells whether
// err is of that kind. Its text is what the control API and --json show.
type Kind string

// The kinds of failure. ErrFailed is the kind of every error that names no other.
const (
	ErrFailed      Kind = "failed"
	ErrInvalid     Kind = "invalid"
	ErrNotFound    Kind = "not_found"
	ErrExists      Kind = "exists"
	ErrInUse       Kind = "in_use"
	ErrProtected   Kind = "protected"
	ErrNoSpace     Kind = "no_space"
	ErrUnreachable Kind = "unreachable"
	ErrCorrupt     Kind = "corrupt"
	ErrUnsupported Kind = "unsupported"
)

// Error returns the kind's name.
func (k Kind) Error() string { return string(k) }

// Header is the field in an HTTP answer that carries the kind of the error it tells of.
const Header = "Orlop-Error-Kind"

type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func (f *fault) Is(target error) bool {
	kind, ok := target.(Kind)
	return ok && kind == f.kind
}

// Errorf is fmt.Errorf with a kind. The kind replaces that of an error wrapped with %w.
func Errorf(kind Kind, format string, args ...any) error {
	return &fault{kind: kind, err: fmt.Errorf(format, args...)}
}

// KindOf returns the outermost kind in err's chain, and "" for nil. Where there is none, it is ErrNoSpace for an error
// that tells of a full disk, and ErrFailed for others.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	var kind Kind
	if errors.As(err, &kind) {
		return kind
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return ErrNoSpace
	}
	return ErrFailed
}

// Is tells whether err's outermost kind is kind. Unlike errors.Is it does not look at kinds that an outer one
// replaced.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// Join joins errors as errors.Join does, into one of the kind of the first that is not nil; nil if there is none.
func Join(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return Errorf(KindOf(err), "%w", errors.Join(errs...))
		}
	}
	return nil
}

// A Remedy says what may help against a failure. It names no command: whoever shows the failure to a user does.
type Remedy struct {
	Code        string `json:"code"`
	Destination string `json:"destination,omitempty"` // URL of a backup destination
	Volume      string `json:"volume,omitempty"`      // name
	Encrypted   bool   `json:"encrypted,omitempty"`
}

// RemedyOf returns the remedy of the first error in err's chain that has one, by a method FaultRemedy; ok is false if none
// has.
func RemedyOf(err error) (r Remedy, ok bool) {
	var remedied interface {
		error
		FaultRemedy() Remedy
	}
	if !errors.As(err, &remedied) {
		return r, false
	}
	return remedied.FaultRemedy(), true
}

// WithRemedy returns err with a remedy, as it came over a socket, say.
func WithRemedy(err error, r Remedy) error { return remedied{err, r} }

type remedied struct {
	error
	remedy Remedy
}

func (r remedied) Unwrap() error       { return r.error }
func (r remedied) FaultRemedy() Remedy { return r.remedy }
