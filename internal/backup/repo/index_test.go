package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func packRef(n byte) PackRef {
	return PackRef{Name: PackName{Lineage: "0190-a", Session: "s", ID: ID{n}, Kind: DataPack}, Size: int64(n)}
}

func TestIndexFindsWhatWasAdded(t *testing.T) {
	r := newRandom(t)
	index := NewIndex()
	type place struct {
		ref PackRef
		e   Entry
	}
	want := map[ChunkID]place{}
	for n := range byte(50) {
		var entries []Entry
		for i := range uint32(1 + r.IntN(500)) {
			e := Entry{
				ID: chunkID(r.Uint64N(20000)), Type: TypeNode, Level: uint8(1 + r.IntN(6)), Ordinal: i + 1,
				Offset: r.Uint32N(32 << 20), Sealed: r.Uint32N(lowBits + 1), Length: r.Uint32N(lowBits + 1), flags: byte(r.IntN(2)),
			}
			if _, there := want[e.ID]; !there {
				want[e.ID] = place{packRef(n), e}
			}
			entries = append(entries, e)
		}
		index.Add(packRef(n), entries)
		index.Add(packRef(n), entries)
	}
	for n := range uint64(20000) {
		ref, e, ok := index.Find(chunkID(n))
		p, there := want[chunkID(n)]
		if ok != there || ok != index.Has(chunkID(n)) || ref != p.ref || e != p.e {
			t.Fatalf("found %+v %+v, want %+v", ref, e, p)
		}
	}
	if len(index.Packs()) != 50 {
		t.Errorf("%d packs", len(index.Packs()))
	}
}

// A record that two packs hold stays when one of them goes.
func TestDroppedPackDoesNotHideAnothers(t *testing.T) {
	index := NewIndex()
	e := Entry{ID: chunkID(1), Type: TypeChunk, Ordinal: 1, Length: 3, Sealed: 19}
	index.Add(packRef(1), []Entry{e})
	index.Add(packRef(2), []Entry{e})
	index.Drop(packRef(1).Name)
	if ref, _, ok := index.Find(e.ID); !ok || ref != packRef(2) || index.HasPack(packRef(1).Name) {
		t.Errorf("found %v: %t", ref, ok)
	}
	index.Drop(packRef(2).Name)
	if index.Has(e.ID) || len(index.Packs()) != 0 {
		t.Error("found in a dropped pack")
	}
	index.Add(packRef(1), []Entry{e})
	if ref, _, ok := index.Find(e.ID); !ok || ref != packRef(1) {
		t.Errorf("not found in a pack that was added again: %v", ref)
	}
}

func TestIndexTakesAtMost64BytesARecord(t *testing.T) {
	const count = 800_000 // 100 GiB in chunks of 128 KiB
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	index := NewIndex()
	entries := make([]Entry, 256)
	for n := range count / len(entries) {
		for i := range entries {
			// A chunk ID is a hash, and so its first bytes are evenly spread.
			binary.LittleEndian.PutUint64(entries[i].ID[:], uint64(n*len(entries)+i)*0x9e3779b97f4a7c15)
		}
		index.Add(PackRef{Name: PackName{Lineage: "0190-a", Session: "s", ID: ID{byte(n), byte(n >> 8)}, Kind: DataPack}}, entries)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapAlloc-before.HeapAlloc) / float64(index.Records())
	t.Logf("%.1f bytes a record", each)
	if each > 64 {
		t.Errorf("%.1f bytes a record", each)
	}
}

func TestCacheFillsTheIndex(t *testing.T) {
	lineage := newTestLineage(t)
	path := filepath.Join(t.TempDir(), "cache")
	cache := lineage.Cache(path)
	var packs []Pack
	for _, session := range []string{"s1", "s2", "s3"} {
		pack, _ := newTestPack(t, lineage, session, DataPack)
		packs = append(packs, pack)
	}
	everything := func(PackName) bool { return true }
	if err := cache.Load(NewIndex(), everything); err != nil {
		t.Errorf("no file: %v", err)
	}
	if err := cache.Append(packs[0], packs[1]); err != nil {
		t.Fatal(err)
	}
	if err := cache.Append(packs[2]); err != nil {
		t.Fatal(err)
	}
	index := NewIndex()
	if err := cache.Load(index, func(name PackName) bool { return name != packs[1].Ref.Name }); err != nil {
		t.Fatal(err)
	}
	if got := index.Packs(); !slices.Equal(got, []PackRef{packs[0].Ref, packs[2].Ref}) {
		t.Errorf("%+v", got)
	}
	for _, e := range packs[2].Entries {
		if ref, found, ok := index.Find(e.ID); !ok || found != e || ref != packs[2].Ref {
			t.Errorf("found %+v in %+v", found, ref)
		}
	}
}

