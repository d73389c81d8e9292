package repo

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup/repo/protocoltest"
)

const formatFile = "../../../docs/FORMAT.md"

func readFormat(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(formatFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// counting is the randomness of the vectors.
func counting() *bytes.Reader { return bytes.NewReader(bytes.Repeat(sequence(251), 8)) }

// vectors returns the test vectors as they stand in the document. Nothing in them is compressed: what a compressor makes
// of the same bytes changes with its version.
func vectors(t *testing.T) string {
	t.Helper()
	key, err := NewKey(bytes.NewReader(sequence(32)))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "The key's file, and its ID:\n\n    %s    %s\n", key.Line()+"\n", key.ID())
	for _, of := range []struct {
		title string
		key   *Key
	}{{"An encrypted repository", key}, {"An unencrypted repository", nil}} {
		_, config, keys, err := NewRepository(of.key, counting())
		if err != nil {
			t.Fatal(err)
		}
		lineage, err := keys.Lineage("0190-a")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "\n### %s\n\nIts config:\n\n%s\n", of.title, indented(string(config)))
		fmt.Fprintf(&text, "Master key, derived keys with the salt 00 to 1f, and chunk IDs in lineage `0190-a`:\n\n")
		fmt.Fprintf(&text, "    master   %x\n", keys.master)
		for _, u := range []use{useConfig, useData, useMeta, useHead} {
			fmt.Fprintf(&text, "    %-8s %x\n", u, derive(keys.master[:], sequence(32), u, ""))
		}
		fmt.Fprintf(&text, "    %-8s %x\n", useID, lineage.ids)
		fmt.Fprintf(&text, "    chunk    %s  \"first\"\n", lineage.Hasher().Sum(TypeChunk, 0, []byte("first")))
		fmt.Fprintf(&text, "    node     %s  the node below, level 1\n", lineage.Hasher().Sum(TypeNode, 1, vectorNode().encode(nil, 1)))
		writeObjects(t, &text, keys, lineage)
	}
	fmt.Fprintf(&text, "\nThe tree node in the pack of metadata: child 3 has the ID 01 and 31 zeroes, child 200 has 02 and 31 zeroes:\n\n%s\n", dump(vectorNode().encode(nil, 1)))
	return text.String()
}

