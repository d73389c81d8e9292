package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// disk is a Target in memory that remembers which parts were touched.
type disk struct {
	mu      sync.Mutex
	data    []byte
	written int64
	holes   int64
	failing error
}

func (d *disk) WriteAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failing != nil {
		return 0, d.failing
	}
	d.written += int64(len(p))
	return copy(d.data[offset:], p), nil
}

func (d *disk) Hole(offset, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holes += length
	clear(d.data[offset : offset+length])
	return nil
}

func (d *disk) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.NewReader(d.data).ReadAt(p, offset)
}

// record makes a Backup of the last tree.
func (b *backedUp) record(size int64) *Backup {
	backup := NewBackup()
	backup.Lineage, backup.Record, backup.Sequence = b.lineage.Name(), "r", 1
	backup.Size, backup.ChunkSize, backup.Tree = size, MinChunk, b.tree
	return backup
}

// reading finds the records where the index says, for ever.
func (b *backedUp) reading() *reading {
	return &reading{lineage: b.lineage, objects: b.store, index: b.index,
		renew: func(_ context.Context, absent PackName, unknown error) (*Index, error) {
			return nil, errLost(absent, unknown)
		}}
}

// generations backs up a volume several times, with writes, holes and other sizes between, and returns what it held.
func generations(t *testing.T, b *backedUp) (contents [][]byte, records []*Backup) {
	random := newRandom(t)
	data := make([]byte, 40*MinChunk+int(random.Int64N(MinChunk))+1)
	for range 5 {
		for range 1 + random.IntN(4) {
			from := random.IntN(len(data))
			part := data[from:min(len(data), from+1+random.IntN(8*MinChunk))]
			if random.IntN(3) == 0 {
				clear(part)
			} else {
				mix(random, part)
			}
		}
		mix(random, data[:MinChunk])
		data[0] |= 1 // so that there is something
		b.backup(&volume{data: data}, planOf(t, int64(len(data)), MinChunk))
		contents, records = append(contents, bytes.Clone(data)), append(records, b.record(int64(len(data))))
		if grown := random.IntN(300 * MinChunk); random.IntN(2) == 0 {
			data = append(data, make([]byte, grown)...)
		} else {
			data = data[:len(data)-min(grown, len(data)/2)]
		}
	}
	return contents, records
}

