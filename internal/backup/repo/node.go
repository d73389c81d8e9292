package repo

import (
	"math/bits"

	"orlop/internal/fault"
)

const (
	fanout     = 256
	fanoutBits = 8
	maxLevels  = 6 // of 64 KiB chunks, 2^47 make the largest size that an int64 holds

	nodeVersion = 1
	nodeHeader  = 2 + fanout/8
	nodeMax     = nodeHeader + fanout*32
)

// A node is the IDs of 256 children, Hole where everything below is zeroes. Encoded it is:
//
//	0   1   version, 1
//	1   1   level: 1 if the children are chunks, else one more than theirs
//	2   32  a bit for each child that is not a hole: child i is bit i%8 (1<<(i%8)) of byte i/8
//	34  32n the IDs of those children in order
//
// A node without children is a hole and never encoded, so that each node has one encoding.
type node [fanout]ChunkID

// encode appends the node's encoding to dst.
func (n *node) encode(dst []byte, level int) []byte {
	dst = append(dst, nodeVersion, byte(level))
	var bitmap [fanout / 8]byte
	for i := range n {
		if n[i] != Hole {
			bitmap[i/8] |= 1 << (i % 8)
		}
	}
	dst = append(dst, bitmap[:]...)
	for i := range n {
		if n[i] != Hole {
			dst = append(dst, n[i][:]...)
		}
	}
	return dst
}

// decodeNode reads a node of that level; everything that encode does not return is fault.ErrCorrupt.
func decodeNode(data []byte, level int) (*node, error) {
	if len(data) < nodeHeader || data[0] != nodeVersion {
		return nil, fault.Errorf(fault.ErrCorrupt, "tree node is truncated or of an unknown version")
	}
	if int(data[1]) != level {
		return nil, fault.Errorf(fault.ErrCorrupt, "tree node is of level %d instead of %d", data[1], level)
	}
	bitmap, ids := data[2:nodeHeader], data[nodeHeader:]
	count := 0
	for _, b := range bitmap {
		count += bits.OnesCount8(b)
	}
	if count == 0 || len(ids) != count*len(ChunkID{}) {
		return nil, fault.Errorf(fault.ErrCorrupt, "tree node of %d bytes has %d children", len(data), count)
	}
	n := new(node)
	for i := range n {
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		n[i] = ChunkID(ids[:len(ChunkID{})])
		if n[i] == Hole {
			return nil, fault.Errorf(fault.ErrCorrupt, "child %d of a tree node is there and a hole", i)
		}
		ids = ids[len(ChunkID{}):]
	}
	return n, nil
}

// empty tells whether the node is a hole.
func (n *node) empty() bool { return *n == node{} }

// span is how many chunks a node of that level covers, and 1 for level 0.
func span(level int) int64 { return 1 << (fanoutBits * level) }

// slot is which child of its node of that level leads to a chunk.
func slot(index int64, level int) int {
	return int(index>>(fanoutBits*(level-1))) & (fanout - 1)
}

// levelsFor is the level of the root of a tree over that many chunks: the smallest whose span covers them, at least 1.
func levelsFor(chunks int64) int {
	level := 1
	for span(level) < chunks {
		level++
	}
	return level
}
