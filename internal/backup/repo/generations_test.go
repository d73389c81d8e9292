package repo

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"orlop/internal/backup/store/dirstore"
	"orlop/internal/backup/store/storetest"
)

// sparseFile counts what is written to it, rounded up to blocks of 4 KiB as a filesystem does, and keeps the content.
type sparseFile struct {
	*disk
	allocated map[int64]bool
}

func (f *sparseFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.disk.WriteAt(p, offset)
	f.mu.Lock()
	defer f.mu.Unlock()
	for block := offset / 4096; block <= (offset+int64(n)-1)/4096; block++ {
		f.allocated[block] = true
	}
	return n, err
}

// sealedBytes is what the changed chunks take in packs, footers aside: the store's measure of a perfect backup.
func sealedBytes(t *testing.T, r *Repository, w *Written, before map[PackName]bool) (total int64) {
	t.Helper()
	h, index := mustNewest(t, r)
	for _, p := range h.Live {
		if before[p.Name] || p.Name.Kind != DataPack {
			continue
		}
		for _, packed := range index.contents() {
			if packed.Ref.Name != p.Name {
				continue
			}
			for _, e := range packed.Entries {
				total += int64(e.Sealed)
			}
		}
	}
	if total == 0 {
		t.Errorf("backup %s stored no chunk", w.Record)
	}
	return total
}

// Ten generations of an image with random writes and discards: each restores byte for byte, sparse, and the repository
// grows by little more than what the changed chunks take.
func TestTenGenerationsRestoreAndGrowByWhatChanged(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, newTestKey(t), From(testOrigin("h", "1:0")))
	v := newSparse(64<<20+12345, 4096)
	var before *sparse
	var last *Written
	written, contents := []*Written{}, []*sparse{}
	live := map[PackName]bool{}
	stored := storedBytes(t, objects)
	for generation := range 10 {
		v = v.clone()
		for range 30 {
			churn(random, v, generation == 0)
		}
		last = mustBackup(t, r, specOf(v, last, before))
		if last.Mistrust != nil {
			t.Fatal(last.Mistrust)
		}
		grown := storedBytes(t, objects) - stored
		stored += grown
		sealed := sealedBytes(t, r, last, live)
		t.Logf("generation %d: %d bytes more for %d of sealed chunks: %.3f", generation, grown, sealed, float64(grown)/float64(sealed))
		if float64(grown) > 1.15*float64(sealed) {
			t.Errorf("generation %d: the repository grew by %d bytes for %d of sealed chunks", generation, grown, sealed)
		}
		h, _ := mustNewest(t, r)
		for _, p := range h.Live {
			live[p.Name] = true
		}
		written, contents, before = append(written, last), append(contents, v), v
	}
	for i, w := range written {
		got := &sparseFile{&disk{data: make([]byte, v.size)}, map[int64]bool{}}
		if _, err := r.Restore(t.Context(), Restore{Backup: w.Backup, Target: got}); err != nil {
			t.Error(err)
		}
		want := make([]byte, v.size)
		if _, err := contents[i].ReadAt(want, 0); err != nil {
			t.Error(err)
		}
		if !slices.Equal(got.data, want) {
			t.Errorf("generation %d is not what it was", i)
		}
		chunks := map[int64]bool{}
		for block := range contents[i].blocks {
			chunks[block*4096/MinChunk] = true
		}
		if most := len(chunks) * MinChunk / 4096; len(got.allocated) > most {
			t.Errorf("generation %d takes %d blocks, at most %d are wanted", i, len(got.allocated), most)
		}
	}
}

// churn writes to or discards a part of a volume.
func churn(random *rand.Rand, v *sparse, first bool) {
	at, length := random.Int64N(v.size/v.block), random.Int64N(48)
	for block := at; block < min(at+length, v.size/v.block); block++ {
		if !first && at%5 == 0 {
			delete(v.blocks, block)
			continue
		}
		data := make([]byte, v.block)
		if at%2 == 0 {
			mix(random, data)
		} else {
			copy(data, strings.Repeat(strconv.FormatInt(block, 10)+" words ", 300))
		}
		v.blocks[block] = data
	}
}

func storedBytes(t *testing.T, objects *storetest.Memory) (total int64) {
	t.Helper()
	for _, name := range objects.Names() {
		data, err := objects.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		total += int64(len(data))
	}
	return total
}

