package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// newTestPack returns a pack of a few chunks, or of a node and a backup, with their plaintexts.
func newTestPack(t testing.TB, lineage *Lineage, session string, kind PackKind) (Pack, [][]byte) {
	t.Helper()
	w, err := lineage.newPackWriter(session, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCompressor(DefaultChunk)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 700)
	if _, err := rand.NewChaCha8([32]byte{session[len(session)-1]}).Read(random); err != nil {
		t.Fatal(err)
	}
	n := new(node)
	n[7] = chunkID(7)
	plaintexts, types := [][]byte{random, bytes.Repeat([]byte("compressible "+session), 80), []byte(session)}, TypeChunk
	if kind == MetaPack {
		plaintexts, types = [][]byte{n.encode(nil, 1), []byte(`{"record": "x"}`)}, TypeNode
	}
	for i, plaintext := range plaintexts {
		e := Entry{Type: types, Length: uint32(len(plaintext))}
		if kind == MetaPack && i == 0 {
			e.Level = 1
		} else if kind == MetaPack {
			e.Type = TypeBackup
		}
		e.ID = lineage.Hasher().Sum(e.Type, int(e.Level), plaintext)
		var payload []byte
		payload, e.flags = c.compress(nil, plaintext)
		w.add(e, payload)
	}
	return w.finish(), plaintexts
}

func checkAll(want [][]byte) func(Entry, []byte, error) error {
	return func(e Entry, plaintext []byte, err error) error {
		if err != nil {
			return err
		}
		if !bytes.Equal(plaintext, want[e.Ordinal-1]) {
			return fmt.Errorf("record %d is another", e.Ordinal)
		}
		return nil
	}
}

func TestPackReadsBack(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		lineage, err := newTestKeys(t, encrypted).Lineage("0190-a")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []PackKind{DataPack, MetaPack} {
			pack, plaintexts := newTestPack(t, lineage, "s1", kind)
			name := pack.Ref.Name.String()
			if err := CheckPack(name, pack.Bytes); err != nil {
				t.Error(err)
			}
			ref, entries, err := lineage.OpenPack(name, pack.Bytes, checkAll(plaintexts))
			if err != nil || ref != pack.Ref || fmt.Sprint(entries) != fmt.Sprint(pack.Entries) {
				t.Errorf("%+v %v: %v", ref, entries, err)
			}
			if kind == DataPack && encrypted == bytes.Contains(pack.Bytes, plaintexts[0]) {
				t.Errorf("encrypted %t, and the plaintext shows: %t", encrypted, !encrypted)
			}
			s := storetest.NewMemory()
			if err := s.Put(t.Context(), name, pack.Bytes); err != nil {
				t.Fatal(err)
			}
			ref, entries, err = lineage.ReadFooter(t.Context(), s, name, pack.Ref.Size)
			if err != nil || ref != pack.Ref || len(entries) != len(plaintexts) {
				t.Fatalf("%+v %v: %v", ref, entries, err)
			}
			for i, e := range entries {
				if got, err := lineage.ReadRecord(t.Context(), s, ref, e); err != nil || !bytes.Equal(got, plaintexts[i]) {
					t.Errorf("record %d: %v", i, err)
				}
			}
		}
	}
}

func TestFooterOfAnyLengthIsRead(t *testing.T) {
	lineage := newTestLineage(t)
	for _, count := range []int{1, 1300, 1400, maxEntries} {
		w, err := lineage.newPackWriter("s", DataPack, nil)
		if err != nil {
			t.Fatal(err)
		}
		for n := range count {
			if !w.fits(3) {
				t.Fatalf("full after %d", n)
			}
			w.add(Entry{ID: chunkID(uint64(n)), Type: TypeChunk, Length: 3}, []byte("abc"))
		}
		if w.fits(3) != (count < maxEntries) {
			t.Errorf("%d records: it fits", count)
		}
		pack := w.finish()
		s := storetest.NewMemory()
		if err := s.Put(t.Context(), pack.Ref.Name.String(), pack.Bytes); err != nil {
			t.Fatal(err)
		}
		if _, entries, err := lineage.ReadFooter(t.Context(), s, pack.Ref.Name.String(), pack.Ref.Size); err != nil || len(entries) != count {
			t.Errorf("%d records: read %d: %v", count, len(entries), err)
		}
	}
}

