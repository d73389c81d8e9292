package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// planOf returns a plan that looks at the whole volume.
func planOf(t testing.TB, size int64, chunkSize int, extents ...Extent) *Plan {
	t.Helper()
	plan, err := NewPlan(size, chunkSize)
	if err != nil {
		t.Fatal(err)
	}
	if extents == nil {
		extents = []Extent{{Length: size}}
	}
	for _, e := range extents {
		if err := plan.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return plan
}

// volume is a volume in memory that counts what is read of it.
type volume struct {
	data    []byte
	read    atomic.Int64
	failing func(offset int64) error
}

func (v *volume) ReadAt(p []byte, offset int64) (int, error) {
	if v.failing != nil {
		if err := v.failing(offset); err != nil {
			return 0, err
		}
	}
	v.read.Add(int64(len(p)))
	return bytes.NewReader(v.data).ReadAt(p, offset)
}

// backedUp is a volume's backups in a memory store.
type backedUp struct {
	t       *testing.T
	lineage *Lineage
	store   *storetest.Memory
	index   *Index
	tree    Tree
}

func newBackedUp(t *testing.T) *backedUp {
	return &backedUp{t: t, lineage: newTestLineage(t), store: storetest.NewMemory(), index: NewIndex()}
}

// backup writes a plan's chunks and the tree on top of the last one.
func (b *backedUp) backup(source io.ReaderAt, plan *Plan) Stats {
	b.t.Helper()
	writer, err := b.lineage.NewMetaWriter("s", b.index, putPack(b.store))
	if err != nil {
		b.t.Fatal(err)
	}
	nodes := struct {
		Loader
		*MetaWriter
	}{Loader{b.lineage, b.store, b.index}, writer}
	builder, err := NewBuilder(b.t.Context(), nodes, b.tree, chunksOf(plan.size, int(plan.chunkSize)))
	if err != nil {
		b.t.Fatal(err)
	}
	pipeline := &Pipeline{
		Lineage: b.lineage, Session: "s", Index: b.index, Source: source, Plan: plan, Emit: putPack(b.store), Chunk: builder.Range,
	}
	stats, err := pipeline.Run(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if b.tree, err = builder.Finish(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if err := writer.Flush(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return stats
}

// restore reads the last backup of a volume of size bytes.
func (b *backedUp) restore(size int64, chunkSize int) []byte {
	b.t.Helper()
	loader := Loader{b.lineage, b.store, b.index}
	data := make([]byte, b.tree.Chunks*int64(chunkSize))
	err := Walk(b.t.Context(), struct {
		Loader
		*MetaWriter
	}{loader, nil}, b.tree, func(at Place) (bool, error) {
		if at.Level > 0 {
			return true, nil
		}
		chunk, err := loader.LoadChunk(b.t.Context(), at.ID)
		copy(data[at.Index*int64(chunkSize):], chunk)
		return true, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if !bytes.Equal(data[size:], make([]byte, len(data)-int(size))) {
		b.t.Error("something stands behind the volume's end")
	}
	return data[:size]
}

// mix fills p with what compresses, what does not, what repeats and zeroes, in pieces of any length.
func mix(r *rand.Rand, p []byte) {
	for len(p) > 0 {
		n := min(len(p), 1+r.IntN(4*MinChunk))
		switch r.IntN(4) {
		case 0:
			clear(p[:n])
		case 1:
			var seed [32]byte
			binary.LittleEndian.PutUint64(seed[:], r.Uint64())
			_, _ = rand.NewChaCha8(seed).Read(p[:n]) // never fails
		case 2:
			copy(p[:n], bytes.Repeat([]byte{byte(r.IntN(3))}, n))
		default:
			copy(p[:n], bytes.Repeat(fmt.Appendf(nil, "line %d\n", r.IntN(1000)), n/7+1))
		}
		p = p[n:]
	}
}

func TestBackupsOfAChangingVolumeRestore(t *testing.T) {
	r := newRandom(t)
	for range 6 {
		b := newBackedUp(t)
		v := &volume{data: make([]byte, 1+r.IntN(40*MinChunk))}
		mix(r, v.data)
		b.backup(v, planOf(t, int64(len(v.data)), MinChunk))
		for range 4 {
			old := len(v.data)
			v.data = append(v.data, make([]byte, r.IntN(3*MinChunk))...)
			var extents []Extent
			for at := int64(0); at < int64(old); {
				at += r.Int64N(1 + int64(old) - at)
				length := min(int64(len(v.data))-at, 1+r.Int64N(6*MinChunk))
				if length < 1 || r.IntN(5) == 0 {
					break
				}
				hole := r.IntN(2) == 0
				if hole {
					clear(v.data[at : at+length])
				} else {
					mix(r, v.data[at:at+length])
				}
				extents = append(extents, Extent{at, length, hole})
				at += length
			}
			size := int64(len(v.data))
			if extents == nil {
				extents = []Extent{{size - 1, 1, false}}
			}
			b.backup(v, planOf(t, size, MinChunk, extents...))
			if !bytes.Equal(b.restore(size, MinChunk), v.data) {
				t.Fatal("the restored volume is another")
			}
			scratch := *b
			scratch.tree = Tree{}
			if stats := scratch.backup(v, planOf(t, size, MinChunk)); scratch.tree != b.tree || stats.New != 0 || stats.Stored != 0 {
				t.Fatalf("a full backup is %v with %+v, the incremental one %v", scratch.tree, stats, b.tree)
			}
		}
	}
}

func TestHolesCostNothing(t *testing.T) {
	b := newBackedUp(t)
	v := &volume{data: bytes.Repeat([]byte("x"), 3*MinChunk)}
	const size = 1 << 50
	stats := b.backup(v, planOf(t, size, MinChunk, Extent{0, 2 * MinChunk, false}, Extent{2 * MinChunk, size - 2*MinChunk, true}))
	if v.read.Load() != 2*MinChunk || stats.Read != 2*MinChunk || stats.New != MinChunk || stats.Stored == 0 {
		t.Errorf("read %d, %+v", v.read.Load(), stats)
	}
	stats = b.backup(v, planOf(t, size, MinChunk, Extent{0, size, true}))
	if b.tree.Root != Hole || stats != (Stats{}) {
		t.Errorf("%v, %+v", b.tree, stats)
	}
}

func TestEqualChunksAreStoredOnce(t *testing.T) {
	b := newBackedUp(t)
	chunk := make([]byte, MinChunk)
	mix(rand.New(rand.NewPCG(1, 1)), chunk)
	v := &volume{data: bytes.Repeat(chunk, 500)}
	if stats := b.backup(v, planOf(t, int64(len(v.data)), MinChunk)); stats.New != MinChunk {
		t.Errorf("%+v", stats)
	}
}

// Packs follow each other in the order of the volume, and each record in its pack does.
func TestPacksAreInTheOrderOfTheVolume(t *testing.T) {
	lineage := newTestLineage(t)
	v := &volume{data: make([]byte, 70<<20)}
	if _, err := rand.NewChaCha8([32]byte{}).Read(v.data); err != nil {
		t.Fatal(err)
	}
	position := map[ChunkID]int64{}
	var mu sync.Mutex
	var packs []Pack
	pipeline := &Pipeline{
		Lineage: lineage, Session: "s", Index: NewIndex(), Source: v, Plan: planOf(t, int64(len(v.data)), DefaultChunk),
		Emit: func(_ context.Context, p Pack) error {
			mu.Lock()
			defer mu.Unlock()
			if len(p.Bytes) > packSpace(DataPack) {
				t.Errorf("pack of %d bytes", len(p.Bytes))
			}
			packs = append(packs, p)
			return nil
		},
		Chunk: func(_ context.Context, from, _ int64, id ChunkID) error {
			position[id] = from
			return nil
		},
	}
	if _, err := pipeline.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(packs, func(a, b Pack) int { return int(position[a.Entries[0].ID] - position[b.Entries[0].ID]) })
	next := int64(0)
	for _, p := range packs {
		for _, e := range p.Entries {
			if position[e.ID] != next {
				t.Fatalf("chunk %d comes where %d should", position[e.ID], next)
			}
			next++
		}
	}
	if len(packs) != 3 || next != 70<<20/DefaultChunk {
		t.Errorf("%d packs of %d chunks", len(packs), next)
	}
}

// However a run ends, it ends with that error, and nothing of it goes on.
func TestErrorsEndTheRun(t *testing.T) {
	stop := errors.New("stop")
	data := make([]byte, 80<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(data); err != nil {
		t.Fatal(err)
	}
	size := int64(len(data))
	for what, change := range map[string]func(p *Pipeline, v *volume, cancel context.CancelFunc) error{
		"source": func(_ *Pipeline, v *volume, _ context.CancelFunc) error {
			v.failing = func(offset int64) error {
				if offset > 20<<20 {
					return stop
				}
				return nil
			}
			return stop
		},
		"short source": func(_ *Pipeline, v *volume, _ context.CancelFunc) error {
			v.data = v.data[:30<<20+5]
			return io.ErrUnexpectedEOF
		},
		"emit": func(p *Pipeline, _ *volume, _ context.CancelFunc) error {
			p.Emit = func(context.Context, Pack) error { return stop }
			return stop
		},
		"chunk": func(p *Pipeline, _ *volume, _ context.CancelFunc) error {
			p.Chunk = func(_ context.Context, from, _ int64, _ ChunkID) error {
				if from == 7 {
					return stop
				}
				return nil
			}
			return stop
		},
		"cancelled before": func(_ *Pipeline, _ *volume, cancel context.CancelFunc) error {
			cancel()
			return context.Canceled
		},
		"cancelled meanwhile": func(p *Pipeline, _ *volume, cancel context.CancelFunc) error {
			p.Emit = func(ctx context.Context, _ Pack) error {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			}
			return context.Canceled
		},
		"no randomness": func(p *Pipeline, _ *volume, _ context.CancelFunc) error {
			p.Lineage.keys.Random = bytes.NewReader(nil)
			return io.EOF
		},
	} {
		t.Run(what, func(t *testing.T) {
			// The bubble's end waits for every goroutine that was started in it, and fails if one cannot end.
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				v := &volume{data: data}
				p := &Pipeline{
					Lineage: newTestLineage(t), Session: "s", Index: NewIndex(), Source: v, Plan: planOf(t, size, DefaultChunk),
					Emit:  func(context.Context, Pack) error { return nil },
					Chunk: func(context.Context, int64, int64, ChunkID) error { return nil },
				}
				want := change(p, v, cancel)
				if _, err := p.Run(ctx); !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
				}
			})
		})
	}
}

func TestPlanReadsWholeChunks(t *testing.T) {
	const c = MinChunk
	for _, test := range []struct {
		extents []Extent
		want    []planned
	}{
		{[]Extent{{0, 10 * c, false}}, []planned{{0, 10, false}}},
		{[]Extent{{5, 1, false}, {9, 1, false}, {c - 1, 2, false}}, []planned{{0, 2, false}}},
		{[]Extent{{0, 2 * c, true}, {2 * c, c, false}}, []planned{{0, 2, true}, {2, 3, false}}},
		{[]Extent{{1, 3 * c, true}}, []planned{{0, 1, false}, {1, 3, true}, {3, 4, false}}},
		{[]Extent{{c, c / 2, true}, {c + c/2, c / 2, true}}, []planned{{1, 2, true}}},
		{[]Extent{{c, c / 2, true}, {c + c/2 + 1, c/2 - 1, true}}, []planned{{1, 2, false}}},
		{[]Extent{{3, 4, true}}, []planned{{0, 1, false}}},
		{[]Extent{{3 * c, 7*c + 7, true}}, []planned{{3, 11, true}}},
		{[]Extent{{10 * c, 7, true}}, []planned{{10, 11, true}}},
		{[]Extent{{10*c + 1, 6, true}}, []planned{{10, 11, false}}},
		{[]Extent{{10 * c, 7, false}}, []planned{{10, 11, false}}},
		{[]Extent{{0, c / 2, false}, {c / 2, 2 * c, true}, {2*c + c/2, 1, false}}, []planned{{0, 1, false}, {1, 2, true}, {2, 3, false}}},
		{nil, nil},
	} {
		plan, err := NewPlan(10*c+7, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range test.extents {
			if err := plan.Add(e); err != nil {
				t.Error(err)
			}
		}
		if got := plan.finish(); !slices.Equal(got, test.want) {
			t.Errorf("%v: planned %v, want %v", test.extents, got, test.want)
		}
	}
	plan := planOf(t, 10*c, c, Extent{c, c, false})
	for _, e := range []Extent{{0, 1, false}, {2*c - 1, 1, true}, {3 * c, 0, false}, {3 * c, -1, false}, {10 * c, 1, false}, {9 * c, c + 1, true}} {
		if err := plan.Add(e); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%v: %v", e, err)
		}
	}
	for _, size := range []int{0, MinChunk / 2, MinChunk + 1, 3 * MinChunk, 2 * MaxChunk} {
		if _, err := NewPlan(c, size); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("chunk size %d: %v", size, err)
		}
	}
	if _, err := NewPlan(0, c); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// programs is what compresses as an operating system's files do: the binaries of the Go toolchain.
func programs(b *testing.B) (code []byte) {
	b.Helper()
	command, err := exec.LookPath("go")
	if err != nil {
		b.Fatal(err)
	}
	if command, err = filepath.EvalSymlinks(command); err != nil {
		b.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(filepath.Dir(command), ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != "" {
			return err
		}
		data, err := os.ReadFile(path)
		if len(data) > 1<<20 {
			code = append(code, data...)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return code
}

// cpuTime is what the process has used of all cores, in seconds: unlike the time that passes, it means the same on a
// busy machine.
func cpuTime(b *testing.B) float64 {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}

// BenchmarkPipeline backs up into nothing, on as many cores as -cpu says.
func BenchmarkPipeline(b *testing.B) {
	random := make([]byte, 512<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(random); err != nil {
		b.Fatal(err)
	}
	for _, volume := range []struct {
		name string
		data []byte
	}{{"incompressible", random}, {"programs", programs(b)}, {"zeroes", make([]byte, 512<<20)}} {
		for _, encrypted := range []bool{true, false} {
			lineage, err := newTestKeys(b, encrypted).Lineage("a")
			if err != nil {
				b.Fatal(err)
			}
			name := fmt.Sprintf("%s/encrypted=%t", volume.name, encrypted)
			b.Run(name, func(b *testing.B) { benchmark(b, lineage, volume.data, NewIndex) })
			index := NewIndex()
			b.Run(name+"/known", func(b *testing.B) { benchmark(b, lineage, volume.data, func() *Index { return index }) })
		}
	}
}

func benchmark(b *testing.B, lineage *Lineage, data []byte, index func() *Index) {
	run := func() Stats {
		p := &Pipeline{
			Lineage: lineage, Session: "s", Index: index(), Source: bytes.NewReader(data),
			Plan:  planOf(b, int64(len(data)), DefaultChunk),
			Emit:  func(context.Context, Pack) error { return nil },
			Chunk: func(context.Context, int64, int64, ChunkID) error { return nil },
		}
		stats, err := p.Run(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		return stats
	}
	run() // fills the index, where it is kept
	b.SetBytes(int64(len(data)))
	begin, runs := cpuTime(b), 0
	for b.Loop() {
		stats := run()
		if stats.Stored > 0 {
			b.ReportMetric(float64(len(data))/float64(stats.Stored), "ratio")
		}
		runs++
	}
	b.ReportMetric(float64(len(data)*runs)/1e6/(cpuTime(b)-begin), "MB/cpu-s")
}

// BenchmarkOpen is the way back: verify and restore.
func BenchmarkOpen(b *testing.B) {
	lineage := newTestLineage(b)
	code := programs(b)
	var mu sync.Mutex
	var packs []Pack
	p := &Pipeline{
		Lineage: lineage, Session: "s", Index: NewIndex(), Source: bytes.NewReader(code),
		Plan: planOf(b, int64(len(code)), DefaultChunk),
		Emit: func(_ context.Context, p Pack) error {
			mu.Lock()
			defer mu.Unlock()
			packs = append(packs, Pack{Ref: p.Ref, Bytes: bytes.Clone(p.Bytes)})
			return nil
		},
		Chunk: func(context.Context, int64, int64, ChunkID) error { return nil },
	}
	if _, err := p.Run(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(code)))
	begin, runs := cpuTime(b), 0
	for b.Loop() {
		for _, pack := range packs {
			_, _, err := lineage.OpenPack(pack.Ref.Name.String(), pack.Bytes, func(_ Entry, _ []byte, err error) error { return err })
			if err != nil {
				b.Fatal(err)
			}
		}
		runs++
	}
	b.ReportMetric(float64(len(code)*runs)/1e6/(cpuTime(b)-begin), "MB/cpu-s")
}
