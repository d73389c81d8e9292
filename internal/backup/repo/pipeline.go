package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	emitting    = 2        // packs that are handed out at once
	bufferLimit = 32 << 20 // bytes of all chunks between reader and pack, compressed ones included
)

// A Pipeline reads what a plan says and writes what no pack has yet: reader, zero test, hash, known?, compress, seal,
// pack, emit. It holds at most 32 MiB of chunks and three packs, 128 MiB in all, and keeps GOMAXPROCS cores busy. Chunks
// stand in packs in the order of their index.
type Pipeline struct {
	Lineage *Lineage
	Session string
	Index   *Index
	Source  io.ReaderAt // what the plan covers; nobody writes it meanwhile
	Plan    *Plan

	// Emit stores a pack, which the pipeline then adds to the index. Two calls may run at once; they must not keep the
	// pack's bytes.
	Emit func(ctx context.Context, pack Pack) error

	// Chunk takes what the plan's chunks are, by rising index: those from index from up to, and without, to have this ID.
	// It may be called before the chunk's pack is emitted.
	Chunk func(ctx context.Context, from, to int64, id ChunkID) error
}

// Stats tells what was done, in bytes.
type Stats struct {
	Read   int64 `json:"read"`   // from the volume
	New    int64 `json:"new"`    // of these, in chunks that no pack had
	Stored int64 `json:"stored"` // in the packs for them
}

// A job is one chunk, or a run of holes, on its way to the pack. Jobs and their buffers are used again.
type job struct {
	planned
	plaintext []byte
	space     []byte // for the compressed chunk
	done      chan struct{}

	id      ChunkID
	payload []byte // plaintext or in space; nil if a pack has the chunk
	flags   byte
}

// flow is one run of a pipeline.
type flow struct {
	*Pipeline
	chunk int64 // bytes
	zero  []byte

	free  chan *job
	work  chan *job
	order chan *job // as the plan has them

	mu      sync.Mutex
	pending map[ChunkID]bool // in packs that are not in the index yet

	pack   *packWriter
	spaces chan []byte // for packs
	stats  Stats       // Stored under mu
}

// Run does it all once. It ends with the first error of the source, of Emit or of Chunk, or with ctx's; then packs may have
// been emitted that nobody needs. It returns when nothing runs any more.
func (p *Pipeline) Run(ctx context.Context) (Stats, error) {
	if err := CheckLabel(p.Session); err != nil {
		return Stats{}, err
	}
	workers := runtime.GOMAXPROCS(0)
	f := &flow{
		Pipeline: p, chunk: p.Plan.chunkSize, zero: make([]byte, p.Plan.chunkSize), pending: map[ChunkID]bool{},
		spaces: make(chan []byte, emitting+1),
	}
	jobs := max(2, min(4*workers, bufferLimit/2/int(f.chunk)))
	f.free, f.work, f.order = make(chan *job, jobs), make(chan *job, jobs), make(chan *job, jobs)
	for range jobs {
		f.free <- &job{done: make(chan struct{}, 1)}
	}
	for range emitting + 1 {
		f.spaces <- nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.feed(ctx) })
	for range min(workers, jobs) {
		compressor, err := newCompressor(int(f.chunk))
		if err != nil {
			group.Go(func() error { return err })
			break
		}
		group.Go(func() error { return f.process(compressor) })
	}
	group.Go(func() error { return f.assemble(ctx) })
	err := group.Wait()
	return f.stats, err
}

// feed makes jobs of the plan.
func (f *flow) feed(ctx context.Context) error {
	defer close(f.order)
	defer close(f.work)
	for _, run := range f.Plan.finish() {
		for from := run.from; from < run.to; from++ {
			var j *job
			select {
			case j = <-f.free:
			case <-ctx.Done():
				return ctx.Err()
			}
			j.planned = planned{from, from + 1, run.hole}
			j.id, j.payload, j.flags = Hole, nil, 0
			f.order <- j // there is room for every job
			if run.hole {
				j.to, from = run.to, run.to
				j.done <- struct{}{}
				continue
			}
			f.work <- j
		}
	}
	return nil
}