// Whatever is changed in a pack, there is an error that names the object, and never another plaintext.
func TestDamagedPackIsCorrupt(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		lineage, err := newTestKeys(t, encrypted).Lineage("0190-a")
		if err != nil {
			t.Fatal(err)
		}
		pack, plaintexts := newTestPack(t, lineage, "s1", DataPack)
		name := pack.Ref.Name.String()
		for n := range pack.Bytes {
			flipped := bytes.Clone(pack.Bytes)
			flipped[n] ^= 16
			for i, damaged := range [][]byte{pack.Bytes[:n], flipped} {
				wantCorrupt(t, name, fmt.Sprintf("byte %d, case %d", n, i), CheckPack(name, damaged))
				_, _, err := lineage.OpenPack(name, damaged, checkAll(plaintexts))
				wantCorrupt(t, name, fmt.Sprintf("byte %d, case %d", n, i), err)
				// A host can make the keyless checksum fit.
				if i == 1 {
					sum := sha256.Sum256(damaged[:len(damaged)-32])
					copy(damaged[len(damaged)-32:], sum[:])
				}
				_, _, err = lineage.OpenPack(name, damaged, checkAll(plaintexts))
				if i == 1 && (n == 14 || n == 15) { // says that it wants a later program
					if !fault.Is(err, fault.ErrUnsupported) {
						t.Errorf("byte %d with a checksum: %v", n, err)
					}
					continue
				}
				if i == 0 || n < len(damaged)-32 {
					wantCorrupt(t, name, fmt.Sprintf("byte %d, case %d with a checksum", n, i), err)
				}
			}
		}
	}
}

// A pack says which programs may read it, for where the config that says so was lost.
func TestPackOfALaterProgramIsRefused(t *testing.T) {
	lineage := newTestLineage(t)
	pack, plaintexts := newTestPack(t, lineage, "s1", DataPack)
	name := pack.Ref.Name.String()
	if pack.Bytes[14] != 0 || pack.Bytes[15] != 0 {
		t.Errorf("packs of this program are for readers of format %d", pack.Bytes[14]+1)
	}
	later := bytes.Clone(pack.Bytes)
	later[14] = 6
	damaged := bytes.Clone(later)
	sum := sha256.Sum256(later[:len(later)-32])
	copy(later[len(later)-32:], sum[:])
	for _, c := range []struct {
		pack []byte
		want fault.Kind
	}{{later, fault.ErrUnsupported}, {damaged, fault.ErrCorrupt}} {
		s := storetest.NewMemory()
		if err := s.Put(t.Context(), name, c.pack); err != nil {
			t.Fatal(err)
		}
		_, _, footerErr := lineage.ReadFooter(t.Context(), s, name, int64(len(c.pack)))
		_, _, openErr := lineage.OpenPack(name, c.pack, checkAll(plaintexts))
		_, _, salvageErr := lineage.SalvagePack(name, c.pack, checkAll(plaintexts))
		for what, err := range map[string]error{"footer": footerErr, "open": openErr, "salvage": salvageErr, "check": CheckPack(name, c.pack)} {
			if !fault.Is(err, c.want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: want %s, got %v", what, c.want, err)
			}
		}
	}
	if _, err := ParsePackHeader(name, later[:300]); !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "format 7") {
		t.Errorf("its header: %v", err)
	}
}

func wantCorrupt(t *testing.T, name, what string, err error) {
	t.Helper()
	if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), name) {
		t.Errorf("%s: %v", what, err)
	}
}

