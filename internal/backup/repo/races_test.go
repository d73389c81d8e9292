package repo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// filled returns a block of one value.
func filled(block int64, value byte) []byte { return slices.Repeat([]byte{value}, int(block)) }

// noise returns data that begins with value and does not compress, for chunks that are read often: the race detector looks
// at each byte that a decoder writes.
func noise(block int64, value byte) []byte {
	data := make([]byte, block)
	_, _ = rand.NewChaCha8([32]byte{value}).Read(data) // never fails
	data[0] = value
	return data
}

// volumeWith returns a volume of 300 chunks that holds values at some of them.
func volumeWith(values map[int64]byte) *sparse {
	v := newSparse(300*MinChunk, MinChunk)
	for at, value := range values {
		v.blocks[at] = filled(MinChunk, value)
	}
	return v
}

func TestWritersOfOneLineageAtOnceAllCommit(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	newTestRepository(t, objects, key)
	const writers = 6
	hosts := make([]*Repository, writers/2) // two writers in one process of each host
	for i := range hosts {
		var err error
		if hosts[i], err = Open(t.Context(), objects, key, From(testOrigin(fmt.Sprint(i), "1:0"))); err != nil {
			t.Fatal(err)
		}
	}
	var group sync.WaitGroup
	written, contents := make([]*Written, writers), make([]*sparse, writers)
	errs := make([]error, writers)
	for i := range writers {
		group.Go(func() {
			contents[i] = volumeWith(map[int64]byte{0: 1, int64(i): byte(i + 10), 299: 5})
			written[i], errs[i] = hosts[i/2].Backup(t.Context(), specOf(contents[i], nil, nil))
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), objects, key)
	if err != nil {
		t.Fatal(err)
	}
	sequences := map[uint64]bool{}
	for i, w := range written {
		sequences[w.Sequence] = true
		if err := checkContent(t.Context(), r, w.Backup, contents[i]); err != nil {
			t.Error(err)
		}
	}
	if len(sequences) != writers {
		t.Errorf("%d sequence numbers for %d backups", len(sequences), writers)
	}
}

func TestRunsOfOneProcessDoNotTakeEachOthersSessions(t *testing.T) {
	r := newTestRepository(t, storetest.NewMemory(), nil, From(testOrigin("h", "1:0")))
	c, err := r.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := c.register(t.Context(), BackupSession, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := c.register(t.Context(), BackupSession, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.ID == second.ID {
		t.Error("a run took over the session of one that runs")
	}
	first.release()
	third, h, err := c.register(t.Context(), BackupSession, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if third.ID != first.ID || third.owner == first.owner || len(h.Sessions) != 2 {
		t.Errorf("the session of a run that ended was not taken over: %v", h.Sessions)
	}
	if first.mine(h) {
		t.Error("who was taken over from still owns its session")
	}
}

// meanwhile makes something happen just before a head is put, once.
func meanwhile(faults *storetest.Faults, nth int, do func()) {
	faults.On(storetest.Put, HeadPrefix(testLineage), nth, func(_ *storetest.Request, send func() error) error {
		do()
		return send()
	})
}

func TestFencedWriterBeginsAnewAndItsPacksAreNobodys(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	other := newTestRepository(t, objects, key, From(testOrigin("other", "1:0")))
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, key, From(testOrigin("h", "1:0")))
	if err != nil {
		t.Fatal(err)
	}
	fence := func() {
		if _, err := other.Collect(t.Context(), testLineage, func(*Session) bool { return true }); err != nil {
			t.Error(err)
		}
	}
	meanwhile(faults, 2, fence)
	v := volumeWith(map[int64]byte{0: 1, 299: 2})
	w := mustBackup(t, r, specOf(v, nil, nil))
	if err := checkContent(t.Context(), other, w.Backup, v); err != nil {
		t.Error(err)
	}
	if err := checkSettled(t.Context(), other, objects, testLineage); err != nil {
		t.Error(err)
	}
	before := objects.Names()
	for attempt := range fencedLimit {
		meanwhile(faults, 2*attempt+2, fence)
	}
	if w, err := r.Backup(t.Context(), specOf(v, w, v)); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("fenced each time: %v, %v", w, err)
	}
	if _, err := other.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
	packs := func(names []string) []string {
		return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, HeadPrefix(testLineage)) })
	}
	if after := objects.Names(); !slices.Equal(packs(after), packs(before)) {
		t.Errorf("left %q of %q", after, before)
	}
}