// What an incremental backup costs follows the change and not the volume.
func TestIncrementalCostsTheSameAtAnySize(t *testing.T) {
	t.Parallel()
	type cost struct {
		requests map[storetest.Op]int
		read     int64
	}
	costs := map[string]cost{}
	for _, size := range []int64{10 << 30, 100 << 30, 1 << 40} {
		faults := storetest.NewFaults(storetest.NewMemory())
		r := newTestRepository(t, faults, newTestKey(t), From(testOrigin("h", "1:0")))
		// 1024 chunks in 16 leaves that are far from each other.
		before := newSparse(size, DefaultChunk)
		chunks := size / DefaultChunk
		for i := range int64(1024) {
			before.blocks[i/64*(chunks/16)/fanout*fanout+i%64] = filled(DefaultChunk, byte(i%255+1))
		}
		spec := specOf(before, nil, nil)
		spec.Backup.ChunkSize = DefaultChunk
		base := mustBackup(t, r, spec)
		v := before.clone()
		touched := slices.Sorted(func(yield func(int64) bool) {
			for i := range before.blocks {
				if !yield(i) {
					return
				}
			}
		})
		for i := range 10 {
			v.blocks[touched[i*100]] = slices.Repeat([]byte{byte(i), 77}, DefaultChunk/2)
		}
		faults.Reset()
		v.read.Store(0)
		spec = specOf(v, base, before)
		spec.Backup.ChunkSize = DefaultChunk
		w := mustBackup(t, r, spec)
		if w.Parent != base.Record || w.Mistrust != nil {
			t.Fatalf("built on %q: %v", w.Parent, w.Mistrust)
		}
		c := cost{requests: map[storetest.Op]int{}, read: v.read.Load()}
		for _, op := range []storetest.Op{storetest.Put, storetest.Get, storetest.GetRange, storetest.List, storetest.Delete} {
			c.requests[op] = faults.Count(op).Requests
		}
		costs[fmt.Sprintf("%d GiB", size>>30)] = c
		if err := checkContent(t.Context(), r, w.Backup, v); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%+v", costs)
	first := costs["10 GiB"]
	for size, c := range costs {
		if c.read != first.read || c.read != (10+auditedLeaves*auditedChunks)*DefaultChunk {
			t.Errorf("%s: read %d bytes, want %d", size, c.read, first.read)
		}
		for op, n := range c.requests {
			if n != first.requests[op] {
				t.Errorf("%s: %d requests to %s, want %d", size, n, op, first.requests[op])
			}
		}
	}
}

// peakSize names the size of the volume for which a test process backs it up and prints how much memory it took.
const peakSize = "ORLOP_TEST_PEAK_SIZE"

// peakLimit is how many KiB of memory a backup may take.
const peakLimit = 300 << 10

func TestBackupTakesLittleMemory(t *testing.T) {
	if text := os.Getenv(peakSize); text != "" {
		backUpRandomData(t, text)
		return
	}
	size := int64(8 << 30)
	if soaking() {
		size = 100 << 30
	}
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBackupTakesLittleMemory$", "-test.v")
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%d", peakSize, size))
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	_, rest, _ := strings.Cut(string(output), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("no peak in %s", output)
	}
	peak, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d GiB with 4 KiB of random data in every MiB: %d KiB at the peak", size>>30, peak)
	if peak > peakLimit {
		t.Errorf("it took %d KiB, at most %d are wanted", peak, peakLimit)
	}
}

// randomly is a volume with 4 KiB of random data in every MiB, made as it is read.
type randomly struct{ size int64 }

func (v randomly) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	for at := offset &^ (1<<20 - 1); at < offset+int64(len(p)); at += 1 << 20 {
		data := make([]byte, 4096)
		seed := [32]byte{}
		binary.LittleEndian.PutUint64(seed[:], uint64(at))
		_, _ = rand.NewChaCha8(seed).Read(data) // it never fails
		if at >= offset {
			copy(p[at-offset:], data)
		} else if offset-at < 4096 {
			copy(p, data[offset-at:])
		}
	}
	return len(p), nil
}

func backUpRandomData(t *testing.T, text string) {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := dirstore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	r := newTestRepository(t, objects, newTestKey(t))
	spec := specOf(newSparse(size, MinChunk), nil, nil)
	spec.Backup.ChunkSize = DefaultChunk
	spec.Source = randomly{size}
	spec.Extents = func(_ context.Context, _ *Backup, fn func(Extent) error) error {
		for at := int64(0); at < size; at += 1 << 20 {
			if err := fn(Extent{Offset: at, Length: 4096}); err != nil {
				return err
			}
		}
		return nil
	}
	w := mustBackup(t, r, spec)
	if want := size >> 20 * DefaultChunk; w.Stats.Read != want || w.Stats.New != want {
		t.Errorf("%+v, want %d", w.Stats, want)
	}
	status, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "VmHWM:") {
			fmt.Println(lines.Text())
		}
	}
}
