package repo

import (
	"context"
	"errors"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// nodePacks is how many metadata packs a reading keeps in memory; they have about 4 MiB.
const nodePacks = 6

// A reading finds the records of one lineage as long as a backup is read, in whichever packs are live meanwhile. It is
// the Nodes of trees that are only read. It is not safe for concurrent use.
type reading struct {
	lineage *Lineage
	objects store.Store
	index   *Index

	// renew returns where everything is now. It is told what was not found in the index that it returned last: a pack that
	// is not there, or no pack for an id; and fails with fault.ErrCorrupt if it should be there, and with
	// fault.ErrNotFound if what is read was deleted meanwhile.
	renew func(ctx context.Context, absent PackName, unknown error) (*Index, error)

	packs []packInMemory // metadata packs, the last used one last
	bad   map[place]error
	gone  map[PackName]error // live packs that are not there
}

// A place is one copy of a record.
type place struct {
	pack PackName
	id   ChunkID
}

type packInMemory struct {
	name PackName
	data []byte
}

// errUnknown tells that no pack in the index holds a record.
type errUnknown struct{ id ChunkID }

func (e errUnknown) Error() string { return errMissing(e.id).Error() }

// find returns where a good copy of a record is. It fails with errUnknown if the index knows none at all, and with what is
// wrong with one if all are bad.
func (r *reading) find(t Type, level int, id ChunkID) (ref PackRef, e Entry, err error) {
	err = errUnknown{id}
	r.index.FindAll(id, func(inRef PackRef, inPack Entry) bool {
		ref, e = inRef, inPack
		if err = r.gone[ref.Name]; err == nil {
			err = r.bad[place{ref.Name, id}]
		}
		if err == nil && (e.Type != t || int(e.Level) != level) {
			err = corrupt(ref.Name.String(), "%v is of type %d and level %d instead of %d and %d", &e, e.Type, e.Level, t, level)
		}
		return err != nil
	})
	return ref, e, err
}

// spurn remembers that a copy of a record is bad.
func (r *reading) spurn(pack PackName, id ChunkID, err error) {
	if r.bad == nil {
		r.bad = map[place]error{}
	}
	r.bad[place{pack, id}] = err
}

// again makes a newer index the current one. seen is the one in which something was not found. A pack that should be there
// is not looked for again.
func (r *reading) again(ctx context.Context, seen *Index, absent PackName, unknown error) error {
	if seen != r.index {
		return nil
	}
	index, err := r.renew(ctx, absent, unknown)
	if unknown == nil && fault.Is(err, fault.ErrCorrupt) {
		if r.gone == nil {
			r.gone = map[PackName]error{}
		}
		r.gone[absent] = err
		return nil
	}
	if err != nil {
		return err
	}
	r.index = index
	return nil
}

// Load returns a tree node. It reads whole metadata packs: nodes that are needed together were written together.
func (r *reading) Load(ctx context.Context, level int, id ChunkID) ([]byte, error) {
	return r.record(ctx, TypeNode, level, id)
}

// Store always fails: a reading only reads.
func (r *reading) Store(context.Context, int, []byte) (ChunkID, error) {
	return Hole, fault.Errorf(fault.ErrInvalid, "a backup that is read does not change")
}

// record returns a record of a metadata pack, from the first place in which it is good.
func (r *reading) record(ctx context.Context, t Type, level int, id ChunkID) ([]byte, error) {
	for {
		seen := r.index
		ref, e, err := r.find(t, level, id)
		var unknown errUnknown
		if errors.As(err, &unknown) {
			if err := r.again(ctx, seen, PackName{}, err); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		plaintext, err := r.open(ctx, ref, e)
		switch {
		case fault.Is(err, fault.ErrNotFound):
			if err := r.again(ctx, seen, ref.Name, nil); err != nil {
				return nil, err
			}
		case fault.Is(err, fault.ErrCorrupt):
			r.spurn(ref.Name, id, err)
		default:
			return plaintext, err
		}
	}
}

// open reads a record of a metadata pack.
func (r *reading) open(ctx context.Context, ref PackRef, e Entry) ([]byte, error) {
	pack, err := r.pack(ctx, ref)
	if err != nil {
		return nil, err
	}
	if int64(e.Offset)+int64(e.Sealed) > int64(len(pack)) {
		return nil, corrupt(ref.Name.String(), "%v", store.Truncated(int64(len(pack)), int64(e.Offset), int64(e.Sealed)))
	}
	return r.lineage.OpenRecord(ref, e, pack[e.Offset:e.Offset+e.Sealed])
}

// pack returns the bytes of a metadata pack.
func (r *reading) pack(ctx context.Context, ref PackRef) ([]byte, error) {
	for i, p := range r.packs {
		if p.name == ref.Name {
			r.packs = append(append(r.packs[:i:i], r.packs[i+1:]...), p)
			return p.data, nil
		}
	}
	data, err := r.objects.Get(ctx, ref.Name.String())
	if err != nil {
		return nil, err
	}
	if len(r.packs) >= nodePacks {
		r.packs = r.packs[1:]
	}
	r.packs = append(r.packs, packInMemory{ref.Name, data})
	return data, nil
}

// errLost is the fault.ErrCorrupt of a pack that is live and not there, or of a record that no live pack holds.
func errLost(absent PackName, unknown error) error {
	if unknown != nil {
		return fault.Errorf(fault.ErrCorrupt, "%v", unknown)
	}
	return corrupt(absent.String(), "it is missing")
}

// errDeleted is the fault.ErrNotFound of a backup that was deleted while it was read.
func errDeleted(b *Backup) error {
	return fault.Errorf(fault.ErrNotFound, "backup %s was deleted meanwhile", b.ID())
}
