package repo

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// dataPack returns a data pack of the newest head, and the records in it.
func dataPack(t *testing.T, r *Repository) (string, []Entry) {
	t.Helper()
	h, _ := mustNewest(t, r)
	for _, p := range h.Live {
		if p.Name.Kind == DataPack {
			_, entries, err := r.chains[testLineage].lineage.ReadFooter(t.Context(), r.objects, p.Name.String(), p.Size)
			if err != nil {
				t.Fatal(err)
			}
			return p.Name.String(), entries
		}
	}
	t.Fatal("no data pack")
	return "", nil
}

// flipped is a reply that damages the first record.
func flipped(entries []Entry) storetest.Effect {
	return storetest.ChangeReply(func(data []byte) []byte {
		data[entries[0].Offset+3] ^= 1
		return data
	})
}

// A host that was never seen here committed a backup, and its head was lost with the store's last seconds: the one before
// has the session still.
func TestRepairFindsABackupWhoseOnlyHeadIsLost(t *testing.T) {
	objects := storetest.NewMemory()
	a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	v := volumeWith(map[int64]byte{5: 9})
	last := mustBackup(t, a, specOf(v, nil, nil))
	h, _ := mustNewest(t, a)
	deleteAll(t, objects, HeadName(testLineage, h.Number))
	steps, err := Repair(t.Context(), objects, nil, RepairOptions{})
	if err != nil || len(steps) != 1 || !steps[0].Done || len(steps[0].Backups) != 1 || steps[0].Backups[0] != last.ID() {
		t.Errorf("%v, %v", steps, err)
	}
	b := openFrom(t, objects, "b")
	if _, err := b.Collect(t.Context(), testLineage, func(*Session) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if err := restoresTo(t, b, last.Backup, v); err != nil {
		t.Error(err)
	}
	if h, _ := mustNewest(t, b); len(h.Sessions) > 0 {
		t.Errorf("sessions: %+v", h.Sessions)
	}
}

// A writer that is about to commit while repair does that for it takes the backup for committed.
func TestWriterWhoseBackupRepairCommitsIsDone(t *testing.T) {
	objects := storetest.NewMemory()
	faults := storetest.NewFaults(objects)
	a := newTestRepository(t, faults, nil, From(testOrigin("a", "1:0")))
	v := volumeWith(map[int64]byte{5: 9})
	meanwhile(faults, 2, func() {
		if steps, err := Repair(t.Context(), objects, nil, RepairOptions{}); err != nil || len(steps) != 1 {
			t.Errorf("%v, %v", steps, err)
		}
	})
	w := mustBackup(t, a, specOf(v, nil, nil))
	h, _ := mustNewest(t, a)
	if len(h.Records) != 1 || len(h.Sessions) > 0 || h.Records[0].Record != w.Record {
		t.Errorf("%d backups, %d sessions", len(h.Records), len(h.Sessions))
	}
	if err := restoresTo(t, a, w.Backup, v); err != nil {
		t.Error(err)
	}
}

// What a pack's bad checksum leaves good is copied from a second look at it.
func TestRepairDropsNothingThatWasGoodWhenItLooked(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	v := volumeWith(map[int64]byte{0: 1, 5: 2})
	w := mustBackup(t, r, specOf(v, nil, nil))
	pack, entries := dataPack(t, r)
	storetest.Tamper(t, objects, pack, storetest.Flip(-1))
	faults := storetest.NewFaults(objects)
	faults.On(storetest.Get, pack, 2, flipped(entries))
	steps, err := Repair(t.Context(), faults, nil, RepairOptions{Origin: testOrigin("a", "1:0")})
	if err != nil || len(steps) != 1 || !steps[0].Done || faults.Pending() > 0 {
		t.Errorf("%v, %v", steps, err)
	}
	if err := restoresTo(t, openFrom(t, objects, "b"), w.Backup, v); err != nil {
		t.Error(err)
	}
}

func TestNoBackupIsDroppedForOneBadLook(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	v := volumeWith(map[int64]byte{0: 1, 5: 2})
	w := mustBackup(t, r, specOf(v, nil, nil))
	pack, entries := dataPack(t, r)
	faults := storetest.NewFaults(objects)
	faults.On(storetest.Get, pack, 1, flipped(entries))
	if steps, err := Repair(t.Context(), faults, nil, RepairOptions{DropDamaged: true}); err != nil || len(steps) > 0 || faults.Pending() > 0 {
		t.Errorf("%v, %v", steps, err)
	}
	if err := restoresTo(t, openFrom(t, objects, "b"), w.Backup, v); err != nil {
		t.Error(err)
	}
}

// wastedStock has a pack of which a third is needed by nobody, in a repository of host a. It returns the backup that is in it,
// and what that holds.
func wastedStock(t *testing.T) (*storetest.Memory, *Repository, *Written, *sparse) {
	t.Helper()
	objects := storetest.NewMemory()
	a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
	many := map[int64]byte{280: 1} // below another node than the others
	for i := range int64(200) {
		many[i] = byte(i + 1)
	}
	before := volumeWith(many)
	w := mustBackup(t, a, specOf(before, nil, nil))
	for i := range int64(200) {
		if i%3 == 0 {
			delete(many, i)
		}
	}
	after := volumeWith(many)
	kept := mustBackup(t, a, specOf(after, w, before))
	if _, err := a.Forget(t.Context(), testLineage, []string{w.Record}); err != nil {
		t.Fatal(err)
	}
	return objects, a, kept, after
}

// mustTidy compacts and collects.
func mustTidy(t *testing.T, r *Repository) {
	t.Helper()
	if done, err := r.Compact(t.Context(), testLineage, 0.25); err != nil || done.Replaced == 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
}

func TestRepairBesideAPruneFindsNothing(t *testing.T) {
	for _, dry := range []bool{true, false} {
		objects, a, _, _ := wastedStock(t)
		pack, _ := dataPack(t, a)
		faults := storetest.NewFaults(objects)
		faults.On(storetest.Get, pack, 1, func(_ *storetest.Request, do func() error) error {
			mustTidy(t, a)
			return do()
		})
		if steps, err := Repair(t.Context(), faults, nil, RepairOptions{DryRun: dry}); err != nil || len(steps) > 0 || faults.Pending() > 0 {
			t.Errorf("dry %t: %v, %v", dry, steps, err)
		}
	}
}

// Packs that nobody needs stay dead: a delete of a collection that was cut short may yet arrive.
func TestRepairMakesOnlyWhatIsNeededLive(t *testing.T) {
	objects := storetest.NewMemory()
	faults := storetest.NewFaults(objects)
	a := newTestRepository(t, faults, nil, From(testOrigin("a", "1:0")))
	a.serial = true
	old := mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{1: 2}), nil, nil))
	if _, err := a.Forget(t.Context(), testLineage, []string{old.Record}); err != nil {
		t.Fatal(err)
	}
	faults.On(storetest.Delete, SessionsPrefix(testLineage), 2, faults.Late)
	if _, err := a.Collect(t.Context(), testLineage, nil); err == nil {
		t.Fatal("the collection was not cut short")
	}
	cut := storetest.NewFaults(objects)
	cut.On(storetest.Put, HeadPrefix(testLineage), 2, storetest.FailBefore(fault.ErrUnreachable))
	if _, err := openFrom(t, cut, "b").Backup(t.Context(), specOf(volumeWith(map[int64]byte{9: 9}), nil, nil)); err == nil {
		t.Fatal("the backup was not cut short")
	}
	steps, err := Repair(t.Context(), objects, nil, RepairOptions{})
	if err != nil || len(steps) != 1 {
		t.Fatalf("%v, %v", steps, err)
	}
	faults.Deliver(t.Context())
	c := openFrom(t, objects, "c")
	mustBackup(t, c, specOf(volumeWith(map[int64]byte{3: 9}), nil, nil))
	if _, err := c.Collect(t.Context(), testLineage, nil); err != nil {
		t.Error(err)
	}
}