// A node that the writer had found in a live pack was put into a new pack after that had been collected; but the pack was
// not uploaded, as the record stood in an earlier one with the same sequence number.
func TestWriterWritesAnewWhatWasCollectedMeanwhile(t *testing.T) {
	writeWhatIsCollectedMeanwhile(t, nil)
}

// A writer that missed a pack when it looked again, and then read a newer head, compared that with the head before it only,
// and forgot what had been collected before.
func TestWriterThatIsDisturbedAsItLooksAgainDoesNotForgetToLook(t *testing.T) {
	writeWhatIsCollectedMeanwhile(t, func(faults *storetest.Faults) {
		faults.On(storetest.GetRange, SessionsPrefix(testLineage), 1, storetest.FailBefore(fault.ErrNotFound))
	})
}

func writeWhatIsCollectedMeanwhile(t *testing.T, disturb func(*storetest.Faults)) {
	t.Helper()
	objects, key := storetest.NewMemory(), newTestKey(t)
	other := newTestRepository(t, objects, key)
	v := volumeWith(map[int64]byte{0: 1, 1: 2, 299: 3})
	shared := mustBackup(t, other, specOf(v, nil, nil))
	mustBackup(t, other, specOf(volumeWith(map[int64]byte{7: 7}), nil, nil))
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, key)
	if err != nil {
		t.Fatal(err)
	}
	meanwhile(faults, 2, func() {
		if _, err := other.Forget(t.Context(), testLineage, []string{shared.Record}); err != nil {
			t.Error(err)
		}
		if done, err := other.Collect(t.Context(), testLineage, nil); err != nil || done.Packs != 2 {
			t.Errorf("collected %+v, %v", done, err)
		}
		if disturb != nil {
			disturb(faults)
		}
	})
	again := v.clone()
	again.blocks[5] = filled(MinChunk, 5)
	w := mustBackup(t, r, specOf(again, nil, nil))
	if err := checkContent(t.Context(), other, w.Backup, again); err != nil {
		t.Error(err)
	}
	if faults.Pending() > 0 {
		t.Error("nothing was disturbed")
	}
}

func TestBaseOutlivesItsRecordAsLongAsTheBackupRuns(t *testing.T) {
	objects, key := storetest.NewMemory(), newTestKey(t)
	other := newTestRepository(t, objects, key)
	before := volumeWith(map[int64]byte{0: 1, 1: 2, 299: 3})
	base := mustBackup(t, other, specOf(before, nil, nil))
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, key)
	if err != nil {
		t.Fatal(err)
	}
	meanwhile(faults, 2, func() {
		if _, err := other.Forget(t.Context(), testLineage, []string{base.Record}); err != nil {
			t.Error(err)
		}
		if _, err := other.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
	})
	v := before.clone()
	v.blocks[1] = filled(MinChunk, 9)
	w := mustBackup(t, r, specOf(v, base, before))
	if w.Stats.New != MinChunk {
		t.Errorf("%d bytes were new", w.Stats.New)
	}
	if err := checkContent(t.Context(), other, w.Backup, v); err != nil {
		t.Error(err)
	}
	// Now the base is gone: the next backup against it reads everything.
	w = mustBackup(t, r, specOf(v, base, before))
	if w.Parent != "" || w.Stats.Read != 3*MinChunk {
		t.Errorf("built on %q, read %d", w.Parent, w.Stats.Read)
	}
}

