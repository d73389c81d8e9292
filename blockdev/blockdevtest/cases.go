package blockdevtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"orlop/blockdev"
	"orlop/internal/fault"
)

func newDeviceReadsAsZeroes(s *suite) {
	path := s.activated(s.created(size), blockdev.ReadWrite)
	s.zeroes(path, 0)
}

func newDeviceShowsNothingOfARemovedOne(s *suite) {
	old := s.created(size)
	path := s.activated(old, blockdev.ReadWrite)
	for offset := int64(0); offset < size; offset += blockLength {
		s.write(path, offset, "secret")
	}
	s.deactivate(old)
	s.ok(s.pool().Remove(s.Context(), old))
	s.zeroes(s.activated(s.created(size), blockdev.ReadWrite), 0)
}

func createRefusesWhatExists(s *suite) {
	id := s.created(size)
	s.write(s.activated(id, blockdev.ReadWrite), 0, "first")
	s.kind(s.pool().Create(s.Context(), id, 2*size, record("second")), fault.ErrExists, "create")
	info := s.stat(id)
	if info.Size != size || !sameRecord(info.Record, record("made")) {
		s.Fatalf("the refused create changed the device to %+v", info)
	}
	s.shows(info.Path, 0, "first")
}

func createMakesAtLeastTheSizeAskedFor(s *suite) {
	for _, wanted := range []int64{size, size + 1, size + 511, 2*size - 1} {
		id := s.created(wanted)
		info := s.stat(id)
		if info.Size < wanted || info.Used < 0 || info.Path != "" {
			s.Errorf("asked for %d bytes: %+v", wanted, info)
		}
		actual, err := deviceSize(s.activated(id, blockdev.ReadWrite))
		s.ok(err)
		if actual != info.Size {
			s.Errorf("asked for %d bytes: stat tells %d, the device has %d", wanted, info.Size, actual)
		}
	}
}

func createCutShortLeavesNoDevice(s *suite) {
	id := s.id()
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	s.wholeOrAbsent(id, s.pool().Create(cancelled, id, size, record("cut")))
}

// wholeOrAbsent checks what a call that makes id has left, given what it returned.
func (s *suite) wholeOrAbsent(id blockdev.ID, err error) {
	s.Helper()
	if err != nil {
		s.absent(s.pool(), id)
		return
	}
	if info := s.stat(id); info.Size != size || !sameRecord(info.Record, record("cut")) {
		s.Fatalf("made half: %+v", info)
	}
}

func createWithoutRoomLeavesNoDevice(s *suite) {
	if s.h.Full == nil {
		s.Skip("this pool cannot be made full")
	}
	full := s.h.Full(s.T)
	id := blockdev.NewID()
	s.kind(full.Create(s.Context(), id, size, record("made")), fault.ErrNoSpace, "create")
	s.absent(full, id)
	s.ok(full.Remove(s.Context(), id))
}

func cloneIsIndependentBothWays(s *suite) {
	src, dst := s.created(size), s.id()
	from := s.activated(src, blockdev.ReadWrite)
	s.write(from, 0, "common")
	s.write(from, size-blockLength, "common")
	s.deactivate(src)
	s.ok(s.pool().Clone(s.Context(), dst, src, record("clone")))
	s.ok(s.pool().Sync(s.Context(), dst))
	if info := s.stat(dst); info.Size != size || !sameRecord(info.Record, record("clone")) {
		s.Fatalf("clone is %+v", info)
	}
	if info := s.stat(src); !sameRecord(info.Record, record("made")) {
		s.Fatalf("clone changed the origin's record to %s", info.Record)
	}
	from, to := s.activated(src, blockdev.ReadWrite), s.activated(dst, blockdev.ReadWrite)
	s.shows(to, 0, "common")
	s.write(from, 0, "origin only")
	s.write(to, size-blockLength, "clone only")
	s.shows(to, 0, "common")
	s.shows(from, size-blockLength, "common")
	s.shows(from, 0, "origin only")
	s.shows(to, size-blockLength, "clone only")
	s.ok(s.pool().Grow(s.Context(), dst, 2*size))
	if info := s.stat(src); info.Size != size {
		s.Fatalf("growing the clone made the origin %d bytes", info.Size)
	}
}

