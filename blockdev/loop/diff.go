package loop

import (
	"context"
	"fmt"
	"os"

	"orlop/blockdev"
)

// Differ compares images by their maps: the same place in the filesystem holds the same bytes. Its time follows the
// number of extents.
func (p *Pool) Differ() (blockdev.Differ, bool) { return differ{p}, true }

type differ struct{ pool *Pool }

// Open opens the image itself.
func (d differ) Open(_ context.Context, id blockdev.ID) (blockdev.Reader, error) {
	f, size, err := d.pool.openToRead(id)
	if err != nil {
		return nil, err
	}
	return &reader{f, size}, nil
}

type reader struct {
	*os.File
	size int64
}

func (r *reader) Size() int64 { return r.size }

// openToRead opens an image and tells its size in bytes.
func (p *Pool) openToRead(id blockdev.ID) (*os.File, int64, error) {
	stat, err := p.stat(id)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(p.image(id))
	if err != nil {
		return nil, 0, p.notFound(id, err)
	}
	return f, stat.Size, nil
}

// Diff compares the maps of two images.
func (d differ) Diff(ctx context.Context, from, to blockdev.ID, fn func(blockdev.Extent) error) error {
	target, _, err := d.pool.openToRead(to)
	if err != nil {
		return err
	}
	defer target.Close()
	var base *os.File
	if from != "" {
		if base, _, err = d.pool.openToRead(from); err != nil {
			return err
		}
		defer base.Close()
	}
	return diffFiles(ctx, base, target, fn)
}

// diffFiles reports where to differs from from, as blockdev.Differ.Diff does; a nil from is an empty file.
func diffFiles(ctx context.Context, from, to *os.File, fn func(blockdev.Extent) error) error {
	c, err := newComparison(from, to)
	if err != nil {
		return err
	}
	return c.run(ctx, fn)
}

// nothing is the map of a file that has only a hole.
type nothing struct{}

func (nothing) read(_, end int64) ([]mapped, int64, error) { return nil, end, nil }

// A comparison merges the maps of two files, a window of some thousand extents at a time. Filesystems may move
// extents meanwhile (a balance of btrfs does, immutable files or not), and put others into their places: two maps
// that show the same place prove the same bytes only if both were true at one instant. Therefore from is read before
// and after to, and bytes are equal where all three show one place. That a range is a hole stays true, as nobody
// writes the files.
type comparison struct {
	from, to, again mapReader // again reads from once more
	size            int64     // to's
}

func newComparison(from, to *os.File) (*comparison, error) {
	target, err := newExtentMap(to, fiemapBatch)
	if err != nil {
		return nil, err
	}
	c := &comparison{from: nothing{}, to: target, again: nothing{}, size: target.size}
	if from == nil {
		return c, nil
	}
	for _, reader := range []*mapReader{&c.from, &c.again} {
		if *reader, err = newExtentMap(from, fiemapBatch); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *comparison) run(ctx context.Context, fn func(blockdev.Extent) error) error {
	out := joiner{fn: fn}
	for start := int64(0); start < c.size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("compare images: %w", err)
		}
		before, end, err := c.from.read(start, c.size)
		if err != nil {
			return err
		}
		target, end, err := c.to.read(start, end)
		if err != nil {
			return err
		}
		after, end, err := c.again.read(start, end)
		if err != nil {
			return err
		}
		if err := merge(before, target, after, start, end, out.add); err != nil {
			return err
		}
		start = end
	}
	return out.flush()
}

// merge calls fn for each run of bytes in [start, end) that cannot be told to be equal.
func merge(before, target, after []mapped, start, end int64, fn func(blockdev.Extent) error) error {
	maps := [3]cursor{{extents: before}, {extents: target}, {extents: after}}
	for start < end {
		next := end
		for i := range maps {
			next = min(next, maps[i].advance(start))
		}
		run := blockdev.Extent{Offset: start, Length: next - start, Kind: blockdev.Data}
		was, is, still := maps[0].at(start), maps[1].at(start), maps[2].at(start)
		start = next
		switch {
		case is == nil && was == nil && still == nil:
			continue
		case is == nil:
			run.Kind = blockdev.Hole
		case was != nil && still != nil && was.known && is.known && still.known:
			place := is.place(run.Offset)
			if was.place(run.Offset) == place && still.place(run.Offset) == place {
				continue
			}
		}
		if err := fn(run); err != nil {
			return err
		}
	}
	return nil
}

// place is where the filesystem has the byte at offset.
func (m *mapped) place(offset int64) uint64 { return m.physical + uint64(offset-m.start) }

// A cursor goes through extents by rising offset.
type cursor struct{ extents []mapped }

// advance goes to offset and returns where the extent or hole there ends.
func (c *cursor) advance(offset int64) (end int64) {
	for len(c.extents) > 0 && c.extents[0].end <= offset {
		c.extents = c.extents[1:]
	}
	switch {
	case len(c.extents) == 0:
		return 1<<63 - 1
	case c.extents[0].start > offset:
		return c.extents[0].start
	}
	return c.extents[0].end
}

// at is the extent at the offset that the cursor advanced to, or nil in a hole.
func (c *cursor) at(offset int64) *mapped {
	if len(c.extents) == 0 || c.extents[0].start > offset {
		return nil
	}
	return &c.extents[0]
}

// A joiner joins runs of one kind that follow each other.
type joiner struct {
	fn      func(blockdev.Extent) error
	pending blockdev.Extent
}

func (j *joiner) add(run blockdev.Extent) error {
	if j.pending.Length > 0 && j.pending.End() == run.Offset && j.pending.Kind == run.Kind {
		j.pending.Length += run.Length
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.pending = run
	return nil
}

func (j *joiner) flush() error {
	if j.pending.Length == 0 {
		return nil
	}
	return j.fn(j.pending)
}