// process takes jobs until there are no more.
func (f *flow) process(c *compressor) error {
	hasher := f.Lineage.Hasher()
	for j := range f.work {
		if err := f.read(j); err != nil {
			return err
		}
		if !bytes.Equal(j.plaintext, f.zero) {
			j.id = hasher.Sum(TypeChunk, 0, j.plaintext)
			if !f.known(j.id) {
				if j.space == nil {
					j.space = make([]byte, 0, c.encoder.MaxEncodedSize(int(f.chunk)))
				}
				j.payload, j.flags = c.compress(j.space, j.plaintext)
			}
		}
		j.done <- struct{}{}
	}
	return nil
}

// read fills the job's plaintext, the volume's last chunk with zeroes at its end.
func (f *flow) read(j *job) error {
	if j.plaintext == nil {
		j.plaintext = make([]byte, f.chunk)
	}
	offset := j.from * f.chunk
	wanted := j.plaintext[:min(f.chunk, f.Plan.size-offset)]
	n, err := f.Source.ReadAt(wanted, offset)
	if n < len(wanted) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d of a volume of %d: %w", len(wanted), offset, f.Plan.size, err)
	}
	clear(j.plaintext[n:])
	return nil
}

func (f *flow) known(id ChunkID) bool {
	f.mu.Lock()
	pending := f.pending[id]
	f.mu.Unlock()
	// A pack's records are put into the index before they cease to be pending.
	return pending || f.Index.Has(id)
}

// assemble takes the jobs by their order, and puts those that are new into packs.
func (f *flow) assemble(ctx context.Context) (err error) {
	emits, emitCtx := errgroup.WithContext(ctx)
	emits.SetLimit(emitting)
	defer func() {
		if failed := emits.Wait(); failed != nil {
			err = failed // the cause of emitCtx's end
		}
	}()
	for j := range f.order {
		select {
		case <-j.done:
		case <-emitCtx.Done():
			return emitCtx.Err()
		}
		if err := f.take(emitCtx, emits, j); err != nil {
			return err
		}
		f.free <- j
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.ship(emitCtx, emits)
	return nil
}

func (f *flow) take(ctx context.Context, emits *errgroup.Group, j *job) error {
	if !j.hole {
		f.stats.Read += min(f.chunk, f.Plan.size-j.from*f.chunk)
	}
	// Of two equal chunks that were hashed at once, the second finds the first here.
	if j.payload != nil && !f.known(j.id) {
		if err := f.put(ctx, emits, j); err != nil {
			return err
		}
	}
	return f.Chunk(ctx, j.from, j.to, j.id)
}

func (f *flow) put(ctx context.Context, emits *errgroup.Group, j *job) error {
	if f.pack != nil && !f.pack.fits(len(j.payload)) {
		f.ship(ctx, emits)
	}
	if f.pack == nil {
		var space []byte
		select {
		case space = <-f.spaces:
		case <-ctx.Done():
			return ctx.Err()
		}
		if space == nil {
			space = make([]byte, 0, packSpace(DataPack))
		}
		pack, err := f.Lineage.newPackWriter(f.Session, DataPack, space)
		if err != nil {
			return err
		}
		f.pack = pack
	}
	f.pack.add(Entry{ID: j.id, Type: TypeChunk, Length: uint32(f.chunk), flags: j.flags}, j.payload)
	f.mu.Lock()
	f.pending[j.id] = true
	f.mu.Unlock()
	f.stats.New += f.chunk
	return nil
}

// ship finishes and emits the pack that was being filled, beside what else runs.
func (f *flow) ship(ctx context.Context, emits *errgroup.Group) {
	if f.pack == nil {
		return
	}
	writer := f.pack
	f.pack = nil
	emits.Go(func() error {
		pack := writer.finish()
		if err := f.Emit(ctx, pack); err != nil {
			return err
		}
		f.Index.Add(pack.Ref, pack.Entries)
		f.mu.Lock()
		for _, e := range pack.Entries {
			delete(f.pending, e.ID)
		}
		f.stats.Stored += pack.Ref.Size
		f.mu.Unlock()
		f.spaces <- pack.Bytes
		return nil
	})
}
