package repo

import (
	"context"
	"slices"
)

// markBatch is how many nodes are put into the order of their packs at once.
const markBatch = 1 << 14

// marks are the records of an index that a head needs: all that is reachable from its backups and from the bases of its
// sessions.
type marks struct {
	chain *chain
	index *Index // which does not change meanwhile
	bits  []uint64
}

// mark finds what a head needs. It fails with errDangling if the index lacks a record, with errAbsent if a pack is not in
// the store, and with fault.ErrCorrupt if a node is damaged.
func (c *chain) mark(ctx context.Context, h *Head, index *Index) (*marks, error) {
	m := &marks{chain: c, index: index, bits: make([]uint64, (index.Records()+63)/64)}
	levels := make([][]ChunkID, maxLevels+1)
	root := func(tree Tree) error {
		if tree.Root == Hole {
			return nil
		}
		isNew, err := m.set(tree.Root)
		if level := levelsFor(tree.Chunks); isNew {
			levels[level] = append(levels[level], tree.Root)
		}
		return err
	}
	hasher := c.lineage.Hasher()
	for _, r := range h.Records {
		// The record serves to repair the chain; a backup can be restored without.
		if id := hasher.Sum(TypeBackup, 0, r.encoded); index.Has(id) {
			if _, err := m.set(id); err != nil {
				return nil, err
			}
		}
		if err := root(r.Tree); err != nil {
			return nil, err
		}
	}
	for _, s := range h.Sessions {
		for _, base := range s.Bases {
			if err := root(base); err != nil {
				return nil, err
			}
		}
	}
	for level := maxLevels; level > 0; level-- {
		for batch := range slices.Chunk(levels[level], markBatch) {
			below, err := m.children(ctx, level, batch)
			if err != nil {
				return nil, err
			}
			levels[level-1] = append(levels[level-1], below...)
		}
		levels[level] = nil
	}
	return m, nil
}

// set marks a record, and tells whether it was not marked before.
func (m *marks) set(id ChunkID) (bool, error) {
	m.index.mu.RLock()
	defer m.index.mu.RUnlock()
	n, there := m.index.find(id)
	if !there {
		return false, errDangling{id}
	}
	isNew := m.bits[n/64]&(1<<(n%64)) == 0
	m.bits[n/64] |= 1 << (n % 64)
	return isNew, nil
}

// has tells whether a record that the index has is marked. The caller holds the index's lock.
func (m *marks) has(id ChunkID) bool {
	n, there := m.index.find(id)
	return there && m.bits[n/64]&(1<<(n%64)) != 0
}

// children marks what nodes of a level refer to, and returns the nodes among that which were not marked before.
func (m *marks) children(ctx context.Context, level int, ids []ChunkID) (below []ChunkID, err error) {
	err = m.chain.nodes(ctx, m.index, level, ids, func(_ ChunkID, _ []byte, n *node) error {
		for _, id := range n {
			if id == Hole {
				continue
			}
			isNew, err := m.set(id)
			if err != nil {
				return err
			}
			if isNew && level > 1 {
				below = append(below, id)
			}
		}
		return nil
	})
	return below, err
}

// A usage is how much of a pack is marked.
type usage struct {
	ref           PackRef
	marked, total int   // records
	bytes, all    int64 // sealed, of those
}

// usage tells how much of each pack of the index is marked, in the order of the packs.
func (m *marks) usage() []usage {
	m.index.mu.RLock()
	defer m.index.mu.RUnlock()
	packs := make([]usage, len(m.index.packs))
	for n := range uint32(m.index.count) {
		x := m.index.at(n)
		if m.index.packs[x.pack].dropped {
			continue
		}
		u, sealed := &packs[x.pack], int64(x.sealed&lowBits)
		u.ref = m.index.packs[x.pack].ref
		u.total++
		u.all += sealed
		if m.has(x.id) {
			u.marked++
			u.bytes += sealed
		}
	}
	return slices.DeleteFunc(packs, func(u usage) bool { return u.total == 0 })
}