func cloneOfActiveDeviceHasWhatWasWritten(s *suite) {
	src, dst := s.created(size), s.id()
	s.ok(s.pool().Grow(s.Context(), src, 2*size))
	from := s.activated(src, blockdev.ReadWrite)
	for i := range 8 {
		s.write(from, int64(i)*mib, fmt.Sprint("block ", i))
	}
	s.ok(s.pool().Clone(s.Context(), dst, src, record("clone")))
	s.write(from, 0, "later")
	to := s.activated(dst, blockdev.ReadOnly)
	for i := range 8 {
		s.shows(to, int64(i)*mib, fmt.Sprint("block ", i))
	}
	if info := s.stat(dst); info.Size != 2*size {
		s.Fatalf("clone of %d bytes has %d", 2*size, info.Size)
	}
}

func cloneRefusesWhatExists(s *suite) {
	src, dst := s.created(size), s.created(size)
	s.write(s.activated(src, blockdev.ReadWrite), 0, "source")
	to := s.activated(dst, blockdev.ReadWrite)
	s.write(to, 0, "target")
	s.kind(s.pool().Clone(s.Context(), dst, src, record("clone")), fault.ErrExists, "clone")
	s.shows(to, 0, "target")
	if info := s.stat(dst); !sameRecord(info.Record, record("made")) {
		s.Fatalf("the refused clone changed the record to %s", info.Record)
	}
	s.kind(s.pool().Clone(s.Context(), src, src, record("clone")), fault.ErrExists, "clone onto itself")
}

func cloneOutlivesItsOrigin(s *suite) {
	src, middle, dst := s.created(size), s.id(), s.id()
	path := s.activated(src, blockdev.ReadWrite)
	s.write(path, mib, "kept")
	s.deactivate(src)
	s.ok(s.pool().Clone(s.Context(), middle, src, record("clone")))
	s.ok(s.pool().Clone(s.Context(), dst, middle, record("clone of a clone")))
	s.ok(s.pool().Remove(s.Context(), src))
	s.ok(s.pool().Remove(s.Context(), middle))
	s.shows(s.activated(dst, blockdev.ReadWrite), mib, "kept")
}

func cloneCutShortLeavesNoDevice(s *suite) {
	src, dst := s.created(size), s.id()
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	s.wholeOrAbsent(dst, s.pool().Clone(cancelled, dst, src, record("cut")))
	missing := s.id()
	s.kind(s.pool().Clone(s.Context(), missing, blockdev.NewID(), record("clone")), fault.ErrNotFound, "clone of nothing")
	s.absent(s.pool(), missing)
}

// naming are the methods that name a device and must find it.
var naming = []struct {
	name string
	call func(context.Context, blockdev.Pool, blockdev.ID) error
}{
	{"clone", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error {
		return p.Clone(ctx, blockdev.NewID(), id, record("clone"))
	}},
	{"prepare", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error {
		return p.Prepare(ctx, blockdev.NewID(), id, record("prepared"))
	}},
	{"describe", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error {
		return p.Describe(ctx, id, record("described"))
	}},
	{"sync", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error { return p.Sync(ctx, id) }},
	{"seal", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error { return p.Seal(ctx, id) }},
	{"grow", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error { return p.Grow(ctx, id, size) }},
	{"activate", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error {
		_, err := p.Activate(ctx, id, blockdev.ReadWrite)
		return err
	}},
	{"stat", func(ctx context.Context, p blockdev.Pool, id blockdev.ID) error {
		_, err := p.Stat(ctx, id)
		return err
	}},
}

func missingDevicesAreNotFound(s *suite) {
	removed := s.created(size)
	s.ok(s.pool().Remove(s.Context(), removed))
	for _, id := range []blockdev.ID{blockdev.NewID(), removed} {
		for _, method := range naming {
			s.kind(method.call(s.Context(), s.pool(), id), fault.ErrNotFound, method.name)
			s.absent(s.pool(), id)
		}
	}
}