// Of a damaged cache the part before the damage is left, and what is appended then is read again.
func TestDamagedCacheIsCutOff(t *testing.T) {
	lineage := newTestLineage(t)
	path := filepath.Join(t.TempDir(), "cache")
	cache := lineage.Cache(path)
	one, _ := newTestPack(t, lineage, "s1", DataPack)
	two, _ := newTestPack(t, lineage, "s2", DataPack)
	if err := cache.Append(one, two); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := len(cache.encode(one))
	for n := range whole {
		flipped := bytes.Clone(whole)
		flipped[n] ^= 8
		for _, damaged := range [][]byte{whole[:n], flipped} {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			var want []PackRef
			if n >= first {
				want = []PackRef{one.Ref}
			}
			wantCached(t, cache, want, "byte %d of %d", n, len(damaged))
			if err := cache.Append(two); err != nil {
				t.Fatal(err)
			}
			wantCached(t, cache, append(want, two.Ref), "byte %d of %d, appended to", n, len(damaged))
		}
	}
}

func wantCached(t *testing.T, cache *Cache, want []PackRef, format string, args ...any) {
	t.Helper()
	index := NewIndex()
	if err := cache.Load(index, func(PackName) bool { return true }); err != nil || !slices.Equal(index.Packs(), want) {
		t.Errorf(format+": %+v, want %+v: %v", append(args, index.Packs(), want, err)...)
	}
}

// What somebody without the key writes into the cache is never in the index.
func TestForgedCacheIsDropped(t *testing.T) {
	lineage := newTestLineage(t)
	path := filepath.Join(t.TempDir(), "cache")
	pack, _ := newTestPack(t, lineage, "s1", DataPack)
	other, err := lineage.keys.Lineage("0190-b")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Cache(path).Append(pack); err != nil {
		t.Fatal(err)
	}
	wantCached(t, lineage.Cache(path), nil, "of another lineage")
	wantCached(t, lineage.Cache(path), nil, "cut off")
	if err := lineage.Cache(filepath.Join(path, "x")).Append(pack); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func FuzzCache(f *testing.F) {
	lineage := newTestLineage(f)
	cache := lineage.Cache("")
	pack, _ := newTestPack(f, lineage, "s1", DataPack)
	segment := cache.encode(pack)
	f.Add(segment[4 : len(segment)-32])
	f.Fuzz(func(t *testing.T, body []byte) {
		segment := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
		segment = append(segment, cache.mac(segment)...)
		index := NewIndex()
		_, err := cache.loadSegment(bytes.NewReader(segment), index, func(PackName) bool { return true })
		if err != nil && !errors.Is(err, errSegment) {
			t.Errorf("%v", err)
		}
		if err == nil && len(index.Packs()) != 1 {
			t.Errorf("%d packs", len(index.Packs()))
		}
	})
}

// The whole way: nodes and a backup into packs, the index from their footers, and everything back.
func TestMetaWriterAndLoaderCarryTreesAndBackups(t *testing.T) {
	lineage := newTestLineage(t)
	s := storetest.NewMemory()
	index := NewIndex()
	writer, err := lineage.NewMetaWriter("s1", index, putPack(s))
	if err != nil {
		t.Fatal(err)
	}
	nodes := struct {
		Loader
		*MetaWriter
	}{Loader{lineage, s, index}, writer}
	c, hasher := content{}, lineage.Hasher()
	for i := range int64(600 * 256) { // more than one pack of nodes
		c[i*2] = hasher.Sum(TypeChunk, 0, binary.LittleEndian.AppendUint64(nil, uint64(i)))
	}
	const chunks = 1 << 20
	tree := c.build(t, nodes, chunks)
	backup := newTestBackup(t)
	id, err := writer.StoreBackup(t.Context(), backup)
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stored := writer.Stored()
	if again := c.build(t, nodes, chunks); again != tree {
		t.Errorf("built %v again as %v", tree, again)
	}
	if err := writer.Flush(t.Context()); err != nil || writer.Stored() != stored {
		t.Errorf("what was known was stored again: %v", err)
	}

	rebuilt := NewIndex()
	for _, name := range s.Names() {
		data, err := s.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		ref, entries, err := lineage.ReadFooter(t.Context(), s, name, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		rebuilt.Add(ref, entries)
	}
	if len(rebuilt.Packs()) < 2 {
		t.Errorf("%d packs", len(rebuilt.Packs()))
	}
	nodes.Loader = Loader{lineage, s, rebuilt}
	if got := readTree(t, nodes, tree); !maps.Equal(got, c) {
		t.Errorf("read %d chunks, want %d", len(got), len(c))
	}
	loaded, err := nodes.LoadBackup(t.Context(), id)
	if err != nil || loaded.ID() != backup.ID() {
		t.Errorf("%+v: %v", loaded, err)
	}
	if _, err := nodes.LoadChunk(t.Context(), id); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("a backup read as a chunk: %v", err)
	}
	if _, err := nodes.Load(t.Context(), 1, chunkID(1)); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := s.Delete(context.Background(), rebuilt.Packs()[0].Name.String()); err != nil {
		t.Fatal(err)
	}
	err = Walk(t.Context(), nodes, tree, func(Place) (bool, error) { return true, nil })
	if !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("a pack that is gone: %v", err)
	}
}
