package blockdevtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"orlop/blockdev"
	"orlop/internal/fault"
)

func preparedDeviceIsNoneUntilCloned(s *suite) {
	src, dst := s.created(size), s.id()
	from := s.activated(src, blockdev.ReadWrite)
	s.write(from, 0, "before")
	for range 2 {
		s.ok(s.pool().Prepare(s.Context(), dst, src, record("prepared")))
	}
	for _, method := range naming {
		s.kind(method.call(s.Context(), s.pool(), dst), fault.ErrNotFound, method.name)
	}
	s.listsNothing(dst)
	s.write(from, 0, "after")
	s.write(from, mib, "after")
	s.ok(s.pool().Clone(s.Context(), dst, src, record("clone")))
	s.ok(s.pool().Sync(s.Context(), dst))
	if info := s.stat(dst); info.Size != size || !sameRecord(info.Record, record("clone")) {
		s.Fatalf("clone is %+v", info)
	}
	s.kind(s.pool().Prepare(s.Context(), dst, src, record("again")), fault.ErrExists, "prepare what is made")
	s.kind(s.pool().Clone(s.Context(), dst, src, record("again")), fault.ErrExists, "clone what is made")
	if info := s.stat(dst); !sameRecord(info.Record, record("clone")) {
		s.Fatalf("the refused calls left %+v", info)
	}
	to := s.activated(dst, blockdev.ReadWrite)
	s.shows(to, 0, "after")
	s.shows(to, mib, "after")
	s.kind(s.pool().Prepare(s.Context(), src, src, record("again")), fault.ErrExists, "prepare a device from itself")
}

// listsNothing fails if list shows more of id than that something of it is there.
func (s *suite) listsNothing(id blockdev.ID) {
	s.Helper()
	infos, err := s.pool().List(s.Context())
	s.ok(err)
	for _, info := range infos {
		if info.ID == id && (info.Size != 0 || info.Path != "") {
			s.Fatalf("list has %+v", info)
		}
	}
}

func prepareCutShortCanBeRemoved(s *suite) {
	src, dst := s.fragmented(), s.id()
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	if err := s.pool().Prepare(cancelled, dst, src, record("cut")); err != nil {
		s.absent(s.pool(), dst)
	}
	s.ok(s.pool().Prepare(s.Context(), dst, src, record("prepared")))
	if s.h.Reopen != nil {
		s.deactivate(src)
		s.h.Pool = s.h.Reopen(s.T)
		s.listsNothing(dst)
	}
	s.ok(s.pool().Remove(s.Context(), dst))
	s.absent(s.pool(), dst)
	missing := s.id()
	s.kind(s.pool().Prepare(s.Context(), missing, blockdev.NewID(), record("prepared")), fault.ErrNotFound, "prepare from nothing")
	s.absent(s.pool(), missing)
}

func cloneOfAPreparedDeviceCutShortLeavesNoDevice(s *suite) {
	src, dst := s.fragmented(), s.id()
	s.ok(s.pool().Prepare(s.Context(), dst, src, record("prepared")))
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	if err := s.pool().Clone(cancelled, dst, src, record("cut")); err != nil {
		s.absent(s.pool(), dst)
	}
}

// fragmented makes a device of many extents, active, of 16 MiB and a clone that shares the rest.
func (s *suite) fragmented() blockdev.ID {
	s.Helper()
	id, shared := s.created(2*size), s.id()
	path := s.activated(id, blockdev.ReadWrite)
	s.ok(put(path, 0, bytes.Repeat(block("base"), int(2*size/blockLength))))
	s.ok(s.pool().Clone(s.Context(), shared, id, record("shared")))
	s.ok(s.pool().Sync(s.Context(), shared))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	s.ok(err)
	for offset := int64(0); offset < 2*size && err == nil; offset += 2 * blockLength {
		_, err = f.WriteAt(block("changed"), offset)
	}
	s.ok(errors.Join(err, f.Sync(), f.Close()))
	return id
}