// Ranged reads meet the same damage without the checksum.
func TestDamagedRangesAreCorrupt(t *testing.T) {
	lineage := newTestLineage(t)
	pack, plaintexts := newTestPack(t, lineage, "s1", DataPack)
	name := pack.Ref.Name.String()
	read := func(damaged []byte) error {
		s := storetest.NewMemory()
		if err := s.Put(t.Context(), name, damaged); err != nil {
			t.Fatal(err)
		}
		ref, entries, err := lineage.ReadFooter(t.Context(), s, name, int64(len(damaged)))
		if err != nil {
			return err
		}
		for i, e := range entries {
			got, err := lineage.ReadRecord(t.Context(), s, ref, e)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, plaintexts[i]) {
				t.Errorf("record %d is another", i)
			}
		}
		return nil
	}
	for n := range pack.Bytes {
		flipped := bytes.Clone(pack.Bytes)
		flipped[n] ^= 16
		if n < len(flipped)-32 { // nobody looks at the checksum
			wantCorrupt(t, name, fmt.Sprintf("byte %d changed", n), read(flipped))
		}
		wantCorrupt(t, name, fmt.Sprintf("cut at %d", n), read(pack.Bytes[:n]))
	}
	// Shorter than what was recorded of it.
	s := storetest.NewMemory()
	if err := s.Put(t.Context(), name, pack.Bytes[:200]); err != nil {
		t.Fatal(err)
	}
	_, err := lineage.ReadRecord(t.Context(), s, pack.Ref, pack.Entries[2])
	wantCorrupt(t, name, "truncated", err)
}

