package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
)

// goldenDir holds a repository of each kind as format 1 was first written, the key of the encrypted one, and the hashes of
// what the backups in them hold. They are never made again: who changes the format adds others.
const goldenDir = "testdata/golden-1"

// goldenKinds are the repositories in goldenDir.
var goldenKinds = []string{"encrypted", "unencrypted"}

// goldenKey returns the key file of a kind, empty if it has none.
func goldenKey(kind string) string {
	if kind == "encrypted" {
		return filepath.Join(goldenDir, "key")
	}
	return ""
}

// goldenSums returns the SHA-256 of each backup of a kind in hex, by its ID.
func goldenSums(t *testing.T, kind string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(goldenDir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if of, id, _ := strings.Cut(name, "/"); of == kind {
			sums[id] = sum
		}
	}
	if len(sums) < 4 {
		t.Fatalf("%d backups of kind %s", len(sums), kind)
	}
	return sums
}

// fileSum is the SHA-256 of a file in hex.
func fileSum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func TestGoldenRepositoriesRestore(t *testing.T) {
	for _, kind := range goldenKinds {
		r := openGolden(t, kind)
		backups, err := r.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sums := goldenSums(t, kind)
		if len(backups) != len(sums) {
			t.Errorf("%s: %d backups, want %d", kind, len(backups), len(sums))
		}
		for _, b := range backups {
			image := filepath.Join(t.TempDir(), "image")
			if _, err := r.RestoreFile(t.Context(), b, image, nil); err != nil {
				t.Errorf("%s: %v", b.ID(), err)
			} else if got := fileSum(t, image); got != sums[b.ID()] {
				t.Errorf("%s: SHA-256 %s, want %s", b.ID(), got, sums[b.ID()])
			}
		}
		if report, err := r.Verify(t.Context(), VerifyOptions{Data: true}); err != nil || len(report.Findings) > 0 {
			t.Errorf("%s: %+v, %v", kind, report, err)
		}
	}
}

func openGolden(t *testing.T, kind string) *Repository {
	t.Helper()
	objects, err := dirstore.Open(filepath.Join(goldenDir, kind))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = objects.Close() }) // only read
	var key *Key
	if path := goldenKey(kind); path != "" {
		text, err := os.ReadFile(path) // whose mode version control does not keep
		if err == nil {
			key, err = parseKey(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(t.Context(), objects, key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ORLOP_GOLDEN=DIR makes repositories as those in testdata there, for a new format.
func TestGoldenRepositoriesCanBeMade(t *testing.T) {
	dir := os.Getenv("ORLOP_GOLDEN")
	if dir == "" {
		dir = t.TempDir()
	}
	var sums bytes.Buffer
	for _, kind := range goldenKinds {
		var key *Key
		var err error
		if kind == "encrypted" {
			if key, err = NewKey(nil); err == nil {
				err = key.WriteFile(filepath.Join(dir, "key"))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		place := filepath.Join(dir, kind)
		if err := dirstore.Make(place); err != nil {
			t.Fatal(err)
		}
		objects, err := dirstore.Open(place)
		if err != nil {
			t.Fatal(err)
		}
		makeGolden(t, kind, objects, key, &sums)
		if err := objects.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), sums.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// makeGolden backs up volumes that meet every part of the format: holes, records that are compressed and not, trees of
// one level and of two, a size that is no multiple of the chunks', labels, and another size of chunks.
func makeGolden(t *testing.T, kind string, objects store.Store, key *Key, sums *bytes.Buffer) {
	t.Helper()
	r, err := Init(t.Context(), objects, key)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	large := make([]byte, 259*MinChunk+4321)
	copy(large[5*MinChunk+100:], bytes.Repeat([]byte("it is written, "), 9000))
	if _, err := random.Read(large[10*MinChunk : 10*MinChunk+20000]); err != nil {
		t.Fatal(err)
	}
	small := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, MinChunk/3)
	if _, err := random.Read(small[:MinChunk]); err != nil {
		t.Fatal(err)
	}
	back := func(lineage string, chunk int, data []byte) {
		spec := BackupSpec{Source: bytes.NewReader(data)}
		spec.Backup = Backup{
			Lineage: lineage, Size: int64(len(data)), ChunkSize: chunk, Created: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
			Volume: Named{"id-" + lineage, lineage}, Snapshot: Named{"s", "nightly"}, Filesystem: "ext4", BlockSize: 512, Mode: 0o755,
			Labels: map[string]string{"kind": kind}, MountOptions: []string{"noatime"}, Consistency: "frozen", Host: "host", Writer: "1",
		}
		spec.Extents = func(_ context.Context, _ *Backup, fn func(Extent) error) error {
			return fn(Extent{Length: int64(len(data))})
		}
		written, err := r.Backup(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(sums, "%x  %s/%s\n", sha256.Sum256(data), kind, written.ID())
	}
	back("large", MinChunk, large)
	large[256*MinChunk+1] = 1
	clear(large[10*MinChunk : 11*MinChunk])
	back("large", MinChunk, large)
	back("small", 2*MinChunk, small)
	back("empty", DefaultChunk, make([]byte, 5<<20))
}