// cloneFinishesWhatWasPreparedUnderLoad writes and discards all the time, and stops, as a freeze would, before Clone.
func cloneFinishesWhatWasPreparedUnderLoad(s *suite) {
	rng := s.random()
	src := s.fragmented()
	path := s.stat(src).Path
	for round := range rounds(3, 30) {
		dst := s.id()
		changes := newChanges(rng.Uint64(), 2*size)
		stop := make(chan struct{})
		var writing sync.WaitGroup
		var failed error
		writing.Go(func() {
			for failed == nil {
				failed = changes.apply(path, 20)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		err := s.pool().Prepare(s.Context(), dst, src, record("prepared"))
		if err == nil && round%2 == 0 {
			err = s.pool().Prepare(s.Context(), dst, src, record("prepared again"))
		}
		close(stop)
		writing.Wait()
		s.ok(errors.Join(err, failed))
		s.ok(s.pool().Clone(s.Context(), dst, src, record("clone")))
		if !bytes.Equal(s.content(path), s.content(s.activated(dst, blockdev.ReadOnly))) {
			s.Fatalf("round %d: the clone is not what its source is", round)
		}
		s.deactivate(dst)
		s.ok(s.pool().Remove(s.Context(), dst))
	}
}

func cloneFinishesWhatWasPreparedFromAnotherSize(s *suite) {
	src, dst := s.fragmented(), s.id()
	s.ok(s.pool().Prepare(s.Context(), dst, src, record("prepared")))
	s.ok(s.pool().Grow(s.Context(), src, 3*size))
	path := s.stat(src).Path
	s.write(path, 3*size-blockLength, "behind")
	s.ok(s.pool().Clone(s.Context(), dst, src, record("clone")))
	if info := s.stat(dst); info.Size != s.stat(src).Size {
		s.Fatalf("clone is %+v", info)
	}
	if !bytes.Equal(s.content(path), s.content(s.activated(dst, blockdev.ReadOnly))) {
		s.Fatal("the clone is not what its source is")
	}
}

// content is all that the device at path holds.
func (s *suite) content(path string) []byte {
	s.Helper()
	f, err := os.Open(path)
	s.ok(err)
	defer f.Close()
	b, err := io.ReadAll(f)
	s.ok(err)
	return b
}

func sealedDeviceIsReadOnly(s *suite) {
	src, id := s.created(size), s.id()
	s.write(s.activated(src, blockdev.ReadWrite), 0, "kept")
	s.ok(s.pool().Clone(s.Context(), id, src, record("snapshot")))
	s.ok(s.pool().Sync(s.Context(), id))
	s.activated(id, blockdev.ReadWrite)
	s.kind(s.pool().Seal(s.Context(), id), fault.ErrInUse, "seal what can be written")
	s.deactivate(id)
	for range 2 {
		s.ok(s.pool().Seal(s.Context(), id))
	}
	for range 2 {
		s.refusesToBeWritten(id)
		path := s.activated(id, blockdev.ReadOnly)
		s.shows(path, 0, "kept")
		s.ok(s.pool().Seal(s.Context(), id))
		s.refusesToBeWritten(id)
		s.kind(s.pool().Remove(s.Context(), id), fault.ErrInUse, "remove")
		s.deactivate(id)
		s.ok(s.pool().Describe(s.Context(), id, record("described")))
		s.ok(s.pool().Sync(s.Context(), id))
		if s.h.Reopen != nil {
			s.h.Pool = s.h.Reopen(s.T)
		}
	}
	for range 2 {
		s.ok(s.pool().Remove(s.Context(), id))
		s.absent(s.pool(), id)
	}
}

func (s *suite) refusesToBeWritten(id blockdev.ID) {
	s.Helper()
	_, err := s.pool().Activate(s.Context(), id, blockdev.ReadWrite)
	s.kind(err, fault.ErrProtected, "activate to be written")
	s.kind(s.pool().Grow(s.Context(), id, 2*size), fault.ErrProtected, "grow")
	s.ok(s.pool().Grow(s.Context(), id, size))
	if info := s.stat(id); info.Size != size {
		s.Fatalf("the refused calls left %+v", info)
	}
}

func cloneOfASealedDeviceCanBeWritten(s *suite) {
	sealed := s.fragmented()
	s.write(s.stat(sealed).Path, 0, "kept")
	s.deactivate(sealed)
	s.ok(s.pool().Seal(s.Context(), sealed))
	for _, prepared := range []bool{false, true} {
		id := s.id()
		if prepared {
			s.ok(s.pool().Prepare(s.Context(), id, sealed, record("prepared")))
		}
		s.ok(s.pool().Clone(s.Context(), id, sealed, record("clone")))
		s.ok(s.pool().Grow(s.Context(), id, 3*size))
		path := s.activated(id, blockdev.ReadWrite)
		s.shows(path, 0, "kept")
		s.write(path, 0, "changed")
	}
	s.shows(s.activated(sealed, blockdev.ReadOnly), 0, "kept")
}

func replaceMovesTheDataAndNotTheRecord(s *suite) {
	id, by := s.created(size), s.id()
	s.write(s.activated(id, blockdev.ReadWrite), 0, "before")
	s.ok(s.pool().Deactivate(s.Context(), id))
	s.ok(s.pool().Clone(s.Context(), by, id, record("copy")))
	s.ok(s.pool().Grow(s.Context(), by, 2*size))
	path := s.activated(by, blockdev.ReadWrite)
	s.shows(path, 0, "before")
	s.write(path, 0, "after")
	s.write(path, size, "beyond")
	s.ok(s.pool().Deactivate(s.Context(), by))
	s.ok(s.pool().Replace(s.Context(), id, by))
	if info := s.stat(id); info.Size != 2*size || !sameRecord(info.Record, record("made")) {
		s.Fatalf("replaced device is %+v", info)
	}
	path = s.activated(id, blockdev.ReadWrite)
	s.shows(path, 0, "after")
	s.shows(path, size, "beyond")
	s.listsNothing(by)
	s.ok(s.pool().Deactivate(s.Context(), id))
	s.kind(s.pool().Replace(s.Context(), id, by), fault.ErrNotFound, "replace by what is gone")
	s.ok(s.pool().Remove(s.Context(), by))
}

func replaceRefusesDevicesThatAreActiveOrSealed(s *suite) {
	id, by := s.created(size), s.created(size)
	for _, active := range []blockdev.ID{id, by} {
		s.activated(active, blockdev.ReadWrite)
		s.kind(s.pool().Replace(s.Context(), id, by), fault.ErrInUse, "replace while active")
		s.ok(s.pool().Deactivate(s.Context(), active))
	}
	s.ok(s.pool().Seal(s.Context(), by))
	s.kind(s.pool().Replace(s.Context(), id, by), fault.ErrProtected, "replace by a sealed device")
	s.kind(s.pool().Replace(s.Context(), by, id), fault.ErrProtected, "replace a sealed device")
}
