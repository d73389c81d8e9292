package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
)

// sparse is a volume of any size that reads as zeroes but for what was written to it, in blocks.
type sparse struct {
	size   int64
	block  int64
	blocks map[int64][]byte
	read   atomic.Int64
}

func newSparse(size, block int64) *sparse {
	return &sparse{size: size, block: block, blocks: map[int64][]byte{}}
}

func (s *sparse) clone() *sparse {
	return &sparse{size: s.size, block: s.block, blocks: maps.Clone(s.blocks)}
}

func (s *sparse) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset+int64(len(p)) > s.size {
		p, err = p[:max(0, s.size-offset)], io.EOF
	}
	s.read.Add(int64(len(p)))
	clear(p)
	for n < len(p) {
		at := offset + int64(n)
		in := at % s.block
		length := min(int64(len(p)-n), s.block-in)
		if data := s.blocks[at/s.block]; data != nil {
			copy(p[n:n+int(length)], data[in:])
		}
		n += int(length)
	}
	return n, err
}

// extents returns what was written to since base, nil for all that may hold data.
func (s *sparse) extents(base *sparse) func(context.Context, *Backup, func(Extent) error) error {
	return func(_ context.Context, record *Backup, fn func(Extent) error) error {
		old := map[int64][]byte{}
		if record != nil {
			old = base.blocks
		}
		touched := map[int64]bool{}
		for i, data := range s.blocks {
			if was, there := old[i]; !there || &was[0] != &data[0] {
				touched[i] = true
			}
		}
		for i := range old {
			if s.blocks[i] == nil {
				touched[i] = true
			}
		}
		for _, i := range slices.Sorted(maps.Keys(touched)) {
			e := Extent{Offset: i * s.block, Length: min(s.block, s.size-i*s.block), Hole: s.blocks[i] == nil}
			if e.Length <= 0 {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// testOrigin is a process of a test's host. Those of others run no more.
func testOrigin(host, process string) Origin {
	return Origin{Host: host, Boot: "boot", Process: process}
}

// newTestRepository makes a repository in a store.
func newTestRepository(t testing.TB, objects store.Store, key *Key, opts ...Option) *Repository {
	t.Helper()
	r, err := Init(t.Context(), objects, key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newTestKey(t testing.TB) *Key {
	t.Helper()
	key, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const testLineage = "0190-b"

// specOf is a backup of a volume, with its differences to an earlier state if base is not nil.
func specOf(v *sparse, base *Written, before *sparse) BackupSpec {
	spec := BackupSpec{
		Backup: Backup{
			Lineage: testLineage, Size: v.size, ChunkSize: MinChunk, BlockSize: 512, Filesystem: "ext4", Mode: 0o755,
			Volume: Named{"v", "data"}, Snapshot: Named{"s", "snap"}, Consistency: "frozen", Writer: "test", Host: "host",
			Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		},
		Source: v, Extents: v.extents(before),
	}
	if base != nil {
		spec.Base = base.Record
	}
	return spec
}

func mustBackup(t testing.TB, r *Repository, spec BackupSpec) *Written {
	t.Helper()
	w, err := r.Backup(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// checkContent reads a whole backup and compares it with a volume. Parts that are holes in both are passed over.
func checkContent(ctx context.Context, r *Repository, b *Backup, want *sparse) error {
	h, index, err := r.NewestIndexed(ctx, b.Lineage)
	if err != nil {
		return err
	}
	if _, there := h.Backup(b.Record); !there {
		return fmt.Errorf("backup %s is not in head %d", b.ID(), h.Number)
	}
	loader, err := r.Loader(b.Lineage, index)
	if err != nil {
		return err
	}
	if b.Size != want.size {
		return fmt.Errorf("backup %s is of %d bytes, want %d", b.ID(), b.Size, want.size)
	}
	chunk := int64(b.ChunkSize)
	seen := map[int64]bool{}
	expected, nothing := make([]byte, chunk), make([]byte, chunk)
	compare := func(index int64, got []byte) error {
		seen[index] = true
		clear(expected)
		if _, err := want.ReadAt(expected[:min(chunk, want.size-index*chunk)], index*chunk); err != nil {
			return err
		}
		if !bytes.Equal(got, expected) {
			return fmt.Errorf("backup %s: chunk %d is wrong", b.ID(), index)
		}
		return nil
	}
	nodes := &liveNodes{chain: r.chains[b.Lineage], index: index}
	err = Walk(ctx, nodes, b.Tree, func(at Place) (bool, error) {
		if at.Level > 0 {
			return true, nil
		}
		data, err := loader.LoadChunk(ctx, at.ID)
		if err != nil {
			return false, err
		}
		return true, compare(at.Index, data)
	})
	if err != nil {
		return err
	}
	for i := range want.blocks {
		for index := i * want.block / chunk; index <= ((i+1)*want.block-1)/chunk && index < b.Tree.Chunks; index++ {
			if !seen[index] {
				if err := compare(index, nothing); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkSettled holds that the store has nothing but the config, the kept heads and packs in which something is needed, and
// that no session is left.
func checkSettled(ctx context.Context, r *Repository, objects *storetest.Memory, lineage string) error {
	c, err := r.chain(lineage)
	if err != nil {
		return err
	}
	h, index, err := r.NewestIndexed(ctx, lineage)
	if err != nil {
		return err
	}
	m, err := c.mark(ctx, h, index)
	if err != nil {
		return err
	}
	want := []string{ConfigName}
	for _, u := range m.usage() {
		if u.marked == 0 {
			return fmt.Errorf("nothing is needed of pack %s", u.ref.Name)
		}
		want = append(want, u.ref.Name.String())
	}
	first := uint64(1)
	if h.Number > r.kept {
		first = h.Number - r.kept + 1
	}
	for number := first; number <= h.Number; number++ {
		want = append(want, HeadName(lineage, number))
	}
	slices.Sort(want)
	if got := objects.Names(); !slices.Equal(got, want) {
		return fmt.Errorf("the store holds\n%q, want\n%q", got, want)
	}
	if len(h.Sessions) > 0 {
		return errors.New("sessions are left")
	}
	return nil
}

func TestBackupsRestoreAndShareWhatDidNotChange(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("encrypted=%t", encrypted), func(t *testing.T) {
			var key *Key
			if encrypted {
				key = newTestKey(t)
			}
			random := newRandom(t)
			objects := storetest.NewMemory()
			r := newTestRepository(t, objects, key, From(testOrigin("h", "1")))
			var last *Written
			var before *sparse
			contents := map[*Written]*sparse{}
			v := newSparse(600*MinChunk+1234, 16<<10)
			for range 6 {
				v = v.clone()
				for range 20 {
					data := make([]byte, v.block)
					mix(random, data)
					v.blocks[random.Int64N(v.size/v.block+1)] = data
				}
				for i := range v.blocks {
					if random.IntN(10) == 0 {
						delete(v.blocks, i)
					}
				}
				last = mustBackup(t, r, specOf(v, last, before))
				if last.Mistrust != nil {
					t.Fatal(last.Mistrust)
				}
				contents[last], before = v, v
			}
			again, err := Open(t.Context(), objects, key)
			if err != nil {
				t.Fatal(err)
			}
			for w, content := range contents {
				if err := checkContent(t.Context(), again, w.Backup, content); err != nil {
					t.Error(err)
				}
			}
			full := newTestRepository(t, storetest.NewMemory(), key)
			if w := mustBackup(t, full, specOf(v, nil, nil)); w.Size != last.Size || w.Tree.Chunks != last.Tree.Chunks {
				t.Errorf("a full backup has %v, the last incremental one %v", w.Tree, last.Tree)
			}
			if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
				t.Error(err)
			}
			if err := checkSettled(t.Context(), again, objects, testLineage); err != nil {
				t.Error(err)
			}
		})
	}
}
