package repo

import (
	"context"

	"orlop/internal/fault"
)

// A Place is a node or a chunk in a tree.
type Place struct {
	Level int   // 0 is a chunk
	Index int64 // of the first chunk that is there
	ID    ChunkID
}

// Walk calls fn for each node and each chunk of a tree that is not a hole, a node before what is below it, chunks by
// rising index. Where fn returns false for a node, Walk leaves out what is below without loading it. An error of fn
// ends it and is returned as it is.
func Walk(ctx context.Context, nodes Nodes, tree Tree, fn func(Place) (bool, error)) error {
	if err := tree.check(); err != nil || tree.Root == Hole {
		return err
	}
	w := walker{nodes: nodes, chunks: tree.Chunks, fn: fn}
	return w.walk(ctx, Place{Level: levelsFor(tree.Chunks), ID: tree.Root})
}

type walker struct {
	nodes  Nodes
	chunks int64
	fn     func(Place) (bool, error)
}

func (w *walker) walk(ctx context.Context, at Place) error {
	if at.Index >= w.chunks {
		return errBehind(at, w.chunks)
	}
	descend, err := w.fn(at)
	if err != nil || !descend || at.Level == 0 {
		return err
	}
	n, err := loadNode(ctx, w.nodes, at.Level, at.ID)
	if err != nil {
		return err
	}
	for i, id := range n {
		if id == Hole {
			continue
		}
		child := Place{Level: at.Level - 1, Index: at.Index + int64(i)*span(at.Level-1), ID: id}
		if err := w.walk(ctx, child); err != nil {
			return err
		}
	}
	return nil
}

func errBehind(at Place, chunks int64) error {
	return fault.Errorf(fault.ErrCorrupt, "a tree of %d chunks has %s at chunk %d", chunks, at.ID, at.Index)
}

// Diff calls fn for each chunk index by rising order at which two trees have different IDs, either of which may be
// Hole. It loads only nodes that differ. A tree of fewer chunks has holes behind its end. An error of fn ends it and is
// returned as it is.
func Diff(ctx context.Context, nodes Nodes, from, to Tree, fn func(index int64, from, to ChunkID) error) error {
	for _, tree := range []Tree{from, to} {
		if err := tree.check(); err != nil {
			return err
		}
	}
	level := max(levelsFor(from.Chunks), levelsFor(to.Chunks))
	d := differ{nodes: nodes, chunks: [2]int64{from.Chunks, to.Chunks}, fn: fn}
	return d.diff(ctx, level, 0, [2]raised{raise(from, level), raise(to, level)})
}

// raised is a subtree in the place of one that is by levels higher: the first child of its first child and so on.
type raised struct {
	id ChunkID
	by int
}

func raise(tree Tree, level int) raised {
	if tree.Root == Hole {
		return raised{}
	}
	return raised{tree.Root, level - levelsFor(tree.Chunks)}
}

type differ struct {
	nodes  Nodes
	chunks [2]int64
	fn     func(index int64, from, to ChunkID) error
}

// diff compares the subtrees of a level that begin at index.
func (d *differ) diff(ctx context.Context, level int, index int64, pair [2]raised) error {
	if pair[0] == pair[1] {
		return nil
	}
	for side, at := range pair {
		if at.id != Hole && index >= d.chunks[side] {
			return errBehind(Place{Index: index, ID: at.id}, d.chunks[side])
		}
	}
	if level == 0 {
		return d.fn(index, pair[0].id, pair[1].id)
	}
	var children [2]*node
	for side, at := range pair {
		if at.by > 0 {
			continue
		}
		n, err := loadNode(ctx, d.nodes, level, at.id)
		if err != nil {
			return err
		}
		children[side] = n
	}
	for i := range fanout {
		var below [2]raised
		for side, at := range pair {
			switch {
			case children[side] != nil:
				below[side].id = children[side][i]
			case i == 0:
				below[side] = raised{at.id, at.by - 1}
			}
		}
		if err := d.diff(ctx, level-1, index+int64(i)*span(level-1), below); err != nil {
			return err
		}
	}
	return nil
}
