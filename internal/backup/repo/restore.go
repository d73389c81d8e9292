package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/internal/fault"
)

const (
	// restoreWindow is how many chunks are looked up and put into the order of their packs at once.
	restoreWindow = 1 << 16

	// restoreRange is how many bytes of a pack are asked for at once, unless one record is longer.
	restoreRange = 4 << 20

	// restoreGap is how many bytes between two records are read and thrown away rather than asked for around.
	restoreGap = 64 << 10

	// restoring is how many ranges are on their way at once.
	restoring = 8

	// restoreTold is how often Restore.Progress is called at most.
	restoreTold = 100 * time.Millisecond
)

// A Target is what a backup is restored to. Its methods may be called at once for parts that do not overlap.
type Target interface {
	io.WriterAt

	// Hole makes a part read as zeroes.
	Hole(offset, length int64) error
}

// A Restore writes the content of one backup to a target. Every chunk is checked against its ID before it is written.
// Memory is bounded by 100 MiB besides the index, whatever the size of the backup. Cut short, it leaves some chunks written and others not;
// it can be run again.
type Restore struct {
	Backup *Backup
	Target Target

	// Base is the backup that the target holds now, of the same lineage and chunk size, and still in the repository:
	// only what differs is read and written. With nil the target reads as zeroes throughout. In both cases it reads as
	// zeroes behind the base's end.
	Base *Backup

	// Found, if it is set, reads the target, which may then hold anything: what is right is not fetched again, and
	// what must read as zeroes is made to. Base must be nil.
	Found io.ReaderAt

	// Progress, if it is set, is told how many bytes of the volume are done: every 100 ms at most, one call at a time, and at
	// the end that all are. A file is then flushed to the disk.
	Progress func(done, total int64)
}

// Restored tells what was done, in bytes.
type Restored struct {
	Fetched int64 `json:"fetched"` // from the store
	Written int64 `json:"written"` // of chunks, to the target
	Present int64 `json:"present"` // of chunks that were there already
}

// restorer is one run of a Restore.
type restorer struct {
	Restore
	records *reading
	chunk   int64
	next    int64 // index of the first chunk behind those that the tree was asked for
	hole    extentOfHoles
	window  []placed
	mu      sync.Mutex // guards what follows
	stats   Restored
	missing []placed
	absent  []PackName // packs that are not there
	pending int64      // chunks of the window that are not in the target yet
	told    time.Time  // when Progress was called
}

// placed is a chunk that has to be at an index.
type placed struct {
	index int64
	id    ChunkID
}

// extentOfHoles is the chunks from index from up to, and without, to.
type extentOfHoles struct{ from, to int64 }

// restore runs a Restore, given what finds its records.
func (o Restore) restore(ctx context.Context, records *reading) (Restored, error) {
	if err := o.check(); err != nil {
		return Restored{}, err
	}
	r := &restorer{Restore: o, records: records, chunk: int64(o.Backup.ChunkSize)}
	var base Tree
	if o.Base != nil {
		base = o.Base.Tree
	}
	err := Diff(ctx, records, base, o.Backup.Tree, func(index int64, _, id ChunkID) error {
		return r.take(ctx, index, id)
	})
	if err == nil {
		err = r.finish(ctx)
	}
	if err != nil {
		return r.stats, fmt.Errorf("restore backup %s: %w", o.Backup.ID(), err)
	}
	return r.stats, nil
}

func (o Restore) check() error {
	switch {
	case o.Base != nil && o.Found != nil:
		return fault.Errorf(fault.ErrInvalid, "restore backup %s: both on top of a backup and of anything", o.Backup.ID())
	case o.Base != nil && (o.Base.Lineage != o.Backup.Lineage || o.Base.ChunkSize != o.Backup.ChunkSize):
		return fault.Errorf(fault.ErrInvalid, "restore backup %s: backup %s has other chunks", o.Backup.ID(), o.Base.ID())
	}
	return nil
}

// take puts a chunk that differs into the window, or makes a hole of it. With Found, chunks that Diff leaves out are
// holes too.
func (r *restorer) take(ctx context.Context, index int64, id ChunkID) error {
	if index >= r.Backup.Tree.Chunks {
		return nil // the base was longer
	}
	if r.Found != nil && index > r.next {
		if err := r.punch(r.next, index); err != nil {
			return err
		}
	}
	r.next = index + 1
	if id == Hole {
		return r.punch(index, index+1)
	}
	r.window = append(r.window, placed{index, id})
	r.mu.Lock()
	r.pending++
	r.mu.Unlock()
	if len(r.window) < restoreWindow {
		return nil
	}
	return r.flush(ctx)
}