func TestPacksUnderOtherNamesAreRefused(t *testing.T) {
	keys := newTestKeys(t, true)
	a, err := keys.Lineage("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := keys.Lineage("b")
	if err != nil {
		t.Fatal(err)
	}
	pack, plaintexts := newTestPack(t, a, "s1", DataPack)
	renamed := func(change func(*PackName)) string {
		name := pack.Ref.Name
		change(&name)
		return name.String()
	}
	for _, name := range []string{
		renamed(func(n *PackName) { n.ID[0]++ }),
		renamed(func(n *PackName) { n.Session = "s2" }),
		renamed(func(n *PackName) { n.Lineage = "b" }),
		renamed(func(n *PackName) { n.Kind = MetaPack }),
	} {
		for _, lineage := range []*Lineage{a, b} {
			_, _, err := lineage.OpenPack(name, pack.Bytes, checkAll(plaintexts))
			wantCorrupt(t, name, "renamed", err)
		}
		// A host can make the header fit the name.
		h, err := decodePackHeader(pack.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name, err = ParsePackName(name); err != nil {
			t.Fatal(err)
		}
		forged := append(h.encode(), pack.Bytes[h.length:]...)
		sum := sha256.Sum256(forged[:len(forged)-32])
		copy(forged[len(forged)-32:], sum[:])
		for _, lineage := range []*Lineage{a, b} {
			_, _, err := lineage.OpenPack(name, forged, checkAll(plaintexts))
			wantCorrupt(t, name, "renamed with its header", err)
		}
	}
	name := pack.Ref.Name.String()
	_, _, err = b.OpenPack(name, pack.Bytes, checkAll(plaintexts))
	wantCorrupt(t, name, "opened for another lineage", err)
	for _, key := range []*Key{nil, new(Key)} {
		_, _, other, err := NewRepository(key, rand.NewChaCha8([32]byte{byte(7)}))
		if err != nil {
			t.Fatal(err)
		}
		lineage, err := other.Lineage("a")
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = lineage.OpenPack(name, pack.Bytes, checkAll(plaintexts))
		wantCorrupt(t, name, "opened for another repository", err)
	}
}

// A record put in another's place, in its pack or in one of another attempt, does not open.
func TestSwappedRecordsAreCorrupt(t *testing.T) {
	lineage := newTestLineage(t)
	one, _ := newTestPack(t, lineage, "s1", DataPack)
	two, _ := newTestPack(t, lineage, "s1", DataPack)
	sealed := func(p Pack, i int) []byte { return p.Bytes[p.Entries[i].Offset:][:p.Entries[i].Sealed] }
	for i := range one.Entries {
		for j := range two.Entries {
			if i != j {
				_, err := lineage.OpenRecord(one.Ref, one.Entries[i], sealed(one, j))
				wantCorrupt(t, one.Ref.Name.String(), "another record", err)
			}
			_, err := lineage.OpenRecord(one.Ref, one.Entries[i], sealed(two, j))
			wantCorrupt(t, one.Ref.Name.String(), "another pack's record", err)
		}
	}
	e := one.Entries[0]
	for what, change := range map[string]func(*Entry){
		"id":      func(e *Entry) { e.ID[3]++ },
		"type":    func(e *Entry) { e.Type = TypeNode },
		"level":   func(e *Entry) { e.Level++ },
		"ordinal": func(e *Entry) { e.Ordinal++ },
		"length":  func(e *Entry) { e.Length-- },
		"flags":   func(e *Entry) { e.flags ^= flagZstd },
	} {
		changed := e
		change(&changed)
		_, err := lineage.OpenRecord(one.Ref, changed, sealed(one, 0))
		wantCorrupt(t, one.Ref.Name.String(), what, err)
	}
}

// A record that was sealed with a wrong ID is found when it is read.
func TestRecordIsHashedWhenItIsRead(t *testing.T) {
	lineage := newTestLineage(t)
	w, err := lineage.newPackWriter("s", DataPack, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := w.add(Entry{ID: chunkID(1), Type: TypeChunk, Length: 3}, []byte("abc"))
	pack := w.finish()
	_, err = lineage.OpenRecord(pack.Ref, e, pack.Bytes[e.Offset:][:e.Sealed])
	wantCorrupt(t, pack.Ref.Name.String(), "wrong ID", err)
}

// One flipped bit costs one record, and the others can be saved.
func TestSalvageHandsOutWhatOpens(t *testing.T) {
	lineage := newTestLineage(t)
	pack, plaintexts := newTestPack(t, lineage, "s1", DataPack)
	name := pack.Ref.Name.String()
	damaged := bytes.Clone(pack.Bytes)
	damaged[pack.Entries[1].Offset]++
	var lost, saved []uint32
	_, _, err := lineage.SalvagePack(name, damaged, func(e Entry, plaintext []byte, err error) error {
		switch {
		case err != nil:
			wantCorrupt(t, name, "damaged record", err)
			lost = append(lost, e.Ordinal)
		case bytes.Equal(plaintext, plaintexts[e.Ordinal-1]):
			saved = append(saved, e.Ordinal)
		}
		return nil
	})
	if err != nil || fmt.Sprint(lost, saved) != "[2] [1 3]" {
		t.Errorf("lost %v, saved %v: %v", lost, saved, err)
	}
}

func TestPackNamesReadBack(t *testing.T) {
	name := PackName{Lineage: "0190-a", Session: "s.1", ID: ID{15: 200}, Kind: MetaPack}
	const text = "lineages/0190-a/sessions/s.1/000000000000000000000000000000c8.meta"
	if got, err := ParsePackName(text); err != nil || got != name || name.String() != text {
		t.Errorf("%+v and %s: %v", got, name, err)
	}
	for _, bad := range []string{
		"", "config", text + "x", text[1:], strings.Replace(text, "c8", "C8", 1), strings.Replace(text, "c8", "8", 1),
		strings.Replace(text, "0190-a", "", 1), strings.Replace(text, "s.1", "../x", 1), strings.Replace(text, "sessions", "heads", 1),
		strings.Replace(text, "0190-a", strings.Repeat("a", 65), 1),
	} {
		if _, err := ParsePackName(bad); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if HeadName("a", 42) != "lineages/a/heads/0000000000000042" {
		t.Errorf("%s", HeadName("a", 42))
	}
}

func FuzzPackHeader(f *testing.F) {
	pack, _ := newTestPack(f, newTestLineage(f), "s1", DataPack)
	f.Add(pack.Bytes)
	f.Add(pack.Bytes[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodePackHeader(data)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrUnsupported) {
				t.Errorf("%v", err)
			}
			return
		}
		if length := h.length; !bytes.Equal(h.encode(), data[:length]) {
			t.Error("two encodings of one header")
		}
	})
}

func FuzzPackFooter(f *testing.F) {
	pack, _ := newTestPack(f, newTestLineage(f), "s1", DataPack)
	h, err := decodePackHeader(pack.Bytes)
	if err != nil {
		f.Fatal(err)
	}
	last := pack.Entries[len(pack.Entries)-1]
	end := int(last.Offset + last.Sealed)
	f.Add(encodeFooter(h.sum, pack.Entries)[32:], end)
	f.Fuzz(func(t *testing.T, data []byte, offset int) {
		data = append(bytes.Clone(h.sum[:]), data...)
		entries, err := decodeFooter(data, h, offset)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(encodeFooter(h.sum, entries), data) {
			t.Error("two encodings of one footer")
		}
		for _, e := range entries {
			if e.Offset < uint32(h.length) || int(e.Offset+e.Sealed) > offset || e.Length > MaxChunk {
				t.Errorf("record %d is out of the pack", e.Ordinal)
			}
		}
	})
}

func FuzzPackTrailer(f *testing.F) {
	pack, _ := newTestPack(f, newTestLineage(f), "s1", DataPack)
	f.Add(pack.Bytes[len(pack.Bytes)-trailerSize:], int64(len(pack.Bytes)))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		found, err := decodeTrailer(data, size)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("%v", err)
			}
			return
		}
		if int64(found.offset+found.length+trailerSize) != size {
			t.Errorf("%+v of %d bytes", found, size)
		}
	})
}

