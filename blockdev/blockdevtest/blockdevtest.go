// Package blockdevtest holds what every implementation of blockdev.Pool is tested with: the conformance suite,
// which goes through the contract sentence by sentence, and a pool in memory for the tests of those who use pools.
package blockdevtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// A Harness is a pool under test and what the suite cannot know of it.
type Harness struct {
	// Pool is empty at first. The suite leaves it empty.
	Pool blockdev.Pool

	// Hold claims the active device at path, as a mount would, until release is called. nil stands for
	// HoldExclusively.
	Hold func(path string) (release func(), err error)

	// Reopen opens the pool as the next daemon would after a crash of this one; the former Pool is not used any
	// more. nil if that cannot be done.
	Reopen func(t *testing.T) blockdev.Pool

	// Chunk is the length in bytes of the least that Diff tells of. 0 stands for a block of 4 KiB.
	Chunk int64

	// Full returns a pool with no room left for a device. nil if that cannot be made.
	Full func(t *testing.T) blockdev.Pool
}

// HoldExclusively claims a block device by O_EXCL, as mount(2) and mkfs do.
func HoldExclusively(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = f.Close() }), nil // opened to read
}

const mib = int64(1) << 20

// size of most of the suite's devices.
const size = 8 * mib

// parallel is how many devices are used at once: twice as many as a kernel has loop devices ready.
const parallel = 16

// Run runs the conformance suite.
func Run(t *testing.T, h Harness) {
	if h.Hold == nil {
		h.Hold = HoldExclusively
	}
	h.Chunk = max(h.Chunk, blockLength)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(&suite{T: t, h: &h}) })
	}
	infos, err := h.Pool.List(context.Background())
	if err != nil || len(infos) > 0 {
		t.Errorf("after the suite the pool lists %v, %v", infos, err)
	}
}

var cases = []struct {
	name string
	run  func(*suite)
}{
	{"NewDeviceReadsAsZeroes", newDeviceReadsAsZeroes},
	{"NewDeviceShowsNothingOfARemovedOne", newDeviceShowsNothingOfARemovedOne},
	{"CreateRefusesWhatExists", createRefusesWhatExists},
	{"CreateMakesAtLeastTheSizeAskedFor", createMakesAtLeastTheSizeAskedFor},
	{"CreateCutShortLeavesNoDevice", createCutShortLeavesNoDevice},
	{"CreateWithoutRoomLeavesNoDevice", createWithoutRoomLeavesNoDevice},
	{"CloneIsIndependentBothWays", cloneIsIndependentBothWays},
	{"CloneOfActiveDeviceHasWhatWasWritten", cloneOfActiveDeviceHasWhatWasWritten},
	{"CloneRefusesWhatExists", cloneRefusesWhatExists},
	{"CloneOutlivesItsOrigin", cloneOutlivesItsOrigin},
	{"CloneCutShortLeavesNoDevice", cloneCutShortLeavesNoDevice},
	{"PreparedDeviceIsNoneUntilCloned", preparedDeviceIsNoneUntilCloned},
	{"PrepareCutShortCanBeRemoved", prepareCutShortCanBeRemoved},
	{"CloneOfAPreparedDeviceCutShortLeavesNoDevice", cloneOfAPreparedDeviceCutShortLeavesNoDevice},
	{"CloneFinishesWhatWasPreparedUnderLoad", cloneFinishesWhatWasPreparedUnderLoad},
	{"CloneFinishesWhatWasPreparedFromAnotherSize", cloneFinishesWhatWasPreparedFromAnotherSize},
	{"SealedDeviceIsReadOnly", sealedDeviceIsReadOnly},
	{"CloneOfASealedDeviceCanBeWritten", cloneOfASealedDeviceCanBeWritten},
	{"DiffLeadsFromEachDeviceToEachOther", diffLeadsFromEachDeviceToEachOther},
	{"DiffFromNothingTellsWhatIsAllocated", diffFromNothingTellsWhatIsAllocated},
	{"DiffEndsWhenItIsTold", diffEndsWhenItIsTold},
	{"MissingDevicesAreNotFound", missingDevicesAreNotFound},
	{"BadIDsAreRefused", badIDsAreRefused},
	{"RecordIsKeptAsGiven", recordIsKeptAsGiven},
	{"GrowNeverShrinks", growNeverShrinks},
	{"GrowReachesAnActiveDevice", growReachesAnActiveDevice},
	{"ReplaceMovesTheDataAndNotTheRecord", replaceMovesTheDataAndNotTheRecord},
	{"ReplaceRefusesDevicesThatAreActiveOrSealed", replaceRefusesDevicesThatAreActiveOrSealed},
	{"ActivateConverges", activateConverges},
	{"ReadOnlyDeviceRefusesWrites", readOnlyDeviceRefusesWrites},
	{"DataOutlivesDeactivate", dataOutlivesDeactivate},
	{"DeactivateRefusesADeviceInUse", deactivateRefusesADeviceInUse},
	{"DeactivateConverges", deactivateConverges},
	{"RemoveRefusesAnActiveDevice", removeRefusesAnActiveDevice},
	{"RemoveConverges", removeConverges},
	{"ListShowsEveryDevice", listShowsEveryDevice},
	{"SpaceAndTraitsAreTold", spaceAndTraitsAreTold},
	{"CallsForDifferentDevicesRunAtOnce", callsForDifferentDevicesRunAtOnce},
	{"ReopenedPoolKnowsActiveDevices", reopenedPoolKnowsActiveDevices},
	{"ReopenedPoolHasDataAndRecords", reopenedPoolHasDataAndRecords},
}