// writeObjects adds a head and a pack of each kind.
func writeObjects(t *testing.T, text *strings.Builder, keys *Keyring, lineage *Lineage) {
	t.Helper()
	data := vectorPack(t, lineage, DataPack)
	meta := vectorPack(t, lineage, MetaPack)
	encoder, err := newCompressor(DefaultChunk)
	if err != nil {
		t.Fatal(err)
	}
	record := vectorBackup()
	encoded, err := record.Encode()
	if err != nil {
		t.Fatal(err)
	}
	h := &Head{
		Lineage: "0190-a", Number: 2, Nonce: ID(sequence(16)), Parent: ID{15: 1}, Sequence: 2, Records: []Record{{record, encoded}},
		Sessions: []Session{{ID: ID{0: 7}, Owner: ID{0: 8}, Kind: BackupSession, Origin: Origin{"host", "boot", "1 2"}, Bases: []Tree{record.Tree}}},
		Live:     []LivePack{{data.Ref.Name, data.Ref.Size}, {meta.Ref.Name, meta.Ref.Size}},
	}
	plaintext, err := encodeHead(h, encoder)
	if err != nil {
		t.Fatal(err)
	}
	if plaintext[1] == flagZstd {
		body, err := decompress(keys.decoder, plaintext[headFixed:], int(binary.LittleEndian.Uint32(plaintext[4:])))
		if err != nil {
			t.Fatal(err)
		}
		plaintext = append([]byte{headVersion, 0, 0, 0}, append(plaintext[4:headFixed:headFixed], body...)...)
	}
	if again, err := decodeHead("0190-a", 2, plaintext, keys.decoder); err != nil || again.Nonce != h.Nonce {
		t.Fatalf("the head reads as %+v, %v", again, err)
	}
	head, err := keys.SealObject(HeadName("0190-a", 2), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range []struct {
		what, name string
		data       []byte
	}{
		{"A data pack of the chunks \"first\" and \"second record\" (real chunks are longer)", data.Ref.Name.String(), data.Bytes},
		{"A metadata pack of a node and a backup record", meta.Ref.Name.String(), meta.Bytes},
		{"A head with that backup, a session and both packs", HeadName("0190-a", 2), head},
	} {
		fmt.Fprintf(text, "\n%s, `%s`:\n\n%s", object.what, object.name, dump(object.data))
	}
}

func vectorNode() *node { return &node{3: ChunkID{0: 1}, 200: ChunkID{0: 2}} }

func vectorBackup() *Backup {
	b := NewBackup()
	b.Lineage, b.Record, b.Sequence = "0190-a", "000102030405060708090a0b0c0d0e0f", 1
	b.Size, b.ChunkSize, b.Tree = 201*MinChunk-1, MinChunk, Tree{Root: ChunkID{0: 3}, Chunks: 201}
	b.Volume, b.Snapshot = Named{"v1", "db"}, Named{"s1", "nightly"}
	b.Filesystem, b.Consistency, b.Writer, b.Host = "ext4", "frozen", "1", "host"
	b.Created = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	return b
}

func vectorPack(t *testing.T, lineage *Lineage, kind PackKind) Pack {
	t.Helper()
	w, err := lineage.newPackWriter("00000000000000000000000000000001", kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	add := func(of Type, level int, plaintext []byte) {
		w.add(Entry{ID: lineage.Hasher().Sum(of, level, plaintext), Type: of, Level: uint8(level), Length: uint32(len(plaintext))}, plaintext)
	}
	if kind == DataPack {
		add(TypeChunk, 0, []byte("first"))
		add(TypeChunk, 0, []byte("second record"))
		return w.finish()
	}
	add(TypeNode, 1, vectorNode().encode(nil, 1))
	encoded, err := vectorBackup().Encode()
	if err != nil {
		t.Fatal(err)
	}
	add(TypeBackup, 0, encoded)
	return w.finish()
}

func indented(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n    ") + "\n"
}

// dump is data in hex, 48 bytes a line.
func dump(data []byte) string {
	var text strings.Builder
	for line := range slices.Chunk(data, 48) {
		text.WriteString("    " + hex.EncodeToString(line) + "\n")
	}
	return text.String()
}

// The document's vectors are those of the program. ORLOP_UPDATE=1 writes them anew: only for a new format.
func TestFormatDocumentHasTheVectorsOfTheProgram(t *testing.T) {
	text := readFormat(t)
	const title = "\nThe key's file, and its ID:\n"
	before, stand, found := strings.Cut(text, title)
	want := vectors(t)
	if os.Getenv("ORLOP_UPDATE") != "" {
		if err := os.WriteFile(formatFile, []byte(before+"\n"+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := strings.TrimPrefix(title, "\n") + stand; !found || got != want {
		t.Errorf("%s has other vectors than the program, in %d bytes and %d", formatFile, len(got), len(want))
	}
}

// The document lists each way to break the protocol that the simulation knows, under its rule, and no other.
func TestFormatDocumentListsTheRulesAndWhatBreaksThem(t *testing.T) {
	_, rules, found := strings.Cut(readFormat(t), "## Rules for who writes\n")
	if !found {
		t.Fatal("no rules")
	}
	rules, _, _ = strings.Cut(rules, "\n## ")
	var got, want []string
	rule := -1
	for line := range strings.Lines(rules) {
		switch {
		case line[0] >= '0' && line[0] <= '9':
			rule = int(line[0] - '0')
		case strings.HasPrefix(line, "   - "):
			got = append(got, fmt.Sprintf("%d %s", rule, strings.TrimSpace(strings.TrimPrefix(line, "   - "))))
		}
	}
	for _, c := range protocoltest.Mutations {
		want = append(want, fmt.Sprintf("%d `%s`: %s", c.Rule, c.Name, c.Broken))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the document has\n%s\nthe simulation\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
