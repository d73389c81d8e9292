package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"orlop/internal/fault"
)

const (
	auditedLeaves = 4 // nodes of level 1 that are chosen at random for an audit
	auditedChunks = 2 // in each
)

// build reads what may have changed in the volume, and uploads the chunks and nodes that no pack has.
func (w *writer) build(ctx context.Context) error {
	plan, err := w.plan(ctx)
	if err != nil {
		return err
	}
	meta, err := w.chain.lineage.NewMetaWriter(w.session.Name(), w.session.index, w.emit)
	if err != nil {
		return err
	}
	w.nodes = &liveNodes{chain: w.chain, index: w.session.index, meta: meta}
	if w.base != nil {
		if err := w.audit(ctx, plan.finish()); err != nil {
			return err
		}
	}
	if w.mistrust != nil {
		w.base = nil
		if plan, err = w.plan(ctx); err != nil {
			return err
		}
	}
	if w.base == nil { // a full backup must not depend on what is gone
		if w.absent, err = w.chain.absent(ctx, w.session.at); err != nil {
			return err
		}
	}
	return w.writeTree(ctx, plan)
}

// plan says which chunks are looked at.
func (w *writer) plan(ctx context.Context) (*Plan, error) {
	plan, err := NewPlan(w.Backup.Size, w.Backup.ChunkSize)
	if err != nil {
		return nil, err
	}
	if w.Extents == nil {
		return plan, plan.Add(Extent{Length: w.Backup.Size})
	}
	if err := w.Extents(ctx, w.base, plan.Add); err != nil {
		return nil, fmt.Errorf("find what changed: %w", err)
	}
	tail := w.Backup.Size / plan.chunkSize * plan.chunkSize
	if w.base != nil && w.base.Size > w.Backup.Size && max(tail, plan.next) < w.Backup.Size {
		// What the volume lost in its last chunk has become zeroes.
		return plan, plan.Add(Extent{Offset: max(tail, plan.next), Length: w.Backup.Size - max(tail, plan.next)})
	}
	return plan, nil
}

// planIndex returns the first of the runs that ends behind a chunk.
func planIndex(runs []planned, index int64) int {
	return sort.Search(len(runs), func(i int) bool { return runs[i].to > index })
}

