package repo

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"orlop/internal/fault"
)

func newTestBackup(t testing.TB) *Backup {
	t.Helper()
	b := NewBackup()
	b.Lineage, b.Record, b.Parent, b.Sequence = "0190-a", "r2", "r1", 2
	b.Size, b.ChunkSize = 10<<20+1, DefaultChunk
	b.Tree = Tree{Root: chunkID(1), Chunks: 81}
	b.Volume, b.Snapshot = Named{"v", "data"}, Named{"s", "nightly"}
	b.BlockSize, b.Filesystem, b.Mode = 512, "ext4", 0o755
	b.Labels = map[string]string{"b": "2", "a": "1"}
	b.Consistency, b.Writer, b.Host = "frozen", "1.0.0", "host"
	b.Created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.Stats = Stats{Read: 3, New: 2, Stored: 1}
	return b
}

func TestBackupHasOneEncoding(t *testing.T) {
	b := newTestBackup(t)
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := DecodeBackup(data)
	if err != nil || decoded.ID() != "0190-a.r2" {
		t.Fatalf("%+v: %v", decoded, err)
	}
	if again, err := decoded.Encode(); err != nil || !bytes.Equal(again, data) {
		t.Errorf("%s\nbecame\n%s: %v", data, again, err)
	}
	later := strings.Replace(string(data), `{"version":1`, `{"colour":"red","version":2`, 1)
	if decoded, err := DecodeBackup([]byte(later)); err != nil || decoded.Version != 2 {
		t.Errorf("a record of a later version that may be read: %v", err)
	}
}

func TestImpossibleBackupsAreRefused(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*Backup)
		kind   fault.Kind
	}{
		"as it is":         {func(*Backup) {}, ""},
		"later reader":     {func(b *Backup) { b.MinReader = 2 }, fault.ErrUnsupported},
		"hash":             {func(b *Backup) { b.Hash = "blake3" }, fault.ErrUnsupported},
		"compression":      {func(b *Backup) { b.Compression = "xz" }, fault.ErrUnsupported},
		"lineage":          {func(b *Backup) { b.Lineage = "../x" }, fault.ErrCorrupt},
		"record":           {func(b *Backup) { b.Record = "" }, fault.ErrCorrupt},
		"parent":           {func(b *Backup) { b.Parent = "a/b" }, fault.ErrCorrupt},
		"no sequence":      {func(b *Backup) { b.Sequence = 0 }, fault.ErrCorrupt},
		"size":             {func(b *Backup) { b.Size = 0 }, fault.ErrCorrupt},
		"negative size":    {func(b *Backup) { b.Size = -b.Size }, fault.ErrCorrupt},
		"chunk size":       {func(b *Backup) { b.ChunkSize = 100 << 10 }, fault.ErrCorrupt},
		"number of chunks": {func(b *Backup) { b.Tree.Chunks-- }, fault.ErrCorrupt},
		"mode":             {func(b *Backup) { b.Mode = 0o10000 }, fault.ErrCorrupt},
		"created":          {func(b *Backup) { b.Created = time.Time{} }, fault.ErrCorrupt},
	} {
		b := newTestBackup(t)
		c.change(b)
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeBackup(data); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := b.Encode(); c.kind == fault.ErrCorrupt && !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s is encoded: %v", what, err)
		}
	}
	large := newTestBackup(t)
	large.Labels["x"] = strings.Repeat("x", maxBackup)
	if _, err := large.Encode(); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func FuzzBackup(f *testing.F) {
	data, err := newTestBackup(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBackup(data)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrUnsupported) {
				t.Errorf("%v", err)
			}
			return
		}
		if _, err := b.Encode(); err != nil && len(data) < maxBackup/8 {
			t.Errorf("it cannot be encoded again: %v", err)
		}
	})
}
