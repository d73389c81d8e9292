package repo

import (
	"orlop/internal/fault"
)

// An Extent is a range of a volume that a backup must look at: its bytes may differ from the base's, or it reads as
// zeroes.
type Extent struct {
	Offset int64
	Length int64 // above 0
	Hole   bool
}

// A Plan is the chunks that a backup must look at, made of extents. Chunks in no extent are as in the base.
type Plan struct {
	size      int64
	chunkSize int64
	runs      []planned
	next      int64  // where the next extent may begin
	hole      Extent // of the last extents, as long as they were holes without gaps; its Length may be 0
}

// planned is the chunks from index from up to, and without, to.
type planned struct {
	from, to int64
	hole     bool
}

// NewPlan returns an empty plan for a volume of size bytes; fault.ErrInvalid if either size cannot be.
func NewPlan(size int64, chunkSize int) (*Plan, error) {
	if err := checkChunkSize(chunkSize); err != nil {
		return nil, err
	}
	if size < 1 {
		return nil, fault.Errorf(fault.ErrInvalid, "a volume of %d bytes", size)
	}
	return &Plan{size: size, chunkSize: int64(chunkSize)}, nil
}

// Add adds an extent behind all those added before, within the volume; others are fault.ErrInvalid. A chunk that is no
// hole throughout is read as a whole.
func (p *Plan) Add(e Extent) error {
	if e.Offset < p.next || e.Length < 1 || e.Length > p.size-e.Offset {
		return fault.Errorf(fault.ErrInvalid, "extent of %d bytes at %d of a volume of %d follows one that ends at %d", e.Length, e.Offset, p.size, p.next)
	}
	if p.hole.Length > 0 && (!e.Hole || e.Offset > p.next) {
		p.endHole()
	}
	p.next = e.Offset + e.Length
	switch {
	case !e.Hole:
		p.add(planned{e.Offset / p.chunkSize, p.above(p.next), false})
	case p.hole.Length > 0:
		p.hole.Length += e.Length
	default:
		p.hole = e
	}
	return nil
}

// endHole adds the chunks that the hole covers as holes, and those at its edges to be read.
func (p *Plan) endHole() {
	from, end := p.hole.Offset, p.hole.Offset+p.hole.Length
	p.hole = Extent{}
	first, last := p.above(from), end/p.chunkSize
	if end == p.size {
		last = p.above(end)
	}
	if first > last { // within one chunk
		first = last
	}
	p.add(planned{from / p.chunkSize, first, false})
	p.add(planned{first, last, true})
	p.add(planned{last, p.above(end), false})
}

// above is the number of chunks that bytes up to offset touch.
func (p *Plan) above(offset int64) int64 { return chunksOf(offset, int(p.chunkSize)) }

// add appends chunks, without those that are there already: the last chunk of one extent may be the first of the next.
func (p *Plan) add(run planned) {
	if len(p.runs) > 0 {
		run.from = max(run.from, p.runs[len(p.runs)-1].to)
	}
	if run.from >= run.to {
		return
	}
	if len(p.runs) > 0 {
		if last := &p.runs[len(p.runs)-1]; last.to == run.from && last.hole == run.hole {
			last.to = run.to
			return
		}
	}
	p.runs = append(p.runs, run)
}

// finish returns what was planned.
func (p *Plan) finish() []planned {
	if p.hole.Length > 0 {
		p.endHole()
	}
	return p.runs
}