func badIDsAreRefused(s *suite) {
	id := s.created(size)
	bad := []blockdev.ID{
		"", ".", "..", "/", "x", "volume", "../" + id, "x/../" + id, id + "/", id + ".img", id + "\x00",
		blockdev.ID(strings.ToUpper(string(id))), blockdev.ID(strings.ReplaceAll(string(id), "-", "")), "{" + id + "}",
	}
	for _, b := range bad {
		for _, method := range naming {
			if err := method.call(s.Context(), s.pool(), b); !fault.Is(err, fault.ErrInvalid) && !fault.Is(err, fault.ErrNotFound) {
				s.Errorf("%s %q: %v", method.name, b, err)
			}
		}
		for name, err := range map[string]error{
			"create":  s.pool().Create(s.Context(), b, size, record("bad")),
			"prepare": s.pool().Prepare(s.Context(), b, id, record("bad")),
			"clone":   s.pool().Clone(s.Context(), b, id, record("bad")),
			"remove":  s.pool().Remove(s.Context(), b),
		} {
			if !fault.Is(err, fault.ErrInvalid) {
				s.Errorf("%s %q: %v", name, b, err)
			}
		}
	}
	infos, err := s.pool().List(s.Context())
	s.ok(err)
	if len(infos) != 1 || infos[0].ID != id || infos[0].Path != "" || !sameRecord(infos[0].Record, record("made")) {
		s.Fatalf("the refused calls left %+v", infos)
	}
}

func recordIsKeptAsGiven(s *suite) {
	id := s.created(size)
	if info := s.stat(id); !sameRecord(info.Record, record("made")) {
		s.Fatalf("created with %s, has %s", record("made"), info.Record)
	}
	long := record(strings.Repeat("labels and more labels; ", 100))
	for _, r := range []blockdev.Record{record("second"), long, record("second"), record("second")} {
		s.ok(s.pool().Describe(s.Context(), id, r))
		if info := s.stat(id); !sameRecord(info.Record, r) {
			s.Fatalf("described with %s, has %s", r, info.Record)
		}
	}
	s.activated(id, blockdev.ReadWrite)
	s.ok(s.pool().Describe(s.Context(), id, record("while active")))
	if info := s.stat(id); !sameRecord(info.Record, record("while active")) || info.Size != size {
		s.Fatalf("described while active: %+v", info)
	}
}

func growNeverShrinks(s *suite) {
	id := s.created(size)
	s.write(s.activated(id, blockdev.ReadWrite), 0, "kept")
	s.deactivate(id)
	for _, step := range []struct{ asked, least int64 }{{2 * size, 2 * size}, {2 * size, 2 * size}, {size, 2 * size}, {1, 2 * size}, {2*size + 1, 2*size + 1}} {
		before := s.stat(id).Size
		s.ok(s.pool().Grow(s.Context(), id, step.asked))
		if now := s.stat(id).Size; now < step.least || now < before {
			s.Fatalf("grow of %d bytes to %d made it %d", before, step.asked, now)
		}
	}
	path := s.activated(id, blockdev.ReadWrite)
	s.shows(path, 0, "kept")
	s.zeroes(path, blockLength)
}

func growReachesAnActiveDevice(s *suite) {
	id := s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, size-blockLength, "kept")
	for _, wanted := range []int64{2 * size, 3 * size, 3 * size, size} {
		s.ok(s.pool().Grow(s.Context(), id, wanted))
		actual, err := deviceSize(path)
		s.ok(err)
		if actual < wanted || actual != s.stat(id).Size {
			s.Fatalf("grown to %d bytes, the device shows %d and stat tells %d", wanted, actual, s.stat(id).Size)
		}
	}
	s.shows(path, size-blockLength, "kept")
	s.zeroes(path, size)
	s.write(path, 3*size-blockLength, "new")
	s.deactivate(id)
	s.shows(s.activated(id, blockdev.ReadWrite), 3*size-blockLength, "new")
}

func activateConverges(s *suite) {
	id, other := s.created(size), s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, 0, "one")
	elsewhere := s.activated(other, blockdev.ReadWrite)
	s.write(elsewhere, 0, "other")
	for range 3 {
		if again := s.activated(id, blockdev.ReadWrite); again != path {
			s.Fatalf("active as %s, then as %s", path, again)
		}
	}
	if path == elsewhere {
		s.Fatalf("two devices are %s", path)
	}
	if info := s.stat(id); info.Path != path {
		s.Fatalf("active as %s, stat tells %+v", path, info)
	}
	s.shows(path, 0, "one")
	s.shows(elsewhere, 0, "other")
}