func TestRestoreBringsBackEveryGeneration(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	for i, want := range contents {
		got := &disk{data: make([]byte, len(want))}
		var last int64
		done, err := Restore{Backup: records[i], Target: got, Progress: func(done, total int64) {
			if done < last || total != int64(len(want)) {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last = done
		}}.restore(t.Context(), b.reading())
		if err != nil || !bytes.Equal(got.data, want) {
			t.Fatalf("generation %d: %v, right: %t", i, err, bytes.Equal(got.data, want))
		}
		if got.holes != 0 || done.Written != got.written || last != int64(len(want)) {
			t.Errorf("generation %d: %d bytes of holes, %d written, said %+v, progress %d", i, got.holes, got.written, done, last)
		}
	}
}

// All chunks of these backups are looked up at once: that is no reason to say nothing until they are there.
func TestRestoreTellsHowFarItIsWhileChunksArrive(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	for i, want := range contents {
		between := false
		_, err := Restore{Backup: records[i], Target: &disk{data: make([]byte, len(want))}, Progress: func(done, total int64) {
			between = between || done < total
		}}.restore(t.Context(), b.reading())
		if err != nil || !between {
			t.Errorf("generation %d: told before the end: %t, %v", i, between, err)
		}
	}
}

func TestRestoreWritesOnlyTheDifferenceToWhatIsThere(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	for from := range contents {
		for to, want := range contents {
			got := &disk{data: resized(contents[from], len(want))}
			if _, err := (Restore{Backup: records[to], Base: records[from], Target: got}).restore(t.Context(), b.reading()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.data, want) {
				t.Errorf("generation %d on %d is wrong", to, from)
			}
			if limit := differing(contents[from], want); got.written+got.holes > limit {
				t.Errorf("generation %d on %d: %d bytes written and %d made holes, where chunks of %d differ", to, from, got.written, got.holes, limit)
			}
		}
	}
}

// resized is data, cut or with zeroes at its end.
func resized(data []byte, size int) []byte {
	return append(bytes.Clone(data[:min(len(data), size)]), make([]byte, max(0, size-len(data)))...)
}

// differing is how many bytes the chunks have that differ between two contents, of the second one's size.
func differing(from, to []byte) (count int64) {
	size := (max(len(from), len(to)) + MinChunk - 1) / MinChunk * MinChunk
	a, b := resized(from, size), resized(to, size)
	for at := 0; at < size; at += MinChunk {
		if !bytes.Equal(a[at:at+MinChunk], b[at:at+MinChunk]) {
			count += MinChunk
		}
	}
	return count
}

func TestRestoreKeepsWhatItFindsRightAndMendsTheRest(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	want, record := contents[4], records[4]
	rubbish := make([]byte, len(want))
	mix(newRandom(t), rubbish)
	for name, found := range map[string][]byte{"rubbish": rubbish, "another generation": resized(contents[2], len(want)), "all of it": want} {
		got := &disk{data: bytes.Clone(found)}
		done, err := Restore{Backup: record, Target: got, Found: got}.restore(t.Context(), b.reading())
		if err != nil || !bytes.Equal(got.data, want) {
			t.Errorf("%s: %v, right: %t", name, err, bytes.Equal(got.data, want))
		}
		if name == "all of it" && (done.Fetched != 0 || done.Present == 0) {
			t.Errorf("%s: %+v", name, done)
		}
	}
}

// A pack that was compacted away meanwhile is looked up again; a backup that is gone is not "corrupt".
func TestRestoreLooksAgainForPacksThatWereReplaced(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	want, record := contents[4], records[4]
	faults := storetest.NewFaults(b.store)
	for _, ending := range []error{nil, errDeleted(record)} {
		// Every object moves: the store below has it, the first index knows names that it has not.
		moved := NewIndex()
		for _, ref := range b.index.Packs() {
			_, entries, err := b.lineage.ReadFooter(t.Context(), b.store, ref.Name.String(), ref.Size)
			if err != nil {
				t.Fatal(err)
			}
			ref.Name.Session = "gone"
			moved.Add(ref, entries)
		}
		renewed := 0
		from := &reading{lineage: b.lineage, objects: faults, index: moved,
			renew: func(_ context.Context, absent PackName, unknown error) (*Index, error) {
				if unknown != nil || absent.Session != "gone" {
					t.Errorf("absent %v, unknown %v", absent, unknown)
				}
				renewed++
				return b.index, ending
			}}
		got := &disk{data: make([]byte, len(want))}
		_, err := Restore{Backup: record, Target: got}.restore(t.Context(), from)
		if renewed != 1 || !errors.Is(err, ending) || ending == nil && !bytes.Equal(got.data, want) {
			t.Errorf("%v after %d times, want %v", err, renewed, ending)
		}
		if ending != nil && !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("%v", err)
		}
	}
}

func TestRestoreOfMissingOrWrongChunksIsCorruptAndWritesNothingWrong(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	want, record := contents[4], records[4]
	for _, name := range b.store.Names() {
		for what, change := range map[string]func([]byte) []byte{
			"flipped": invert, "truncated": storetest.Truncate(300), "missing": nil,
		} {
			hurt := &backedUp{t: t, lineage: b.lineage, store: b.store.Clone(), index: b.index, tree: b.tree}
			if change == nil {
				if err := hurt.store.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			} else {
				storetest.Tamper(t, hurt.store, name, change)
			}
			got := &disk{data: make([]byte, len(want))}
			_, err := Restore{Backup: record, Target: got}.restore(t.Context(), hurt.reading())
			if err == nil && !bytes.Equal(got.data, want) {
				t.Errorf("%s %s: wrong data without an error", name, what)
			}
			if err != nil && (!fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), name)) {
				t.Errorf("%s %s: %v", name, what, err)
			}
			for at := 0; at < len(want); at += MinChunk {
				end := min(at+MinChunk, len(want))
				if part := got.data[at:end]; !bytes.Equal(part, want[at:end]) && !bytes.Equal(part, make([]byte, end-at)) {
					t.Errorf("%s %s: wrong bytes in the chunk at %d", name, what, at)
				}
			}
		}
	}
}

// invert is damage to every record and to the footer.
func invert(pack []byte) []byte {
	for i := packHeaderSize; i < len(pack); i++ {
		pack[i] = ^pack[i]
	}
	return pack
}

