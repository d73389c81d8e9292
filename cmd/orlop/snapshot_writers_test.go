//go:build root

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	recordWriters = 4
	recordsInFile = 256 // of a writer's log, then the next file is begun and the one before the last deleted
	ringSlots     = 32  // of the file in which a writer overwrites its records in turn
	slotSize      = 8192
	recordHead    = 4 + 8 + 8 // length, number, checksum of what follows
)

// A recordWriter writes numbered records to a directory, each to the end of a log and into a ring of slots, syncs both
// and only then counts the record as acknowledged. Who has its last record has all the earlier ones.
type recordWriter struct {
	id    int
	dir   string
	begun atomic.Int64 // records whose first byte may be on the disk
	acked atomic.Int64 // records that are on the disk, as the kernel promised
}

var crcTable = crc64.MakeTable(crc64.ECMA)

// record is a writer's n-th record: 100 to some 8,000 bytes, like no other.
func (w *recordWriter) record(n int64) []byte {
	random := rand.New(rand.NewPCG(uint64(w.id), uint64(n)))
	raw := make([]byte, recordHead+100+random.IntN(slotSize-recordHead-100))
	for i := recordHead; i < len(raw); i++ {
		raw[i] = byte(random.Uint32())
	}
	binary.LittleEndian.PutUint32(raw, uint32(len(raw)))
	binary.LittleEndian.PutUint64(raw[4:], uint64(n))
	binary.LittleEndian.PutUint64(raw[12:], crc64.Checksum(raw[recordHead:], crcTable))
	return raw
}

func (w *recordWriter) log(dir string, file int64) string {
	return filepath.Join(dir, fmt.Sprintf("log-%d-%06d", w.id, file))
}

func (w *recordWriter) ring(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("ring-%d", w.id))
}

// write writes records until stop is closed.
func (w *recordWriter) write(stop <-chan struct{}) (err error) {
	ring, err := os.OpenFile(w.ring(w.dir), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	var log *os.File // nil only before the first record
	defer func() {
		if log != nil {
			err = errors.Join(err, log.Close())
		}
	}()
	for n := int64(0); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if n%recordsInFile == 0 {
			if log, err = w.nextLog(log, n/recordsInFile); err != nil {
				return err
			}
		}
		w.begun.Store(n + 1)
		raw := w.record(n)
		if _, err := log.Write(raw); err != nil {
			return err
		}
		if err := log.Sync(); err != nil {
			return err
		}
		if _, err := ring.WriteAt(raw, n%ringSlots*slotSize); err != nil {
			return err
		}
		if err := ring.Sync(); err != nil {
			return err
		}
		w.acked.Store(n + 1)
	}
}

