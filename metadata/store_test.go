package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"orlop/internal/fault"
)

// opened opens the metadata in dir until the test's end.
func opened(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func update(t *testing.T, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// sample is a file with records of every kind, of several pages.
func sample(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s := opened(t, dir)
	for round := range 3 { // so that there are freed pages too
		update(t, s, func(tx *Tx) error {
			for i := range 60 {
				id := fmt.Sprintf("volume-%03d", i)
				v := Volume{ID: id, Name: fmt.Sprintf("name-%03d", i), State: Ready, Size: int64(round + 1), Labels: map[string]string{"a": "b"}}
				err := errors.Join(tx.PutVolume(v), tx.PutDevice(Device{ID: id, Kind: KindVolume}),
					tx.PutHolder(Holder{Volume: id, ID: "holder", Since: time.Unix(1, 0).UTC()}))
				if err != nil {
					return err
				}
			}
			snapshot := Snapshot{ID: "snapshot-001", Name: "s", State: Ready, Volume: Volume{ID: "volume-001"}}
			return errors.Join(tx.PutSnapshot(snapshot), tx.PutPool(Pool{Name: "default", UUID: "uuid"}), tx.PutIntent(Intent{Volume: "volume-001"}), tx.PutEpoch(7))
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readEverything calls every method that reads.
func readEverything(s *Store) error {
	return s.View(func(tx *Tx) error {
		volumes, err := tx.Volumes()
		_, devicesErr := tx.Devices()
		_, poolsErr := tx.Pools()
		_, holdersErr := tx.Holders("")
		_, intentsErr := tx.Intents()
		_, snapshotsErr := tx.Snapshots("")
		err = errors.Join(err, snapshotsErr, devicesErr, poolsErr, holdersErr, intentsErr, tx.Names(func(string) error { return nil }))
		for _, v := range volumes {
			_, named := tx.VolumeNamed(v.Name)
			_, held := tx.Holders(v.ID)
			_, taken := tx.Snapshots(v.ID)
			err = errors.Join(err, named, held, taken)
		}
		_ = tx.Epoch()
		return err
	})
}

func TestRecordsAndRootIDOutliveClose(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	root := s.RootID()
	update(t, s, func(tx *Tx) error { return tx.PutVolume(Volume{ID: "1", Name: "a", State: Ready}) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = opened(t, dir)
	if s.RootID() != root || root == "" {
		t.Errorf("root was %q, is %q", root, s.RootID())
	}
	if err := s.View(func(tx *Tx) error {
		v, err := tx.VolumeNamed("a")
		if err == nil && v.ID != "1" {
			err = fmt.Errorf("%+v", v)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestSecondOpenOfARootIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	if second, err := Open(dir); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("%v, %v", second, err)
	}
	update(t, s, func(tx *Tx) error { return tx.PutEpoch(1) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opened(t, dir)
}

func TestCopyIsMadeAtStart(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	update(t, s, func(tx *Tx) error { return tx.PutVolume(Volume{ID: "1", Name: "a", State: Ready}) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = opened(t, dir)
	update(t, s, func(tx *Tx) error { return tx.PutVolume(Volume{ID: "2", Name: "later", State: Ready}) })
	other := t.TempDir()
	copied, err := os.ReadFile(filepath.Join(dir, CopyName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, FileName), copied, 0o600); err != nil {
		t.Fatal(err)
	}
	c := opened(t, other)
	if c.RootID() != s.RootID() {
		t.Errorf("copy is of root %s, want %s", c.RootID(), s.RootID())
	}
	if err := c.View(func(tx *Tx) error {
		_, err := tx.VolumeNamed("a")
		if _, later := tx.VolumeNamed("later"); !fault.Is(later, fault.ErrNotFound) {
			err = errors.Join(err, errors.New("the copy changed after the start"))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, CopyName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestNewerFileIsRefusedAndLeftAlone(t *testing.T) {
	dir := sample(t)
	path := filepath.Join(dir, FileName)
	change(t, path, func(meta *bolt.Bucket) error { return meta.Put(keyMinReader, number(schema+1)) })
	refused(t, dir, "newer")
	change(t, path, func(meta *bolt.Bucket) error {
		return errors.Join(meta.Put(keyMinReader, number(schema)), meta.Put(keySchema, number(schema+5)))
	})
	opened(t, dir) // newer, but one that this program can read
}

func TestFileWithoutSchemaOrBucketsIsRefusedAndLeftAlone(t *testing.T) {
	dir := sample(t)
	path := filepath.Join(dir, FileName)
	change(t, path, func(meta *bolt.Bucket) error { return meta.Delete(keyMinReader) })
	refused(t, dir, "no schema")
	change(t, path, func(meta *bolt.Bucket) error { return meta.Put(keyMinReader, []byte{1}) })
	refused(t, dir, "short schema")
	change(t, path, func(meta *bolt.Bucket) error {
		return errors.Join(meta.Put(keyMinReader, number(schema)), meta.Tx().DeleteBucket(bucketHolders))
	})
	refused(t, dir, "no holders")
}

// change writes to the file as another program would.
func change(t *testing.T, path string, fn func(meta *bolt.Bucket) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return fn(tx.Bucket(bucketMeta)) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// refused fails unless Open says that the file is damaged, and leaves it and its copy as they are.
func refused(t *testing.T, dir, what string) {
	t.Helper()
	before := contents(t, dir)
	s, err := Open(dir)
	if err == nil {
		_ = s.Close()
	}
	if !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
	}
	if after := contents(t, dir); !equal(before, after) {
		t.Errorf("%s: the refused open changed the files", what)
	}
}

func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range []string{FileName, CopyName} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		files[name] = content
	}
	return files
}

func equal(a, b map[string][]byte) bool {
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return len(a) == len(b)
}

func TestTruncatedFileIsRefusedAndLeftAlone(t *testing.T) {
	dir := sample(t)
	path := filepath.Join(dir, FileName)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := int(highWater(sound)) * os.Getpagesize()
	lengths := []int{0, 1, 16, 79, 80, 4095, 4096, 4097, 8191, 8192, used / 2, used - 4096, used - 1}
	for length := 12288; length < used; length += 4096 {
		lengths = append(lengths, length)
	}
	for _, length := range lengths {
		if err := os.WriteFile(path, sound[:length], 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, fmt.Sprintf("%d of %d bytes", length, len(sound)))
	}
}

// highWater is how many pages the newer meta page says are in use.
func highWater(content []byte) (pages uint64) {
	newest := uint64(0)
	for offset := 0; offset <= os.Getpagesize(); offset += os.Getpagesize() {
		if meta := content[offset+headerLength:]; word(meta[48:]) >= newest {
			newest, pages = word(meta[48:]), word(meta[40:])
		}
	}
	return pages
}

// damage opens a file in which one thing is changed. Nothing but a change of content may go unnoticed: then reading
// everything ends with no panic.
func damage(t *testing.T, dir, what string, content []byte) (noticed bool) {
	t.Helper()
	path := filepath.Join(dir, FileName)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		if !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
			t.Errorf("%s: the refused open changed the file (%v)", what, err)
		}
		return true
	}
	err = readEverything(s)
	if err != nil && !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("%s: reading: %v", what, err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return err != nil
}

// stride thins out what a short run tries; a soak tries all of it.
func stride() int {
	if os.Getenv("ORLOP_SOAK") != "" {
		return 1
	}
	return 11
}

func TestDamagedBytesNeverPanic(t *testing.T) {
	dir := sample(t)
	sound, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	pages := int(highWater(sound))
	var offsets []int
	for page := range pages { // the headers and directories, where structure is
		for offset := page % stride(); offset < 64; offset += stride() {
			offsets = append(offsets, page*os.Getpagesize()+offset)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 1000 / stride() {
		offsets = append(offsets, random.IntN(pages*os.Getpagesize()))
	}
	noticed := 0
	for _, offset := range offsets {
		content := bytes.Clone(sound)
		content[offset] ^= byte(1 + random.IntN(255))
		if damage(t, dir, fmt.Sprintf("byte %d made %#x", offset, content[offset]), content) {
			noticed++
		}
	}
	t.Logf("%d damaged bytes in %d pages, %d noticed", len(offsets), pages, noticed)
	if noticed == 0 {
		t.Error("no damage was noticed")
	}
}

func TestLostPagesNeverPanic(t *testing.T) {
	dir := sample(t)
	sound, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	size := os.Getpagesize()
	pages := int(highWater(sound))
	page := func(content []byte, i int) []byte { return content[i*size:][:size] }
	for i := range pages {
		zeroed, ones := bytes.Clone(sound), bytes.Clone(sound)
		clear(page(zeroed, i))
		damage(t, dir, fmt.Sprintf("page %d lost", i), zeroed)
		copy(page(ones, i), bytes.Repeat([]byte{0xff}, size))
		damage(t, dir, fmt.Sprintf("page %d overwritten", i), ones)
		for j := i % stride(); j < pages; j += stride() {
			swapped := bytes.Clone(sound)
			copy(page(swapped, i), page(sound, j))
			binary.NativeEndian.PutUint64(page(swapped, i), uint64(i)) // so that the header looks right
			if i > 1 && j > 1 {
				damage(t, dir, fmt.Sprintf("page %d in the place of %d", j, i), swapped)
			}
		}
	}
}

func TestMetaPagesThatPointNowhereAreRefused(t *testing.T) {
	dir := sample(t)
	sound, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	for name, offset := range map[string]int{"root": 16, "free list": 32, "pages": 40} {
		for _, value := range []uint64{0, 1, highWater(sound), highWater(sound) + 1, 1 << 40, ^uint64(0) - 1} {
			content := bytes.Clone(sound)
			for page := range 2 { // both, and whole, as a bug rather than a disk would leave them
				meta := content[page*os.Getpagesize()+headerLength:][:metaLength]
				binary.NativeEndian.PutUint64(meta[offset:], value)
				sum := fnv.New64a()
				_, _ = sum.Write(meta[:56])
				binary.NativeEndian.PutUint64(meta[56:], sum.Sum64())
			}
			// The file has more pages than are in use: to call one more of them used costs no more than that page.
			harmless := name == "pages" && (value == highWater(sound) || value == highWater(sound)+1)
			if !damage(t, dir, fmt.Sprintf("%s %d", name, value), content) && !harmless {
				t.Errorf("%s of %d was not noticed", name, value)
			}
		}
	}
}

func TestDatabaseOfAnotherKindIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "x", "not a database\n", string(make([]byte, 1<<16))} {
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, fmt.Sprintf("%d bytes", len(content)))
	}
}
