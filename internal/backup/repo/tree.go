package repo

import (
	"context"
	"fmt"

	"orlop/internal/fault"
)

// maxChunks is how many chunks a tree can cover.
const maxChunks = int64(1) << (fanoutBits * maxLevels)

// A Tree is the content of a volume: the IDs of its chunks by their index, as a hash tree of nodes of 256 children. The
// leaves, nodes of level 1, hold the IDs of chunks; the root is of the lowest level that covers all chunks. What holds
// only zeroes has no node. Its shape depends on the content and the number of chunks alone, and so equal contents
// have equal roots, and equal parts of them equal nodes.
//
// Chunk i is bytes i*C to (i+1)*C of the volume for chunk size C. The last one is filled up with zeroes to C before
// its ID is taken, so that a volume that only grew keeps its chunks; its exact size stands in the Backup.
type Tree struct {
	Root   ChunkID `json:"root"` // Hole if everything is
	Chunks int64   `json:"chunks"`
}

// check refuses what cannot be a tree.
func (t Tree) check() error {
	if t.Chunks < 0 || t.Chunks > maxChunks || t.Chunks == 0 && t.Root != Hole {
		return fault.Errorf(fault.ErrCorrupt, "tree of %d chunks with root %s", t.Chunks, t.Root)
	}
	return nil
}

// Nodes keeps tree nodes.
type Nodes interface {
	// Load returns the encoded node of that level that Store returned this ID for.
	Load(ctx context.Context, level int, id ChunkID) ([]byte, error)

	// Store keeps an encoded node of that level and returns its ID, the same for the same node. The tree does not
	// change encoded afterwards.
	Store(ctx context.Context, level int, encoded []byte) (ChunkID, error)
}

// loadNode returns the node that a tree has in a place; a hole's is empty.
func loadNode(ctx context.Context, nodes Nodes, level int, id ChunkID) (*node, error) {
	if id == Hole {
		return new(node), nil
	}
	data, err := nodes.Load(ctx, level, id)
	if err != nil {
		return nil, fmt.Errorf("load tree node %s: %w", id, err)
	}
	n, err := decodeNode(data, level)
	if err != nil {
		return nil, fmt.Errorf("tree node %s: %w", id, err)
	}
	return n, nil
}

// A Builder makes a tree from another one and changes that come by rising index. It loads and stores only the nodes on
// the way to what changes, none that it stored itself, and keeps one node of each level in memory. It is not safe for
// concurrent use, and of no use after an error.
type Builder struct {
	nodes  Nodes
	chunks int64
	next   int64         // the lowest index that may change next
	root   ChunkID       // while no node is open
	open   []*openedNode // from the root's level down, each the parent of the next
	levels int

	shrinks bool // base may have chunks behind the end
}

type openedNode struct {
	node
	level   int
	first   int64 // index of the first chunk it covers
	id      ChunkID
	changed bool
}

// NewBuilder begins a tree of that many chunks that holds what base does; with a zero base, nothing but holes. Chunks of
// base beyond the new number are dropped. If base ends amid a chunk and the new size is smaller, the caller must set
// the new last chunk, as its bytes behind the end have become zeroes.
func NewBuilder(ctx context.Context, nodes Nodes, base Tree, chunks int64) (*Builder, error) {
	if err := base.check(); err != nil {
		return nil, err
	}
	if chunks < 0 || chunks > maxChunks {
		return nil, fault.Errorf(fault.ErrInvalid, "a tree of %d chunks: at most %d are allowed", chunks, maxChunks)
	}
	b := &Builder{nodes: nodes, chunks: chunks, root: base.Root, levels: levelsFor(chunks)}
	baseLevels := levelsFor(base.Chunks)
	for level := baseLevels; level > b.levels; level-- {
		n, err := loadNode(ctx, nodes, level, b.root)
		if err != nil {
			return nil, err
		}
		b.root = n[0]
	}
	if b.root != Hole && baseLevels < b.levels {
		// The old root becomes the first child of the first child and so on of the new one.
		for level := b.levels; level > baseLevels; level-- {
			b.open = append(b.open, &openedNode{level: level, changed: true})
		}
		b.open[len(b.open)-1].node[0] = b.root
		b.root = Hole
	}
	b.shrinks = chunks < base.Chunks
	return b, nil
}

// Set makes a chunk that of an ID, which may be Hole. The index must be above those of all earlier calls of Set and
// Clear, and below the number of chunks: fault.ErrInvalid.
func (b *Builder) Set(ctx context.Context, index int64, id ChunkID) error {
	if err := b.advance(index, index+1); err != nil {
		return err
	}
	return b.set(ctx, 0, index, id)
}

