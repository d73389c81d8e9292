package repo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"orlop/internal/fault"
)

// newRandom returns a source that ORLOP_SEED repeats, and prints the seed.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	t.Logf("ORLOP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// memoryNodes keeps nodes in memory and counts what is asked of it.
type memoryNodes struct {
	hasher  *Hasher
	nodes   map[ChunkID][]byte
	fresh   map[ChunkID]bool // stored since the last reset, and not to be loaded by the builder that did
	loaded  map[ChunkID]int
	stores  int
	strict  bool // loading a fresh node is an error
	failing error
}

func newMemoryNodes(t testing.TB) *memoryNodes {
	lineage := newTestLineage(t)
	return &memoryNodes{hasher: lineage.Hasher(), nodes: map[ChunkID][]byte{}, fresh: map[ChunkID]bool{}, loaded: map[ChunkID]int{}}
}

func (m *memoryNodes) reset() {
	clear(m.fresh)
	clear(m.loaded)
	m.stores = 0
}

func (m *memoryNodes) Load(_ context.Context, _ int, id ChunkID) ([]byte, error) {
	data, ok := m.nodes[id]
	if !ok {
		return nil, errMissing(id)
	}
	m.loaded[id]++
	if m.strict && m.fresh[id] {
		return nil, fmt.Errorf("node %s is loaded that was just stored", id)
	}
	return data, m.failing
}

func (m *memoryNodes) Store(_ context.Context, level int, encoded []byte) (ChunkID, error) {
	id := m.hasher.Sum(TypeNode, level, encoded)
	if _, there := m.nodes[id]; !there {
		m.fresh[id] = true
	}
	m.nodes[id] = encoded
	m.stores++
	return id, m.failing
}

// content is a volume's chunks, holes left out.
type content map[int64]ChunkID

func chunkID(n uint64) (id ChunkID) {
	binary.LittleEndian.PutUint64(id[:], n+1)
	return id
}

