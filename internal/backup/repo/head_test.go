package repo

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"orlop/internal/fault"
)

// aHead returns a head with everything in it.
func aHead(t testing.TB, packs int) *Head {
	t.Helper()
	h := &Head{Lineage: testLineage, Number: 7, Nonce: ID{1}, Parent: ID{2}, Sequence: 9, Live: []LivePack{}}
	for i := range 3 {
		b := NewBackup()
		v := specOf(newSparse(1<<20, MinChunk), nil, nil).Backup
		v.Version, v.MinReader, v.Hash, v.Compression = b.Version, b.MinReader, b.Hash, b.Compression
		v.Record, v.Sequence, v.Tree = fmt.Sprint("r", i), uint64(i+1), Tree{Root: chunkID(uint64(i + 1)), Chunks: 16}
		encoded, err := v.Encode()
		if err != nil {
			t.Fatal(err)
		}
		h.Records = append(h.Records, Record{&v, encoded})
	}
	h.Sessions = []Session{
		{ID: ID{3}, Owner: ID{4}, Kind: BackupSession, Origin: Origin{"host", "boot", "1:2"}, Bases: []Tree{{chunkID(7), 300}, {Hole, 5}}},
		{ID: ID{5}, Owner: ID{6}, Kind: CompactionSession},
	}
	for i := range packs {
		kind := DataPack
		if i%2 == 1 {
			kind = MetaPack
		}
		h.Live = append(h.Live, LivePack{PackName{testLineage, ID{byte(i), 9}.String(), ID{8, byte(i)}, kind}, int64(i + 1000)})
	}
	return h
}

func encodeTestHead(t testing.TB, h *Head) []byte {
	t.Helper()
	c, err := newCompressor(DefaultChunk)
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeHead(h, c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestHeadReadsAsItWasWritten(t *testing.T) {
	decoder := newTestKeys(t, true).decoder
	for _, packs := range []int{0, 1, 40} {
		h := aHead(t, packs)
		got, err := decodeHead(testLineage, 7, encodeTestHead(t, h), decoder)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, h) {
			t.Errorf("got\n%+v, want\n%+v", got, h)
		}
	}
}

func TestHeadKeepsFieldsOfRecordsThatItDoesNotKnow(t *testing.T) {
	h := aHead(t, 1)
	h.Records[1].encoded = []byte(strings.Replace(string(h.Records[1].encoded), `"version":1`, `"version":1,"colour":"blue"`, 1))
	decoder := newTestKeys(t, true).decoder
	got, err := decodeHead(testLineage, 7, encodeTestHead(t, h), decoder)
	if err != nil {
		t.Fatal(err)
	}
	again, err := decodeHead(testLineage, 8, encodeTestHead(t, got.child()), decoder)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(again.Records[1].encoded), "blue") {
		t.Error("the next head lost a field")
	}
}

func TestHeadWithAnyPartMissingOrChangedIsRefused(t *testing.T) {
	decoder := newTestKeys(t, true).decoder
	data := encodeTestHead(t, aHead(t, 3))
	for n := range data {
		if _, err := decodeHead(testLineage, 7, data[:n], decoder); err == nil {
			t.Fatalf("%d of %d bytes were read as a head", n, len(data))
		}
	}
	for what, change := range map[string]func(h *Head){
		"sequence of a record":  func(h *Head) { h.Sequence = 2 },
		"no sequence":           func(h *Head) { h.Sequence, h.Records = 0, nil },
		"no parent":             func(h *Head) { h.Parent = ID{} },
		"lineage of a record":   func(h *Head) { h.Lineage = "another" },
		"tree of a base":        func(h *Head) { h.Sessions[0].Bases[0].Chunks = -1 },
		"kind of a pack":        func(h *Head) { h.Live[0].Name.Kind = 9 },
		"encoding of a record":  func(h *Head) { h.Records[0].encoded = []byte("{}") },
		"number of another one": func(h *Head) { h.Number = 8 },
	} {
		h := aHead(t, 3)
		change(h)
		if _, err := decodeHead(h.Lineage, 7, encodeTestHead(t, h), decoder); !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	data[0] = 2
	if _, err := decodeHead(testLineage, 7, data, decoder); !fault.Is(err, fault.ErrUnsupported) {
		t.Errorf("of a later version: %v", err)
	}
}

func FuzzHead(f *testing.F) {
	f.Add(encodeTestHead(f, aHead(f, 3)))
	f.Add(encodeTestHead(f, aHead(f, 0)))
	decoder := newTestKeys(f, true).decoder
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHead(testLineage, 7, data, decoder)
		if err != nil {
			return
		}
		again, err := decodeHead(testLineage, 7, encodeTestHead(t, h), decoder)
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Errorf("%v:\n%+v is read again as\n%+v", err, h, again)
		}
	})
}
