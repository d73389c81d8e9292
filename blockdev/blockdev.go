// Package blockdev is the contract between Orlop and the stores that block devices come from. Sparse images on
// loop devices are one implementation (blockdev/loop); blockdev/blockdevtest holds the suite that each must pass.
package blockdev

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"

	"orlop/internal/fault"
)

// An ID names a device in its pool and for ever: it is minted, never reused, and never made from what a user
// typed, so that it may stand in file names.
type ID string

// NewID mints an ID: a UUIDv7, so that IDs sort by their age.
func NewID() ID { return ID(uuid.Must(uuid.NewV7()).String()) }

// ParseID accepts what NewID mints, in its canonical spelling.
func ParseID(s string) (ID, error) {
	parsed, err := uuid.Parse(s)
	if err != nil || parsed.String() != s {
		return "", fault.Errorf(fault.ErrInvalid, "device id %q: not a canonical UUID", s)
	}
	return ID(s), nil
}

// A Record describes what a device is for, in JSON that the pool keeps beside the device and never reads. The
// metadata can be rebuilt from the records alone.
type Record = json.RawMessage

// Mode tells how a device is activated.
type Mode int

// The modes of Activate.
const (
	ReadWrite Mode = iota // fault.ErrProtected if the device is sealed
	ReadOnly
)

// Info describes a device.
type Info struct {
	ID     ID
	Size   int64  // bytes; may exceed what was asked for, to the pool's granularity; 0 if the data is missing
	Used   int64  // bytes that the pool has allocated for it
	Path   string // the device node while active, else empty
	Record Record // as last given to Create, Clone or Describe; nil if there is none; from List only
}

// Space tells how full a pool is, for its tightest layer.
type Space struct {
	Layer  string // what is tightest, in words: "pool filesystem", "host filesystem /var/lib/orlop"
	Size   int64  // bytes in that layer that devices can have
	Free   int64  // bytes left in it
	Remedy string // what makes room in it, for people
}

// Used is the share of the layer that is in use, from 0 to 1.
func (s Space) Used() float64 {
	if s.Size <= 0 {
		return 1
	}
	return 1 - float64(s.Free)/float64(s.Size)
}

// Traits are what callers must know of a kind of pool.
type Traits struct {
	Kind         string // "loop": what users call this kind of pool
	InstantClone bool   // Clone costs no copy of the data
	Quiesces     bool   // Clone of a mounted device is consistent by itself: never freeze above it
	Granularity  int64  // bytes: sizes of devices are rounded up to a multiple of it
}

// A Pool creates block devices and copies them.
//
// Clone is the one copying primitive. A snapshot is a clone that nobody writes, which Seal makes sure of, a volume
// made from a snapshot is a clone of that, and a rollback is a clone that the metadata store swaps in for the
// volume's old device.
//
// Prepare does ahead, while src may be in use, what it can of a Clone, so that Clone is short. A prepared dst is no
// device yet: only Clone and Remove know it, and List may show it with size 0. Clone finishes it, whatever was
// written to src since, with the record that it is given itself; in return nobody may write src while Clone runs,
// which otherwise copies one instant of it. It pays only if Clone follows soon.
//
// Replace gives id the data of by, at once or not at all, and by is gone; id keeps its record. Both must be inactive,
// or it fails with fault.ErrInUse. After a crash id has the one data or the other, and Remove of by succeeds.
//
// Create, Prepare and Clone fail with fault.ErrExists if the device is there; cut short, they leave no device, or
// one that Remove deletes. The other methods converge, as does Prepare: asked for what is already so, they succeed.
// Create, Describe, Grow, Seal, Replace and Remove are durable on return, file and directory; a clone is after Sync, so that
// writers need not wait for it. Recovery depends on these rules.
//
// Methods that name a device fail with fault.ErrNotFound if there is none, except Deactivate and Remove, which
// then have nothing left to do. Calls for different devices may run at once, Stat, List and Space beside
// anything; the caller puts the other calls for one device in order.
type Pool interface {
	Create(ctx context.Context, id ID, size int64, record Record) error // reads as zeroes; fault.ErrNoSpace
	Prepare(ctx context.Context, dst, src ID, record Record) error      // copies ahead what Clone would; may do nothing
	Clone(ctx context.Context, dst, src ID, record Record) error        // dst = src as it is now, not sealed
	Describe(ctx context.Context, id ID, record Record) error           // replaces the record
	Sync(ctx context.Context, id ID) error                              // the device survives a power cut from here on
	Seal(ctx context.Context, id ID) error                              // for ever read-only; fault.ErrInUse if active as ReadWrite
	Grow(ctx context.Context, id ID, size int64) error                  // never shrinks; fault.ErrProtected if sealed
	Replace(ctx context.Context, id, by ID) error                       // fault.ErrProtected if either is sealed
	Activate(ctx context.Context, id ID, mode Mode) (path string, err error)
	Deactivate(ctx context.Context, id ID) error   // fault.ErrInUse if anyone holds it
	Remove(ctx context.Context, id ID) error       // fault.ErrInUse if active; sealed or not
	Stat(ctx context.Context, id ID) (Info, error) // size, used, path
	List(ctx context.Context) ([]Info, error)      // every device, unknown ones included
	Space(ctx context.Context) (Space, error)      // every layer below, the tightest one named
	Differ() (Differ, bool)                        // not a type assertion: decorators would hide it
	Traits() Traits
}