func readOnlyDeviceRefusesWrites(s *suite) {
	id := s.created(size)
	s.write(s.activated(id, blockdev.ReadWrite), 0, "kept")
	s.deactivate(id)
	path := s.activated(id, blockdev.ReadOnly)
	if again := s.activated(id, blockdev.ReadOnly); again != path {
		s.Fatalf("active as %s, then as %s", path, again)
	}
	if err := put(path, 0, block("changed")); err == nil {
		s.Errorf("%s could be written", path)
	}
	s.shows(path, 0, "kept")
	s.deactivate(id)
	s.write(s.activated(id, blockdev.ReadWrite), 0, "writable again")
}

func dataOutlivesDeactivate(s *suite) {
	id := s.created(size)
	for i := range 3 {
		path := s.activated(id, blockdev.ReadWrite)
		if i > 0 {
			s.shows(path, mib, fmt.Sprint("round ", i-1))
		}
		s.write(path, mib, fmt.Sprint("round ", i))
		s.deactivate(id)
		if info := s.stat(id); info.Path != "" {
			s.Fatalf("deactivated, but stat tells %+v", info)
		}
	}
}

func deactivateRefusesADeviceInUse(s *suite) {
	id := s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, 0, "in use")
	release, err := s.h.Hold(path)
	s.ok(err)
	defer release()
	for range 2 {
		s.kind(s.pool().Deactivate(s.Context(), id), fault.ErrInUse, "deactivate")
		if info := s.stat(id); info.Path != path {
			s.Fatalf("refused, but stat tells %+v", info)
		}
		s.shows(path, 0, "in use")
	}
	if again := s.activated(id, blockdev.ReadWrite); again != path {
		s.Fatalf("in use as %s, activated as %s", path, again)
	}
	s.kind(s.pool().Remove(s.Context(), id), fault.ErrInUse, "remove")
	release()
	s.deactivate(id)
}

func deactivateConverges(s *suite) {
	id := s.created(size)
	s.deactivate(id)
	s.activated(id, blockdev.ReadWrite)
	s.deactivate(id)
	s.deactivate(id)
	s.ok(s.pool().Remove(s.Context(), id))
	s.deactivate(id)
	s.deactivate(blockdev.NewID())
}

func removeRefusesAnActiveDevice(s *suite) {
	id := s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, 0, "kept")
	s.kind(s.pool().Remove(s.Context(), id), fault.ErrInUse, "remove")
	if info := s.stat(id); info.Path != path || !sameRecord(info.Record, record("made")) {
		s.Fatalf("refused, but stat tells %+v", info)
	}
	s.shows(path, 0, "kept")
	s.deactivate(id)
	s.ok(s.pool().Remove(s.Context(), id))
	s.absent(s.pool(), id)
}

func removeConverges(s *suite) {
	id := s.created(size)
	for range 2 {
		s.ok(s.pool().Remove(s.Context(), id))
		s.absent(s.pool(), id)
	}
	s.ok(s.pool().Remove(s.Context(), blockdev.NewID()))
}

func listShowsEveryDevice(s *suite) {
	if infos, err := s.pool().List(s.Context()); err != nil || len(infos) > 0 {
		s.Fatalf("an empty pool lists %v, %v", infos, err)
	}
	wanted := map[blockdev.ID]string{}
	for range 3 {
		wanted[s.created(size)] = ""
	}
	active := s.created(size)
	wanted[active] = s.activated(active, blockdev.ReadWrite)
	unknown := s.id() // nothing tells what it is for
	s.ok(s.pool().Create(s.Context(), unknown, size, nil))
	wanted[unknown] = ""
	infos, err := s.pool().List(s.Context())
	s.ok(err)
	if len(infos) != len(wanted) {
		s.Fatalf("%d devices, list has %+v", len(wanted), infos)
	}
	for _, info := range infos {
		path, ok := wanted[info.ID]
		described := sameRecord(info.Record, record("made"))
		if !ok || info.Path != path || info.Size != size || described == (info.ID == unknown) || info.ID == unknown && info.Record != nil {
			s.Errorf("list has %+v", info)
		}
		delete(wanted, info.ID) // so that a second mention fails
	}
}

func spaceAndTraitsAreTold(s *suite) {
	space, err := s.pool().Space(s.Context())
	s.ok(err)
	if space.Layer == "" || space.Remedy == "" || space.Used() < 0 || space.Used() > 1 || space.Size <= 0 || space.Free < 0 || space.Free > space.Size {
		s.Errorf("space is %+v", space)
	}
	if traits := s.pool().Traits(); traits.Kind == "" {
		s.Errorf("traits are %+v", traits)
	}
}