func TestRepairGoesOnWithWhatTheOneBeforeLeft(t *testing.T) {
	objects := storetest.NewMemory()
	a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{1: 2}), nil, nil))
	for _, name := range objects.Names() {
		if strings.HasSuffix(name, ".data") {
			storetest.Tamper(t, objects, name, storetest.Flip(-1))
		}
	}
	for n := range 3 {
		faults := storetest.NewFaults(objects)
		faults.On(storetest.Put, SessionsPrefix(testLineage), 2, storetest.FailBefore(fault.ErrNoSpace))
		if _, err := Repair(t.Context(), faults, nil, RepairOptions{Origin: testOrigin("a", "1:0")}); !fault.Is(err, fault.ErrNoSpace) {
			t.Fatal(n, err)
		}
	}
	r := openFrom(t, objects, "a")
	if h, _ := mustNewest(t, r); len(h.Sessions) != 1 {
		t.Errorf("%d sessions", len(h.Sessions))
	}
	if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
		t.Fatal(err)
	}
	if h, _ := mustNewest(t, r); len(h.Sessions) != 0 {
		t.Errorf("%d sessions after a collection", len(h.Sessions))
	}
}

func TestMissingHeadsOfAGapAreAllFound(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	for n := range int64(4) {
		mustBackup(t, r, specOf(volumeWith(map[int64]byte{n: 1}), nil, nil))
	}
	for _, gone := range [][]uint64{{1, 2}, {4, 5, 6}} {
		short := objects.Clone()
		for _, n := range gone {
			deleteAll(t, short, HeadName(testLineage, n))
		}
		report, err := openFrom(t, short, "b").Verify(t.Context(), VerifyOptions{})
		if err != nil || len(report.Findings) != len(gone) {
			t.Errorf("%v gone: %+v, %v", gone, report.Findings, err)
		}
		faults := storetest.NewFaults(short)
		faults.On(storetest.Get, HeadName(testLineage, gone[0]), 1, storetest.FailBefore(fault.ErrUnreachable))
		if report, err := openFrom(t, faults, "b").Verify(t.Context(), VerifyOptions{}); !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("%v gone, and unreachable: %+v, %v", gone, report.Findings, err)
		}
	}
}