func TestRestoreRefusesABaseOfOtherChunks(t *testing.T) {
	b := newBackedUp(t)
	_, records := generations(t, b)
	other := *records[0]
	other.ChunkSize *= 2
	for _, o := range []Restore{
		{Backup: records[1], Base: &other},
		{Backup: records[1], Base: records[0], Found: &disk{}},
	} {
		o.Target = &disk{}
		if _, err := o.restore(t.Context(), b.reading()); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
}

func TestRestoredFileAppearsWholeAndSparse(t *testing.T) {
	b := newBackedUp(t)
	data := make([]byte, 100*MinChunk+7)
	mix(newRandom(t), data[3*MinChunk:5*MinChunk])
	b.backup(&volume{data: data}, planOf(t, int64(len(data)), MinChunk))
	path := filepath.Join(t.TempDir(), "image")
	if _, err := (Restore{Backup: b.record(int64(len(data)))}).restoreFile(t.Context(), b.reading(), path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, data)
	if _, err := os.Lstat(path + partSuffix); !os.IsNotExist(err) {
		t.Errorf("the part: %v", err)
	}
	if used := allocated(t, path); used > 3*MinChunk {
		t.Errorf("%d bytes are allocated", used)
	}
	if _, err := (Restore{Backup: b.record(int64(len(data)))}).restoreFile(t.Context(), b.reading(), path); !fault.Is(err, fault.ErrExists) {
		t.Errorf("onto the file: %v", err)
	}
	wantFile(t, path, data)
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v, right: %t", path, err, bytes.Equal(got, want))
	}
}

// Whatever fails, the file is not there, and the next call makes it without fetching all again.
func TestRestoreToFileGoesOnAfterAFailure(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	path := filepath.Join(t.TempDir(), "image")
	for n := 1; ; n++ {
		faults := storetest.NewFaults(b.store)
		faults.On(storetest.Any, "", n, storetest.FailBefore(nil))
		from := b.reading()
		from.objects = faults
		_, err := Restore{Backup: records[4]}.restoreFile(t.Context(), from, path)
		if err == nil {
			if faults.Pending() == 0 || n < 3 {
				t.Errorf("done at request %d", n)
			}
			break
		}
		if !fault.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), path+partSuffix) {
			t.Errorf("request %d: %v", n, err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Fatalf("request %d: the file: %v", n, err)
		}
	}
	wantFile(t, path, contents[4])
}

// The part of a restore of something else, larger and full, is no harm.
func TestRestoreToFileMendsAPartOfAnotherBackup(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t)
	contents, records := generations(t, b)
	path := filepath.Join(t.TempDir(), "image")
	rubbish := make([]byte, 2*len(contents[4]))
	mix(newRandom(t), rubbish)
	if err := os.WriteFile(path+partSuffix, rubbish, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Restore{Backup: records[4]}).restoreFile(t.Context(), b.reading(), path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, contents[4])
}

func TestTwoRestoresToOneFileDoNotMix(t *testing.T) {
	b := newBackedUp(t)
	contents, records := generations(t, b)
	path := filepath.Join(t.TempDir(), "image")
	_, err := toFile(path, records[4].Size, func(*os.File, bool) (Restored, error) {
		if _, err := (Restore{Backup: records[4]}).restoreFile(t.Context(), b.reading(), path); !fault.Is(err, fault.ErrInUse) {
			t.Errorf("the second: %v", err)
		}
		return Restored{}, errors.New("given up")
	})
	if err == nil {
		t.Error("no error")
	}
	if _, err := (Restore{Backup: records[4]}).restoreFile(t.Context(), b.reading(), path); err != nil {
		t.Error(err)
	}
	wantFile(t, path, contents[4])
}

// What there is of it may be worth something to somebody, and the next try goes on with it.
func TestRestoreToFileOfABackupThatIsHurtLeavesOnlyThePart(t *testing.T) {
	b := newBackedUp(t)
	_, records := generations(t, b)
	for _, name := range b.store.Names() {
		storetest.Tamper(t, b.store, name, invert)
	}
	dir := t.TempDir()
	_, err := Restore{Backup: records[4]}.restoreFile(t.Context(), b.reading(), filepath.Join(dir, "image"))
	left, _ := os.ReadDir(dir)
	if !fault.Is(err, fault.ErrCorrupt) || len(left) != 1 || left[0].Name() != "image"+partSuffix || !strings.Contains(err.Error(), partSuffix) {
		t.Errorf("%v, left: %v", err, left)
	}
}

func TestRangesOfAPackAreNeitherTooLongNorFullOfHoles(t *testing.T) {
	var chunks []located
	for _, offset := range []uint32{100, 200, 200, 300 + restoreGap, 500 + 2*restoreGap, restoreRange + 10000 + 2*restoreGap} {
		chunks = append(chunks, located{entry: Entry{Offset: offset, Sealed: 100}})
	}
	var got []string
	for _, r := range split(packRange{chunks: chunks}) {
		got = append(got, fmt.Sprint(len(r.chunks), " to ", r.end-r.chunks[0].entry.Offset))
	}
	want := []string{"4 to " + fmt.Sprint(300+restoreGap), "1 to 100", "1 to 100"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// allocated is how many bytes of a file the filesystem keeps.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