// A suite is one test of one pool.
type suite struct {
	*testing.T
	h *Harness
}

func (s *suite) pool() blockdev.Pool { return s.h.Pool }

// id mints an ID whose device is gone after the test, whatever happens.
func (s *suite) id() blockdev.ID {
	id := blockdev.NewID()
	s.Cleanup(func() {
		err := errors.Join(s.pool().Deactivate(context.Background(), id), s.pool().Remove(context.Background(), id))
		if err != nil {
			s.Errorf("clean up: %v", err)
		}
	})
	return id
}

// created makes a device of size bytes.
func (s *suite) created(size int64) blockdev.ID {
	s.Helper()
	id := s.id()
	s.ok(s.pool().Create(s.Context(), id, size, record("made")))
	return id
}

func (s *suite) activated(id blockdev.ID, mode blockdev.Mode) string {
	s.Helper()
	path, err := s.pool().Activate(s.Context(), id, mode)
	s.ok(err)
	return path
}

func (s *suite) deactivate(id blockdev.ID) {
	s.Helper()
	s.ok(s.pool().Deactivate(s.Context(), id))
}

// stat is what Stat tells of the device, and the record that List has, which must agree otherwise.
func (s *suite) stat(id blockdev.ID) blockdev.Info {
	s.Helper()
	info, err := s.pool().Stat(s.Context(), id)
	s.ok(err)
	infos, err := s.pool().List(s.Context())
	s.ok(err)
	i := slices.IndexFunc(infos, func(listed blockdev.Info) bool { return listed.ID == id })
	if i < 0 {
		s.Fatalf("list has no %s, stat tells %+v", id, info)
	}
	if listed := infos[i]; info.ID != id || info.Size != listed.Size || info.Path != listed.Path {
		s.Fatalf("list has %+v, stat of %s tells %+v", listed, id, info)
	}
	info.Record = infos[i].Record
	return info
}

// absent fails unless the pool has no trace of the device.
func (s *suite) absent(pool blockdev.Pool, id blockdev.ID) {
	s.Helper()
	_, err := pool.Stat(s.Context(), id)
	s.kind(err, fault.ErrNotFound, "stat")
	infos, err := pool.List(s.Context())
	s.ok(err)
	for _, info := range infos {
		if info.ID == id {
			s.Fatalf("list still has %+v", info)
		}
	}
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) kind(err error, kind fault.Kind, what string) {
	s.Helper()
	if !fault.Is(err, kind) {
		s.Fatalf("%s: want an error of kind %s, got %v", what, kind, err)
	}
}

// put writes b over the device at path and flushes it.
func put(path string, offset int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, offset)
	return errors.Join(err, f.Sync(), f.Close())
}

func get(path string, offset, length int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, length)
	_, err = f.ReadAt(b, offset)
	return b, err
}

func (s *suite) write(path string, offset int64, text string) {
	s.Helper()
	s.ok(put(path, offset, block(text)))
}

// shows fails unless the device at path has the block of text at offset.
func (s *suite) shows(path string, offset int64, text string) {
	s.Helper()
	b, err := get(path, offset, blockLength)
	s.ok(err)
	if !bytes.Equal(b, block(text)) {
		s.Fatalf("%s at %d: want %q, got %q", path, offset, text, bytes.TrimRight(b[:32], "\x00"))
	}
}

func (s *suite) zeroes(path string, offset int64) {
	s.Helper()
	f, err := os.Open(path)
	s.ok(err)
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	s.ok(err)
	b, err := io.ReadAll(io.NewSectionReader(f, offset, end-offset))
	s.ok(err)
	if int64(len(b)) != end-offset || len(bytes.Trim(b, "\x00")) > 0 {
		s.Fatalf("%s: not all zeroes from %d on", path, offset)
	}
}

func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

const blockLength = 4096

// block fills a block with text.
func block(text string) []byte {
	return bytes.Repeat([]byte(text+"\n"), blockLength/(len(text)+1)+1)[:blockLength]
}

func record(text string) blockdev.Record {
	return blockdev.Record(fmt.Sprintf(`{"test":%q,"list":[1,2.5,null,"ü"]}`, text))
}

// sameRecord compares what two records say, not how they are spaced.
func sameRecord(a, b blockdev.Record) bool {
	var left, right bytes.Buffer
	return json.Compact(&left, a) == nil && json.Compact(&right, b) == nil && bytes.Equal(left.Bytes(), right.Bytes())
}