func (c content) build(t *testing.T, nodes Nodes, chunks int64) Tree {
	t.Helper()
	b, err := NewBuilder(t.Context(), nodes, Tree{}, chunks)
	if err != nil {
		t.Fatal(err)
	}
	for _, index := range slices.Sorted(maps.Keys(c)) {
		if err := b.Set(t.Context(), index, c[index]); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func readTree(t *testing.T, nodes Nodes, tree Tree) content {
	t.Helper()
	found := content{}
	last := int64(-1)
	err := Walk(t.Context(), nodes, tree, func(at Place) (bool, error) {
		if at.Level == 0 {
			if at.Index <= last {
				t.Errorf("chunk %d comes after %d", at.Index, last)
			}
			last = at.Index
			found[at.Index] = at.ID
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func randomSize(r *rand.Rand) int64 {
	switch r.IntN(4) {
	case 0:
		return 1 + r.Int64N(300)
	case 1:
		return int64(1)<<(8*(1+r.IntN(3))) + r.Int64N(3) - 1
	case 2:
		return 1 + r.Int64N(70000)
	}
	return 1 + r.Int64N(1<<(8+r.IntN(33)))
}

// change applies random changes to c and to a builder alike.
func (c content) change(t *testing.T, r *rand.Rand, b *Builder, chunks int64) {
	t.Helper()
	for index := range c {
		if index >= chunks {
			delete(c, index)
		}
	}
	var err error
	for at := int64(0); at < chunks && err == nil; {
		left := chunks - at
		at += min(left-1, r.Int64N(1+r.Int64N(left)))
		to := at + 1
		switch r.IntN(4) {
		case 0:
			to += r.Int64N(1 + r.Int64N(chunks-at))
			err = b.Clear(t.Context(), at, to)
			maps.DeleteFunc(c, func(i int64, _ ChunkID) bool { return i >= at && i < to })
		case 1:
			err = b.Set(t.Context(), at, Hole)
			delete(c, at)
		default:
			c[at] = chunkID(r.Uint64N(8)) // few different ones, so that some stay as they were
			err = b.Set(t.Context(), at, c[at])
		}
		at = to
		if r.IntN(60) == 0 {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestUpdatedTreeIsTheOneBuiltFromScratch(t *testing.T) {
	r := newRandom(t)
	for range 150 {
		nodes := newMemoryNodes(t)
		c, tree := content{}, Tree{}
		for range 1 + r.IntN(6) {
			chunks := randomSize(r)
			if r.IntN(2) == 0 && tree.Chunks > 0 {
				chunks = tree.Chunks
			}
			before, old := maps.Clone(c), tree
			nodes.reset()
			nodes.strict = true
			b, err := NewBuilder(t.Context(), nodes, tree, chunks)
			if err != nil {
				t.Fatal(err)
			}
			c.change(t, r, b, chunks)
			if tree, err = b.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			nodes.strict = false
			if scratch := c.build(t, nodes, chunks); tree != scratch {
				t.Fatalf("updated %v, built %v", tree, scratch)
			}
			if got := readTree(t, nodes, tree); !maps.Equal(got, c) {
				t.Fatalf("tree of %d chunks reads as %d chunks, want %d", chunks, len(got), len(c))
			}
			wantDiff(t, nodes, old, tree, before, c)
		}
	}
}

// wantDiff checks Diff between two trees with the contents given, both ways.
func wantDiff(t *testing.T, nodes Nodes, from, to Tree, a, b content) {
	t.Helper()
	type change struct{ from, to ChunkID }
	want := map[int64]change{}
	for index := range a {
		want[index] = change{a[index], b[index]}
	}
	for index := range b {
		want[index] = change{a[index], b[index]}
	}
	maps.DeleteFunc(want, func(_ int64, c change) bool { return c.from == c.to })
	got := map[int64]change{}
	last := int64(-1)
	err := Diff(t.Context(), nodes, from, to, func(index int64, from, to ChunkID) error {
		if index <= last {
			t.Errorf("chunk %d comes after %d", index, last)
		}
		last = index
		got[index] = change{from, to}
		return nil
	})
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("diff of %v and %v: %d differences, want %d: %v", from, to, len(got), len(want), err)
	}
}

// Ten changes in a volume of 1 TiB cost the nodes on their ways and no more.
func TestUpdateAndDiffTouchOnlyWhatChanges(t *testing.T) {
	nodes := newMemoryNodes(t)
	const chunks = 1 << 23
	b, err := NewBuilder(t.Context(), nodes, Tree{}, chunks)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(chunks / 16) { // every leaf has some
		if err := b.Set(t.Context(), i*16, chunkID(uint64(i%1000))); err != nil {
			t.Fatal(err)
		}
	}
	base, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes.reset()
	if b, err = NewBuilder(t.Context(), nodes, base, chunks); err != nil {
		t.Fatal(err)
	}
	for i := range int64(10) {
		if err := b.Set(t.Context(), i*chunks/10, chunkID(5000)); err != nil {
			t.Fatal(err)
		}
	}
	updated, err := b.Finish(t.Context())
	if err != nil || len(nodes.loaded) > 21 || nodes.stores != 21 {
		t.Errorf("%d loads and %d stores, want at most 21: %v", len(nodes.loaded), nodes.stores, err)
	}
	nodes.reset()
	count := 0
	err = Diff(t.Context(), nodes, base, updated, func(int64, ChunkID, ChunkID) error { count++; return nil })
	loads := 0
	for _, n := range nodes.loaded {
		loads += n
	}
	if err != nil || count != 10 || loads > 42 {
		t.Errorf("%d differences with %d loads: %v", count, loads, err)
	}
	nodes.reset()
	if b, err = NewBuilder(t.Context(), nodes, base, chunks); err != nil {
		t.Fatal(err)
	}
	if same, err := b.Finish(t.Context()); err != nil || same != base || len(nodes.loaded)+nodes.stores > 0 {
		t.Errorf("no change: %v, %d loads, %d stores: %v", same, len(nodes.loaded), nodes.stores, err)
	}
}

func TestClearTakesTimeForTheEdgesOnly(t *testing.T) {
	nodes := newMemoryNodes(t)
	const chunks = 1 << 40
	c := content{0: chunkID(1), 5: chunkID(2), 1 << 30: chunkID(3), chunks - 1: chunkID(4)}
	base := c.build(t, nodes, chunks)
	nodes.reset()
	b, err := NewBuilder(t.Context(), nodes, base, chunks)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Clear(t.Context(), 1, chunks-1); err != nil {
		t.Fatal(err)
	}
	tree, err := b.Finish(t.Context())
	want := content{0: chunkID(1), chunks - 1: chunkID(4)}.build(t, nodes, chunks)
	if err != nil || tree != want || len(nodes.loaded) > 9 {
		t.Errorf("%v with %d loads, want %v: %v", tree, len(nodes.loaded), want, err)
	}
}

func TestBuilderRefusesWhatDoesNotRise(t *testing.T) {
	nodes := newMemoryNodes(t)
	b, err := NewBuilder(t.Context(), nodes, Tree{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Set(t.Context(), 7, chunkID(1)); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		b.Set(t.Context(), 7, chunkID(1)),
		b.Set(t.Context(), 100, chunkID(1)),
		b.Clear(t.Context(), 3, 9),
		b.Clear(t.Context(), 9, 9),
		b.Clear(t.Context(), 9, 101),
	} {
		if !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
	for _, chunks := range []int64{-1, maxChunks + 1} {
		if _, err := NewBuilder(t.Context(), nodes, Tree{}, chunks); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
	if _, err := NewBuilder(t.Context(), nodes, Tree{Root: chunkID(1)}, 5); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestTreeErrorsReachTheCaller(t *testing.T) {
	nodes := newMemoryNodes(t)
	a := content{3: chunkID(1), 300: chunkID(2)}.build(t, nodes, 70000)
	b := content{3: chunkID(1), 300: chunkID(3)}.build(t, nodes, 70000)
	stop := errors.New("stop")
	if err := Walk(t.Context(), nodes, a, func(Place) (bool, error) { return true, stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if err := Diff(t.Context(), nodes, a, b, func(int64, ChunkID, ChunkID) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	nodes.failing = stop
	if err := Walk(t.Context(), nodes, a, func(Place) (bool, error) { return true, nil }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if err := Diff(t.Context(), nodes, a, b, func(int64, ChunkID, ChunkID) error { return nil }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestWalkLeavesOutWhatItIsTold(t *testing.T) {
	nodes := newMemoryNodes(t)
	tree := content{3: chunkID(1), 300: chunkID(2), 301: chunkID(3)}.build(t, nodes, 70000)
	var visited []Place
	err := Walk(t.Context(), nodes, tree, func(at Place) (bool, error) {
		visited = append(visited, at)
		return at.Level != 1 || at.Index != 0, nil
	})
	if err != nil || len(visited) != 6 || visited[0].ID != tree.Root || visited[3].Level != 1 || visited[4].Index != 300 {
		t.Errorf("visited %v: %v", visited, err)
	}
}

// A tree never shows chunks behind its end, whoever wrote it.
func TestChunksBehindTheEndAreCorrupt(t *testing.T) {
	nodes := newMemoryNodes(t)
	tree := content{3: chunkID(1), 200: chunkID(2)}.build(t, nodes, 256)
	tree.Chunks = 100
	if err := Walk(t.Context(), nodes, tree, func(Place) (bool, error) { return true, nil }); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("walk: %v", err)
	}
	err := Diff(t.Context(), nodes, tree, Tree{}, func(int64, ChunkID, ChunkID) error { return nil })
	if !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("diff: %v", err)
	}
}

func FuzzNode(f *testing.F) {
	n := new(node)
	n[0], n[255] = chunkID(1), chunkID(2)
	f.Add(n.encode(nil, 1), 1)
	f.Add(n.encode(nil, 3)[:50], 3)
	f.Fuzz(func(t *testing.T, data []byte, level int) {
		n, err := decodeNode(data, level)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("%v", err)
			}
			return
		}
		if !slices.Equal(n.encode(nil, level), data) || n.empty() {
			t.Error("two encodings of one node")
		}
	})
}