// audit reads a few chunks that are said to be as in the base, and sets mistrust if one is not.
func (w *writer) audit(ctx context.Context, runs []planned) error {
	var seed [32]byte
	if err := fill(w.chain.lineage.keys.Random, seed[:]); err != nil {
		return err
	}
	random := rand.New(rand.NewChaCha8(seed))
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(w.chain.repository.parallel(auditedLeaves))
	leaves := make([]Place, auditedLeaves)
	nodes := make([]*node, auditedLeaves)
	for i := range leaves {
		choose := rand.New(rand.NewPCG(random.Uint64(), random.Uint64()))
		group.Go(func() (err error) {
			leaves[i], nodes[i], err = w.leaf(loading, choose)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, leaf := range leaves {
		if err := w.auditLeaf(leaf, nodes[i], runs, random); err != nil || w.mistrust != nil {
			return err
		}
	}
	return ctx.Err()
}

// leaf returns a node of level 1 of the base, found by taking any child at each node on the way.
func (w *writer) leaf(ctx context.Context, random *rand.Rand) (Place, *node, error) {
	tree := w.base.Tree
	at := Place{Level: levelsFor(tree.Chunks), ID: tree.Root}
	if at.ID == Hole {
		at = Place{Level: 1, Index: random.Int64N(tree.Chunks) &^ (fanout - 1)}
	}
	for {
		n, err := loadNode(ctx, w.nodes, at.Level, at.ID)
		if err != nil || at.Level == 1 {
			return at, n, err
		}
		var children []int
		for i, id := range n {
			if id != Hole {
				children = append(children, i)
			}
		}
		i := children[random.IntN(len(children))]
		at = Place{Level: at.Level - 1, Index: at.Index + int64(i)*span(at.Level-1), ID: n[i]}
	}
}

// auditLeaf compares chunks of a leaf, holes too, that the plan leaves out.
func (w *writer) auditLeaf(leaf Place, n *node, runs []planned, random *rand.Rand) error {
	chunk := int64(w.Backup.ChunkSize)
	chunks := min(chunksOf(w.Backup.Size, w.Backup.ChunkSize), w.base.Tree.Chunks)
	var choice []int64
	for index := leaf.Index; index < min(leaf.Index+fanout, chunks); index++ {
		if at := planIndex(runs, index); at == len(runs) || runs[at].from > index {
			choice = append(choice, index)
		}
	}
	random.Shuffle(len(choice), func(i, j int) { choice[i], choice[j] = choice[j], choice[i] })
	hasher, data := w.chain.lineage.Hasher(), make([]byte, chunk)
	for _, index := range choice[:min(len(choice), auditedChunks)] {
		offset := index * chunk
		wanted := data[:min(chunk, w.Backup.Size-offset)]
		if got, err := w.Source.ReadAt(wanted, offset); got < len(wanted) {
			return fmt.Errorf("read %d bytes at %d of a volume of %d: %w", len(wanted), offset, w.Backup.Size, errors.Join(err, io.ErrUnexpectedEOF))
		}
		clear(data[len(wanted):])
		w.stats.Read += int64(len(wanted))
		id := Hole
		if slices.ContainsFunc(data, func(b byte) bool { return b != 0 }) {
			id = hasher.Sum(TypeChunk, 0, data)
		}
		if id != n[index-leaf.Index] {
			w.mistrust = fault.Errorf(fault.ErrCorrupt, "%d bytes at %d were said not to have changed since backup %s, and did", len(wanted), offset, w.base.ID())
			return nil
		}
	}
	return nil
}

// writeTree reads what the plan says and makes the tree.
func (w *writer) writeTree(ctx context.Context, plan *Plan) error {
	var base Tree
	if w.base != nil {
		base = w.base.Tree
	}
	runs := plan.finish()
	if err := w.nodes.prefetch(ctx, base, runs); err != nil {
		return err
	}
	builder, err := NewBuilder(ctx, w.nodes, base, chunksOf(w.Backup.Size, w.Backup.ChunkSize))
	if err != nil {
		return err
	}
	var done, total int64
	for _, run := range runs {
		total += w.bytes(run)
	}
	pipeline := &Pipeline{
		Lineage: w.chain.lineage, Session: w.session.Name(), Index: w.session.index, Source: w.Source, Plan: plan, Emit: w.emit,
		Chunk: func(ctx context.Context, from, to int64, id ChunkID) error {
			if run := runs[planIndex(runs, from)]; w.Progress != nil && !run.hole {
				done += w.bytes(planned{from: from, to: to})
				w.Progress(done, total)
			}
			return builder.Range(ctx, from, to, id)
		},
	}
	stats, err := pipeline.Run(ctx)
	if err != nil {
		return err
	}
	w.stats.Read += stats.Read
	w.stats.New += stats.New
	w.tree, err = builder.Finish(ctx)
	return err
}

// bytes is how many bytes of the volume are read for a run.
func (w *writer) bytes(run planned) int64 {
	if run.hole {
		return 0
	}
	chunk := int64(w.Backup.ChunkSize)
	return min(run.to*chunk, w.Backup.Size) - run.from*chunk
}

// liveNodes are the nodes of trees whose records an index knows. It fails with errDangling if the index knows none, and
// with errAbsent if the pack is not in the store. It is safe for concurrent use as long as nothing is stored.
type liveNodes struct {
	chain *chain
	index *Index
	meta  *MetaWriter
	ahead map[ChunkID][]byte // read before they are asked for
}

// Load returns a node.
func (n *liveNodes) Load(ctx context.Context, level int, id ChunkID) ([]byte, error) {
	if data, there := n.ahead[id]; there {
		return data, nil
	}
	return n.chain.record(ctx, n.index, TypeNode, level, id)
}

// Store writes a node.
func (n *liveNodes) Store(ctx context.Context, level int, encoded []byte) (ChunkID, error) {
	return n.meta.Store(ctx, level, encoded)
}

// nodesAhead is how many nodes are read before they are asked for. They have 8 KiB at most.
const nodesAhead = 4096

// prefetch reads the nodes of a tree that lead to the chunks of a plan, many at once. If they are too many, it reads those
// that are nearest to the root. What holes cover is needed at their edges only.
func (n *liveNodes) prefetch(ctx context.Context, tree Tree, runs []planned) error {
	n.ahead = map[ChunkID][]byte{}
	if tree.Root == Hole {
		return nil
	}
	level := map[ChunkID]Place{tree.Root: {Level: levelsFor(tree.Chunks), ID: tree.Root}}
	for depth := levelsFor(tree.Chunks); depth > 0 && len(level) <= nodesAhead-len(n.ahead); depth-- {
		next := map[ChunkID]Place{}
		err := n.chain.nodes(ctx, n.index, depth, slices.Collect(maps.Keys(level)), func(id ChunkID, data []byte, of *node) error {
			n.ahead[id] = data
			for slot, child := range of {
				at := Place{Level: depth - 1, Index: level[id].Index + int64(slot)*span(depth-1), ID: child}
				if _, seen := next[child]; child != Hole && !seen && touches(runs, at) {
					next[child] = at
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		level = next
	}
	return nil
}

// touches tells whether a plan reads what is below a place, or begins or ends a hole there.
func touches(runs []planned, at Place) bool {
	from, to := at.Index, at.Index+span(at.Level)
	for i := planIndex(runs, from); i < len(runs) && runs[i].from < to; i++ {
		run := runs[i]
		if !run.hole || run.from > from || run.to < to {
			return true
		}
	}
	return false
}