// punch makes holes of chunks; neighbours become one hole.
func (r *restorer) punch(from, to int64) error {
	if r.hole.to == from {
		r.hole.to = to
		return nil
	}
	err := r.endHole()
	r.hole = extentOfHoles{from, to}
	return err
}

func (r *restorer) endHole() error {
	offset, end := r.hole.from*r.chunk, min(r.hole.to*r.chunk, r.Backup.Size)
	r.hole = extentOfHoles{}
	if offset >= end {
		return nil
	}
	return r.Target.Hole(offset, end-offset)
}

func (r *restorer) finish(ctx context.Context) error {
	if r.Found != nil && r.next < r.Backup.Tree.Chunks {
		if err := r.punch(r.next, r.Backup.Tree.Chunks); err != nil {
			return err
		}
	}
	if err := r.endHole(); err != nil {
		return err
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	if r.Progress != nil {
		r.Progress(r.Backup.Size, r.Backup.Size)
	}
	return nil
}

// progress tells that chunks of the window are in the target. The caller holds mu.
func (r *restorer) progress(chunks int64) {
	r.pending -= chunks
	if now := time.Now(); r.Progress != nil && now.Sub(r.told) >= restoreTold {
		r.told = now
		r.Progress(min((r.next-r.pending)*r.chunk, r.Backup.Size), r.Backup.Size)
	}
}

// flush writes the chunks of the window, and looks again for those whose packs were replaced meanwhile.
func (r *restorer) flush(ctx context.Context) error {
	if r.Found != nil {
		if err := r.keepRight(ctx); err != nil {
			return err
		}
	}
	for len(r.window) > 0 {
		seen := r.records.index
		ranges, err := r.locate()
		if err == nil {
			err = r.fetchAll(ctx, ranges)
		}
		if err != nil {
			var unknown errUnknown
			if !errors.As(err, &unknown) {
				return err
			}
			if err := r.records.again(ctx, seen, PackName{}, err); err != nil {
				return err
			}
			continue
		}
		absent := r.absent
		r.window, r.missing, r.absent = r.missing, nil, nil
		if len(absent) > 0 {
			if err := r.records.again(ctx, seen, absent[0], nil); err != nil {
				return err
			}
		}
	}
	r.window = r.window[:0]
	return nil
}

// located is where a chunk is.
type located struct {
	placed
	entry Entry
}

// A packRange is chunks that are read from a pack at once, by their offsets.
type packRange struct {
	ref    PackRef
	chunks []located
	end    uint32
}

// locate groups the window's chunks into ranges. It fails as reading.find does for the first chunk
// that is nowhere good.
func (r *restorer) locate() ([]packRange, error) {
	byPack := map[PackName]*packRange{}
	for _, p := range r.window {
		ref, e, err := r.chunkCopy(p.id)
		if err != nil {
			return nil, err
		}
		if byPack[ref.Name] == nil {
			byPack[ref.Name] = &packRange{ref: ref}
		}
		of := byPack[ref.Name]
		of.chunks = append(of.chunks, located{p, e})
	}
	var ranges []packRange
	for _, of := range byPack {
		slices.SortFunc(of.chunks, func(a, b located) int {
			return cmp.Or(cmp.Compare(a.entry.Offset, b.entry.Offset), cmp.Compare(a.index, b.index))
		})
		ranges = append(ranges, split(*of)...)
	}
	// Packs were filled by rising index.
	slices.SortFunc(ranges, func(a, b packRange) int { return cmp.Compare(a.chunks[0].index, b.chunks[0].index) })
	return ranges, nil
}

// chunkCopy returns where a good copy of a chunk is. A copy of another length is not one. It fails as reading.find does.
func (r *restorer) chunkCopy(id ChunkID) (PackRef, Entry, error) {
	for {
		ref, e, err := r.records.find(TypeChunk, 0, id)
		if err != nil || int64(e.Length) == r.chunk {
			return ref, e, err
		}
		r.records.spurn(ref.Name, id, corrupt(ref.Name.String(), "%v is no chunk of %d bytes", &e, r.chunk))
	}
}

// split cuts a pack's chunks into ranges that are neither too long nor full of holes.
func split(of packRange) (ranges []packRange) {
	for _, c := range of.chunks {
		end := c.entry.Offset + c.entry.Sealed
		if len(ranges) > 0 {
			last := &ranges[len(ranges)-1]
			if c.entry.Offset <= last.end+restoreGap && end-last.chunks[0].entry.Offset <= restoreRange {
				last.chunks, last.end = append(last.chunks, c), end
				continue
			}
		}
		ranges = append(ranges, packRange{of.ref, []located{c}, end})
	}
	return ranges
}

func (r *restorer) fetchAll(ctx context.Context, ranges []packRange) error {
	group, fetching := errgroup.WithContext(ctx)
	group.SetLimit(restoring)
	for _, from := range ranges {
		if fetching.Err() != nil {
			break
		}
		group.Go(func() error { return r.fetch(fetching, from) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// fetch reads a range and writes its chunks. Those whose pack is not there any more become missing, and those that are
// damaged are looked for elsewhere.
func (r *restorer) fetch(ctx context.Context, from packRange) error {
	start := from.chunks[0].entry.Offset
	data, err := r.records.objects.GetRange(ctx, from.ref.Name.String(), int64(start), int64(from.end-start))
	switch {
	case fault.Is(err, fault.ErrNotFound):
		r.miss(from, nil)
		return nil
	case fault.Is(err, fault.ErrCorrupt) && len(from.chunks) == 1:
		r.miss(from, err)
		return nil
	case fault.Is(err, fault.ErrCorrupt): // truncated, perhaps behind some of them
		for _, c := range from.chunks {
			if err := r.fetch(ctx, packRange{from.ref, []located{c}, c.entry.Offset + c.entry.Sealed}); err != nil {
				return err
			}
		}
		return nil
	case err != nil:
		return err
	}
	var plaintext []byte
	for i, c := range from.chunks {
		if i == 0 || c.id != from.chunks[i-1].id {
			sealed := data[c.entry.Offset-start:][:c.entry.Sealed]
			if plaintext, err = r.records.lineage.OpenRecord(from.ref, c.entry, sealed); err != nil {
				plaintext = nil
			}
		}
		if plaintext == nil {
			r.miss(packRange{from.ref, from.chunks[i : i+1], 0}, err)
			continue
		}
		n, err := r.write(c.index, plaintext)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.stats.Written += n
		r.progress(1)
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Fetched += int64(len(data))
	return nil
}

// miss puts chunks back: because their pack is not there, or their copies in it are bad.
func (r *restorer) miss(from packRange, bad error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range from.chunks {
		r.missing = append(r.missing, c.placed)
		if bad != nil {
			r.records.spurn(from.ref.Name, c.id, bad)
		}
	}
	if bad == nil {
		r.absent = append(r.absent, from.ref.Name)
	}
}

func (r *restorer) write(index int64, plaintext []byte) (int64, error) {
	offset := index * r.chunk
	part := plaintext[:min(r.chunk, r.Backup.Size-offset)]
	if _, err := r.Target.WriteAt(part, offset); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(part), offset, err)
	}
	return int64(len(part)), nil
}

// keepRight takes those chunks out of the window that the target holds already.
func (r *restorer) keepRight(ctx context.Context) error {
	workers := runtime.GOMAXPROCS(0)
	each := (len(r.window) + workers - 1) / workers
	group, ctx := errgroup.WithContext(ctx)
	var wrong []placed
	for part := range slices.Chunk(r.window, max(each, 1)) {
		group.Go(func() error {
			found, present, err := r.compare(ctx, part)
			r.mu.Lock()
			defer r.mu.Unlock()
			wrong = append(wrong, found...)
			r.stats.Present += present
			return err
		})
	}
	err := group.Wait()
	r.window = wrong
	return err
}

// compare returns the chunks that the target does not hold, and the bytes of the others.
func (r *restorer) compare(ctx context.Context, chunks []placed) (wrong []placed, present int64, err error) {
	hasher, buffer := r.records.lineage.Hasher(), make([]byte, r.chunk)
	for _, c := range chunks {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		offset := c.index * r.chunk
		part := buffer[:min(r.chunk, r.Backup.Size-offset)]
		n, err := r.Found.ReadAt(part, offset)
		if n < len(part) {
			return nil, 0, fmt.Errorf("read %d bytes at %d of the target: %w", len(part), offset, err)
		}
		clear(buffer[n:])
		if hasher.Sum(TypeChunk, 0, buffer) == c.id {
			present += int64(n)
			r.mu.Lock()
			r.progress(1)
			r.mu.Unlock()
		} else {
			wrong = append(wrong, c)
		}
	}
	return wrong, present, nil
}
