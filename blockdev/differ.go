package blockdev

import (
	"context"
	"io"
)

// ExtentKind tells what a device holds in an Extent.
type ExtentKind int

// The kinds of extents. Data may be zeroes all the same; a Hole reads as zeroes.
const (
	Data ExtentKind = iota
	Hole
)

// An Extent is a range of a device, in bytes.
type Extent struct {
	Offset int64
	Length int64 // above 0
	Kind   ExtentKind
}

// End is the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// A Differ knows which bytes differ between two devices, and reads them. Nobody may write either device meanwhile:
// they are sealed, or their user sees to it.
type Differ interface {
	// Diff calls fn, by rising offset, for each extent in which to differs from from, with its kind in to. Extents
	// do not overlap; they may cover equal bytes but never omit different ones. Only to's size is covered; where to
	// is the larger one, it differs wherever something is allocated. With from empty Diff reports every allocated
	// extent. An error of fn ends it and is returned as it is. It fails with fault.ErrNotFound if either device is
	// not there.
	Diff(ctx context.Context, from, to ID, fn func(Extent) error) error

	// Open opens a device to be read, active or not. It fails with fault.ErrNotFound if there is none.
	Open(ctx context.Context, id ID) (Reader, error)
}

// A Reader reads a device from outside, without activating it. Holes read as zeroes, and io.EOF comes at Size. It is
// safe for concurrent use until it is closed.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64 // in bytes, when it was opened
}
