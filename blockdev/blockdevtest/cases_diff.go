package blockdevtest

import (
	"bytes"
	"context"
	"errors"
	"io"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// diff is what the pool tells of two devices, which must be in order.
func (s *suite) diff(from, to blockdev.ID) (extents []blockdev.Extent) {
	s.Helper()
	differ, ok := s.pool().Differ()
	if !ok {
		return nil
	}
	end, size := int64(0), s.stat(to).Size
	s.ok(differ.Diff(s.Context(), from, to, func(e blockdev.Extent) error {
		if e.Offset < end || e.Length <= 0 || e.End() > size || e.Kind != blockdev.Data && e.Kind != blockdev.Hole {
			s.Fatalf("after offset %d of %d: %+v", end, size, e)
		}
		end = e.End()
		extents = append(extents, e)
		return nil
	}))
	return extents
}

// read is what the pool's Differ reads of a device.
func (s *suite) read(differ blockdev.Differ, id blockdev.ID) []byte {
	s.Helper()
	reader, err := differ.Open(s.Context(), id)
	s.ok(err)
	b := make([]byte, reader.Size()+1)
	n, err := reader.ReadAt(b, 0)
	if int64(n) != reader.Size() || !errors.Is(err, io.EOF) || reader.Size() != s.stat(id).Size {
		s.Fatalf("read %d bytes of %d, %v", n, reader.Size(), err)
	}
	s.ok(reader.Close())
	return b[:n]
}

// leads fails unless what differs between two devices makes to's content, which is wanted, of from's.
func (s *suite) leads(from, to blockdev.ID, base, wanted []byte) {
	s.Helper()
	made, end := true, int64(0)
	same := func(from, to int64) bool { // as it has to be where nothing differs; behind its end, base reads as zeroes
		here := base[min(from, int64(len(base))):min(to, int64(len(base)))]
		middle := from + int64(len(here))
		return bytes.Equal(here, wanted[from:middle]) && zero(wanted[middle:to])
	}
	for _, e := range s.diff(from, to) {
		made = made && same(end, e.Offset) && (e.Kind == blockdev.Data || zero(wanted[e.Offset:e.End()]))
		end = e.End()
	}
	if !made || !same(end, int64(len(wanted))) {
		s.Fatalf("what differs between %q and %s does not lead from one to the other", from, to)
	}
}

var zeroes [1 << 16]byte

func zero(b []byte) bool {
	for ; len(b) > len(zeroes); b = b[len(zeroes):] {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
	}
	return bytes.Equal(b, zeroes[:len(b)])
}

func diffLeadsFromEachDeviceToEachOther(s *suite) {
	differ, ok := s.pool().Differ()
	if !ok {
		return
	}
	rng := s.random()
	volume := s.created(size)
	path := s.activated(volume, blockdev.ReadWrite)
	ids := []blockdev.ID{""}
	for i := range rounds(6, 20) {
		changes := newChanges(rng.Uint64(), s.stat(volume).Size)
		s.ok(changes.apply(path, rng.IntN(100)))
		if i == 3 {
			s.ok(s.pool().Grow(s.Context(), volume, size+mib))
		}
		id := s.id()
		if rng.IntN(2) == 0 {
			s.ok(s.pool().Prepare(s.Context(), id, volume, record("prepared")))
			s.ok(changes.apply(path, rng.IntN(20)))
		}
		s.ok(s.pool().Clone(s.Context(), id, volume, record("snapshot")))
		s.ok(s.pool().Sync(s.Context(), id))
		s.ok(s.pool().Seal(s.Context(), id))
		if !bytes.Equal(s.read(differ, id), s.content(path)) {
			s.Fatal("reading the snapshot shows another content than the volume has")
		}
		if i > 0 {
			s.within(s.diff(ids[i], id), changes.touched, size)
		}
		ids = append(ids, id)
	}
	contents := make([][]byte, len(ids)) // nothing for nothing
	for i, id := range ids[1:] {
		contents[1+i] = s.read(differ, id)
	}
	for i, from := range ids {
		for j, to := range ids[1:] {
			s.leads(from, to, contents[i], contents[1+j])
		}
	}
	if same := s.diff(ids[1], ids[1]); len(same) > 0 {
		s.Errorf("a device differs from itself in %v", same)
	}
}

// within fails if, below limit, more differs than the chunks with blocks that were touched.
func (s *suite) within(extents []blockdev.Extent, touched map[int64]bool, limit int64) {
	s.Helper()
	chunks := map[int64]bool{}
	for number := range touched {
		chunks[number*blockLength/s.h.Chunk] = true
	}
	for _, e := range extents {
		for offset := e.Offset; offset < min(e.End(), limit); offset += blockLength {
			if !chunks[offset/s.h.Chunk] {
				s.Fatalf("%+v covers block %d, of a chunk that was not written", e, offset/blockLength)
			}
		}
	}
}

func diffFromNothingTellsWhatIsAllocated(s *suite) {
	if _, ok := s.pool().Differ(); !ok {
		return
	}
	id := s.created(size)
	if extents := s.diff("", id); len(extents) > 0 {
		s.Fatalf("a new device has %v", extents)
	}
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, mib, "something")
	s.write(path, 3*mib, "more")
	s.ok(s.pool().Sync(s.Context(), id))
	told := int64(0)
	for _, e := range s.diff("", id) {
		if e.Kind != blockdev.Data {
			s.Errorf("a hole differs from nothing: %+v", e)
		}
		told += e.Length
	}
	if told < 2*blockLength || told > size/4 {
		s.Errorf("2 blocks were written, %d bytes are told to be allocated", told)
	}
}

func diffEndsWhenItIsTold(s *suite) {
	differ, ok := s.pool().Differ()
	if !ok {
		return
	}
	id := s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, 0, "one")
	s.write(path, 2*mib, "two")
	calls, enough := 0, errors.New("enough")
	err := differ.Diff(s.Context(), "", id, func(blockdev.Extent) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		s.Errorf("%d calls, %v", calls, err)
	}
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	if err := differ.Diff(cancelled, "", id, func(blockdev.Extent) error { return nil }); !errors.Is(err, context.Canceled) {
		s.Errorf("cancelled: %v", err)
	}
	missing := blockdev.NewID()
	fn := func(e blockdev.Extent) error { s.Errorf("told of %+v", e); return nil }
	s.kind(differ.Diff(s.Context(), "", missing, fn), fault.ErrNotFound, "diff to nothing")
	s.kind(differ.Diff(s.Context(), missing, id, fn), fault.ErrNotFound, "diff from nothing")
	_, err = differ.Open(s.Context(), missing)
	s.kind(err, fault.ErrNotFound, "open")
}
