//go:build root

package repo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// python is Debian's, which has the modules that tools/deps.sh installs.
const python = "/usr/bin/python3"

// read runs the independent reader.
func read(t *testing.T, dir, key string, args ...string) (string, error) {
	t.Helper()
	command := []string{"-B", "testdata/reader.py", dir}
	if key != "" {
		command = append(command, "--key-file", key)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(python, append(command, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !strings.HasPrefix(stderr.String(), "reader.py: ") {
		t.Fatalf("%v: %v\n%s\n(tools/deps.sh test installs what the reader needs)", args, err, stderr.String())
	}
	return stdout.String(), err
}

// The golden repositories, and ones made now, are read by a program that shares nothing with this one but FORMAT.md.
func TestIndependentReaderRestoresEveryBackup(t *testing.T) {
	t.Parallel()
	for _, kind := range goldenKinds {
		wantReadable(t, filepath.Join(goldenDir, kind), goldenKey(kind), goldenSums(t, kind))
	}
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		dir, key := s.inFiles()
		sums := map[string]string{}
		for id, content := range s.contents {
			path := filepath.Join(t.TempDir(), "content")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			sums[id] = fileSum(t, path)
		}
		wantReadable(t, dir, key, sums)
	}
}

func wantReadable(t *testing.T, dir, key string, sums map[string]string) {
	t.Helper()
	listed, err := read(t, dir, key, "list")
	if err != nil || len(strings.Fields(listed)) != len(sums) {
		t.Errorf("%s: %v, %s", dir, err, listed)
	}
	for id, want := range sums {
		image := filepath.Join(t.TempDir(), "image")
		if _, err := read(t, dir, key, "restore", id, image); err != nil {
			t.Errorf("%s: %v", id, err)
		} else if got := fileSum(t, image); got != want {
			t.Errorf("%s: SHA-256 %s, want %s", id, got, want)
		}
	}
}

// inFiles writes the repository to a directory, and its key to a file.
func (s *stock) inFiles() (dir, key string) {
	s.t.Helper()
	dir = s.t.TempDir()
	for _, name := range s.objects.Names() {
		data, err := s.objects.Get(s.t.Context(), name)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if s.key != nil {
		key = filepath.Join(s.t.TempDir(), "key")
		if err := s.key.WriteFile(key); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir, key
}

// The reader is no worse a judge: whatever byte is wrong, it stops. That is the format's merit, not the program's.
func TestIndependentReaderStopsAtDamage(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		id := s.backups[2].ID()
		h, err := s.open().Newest(t.Context(), "lineage-a")
		if err != nil {
			t.Fatal(err)
		}
		names := []string{ConfigName, HeadName("lineage-a", h.Number)}
		for _, p := range h.Live {
			names = append(names, p.Name.String())
		}
		for _, name := range names {
			hurt := s.hurt(name, func(data []byte) []byte {
				data[random.IntN(len(data))] ^= byte(1 + random.IntN(255))
				return data
			})
			dir, key := hurt.inFiles()
			if _, err := read(t, dir, key, "restore", id, filepath.Join(t.TempDir(), "image")); err == nil {
				t.Errorf("%s is damaged, and was read", name)
			}
		}
	}
}

// What else lies among the repository's files is none of its objects.
func TestIndependentReaderIgnoresStrayFiles(t *testing.T) {
	s := newStock(t, true)
	dir, key := s.inFiles()
	for _, name := range []string{
		"README", "tmp~", "lineages/notes.txt", "lineages/lineage-a/heads/.nfs0001", "lineages/lineage-a/heads/README",
		"lineages/lineage-a/heads/0000000000000009.tmp", "lineages/lineage-a/heads/9",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("stray"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if listed, err := read(t, dir, key, "list"); err != nil || len(strings.Fields(listed)) != len(s.contents) {
		t.Errorf("%v, %s", err, listed)
	}
}

// A forgery is a repository whose newest head and one more pack are written with the key by who does not keep to the
// format.
type forgery struct {
	*stock
	lineage *Lineage
	head    *Head
	root    []byte      // the root node of the newest backup
	pack    *packWriter // the first that is live, if anything is added
}

// forge makes a forgery and tells whether the reader restores its newest backup.
func forge(t *testing.T, kind PackKind, change func(f *forgery)) (*forgery, error) {
	t.Helper()
	made := newStock(t, true)
	r := made.open()
	h, index, err := r.NewestIndexed(t.Context(), "lineage-a")
	if err != nil {
		t.Fatal(err)
	}
	loader, err := r.Loader("lineage-a", index)
	if err != nil {
		t.Fatal(err)
	}
	f := &forgery{stock: made, lineage: loader.Lineage, head: h}
	if f.root, err = loader.Load(t.Context(), 2, h.Records[2].Tree.Root); err != nil {
		t.Fatal(err)
	}
	if f.pack, err = f.lineage.newPackWriter(h.Live[0].Name.Session, kind, nil); err != nil {
		t.Fatal(err)
	}
	change(f)
	if len(f.pack.entries) > 0 {
		pack := f.pack.finish()
		h.Live = append([]LivePack{{pack.Ref.Name, pack.Ref.Size}}, h.Live...)
		if err := f.objects.Put(t.Context(), pack.Ref.Name.String(), pack.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	name := HeadName("lineage-a", h.Number)
	object, err := r.sealHead(name, h)
	if err != nil {
		t.Fatal(err)
	}
	f.stock = f.hurt(name, func([]byte) []byte { return object })
	dir, key := f.inFiles()
	_, err = read(t, dir, key, "restore", made.backups[2].ID(), filepath.Join(t.TempDir(), "image"))
	return f, err
}

// record adds a record with the ID that it must have.
func (f *forgery) record(e Entry, plaintext, payload []byte) ChunkID {
	e.ID, e.Length = f.lineage.Hasher().Sum(e.Type, int(e.Level), plaintext), uint32(len(plaintext))
	return f.pack.add(e, payload).ID
}

// rewrite changes the JSON of the newest backup's record.
func (f *forgery) rewrite(from, to string) {
	f.t.Helper()
	last := &f.head.Records[2]
	changed := bytes.Replace(last.encoded, []byte(from), []byte(to), 1)
	if bytes.Equal(changed, last.encoded) {
		f.t.Fatalf("%q is not in %s", from, last.encoded)
	}
	last.encoded = changed
}

// compressed adds the root node once more, as a frame with something behind it.
func (f *forgery) compressed(behind string) {
	f.t.Helper()
	c, err := newCompressor(MinChunk)
	if err != nil {
		f.t.Fatal(err)
	}
	payload := append(c.encoder.EncodeAll(f.root, nil), behind...)
	if len(payload) >= len(f.root) {
		f.t.Fatalf("%d bytes take %d", len(f.root), len(payload))
	}
	f.record(Entry{Type: TypeNode, Level: 2, flags: flagZstd}, f.root, payload)
}

// The reader is as strict as the document, or that would say less than what the program goes by.
func TestIndependentReaderRefusesWhatTheFormatForbids(t *testing.T) {
	t.Parallel()
	text := []byte("plaintext")
	for what, c := range map[string]struct {
		kind   PackKind
		change func(f *forgery)
	}{
		"good: one more chunk":        {DataPack, func(f *forgery) { f.record(Entry{Type: TypeChunk}, text, text) }},
		"good: a frame":               {MetaPack, func(f *forgery) { f.compressed("") }},
		"a frame and a byte":          {MetaPack, func(f *forgery) { f.compressed("x") }},
		"a frame and one to skip":     {MetaPack, func(f *forgery) { f.compressed("\x50\x2a\x4d\x18\x00\x00\x00\x00") }},
		"a head without a sequence":   {MetaPack, func(f *forgery) { f.head.Sequence = 0 }},
		"a record above the sequence": {MetaPack, func(f *forgery) { f.head.Sequence = 3 }},
		"a head behind no other":      {MetaPack, func(f *forgery) { f.head.Parent = ID{} }},
		"a record of another lineage": {MetaPack, func(f *forgery) { f.rewrite(`"lineage-a"`, `"lineage-b"`) }},
		"a record of a later program": {MetaPack, func(f *forgery) { f.rewrite(`"min_reader":1`, `"min_reader":2`) }},
		"a record of another hash":    {MetaPack, func(f *forgery) { f.rewrite(`"hmac-sha-256"`, `"sha-1"`) }},
		"a record of another coder":   {MetaPack, func(f *forgery) { f.rewrite(`"zstd"`, `"lzma"`) }},
		"a pack of another size":      {MetaPack, func(f *forgery) { f.head.Live[0].Size++ }},
		"a chunk among metadata":      {MetaPack, func(f *forgery) { f.record(Entry{Type: TypeChunk}, text, text) }},
		"a node among data":           {DataPack, func(f *forgery) { f.record(Entry{Type: TypeNode, Level: 1}, text, text) }},
		"a chunk with a level":        {DataPack, func(f *forgery) { f.record(Entry{Type: TypeChunk, Level: 1}, text, text) }},
		"a compression that does not": {DataPack, func(f *forgery) { f.record(Entry{Type: TypeChunk, flags: flagZstd}, text, text) }},
		"a record of another length":  {DataPack, func(f *forgery) { f.record(Entry{Type: TypeChunk}, text, text[1:]) }},
		"too many records": {DataPack, func(f *forgery) {
			for range maxEntries + 1 {
				f.record(Entry{Type: TypeChunk}, text, text)
			}
		}},
		"a child that is a hole": {MetaPack, func(f *forgery) {
			plaintext := (&node{0: chunkID(1)}).encode(nil, 2)
			copy(plaintext[nodeHeader:], Hole[:])
			id := f.record(Entry{Type: TypeNode, Level: 2}, plaintext, plaintext)
			f.rewrite(f.head.Records[2].Tree.Root.String(), id.String())
		}},
	} {
		good := strings.HasPrefix(what, "good: ")
		f, err := forge(t, c.kind, c.change)
		if good != (err == nil) {
			t.Errorf("%s: %v", what, err)
		}
		report, err := f.open().Verify(t.Context(), VerifyOptions{Data: true})
		if found := err != nil || len(report.Findings) > 0; good == found {
			t.Errorf("%s: this program finds %v, %v", what, report.Findings, err)
		}
	}
}