// nextLog begins a file of the log, durably, and deletes the one before the last.
func (w *recordWriter) nextLog(last *os.File, file int64) (*os.File, error) {
	if last != nil {
		if err := last.Close(); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(w.log(w.dir, file-2)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(w.log(w.dir, file), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(w.dir)
	if err != nil {
		return f, err
	}
	return f, errors.Join(dir.Sync(), dir.Close())
}

// verify fails unless dir, a copy of the writer's directory, has every record up to some number, none torn, and that
// number is at least acked and at most begun.
func (w *recordWriter) verify(dir string, acked, begun int64) error {
	logged, err := w.readLogs(dir)
	if err != nil {
		return fmt.Errorf("writer %d: %w", w.id, err)
	}
	if logged < acked || logged > begun {
		return fmt.Errorf("writer %d: the log has %d records; %d were acknowledged before the snapshot and %d begun after it", w.id, logged, acked, begun)
	}
	if err := w.readRing(dir, logged); err != nil {
		return fmt.Errorf("writer %d, with %d records in the log: %w", w.id, logged, err)
	}
	return nil
}

// readLogs returns how many records the log has had. It fails unless those in its files follow each other without a gap.
func (w *recordWriter) readLogs(dir string) (next int64, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("log-%d-*", w.id)))
	if err != nil || len(paths) == 0 {
		return 0, err
	}
	slices.Sort(paths)
	if len(paths) > 3 {
		return 0, fmt.Errorf("%d files of the log, want 3 at most", len(paths))
	}
	var file int64
	if _, err := fmt.Sscanf(filepath.Base(paths[0]), fmt.Sprintf("log-%d-%%d", w.id), &file); err != nil {
		return 0, err
	}
	next = file * recordsInFile
	for _, path := range paths {
		if want := w.log(dir, next/recordsInFile); path != want || next%recordsInFile != 0 {
			return next, fmt.Errorf("after record %d comes %s", next, filepath.Base(path))
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return next, err
		}
		for ; len(content) > 0; next++ {
			want := w.record(next)
			if !bytes.HasPrefix(content, want) {
				return next, fmt.Errorf("%s: record %d is torn: %d bytes are left", filepath.Base(path), next, len(content))
			}
			content = content[len(want):]
		}
	}
	return next, nil
}

// readRing fails unless each slot holds the last record of those written to it, of which the log has logged.
func (w *recordWriter) readRing(dir string, logged int64) error {
	ring, err := os.Open(w.ring(dir))
	if errors.Is(err, os.ErrNotExist) && logged == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer ring.Close()
	// The last record of the log may be in the ring, or not yet.
	var wrong [2]error
	for late := range int64(2) {
		for n := max(0, logged-late-ringSlots); n < logged-late; n++ {
			want := w.record(n)
			got := make([]byte, len(want))
			if _, err := ring.ReadAt(got, n%ringSlots*slotSize); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if !bytes.Equal(got, want) {
				wrong[late] = fmt.Errorf("slot %d does not hold record %d", n%ringSlots, n)
				break
			}
		}
	}
	if wrong[0] != nil && wrong[1] != nil {
		return errors.Join(wrong[:]...)
	}
	return nil
}

// A crew is several writers at work.
type crew struct {
	writers []*recordWriter
	stop    func()
	ended   sync.WaitGroup
}

// startCrew starts writers in dir, which end before the test's other cleanups, and waits until each has written.
func startCrew(t *testing.T, dir string) *crew {
	t.Helper()
	stop := make(chan struct{})
	c := &crew{}
	c.stop = sync.OnceFunc(func() { close(stop); c.ended.Wait() })
	for id := range recordWriters {
		w := &recordWriter{id: id, dir: dir}
		c.writers = append(c.writers, w)
		c.ended.Go(func() {
			if err := w.write(stop); err != nil {
				t.Errorf("writer %d: %v", id, err)
			}
		})
	}
	t.Cleanup(c.stop)
	c.advance(t)
	return c
}

// acked is what each writer has on the disk.
func (c *crew) acked() (counts []int64) {
	for _, w := range c.writers {
		counts = append(counts, w.acked.Load())
	}
	return counts
}

func (c *crew) begun() (counts []int64) {
	for _, w := range c.writers {
		counts = append(counts, w.begun.Load())
	}
	return counts
}

// advance waits until each writer has written two records more: one may have been on its way.
func (c *crew) advance(t *testing.T) {
	t.Helper()
	before := c.acked()
	awaitHolds(t, "each writer goes on", func() bool {
		now := c.acked()
		for i := range now {
			if now[i] < before[i]+2 {
				return false
			}
		}
		return true
	})
}

func TestSnapshotsUnderSyncedWritesHoldWhatWasAcknowledgedAndNothingTorn(t *testing.T) {
	for _, test := range []struct {
		name, filesystem string
		fragmented       bool // so that most is copied ahead, while it is written
		snapshots        int
	}{
		{"ext4", "ext4", false, often(6, 100)}, {"xfs", "xfs", false, often(6, 100)}, {"ext4 in many extents", "ext4", true, often(3, 100)},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := startHost(t, "--pool-size", "8G")
			h.must(t, "create", "data", "--size", "512M", "--fs", test.filesystem)
			dir := h.must(t, "mount", "data")
			if test.fragmented {
				h.fragment(t, "data", dir)
			}
			c := startCrew(t, dir)
			for round := range test.snapshots {
				acked := c.acked()
				name := h.must(t, "snapshot", "create", "data")
				begun := c.begun()
				h.onClone(t, "data@"+name, func(dir string) {
					for i, w := range c.writers {
						if err := w.verify(dir, acked[i], begun[i]); err != nil {
							t.Errorf("round %d: %v", round, err)
						}
					}
				})
				if round%2 == 1 {
					h.must(t, "snapshot", "delete", "data@"+name)
				}
				c.advance(t)
			}
			c.stop()
			for i, w := range c.writers {
				if err := w.verify(w.dir, c.acked()[i], c.begun()[i]); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%d snapshots under %d records", test.snapshots, sum(c.acked()))
			for _, s := range h.snapshots(t, "data") {
				if s.Consistency != "frozen" || s.State != "ready" {
					t.Errorf("%+v", s)
				}
			}
			h.must(t, "umount", "data")
			h.wantSound(t, "data")
			h.must(t, "delete", "--snapshots", "data")
			if left := h.images(t); len(left) > 0 {
				t.Errorf("left in the pool: %q", left)
			}
		})
	}
}

// fragment has the image of a mounted volume consist of thousands of extents: each block that is written while a
// snapshot shares it goes elsewhere.
func (h *host) fragment(t *testing.T, volume, dir string) {
	t.Helper()
	const block, blocks = 4096, 1 << 14
	f, err := os.Create(filepath.Join(dir, "fragmented"))
	check(t, err)
	_, err = f.Write(bytes.Repeat([]byte("before"), block*blocks/6))
	check(t, errors.Join(err, f.Sync()))
	name := h.must(t, "snapshot", "create", volume)
	for i := int64(0); i < blocks; i += 2 {
		_, err := f.WriteAt(bytes.Repeat([]byte{'n'}, block), i*block)
		check(t, err)
	}
	check(t, errors.Join(f.Sync(), f.Close()))
	h.must(t, "snapshot", "delete", volume+"@"+name)
	if n := extents(t, h.image(t, volume)); n < blocks/4 {
		t.Fatalf("the image has %d extents only", n)
	}
}

// extents returns how many extents a file has.
func extents(t *testing.T, path string) (n int) {
	t.Helper()
	out, err := exec.Command("filefrag", path).Output()
	check(t, err)
	_, err = fmt.Sscanf(strings.TrimPrefix(string(out), path+": "), "%d extents", &n)
	check(t, err)
	return n
}

func sum(counts []int64) (total int64) {
	for _, n := range counts {
		total += n
	}
	return total
}