func callsForDifferentDevicesRunAtOnce(s *suite) {
	ids := make([]blockdev.ID, parallel)
	clones := make([]blockdev.ID, parallel)
	for i := range ids {
		ids[i], clones[i] = s.id(), s.id()
	}
	var lives, looks sync.WaitGroup
	done := make(chan struct{})
	looks.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			_, listErr := s.pool().List(s.Context())
			_, spaceErr := s.pool().Space(s.Context())
			_, statErr := s.pool().Stat(s.Context(), ids[0])
			if fault.Is(statErr, fault.ErrNotFound) {
				statErr = nil
			}
			if err := errors.Join(listErr, spaceErr, statErr); err != nil {
				s.Errorf("beside other calls: %v", err)
				return
			}
		}
	})
	for i := range ids {
		lives.Go(func() {
			if err := s.live(ids[i], clones[i]); err != nil {
				s.Errorf("device %d: %v", i, err)
			}
		})
	}
	lives.Wait()
	close(done)
	looks.Wait()
}

// live leads a device and its clone from create to remove.
func (s *suite) live(id, clone blockdev.ID) error {
	ctx, pool := s.Context(), s.pool()
	if err := pool.Create(ctx, id, size, record("made")); err != nil {
		return err
	}
	path, err := pool.Activate(ctx, id, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	if err := put(path, mib, block(string(id))); err != nil {
		return err
	}
	if err := errors.Join(pool.Prepare(ctx, clone, id, record("prepared")), pool.Clone(ctx, clone, id, record("clone")),
		pool.Sync(ctx, clone), pool.Seal(ctx, clone), pool.Grow(ctx, id, 2*size), pool.Describe(ctx, id, record("described"))); err != nil {
		return err
	}
	copied, err := pool.Activate(ctx, clone, blockdev.ReadOnly)
	if err != nil {
		return err
	}
	for _, p := range []string{path, copied} {
		b, err := get(p, mib, blockLength)
		if err != nil {
			return err
		}
		if string(b) != string(block(string(id))) {
			return fmt.Errorf("%s shows another device's data", p)
		}
	}
	return errors.Join(pool.Deactivate(ctx, id), pool.Deactivate(ctx, clone), pool.Remove(ctx, id), pool.Remove(ctx, clone))
}

func reopenedPoolKnowsActiveDevices(s *suite) {
	if s.h.Reopen == nil {
		s.Skip("this pool cannot be opened again")
	}
	id := s.created(size)
	path := s.activated(id, blockdev.ReadWrite)
	s.write(path, 0, "kept")
	release, err := s.h.Hold(path)
	s.ok(err)
	defer release()
	s.h.Pool = s.h.Reopen(s.T)
	if info := s.stat(id); info.Path != path {
		s.Fatalf("active as %s, after reopening %+v", path, info)
	}
	s.kind(s.pool().Remove(s.Context(), id), fault.ErrInUse, "remove")
	s.kind(s.pool().Deactivate(s.Context(), id), fault.ErrInUse, "deactivate")
	if again := s.activated(id, blockdev.ReadWrite); again != path {
		s.Fatalf("active as %s, activated again as %s", path, again)
	}
	release()
	s.shows(path, 0, "kept") // the pool alone keeps it now
	s.ok(s.pool().Grow(s.Context(), id, 2*size))
	if actual, err := deviceSize(path); err != nil || actual != 2*size {
		s.Fatalf("grown to %d bytes, the device shows %d, %v", 2*size, actual, err)
	}
	s.deactivate(id)
	s.ok(s.pool().Remove(s.Context(), id))
}

func reopenedPoolHasDataAndRecords(s *suite) {
	if s.h.Reopen == nil {
		s.Skip("this pool cannot be opened again")
	}
	idle, active := s.created(size), s.created(size)
	for _, id := range []blockdev.ID{idle, active} {
		s.write(s.activated(id, blockdev.ReadWrite), 0, string(id))
	}
	s.deactivate(idle)
	s.h.Pool = s.h.Reopen(s.T)
	for _, id := range []blockdev.ID{idle, active} {
		if info := s.stat(id); info.Size != size || !sameRecord(info.Record, record("made")) {
			s.Fatalf("after reopening %+v", info)
		}
		s.shows(s.activated(id, blockdev.ReadWrite), 0, string(id))
		s.deactivate(id)
	}
}