// What is sealed is made by a writer that holds the key, and may still be anything.
func FuzzRecord(f *testing.F) {
	lineage := newTestLineage(f)
	c, err := newCompressor(DefaultChunk)
	if err != nil {
		f.Fatal(err)
	}
	frame, _ := c.compress(nil, make([]byte, 5000))
	f.Add(frame, uint32(5000), true)
	f.Add([]byte("abc"), uint32(3), false)
	f.Fuzz(func(t *testing.T, payload []byte, length uint32, compressed bool) {
		w, err := lineage.newPackWriter("s", DataPack, nil)
		if err != nil {
			t.Fatal(err)
		}
		e := Entry{Type: TypeChunk, Length: length % MaxChunk}
		if compressed {
			e.flags = flagZstd
		}
		e.ID = lineage.Hasher().Sum(TypeChunk, 0, payload)
		if !w.fits(len(payload)) {
			return
		}
		w.add(e, payload)
		pack := w.finish()
		_, _, err = lineage.OpenPack(pack.Ref.Name.String(), pack.Bytes, func(e Entry, plaintext []byte, err error) error {
			if err == nil && (len(plaintext) != int(e.Length) || lineage.Hasher().Sum(TypeChunk, 0, plaintext) != e.ID) {
				t.Errorf("%d bytes of %d", len(plaintext), e.Length)
			}
			return err
		})
		if err != nil && !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	})
}

// putPack stores packs as an emitter does.
func putPack(s *storetest.Memory) func(context.Context, Pack) error {
	return func(ctx context.Context, p Pack) error { return s.Put(ctx, p.Ref.Name.String(), p.Bytes) }
}

func TestNonceIsTheOrdinal(t *testing.T) {
	if got := nonce(0x01020304); len(got) != nonceSize || binary.LittleEndian.Uint32(got) != 0x01020304 || !bytes.Equal(got[4:], make([]byte, 8)) {
		t.Errorf("%x", got)
	}
}
