// Package store is the contract between the backup repository and what keeps its objects. A directory is one
// implementation (store/dirstore); store/storetest holds the suite that each must pass, and a store in memory.
package store

import (
	"context"
	"strings"

	"orlop/internal/fault"
)

// Limits on what a store keeps, in bytes. Every store takes what is within them.
const (
	MaxName    = 512      // length of a name: S3 takes 1,024 together with the prefix of the place
	MaxSegment = 128      // length of one segment of it: some encrypted filesystems take no more than 143
	MaxSize    = 64 << 20 // size of an object
)

// An Object is what List tells of one.
type Object struct {
	Name string
	Size int64 // bytes
}

// A Store keeps immutable objects under names.
//
// What the medium must guarantee, or the implementation must refuse it with fault.ErrUnsupported:
//
//   - Exclusive creation: of all the Puts of one name, by whatever hosts and however many at once, one succeeds.
//   - Whole objects: nobody ever gets, lists or is refused a name because of a part of an object.
//   - Read after write: once Put has returned, or anyone has seen the object, every Get, GetRange and List that
//     begins later, on any host, sees it, until it is deleted. The same holds for its absence after Delete.
//   - Durability: what Put has stored, and what it refused a name for, survives a power cut from here on.
//
// A Delete need not survive one: an object that nobody else has put again may be back after it, whole.
//
// Errors. An error of Put other than fault.ErrExists and fault.ErrInvalid leaves open whether the object is there, and
// on a network it may still appear later. fault.ErrExists may be due to an earlier attempt of the same Put that
// was thought to have failed, whether by the caller or inside the store: who must know, compares what is there.
// A Delete that failed may likewise have happened, or happen later. fault.ErrNoSpace, fault.ErrUnreachable and others
// may come from every method that meets a full or absent medium; fault.ErrNotFound means the object and nothing else.
//
// Names are those that CheckName accepts, prefixes those of CheckPrefix, others are fault.ErrInvalid and never reach
// the medium. A name must not be a directory of another, as a is of a/b: Put may refuse it with fault.ErrInvalid, what
// is read or listed below an object may be fault.ErrCorrupt, and callers must not depend on either.
//
// All methods may be called at once, for the same names too, in any number of processes on any number of hosts.
// They return early with ctx's error when it is done, with nothing changed if it was done before. No method keeps the
// caller's slices, and the caller owns what is returned.
type Store interface {
	// Put stores data under name. It fails with fault.ErrExists if the name is taken, and with fault.ErrInvalid if
	// there are more than MaxSize bytes.
	Put(ctx context.Context, name string, data []byte) error

	// Get returns the whole object, or fault.ErrNotFound. What the medium shows in its place and cannot be an object,
	// as a file larger than MaxSize, is fault.ErrCorrupt, and so is what the medium cannot give back.
	Get(ctx context.Context, name string) ([]byte, error)

	// GetRange returns exactly length bytes from offset on, or fault.ErrNotFound. An object that ends before that is
	// fault.ErrCorrupt: callers know how long their objects are. What the medium cannot give back is fault.ErrCorrupt
	// too. A negative offset and a length of less than 1 byte are fault.ErrInvalid.
	GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error)

	// List calls fn for every object whose name starts with prefix, by rising names in the order of their bytes, with no
	// limit to their number. A prefix is a whole directory with its slash, so that "a/1/" does not cover a/10/x, or
	// empty for all; one without objects lists nothing, but one that the medium shows to be no directory is
	// fault.ErrCorrupt. Objects that are there from List's beginning to its end are
	// listed once; those put or deleted meanwhile once or not at all, without an error. fn may call the store. An error
	// of fn ends the listing and is returned as it is.
	List(ctx context.Context, prefix string, fn func(Object) error) error

	// Delete removes the object. It succeeds if there is none.
	Delete(ctx context.Context, name string) error
}

// CheckName fails with fault.ErrInvalid unless name is fit for an object: segments of a-z, 0-9, dot, underscore and
// hyphen, with slashes between them, each of 1 to MaxSegment bytes, of at most MaxName bytes in all. No segment begins
// or ends with a dot: filesystems keep things of their own in the first, and some drop the second.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fault.Errorf(fault.ErrInvalid, "object name of %d bytes: at most %d are allowed", len(name), MaxName)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if !IsSegment(segment) {
			return fault.Errorf(fault.ErrInvalid, "object name %q: bad segment %q", name, segment)
		}
	}
	return nil
}

// IsSegment tells whether s may stand between the slashes of a name.
func IsSegment(s string) bool {
	if s == "" || len(s) > MaxSegment || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// CheckPrefix fails with fault.ErrInvalid unless prefix is empty or a name with a slash after it.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	name, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fault.Errorf(fault.ErrInvalid, "prefix %q: does not end with a slash", prefix)
	}
	return CheckName(name)
}

// CheckPut fails with fault.ErrInvalid unless an object of size bytes may be put under name.
func CheckPut(name string, size int) error {
	if size > MaxSize {
		return fault.Errorf(fault.ErrInvalid, "object %s of %d bytes: at most %d are allowed", name, size, MaxSize)
	}
	return CheckName(name)
}

// CheckRange fails with fault.ErrInvalid unless GetRange may be asked for length bytes from offset on.
func CheckRange(name string, offset, length int64) error {
	if offset < 0 || length < 1 || offset+length < 0 {
		return fault.Errorf(fault.ErrInvalid, "range of object %s: %d bytes at %d", name, length, offset)
	}
	return CheckName(name)
}

// Truncated is the fault.ErrCorrupt of an object of size bytes that is too short for a range. It does not name it.
func Truncated(size, offset, length int64) error {
	return fault.Errorf(fault.ErrCorrupt, "truncated: it has %d bytes, wanted %d at %d", size, length, offset)
}
