package repo

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/internal/fault"
)

const (
	nodesRange  = 4 << 20  // bytes of a pack that are read at once
	nodesGap    = 64 << 10 // bytes between two nodes that are read and thrown away rather than asked for around
	nodesAtOnce = 8        // ranges
)

// record returns a record from the first pack in which it is good.
func (c *chain) record(ctx context.Context, index *Index, t Type, level int, id ChunkID) (data []byte, err error) {
	err = errDangling{id}
	for _, at := range index.places(id) {
		if at.entry.Type != t || int(at.entry.Level) != level {
			err = c.damaged(corrupt(at.ref.Name.String(), "%v is of type %d and level %d instead of %d and %d", &at.entry, at.entry.Type, at.entry.Level, t, level))
			continue
		}
		data, err = c.lineage.ReadRecord(ctx, c.repository.objects, at.ref, at.entry)
		switch {
		case fault.Is(err, fault.ErrNotFound):
			return nil, errAbsent{at.ref.Name}
		case fault.Is(err, fault.ErrCorrupt):
			err = c.damaged(err)
		default:
			return data, err
		}
	}
	return nil, err
}

// An indexedPlace is one copy of a record.
type indexedPlace struct {
	ref   PackRef
	entry Entry
}

func (i *Index) places(id ChunkID) (places []indexedPlace) {
	i.FindAll(id, func(ref PackRef, e Entry) bool {
		places = append(places, indexedPlace{ref, e})
		return true
	})
	return places
}

// nodes reads nodes of a level, by as few requests as will do, and hands them to fn, one at a time, in any order. It fails
// as record does, or with fn's error.
func (c *chain) nodes(ctx context.Context, index *Index, level int, ids []ChunkID, fn func(ChunkID, []byte, *node) error) error {
	runs, err := locateNodes(index, ids)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(c.repository.parallel(nodesAtOnce))
	for _, run := range runs {
		if reading.Err() != nil {
			break
		}
		group.Go(func() error {
			return c.readNodes(reading, index, level, run, func(id ChunkID, data []byte, n *node) error {
				mu.Lock()
				defer mu.Unlock()
				return fn(id, data, n)
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// locateNodes groups records into ranges of packs, each by rising offset.
func locateNodes(index *Index, ids []ChunkID) (runs [][]indexedPlace, err error) {
	places := make([]indexedPlace, 0, len(ids))
	for _, id := range ids {
		ref, e, there := index.Find(id)
		if !there {
			return nil, errDangling{id}
		}
		places = append(places, indexedPlace{ref, e})
	}
	slices.SortFunc(places, func(a, b indexedPlace) int {
		return cmp.Or(slices.Compare(a.ref.Name.ID[:], b.ref.Name.ID[:]), cmp.Compare(a.entry.Offset, b.entry.Offset))
	})
	for _, p := range places {
		if len(runs) > 0 {
			last := runs[len(runs)-1]
			end := last[len(last)-1].entry.Offset + last[len(last)-1].entry.Sealed
			if last[0].ref.Name == p.ref.Name && p.entry.Offset <= end+nodesGap && p.entry.Offset+p.entry.Sealed-last[0].entry.Offset <= nodesRange {
				runs[len(runs)-1] = append(last, p)
				continue
			}
		}
		runs = append(runs, []indexedPlace{p})
	}
	return runs, nil
}

// readNodes reads the nodes of a range. One that is damaged there is looked for elsewhere.
func (c *chain) readNodes(ctx context.Context, index *Index, level int, run []indexedPlace, fn func(ChunkID, []byte, *node) error) error {
	ref, start, last := run[0].ref, run[0].entry.Offset, run[len(run)-1].entry
	data, err := c.repository.objects.GetRange(ctx, ref.Name.String(), int64(start), int64(last.Offset+last.Sealed-start))
	if fault.Is(err, fault.ErrNotFound) {
		return errAbsent{ref.Name}
	}
	if err != nil && !fault.Is(err, fault.ErrCorrupt) {
		return err
	}
	for _, at := range run {
		var plaintext []byte
		if err == nil && at.entry.Type == TypeNode && int(at.entry.Level) == level {
			plaintext, _ = c.lineage.OpenRecord(ref, at.entry, data[at.entry.Offset-start:][:at.entry.Sealed])
		}
		if plaintext == nil {
			var failed error
			if plaintext, failed = c.record(ctx, index, TypeNode, level, at.entry.ID); failed != nil {
				return failed
			}
		}
		n, err := decodeNode(plaintext, level)
		if err != nil {
			return c.damaged(corrupt(ref.Name.String(), "%v: %v", &at.entry, err))
		}
		if err := fn(at.entry.ID, plaintext, n); err != nil {
			return err
		}
	}
	return nil
}