// Clear makes holes of the chunks from index from up to, and without, index to, under the conditions of Set. It takes
// time for the edges of the range only.
func (b *Builder) Clear(ctx context.Context, from, to int64) error {
	if err := b.advance(from, to); err != nil {
		return err
	}
	return b.clear(ctx, from, to)
}

// Range makes the chunks from index from up to, and without, index to those of one ID, under the conditions of Set; more
// than one chunk can only become holes. It fits Pipeline.Chunk.
func (b *Builder) Range(ctx context.Context, from, to int64, id ChunkID) error {
	if id == Hole {
		return b.Clear(ctx, from, to)
	}
	if to != from+1 {
		return fault.Errorf(fault.ErrInvalid, "chunks %d to %d all have ID %s", from, to, id)
	}
	return b.Set(ctx, from, id)
}

func (b *Builder) advance(from, to int64) error {
	if from < b.next || to <= from || to > b.chunks {
		return fault.Errorf(fault.ErrInvalid, "chunks %d to %d of a tree of %d do not follow those before %d", from, to, b.chunks, b.next)
	}
	b.next = to
	return nil
}

// clear covers the range with the largest subtrees that fit and makes holes of them.
func (b *Builder) clear(ctx context.Context, from, to int64) error {
	for from < to {
		level := 0
		for level < b.levels-1 && from%span(level+1) == 0 && from+span(level+1) <= to {
			level++
		}
		if err := b.set(ctx, level, from, Hole); err != nil {
			return err
		}
		from += span(level)
	}
	return nil
}

// set replaces the subtree of a level that begins at index.
func (b *Builder) set(ctx context.Context, level int, index int64, id ChunkID) error {
	parent, err := b.descend(ctx, level+1, index, id == Hole)
	if err != nil || parent == nil {
		return err
	}
	if child := &parent.node[slot(index, level+1)]; *child != id {
		*child = id
		parent.changed = true
	}
	return nil
}

// descend opens the nodes from the root to the one of a level on the way to index, and closes those on no such way. If
// the way leads through a hole, it returns nil for callers that only want to make one.
func (b *Builder) descend(ctx context.Context, level int, index int64, toClear bool) (*openedNode, error) {
	keep := len(b.open)
	for keep > 0 {
		last := b.open[keep-1]
		if last.level >= level && index < last.first+span(last.level) {
			break
		}
		keep--
	}
	if err := b.closeTo(ctx, keep); err != nil {
		return nil, err
	}
	for {
		id, below := b.root, b.levels
		if len(b.open) > 0 {
			last := b.open[len(b.open)-1]
			if last.level == level {
				return last, nil
			}
			id, below = last.node[slot(index, last.level)], last.level-1
		}
		if id == Hole && toClear {
			return nil, nil
		}
		n, err := loadNode(ctx, b.nodes, below, id)
		if err != nil {
			return nil, err
		}
		b.open = append(b.open, &openedNode{node: *n, level: below, first: index &^ (span(below) - 1), id: id})
	}
}

// closeTo closes the lowest open nodes until keep are left, and stores those that changed.
func (b *Builder) closeTo(ctx context.Context, keep int) error {
	for len(b.open) > keep {
		last := b.open[len(b.open)-1]
		b.open = b.open[:len(b.open)-1]
		id, err := b.store(ctx, last)
		if err != nil {
			return err
		}
		if len(b.open) == 0 {
			b.root = id
			continue
		}
		parent := b.open[len(b.open)-1]
		if child := &parent.node[slot(last.first, parent.level)]; *child != id {
			*child = id
			parent.changed = true
		}
	}
	return nil
}

func (b *Builder) store(ctx context.Context, n *openedNode) (ChunkID, error) {
	if !n.changed {
		return n.id, nil
	}
	if n.empty() {
		return Hole, nil
	}
	id, err := b.nodes.Store(ctx, n.level, n.encode(nil, n.level))
	if err != nil {
		return Hole, fmt.Errorf("store a tree node: %w", err)
	}
	return id, nil
}

// Finish stores what is left and returns the tree.
func (b *Builder) Finish(ctx context.Context) (Tree, error) {
	if b.shrinks {
		if err := b.clear(ctx, b.chunks, span(b.levels)); err != nil {
			return Tree{}, err
		}
	}
	if err := b.closeTo(ctx, 0); err != nil {
		return Tree{}, err
	}
	return Tree{Root: b.root, Chunks: b.chunks}, nil
}