func TestWrongExtentsAreFoundOutAndTheWholeVolumeIsRead(t *testing.T) {
	r := newTestRepository(t, storetest.NewMemory(), newTestKey(t))
	before := newSparse(4*MinChunk, MinChunk)
	for i := range int64(4) {
		before.blocks[i] = filled(MinChunk, byte(i+1))
	}
	base := mustBackup(t, r, specOf(before, nil, nil))
	for name, change := range map[string]func(*sparse){
		"all differ": func(v *sparse) {
			v.blocks[0], v.blocks[1], v.blocks[2] = filled(MinChunk, 7), filled(MinChunk, 8), filled(MinChunk, 9)
		},
		"all were discarded": func(v *sparse) { clear(v.blocks) },
	} {
		t.Run(name, func(t *testing.T) {
			v := before.clone()
			change(v)
			spec := specOf(v, base, before)
			honest := spec.Extents
			spec.Extents = func(ctx context.Context, record *Backup, fn func(Extent) error) error {
				if record != nil {
					return fn(Extent{Offset: 3 * MinChunk, Length: MinChunk})
				}
				return honest(ctx, nil, fn)
			}
			w := mustBackup(t, r, spec)
			if !fault.Is(w.Mistrust, fault.ErrCorrupt) || w.Parent != "" {
				t.Errorf("mistrust: %v, built on %q", w.Mistrust, w.Parent)
			}
			if err := checkContent(t.Context(), r, w.Backup, v); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSessionStallsWhenNothingHappensInIt(t *testing.T) {
	objects, memory := storetest.NewMemory(), NewMemoryFile(t.TempDir()+"/known")
	r := newTestRepository(t, objects, nil, RememberedBy(memory), From(testOrigin("watcher", "1:0")))
	var up time.Duration
	r.uptime = func() (time.Duration, error) { return up, nil }
	other, err := Open(t.Context(), objects, nil, From(testOrigin("other", "1:0")))
	if err != nil {
		t.Fatal(err)
	}
	c, err := other.chain(testLineage)
	if err != nil {
		t.Fatal(err)
	}
	session, h, err := c.register(t.Context(), BackupSession, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stalled := func() bool {
		is, err := r.Stalled(t.Context(), testLineage, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return is(&h.Sessions[0])
	}
	for _, step := range []struct {
		after  time.Duration
		upload bool
		boot   string
		want   bool
	}{
		{0, false, "boot", false}, {59 * time.Minute, false, "boot", false}, {time.Minute, false, "boot", true},
		{time.Minute, true, "boot", false}, {time.Hour, false, "boot", true}, {time.Hour, false, "another", false},
		{time.Hour, false, "another", true},
	} {
		up += step.after
		r.options.origin.Boot = step.boot
		if step.upload {
			name := SessionPrefix(testLineage, session.Name()) + fmt.Sprint(up.Nanoseconds())
			if err := objects.Put(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}
		}
		if got := stalled(); got != step.want {
			t.Errorf("%+v: %t", step, got)
		}
	}
	is, err := r.Stalled(t.Context(), testLineage, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if done, err := r.Collect(t.Context(), testLineage, is); err != nil || done.Sessions != 1 || done.Objects != 1 {
		t.Errorf("collected %+v, %v", done, err)
	}
}

func TestHostKnowsWhichProcessesEnded(t *testing.T) {
	self, err := LocalOrigin()
	if err != nil {
		t.Fatal(err)
	}
	pid, started, namespace := self.process()
	if pid != fmt.Sprint(os.Getpid()) || started == "" || namespace == "" {
		t.Errorf("this process is %q", self.Process)
	}
	for _, c := range []struct {
		origin Origin
		want   bool
	}{
		{self, false},
		{Origin{self.Host, self.Boot, "999999999:1:" + namespace}, true},
		{Origin{self.Host, self.Boot, pid + ":1" + started + ":" + namespace}, true}, // the number was used again
		{Origin{self.Host, self.Boot, "999999999:1:9" + namespace}, false},           // in another container
		{Origin{self.Host, self.Boot, "999999999:1"}, false},                         // an earlier program's: who knows where
		{Origin{self.Host, "earlier", self.Process}, true},
		{Origin{self.Host, "earlier", "999999999:1:9" + namespace}, true},
		{Origin{self.Host, "earlier", "999999999:1"}, true},
		{Origin{"other", self.Boot, "999999999:1:" + namespace}, false},
		{Origin{}, false},
	} {
		if got := self.ended(c.origin); got != c.want {
			t.Errorf("%+v ended: %t", c.origin, got)
		}
	}
	if (Origin{}).ended(Origin{}) {
		t.Error("what has no host ended")
	}
}