// The heads since before a compaction are lost, and what it replaced was deleted: older backups need the packs in its place.
func TestRepairFindsWhatACompactionWrote(t *testing.T) {
	for _, since := range []uint64{0, 1} { // heads after the forgetting that are there: the compaction's session is in the second
		for _, another := range []bool{false, true} {
			objects := storetest.NewMemory()
			a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
			drop := mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}), nil, nil))
			v := volumeWith(map[int64]byte{0: 1, 1: 2})
			keep := mustBackup(t, a, specOf(v, nil, nil))
			if _, err := a.Forget(t.Context(), testLineage, []string{drop.Record}); err != nil {
				t.Fatal(err)
			}
			before, _ := mustNewest(t, a)
			mustTidy(t, a)
			if another {
				mustBackup(t, a, specOf(volumeWith(map[int64]byte{100: 9}), nil, nil))
			}
			loseHeads(t, a, objects, before.Number+since)
			for _, o := range []RepairOptions{{DryRun: true}, {DropDamaged: true}} {
				steps, err := Repair(t.Context(), objects, nil, o)
				if err != nil || slices.ContainsFunc(steps, func(s Step) bool { return s.Lost }) {
					t.Errorf("%d heads, another %t: %v, %v", since, another, steps, err)
				}
			}
			b := openFrom(t, objects, "b")
			if _, err := b.Collect(t.Context(), testLineage, func(*Session) bool { return true }); err != nil {
				t.Error(err)
			}
			wantRestored(t, fmt.Sprintf("%d heads, another %t", since, another), b, keep.Backup, v)
		}
	}
}

// Older heads are lost too, and there is no room for those that are to take their place.
func TestRepairWithoutRoomLosesNothingThatItFinds(t *testing.T) {
	for n := 1; n < 6; n++ {
		objects := storetest.NewMemory()
		a := newTestRepository(t, objects, nil, From(testOrigin("a", "1:0")))
		for n := range byte(3) {
			mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: n + 1}), nil, nil))
		}
		h, _ := mustNewest(t, a)
		v := volumeWith(map[int64]byte{0: 1, 5: 9})
		w := mustBackup(t, a, specOf(v, nil, nil))
		loseHeads(t, a, objects, h.Number)
		deleteAll(t, objects, HeadName(testLineage, 2))
		faults := storetest.NewFaults(objects)
		faults.On(storetest.Put, HeadPrefix(testLineage), n, storetest.FailBefore(fault.ErrNoSpace))
		if _, err := Repair(t.Context(), faults, nil, RepairOptions{}); !fault.Is(err, fault.ErrNoSpace) {
			t.Errorf("no room for head %d: %v", n, err)
		}
		if _, err := Repair(t.Context(), objects, nil, RepairOptions{}); err != nil {
			t.Error(err)
		}
		wantRestored(t, fmt.Sprintf("no room for head %d", n), openFrom(t, objects, "b"), w.Backup, v)
	}
}
