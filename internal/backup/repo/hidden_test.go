package repo

import (
	"slices"
	"strings"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// dieAfterCommit backs up v by a process that dies between the put of its commit and the listing, with do called before that.
func dieAfterCommit(t *testing.T, objects *storetest.Memory, v *sparse, do func()) {
	t.Helper()
	faults, dead, heads := storetest.NewFaults(objects), false, 0
	faults.On(storetest.Any, "", 0, func(r *storetest.Request, send func() error) error {
		if dead {
			return fault.Errorf(fault.ErrUnreachable, "dead")
		}
		if r.Op == storetest.Put && strings.HasPrefix(r.Name, HeadPrefix(testLineage)) {
			if heads++; heads == 2 {
				do()
				dead = true
			}
		}
		return send()
	})
	if w, err := openFrom(t, faults, "a").Backup(t.Context(), specOf(v, nil, nil)); err == nil || !dead {
		t.Fatalf("%v, %v", w, err)
	}
}

// A destination is rolled back while a backup is written, others commit to the older state, and the writer dies before it can
// take its head back. Repair finds what that head hides, whether there is a gap below it or another's head.
func TestRepairFindsWhatAHeadOverAGapHides(t *testing.T) {
	for _, stray := range []bool{false, true} {
		objects, memory, a := newKnowing(t)
		v1, v2, v3, v4 := volumeWith(map[int64]byte{0: 1}), volumeWith(map[int64]byte{0: 1, 5: 9}), volumeWith(map[int64]byte{6: 9}), volumeWith(map[int64]byte{7: 3})
		first := mustBackup(t, a, specOf(v1, nil, nil))
		h, _ := mustNewest(t, a)
		second := mustBackup(t, a, specOf(v2, nil, nil))
		var others *Written
		dieAfterCommit(t, objects, v3, func() {
			loseHeads(t, openFrom(t, objects, "c"), objects, h.Number)
			b := openFrom(t, objects, "b")
			others = mustBackup(t, b, specOf(v4, nil, nil))
			if stray {
				if _, err := b.Forget(t.Context(), testLineage, []string{first.Record}); err != nil {
					t.Fatal(err)
				}
			}
		})
		report, err := openFrom(t, objects, "b").Verify(t.Context(), VerifyOptions{})
		if err != nil || !slices.ContainsFunc(report.Findings, func(f Finding) bool { return slices.Contains(f.Backups, others.ID()) }) {
			t.Errorf("another's head: %t: verify: %+v, %v", stray, report, err)
		}
		for _, dry := range []bool{true, false} {
			steps, err := Repair(t.Context(), objects, nil, RepairOptions{Memory: memory, DryRun: dry})
			if err != nil || len(steps) == 0 || !slices.Equal(steps[0].Backups, []string{others.ID()}) || steps[0].Done == dry {
				t.Errorf("another's head: %t: %v, %v", stray, steps, err)
			}
		}
		r := openFrom(t, objects, "c")
		if _, err := r.Collect(t.Context(), testLineage, nil); err != nil {
			t.Error(err)
		}
		backups, err := r.Backups(t.Context())
		if err != nil || len(backups) != 4 {
			t.Fatalf("another's head: %t: %d backups, %v", stray, len(backups), err)
		}
		wantRestored(t, "the first", r, first.Backup, v1)
		wantRestored(t, "the second", r, second.Backup, v2)
		wantRestored(t, "the others'", r, others.Backup, v4)
		if report, err := r.Verify(t.Context(), VerifyOptions{Data: true}); err != nil || len(report.Findings) > 0 {
			t.Errorf("another's head: %t, repaired: %+v, %v", stray, report, err)
		}
		if steps, err := Repair(t.Context(), objects, nil, RepairOptions{Memory: memory}); err != nil || len(steps) > 0 {
			t.Errorf("another's head: %t: again: %v, %v", stray, steps, err)
		}
	}
}

// An older head that is lost hides nothing: what was deleted in a head that is there stays deleted.
func TestALostHeadBringsBackNothingThatALaterOneDeleted(t *testing.T) {
	objects, _, a := newKnowing(t)
	gone := mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 2}), nil, nil))
	lost, _ := mustNewest(t, a)
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 3}), nil, nil))
	if _, err := a.Forget(t.Context(), testLineage, []string{gone.Record}); err != nil {
		t.Fatal(err)
	}
	deleteAll(t, objects, HeadName(testLineage, lost.Number))
	steps, err := Repair(t.Context(), objects, nil, RepairOptions{})
	if err != nil || len(steps) != 1 || len(steps[0].Backups) > 0 {
		t.Errorf("%v, %v", steps, err)
	}
	if backups, err := openFrom(t, objects, "b").Backups(t.Context()); err != nil || len(backups) != 2 {
		t.Errorf("%d backups, %v", len(backups), err)
	}
}

// One pack's list of records says that a chunk has another length; another pack has the chunk.
func TestRestoreTakesAnotherCopyOfAChunkWhoseLengthIsWrong(t *testing.T) {
	lineage := newTestLineage(t)
	index, id := NewIndex(), ChunkID{1}
	var good PackRef
	for n, length := range []uint32{2 * MinChunk, MinChunk} {
		ref := PackRef{Name: PackName{Lineage: "l", Session: ID{}.String(), Kind: DataPack, ID: ID{byte(n + 1)}}}
		index.Add(ref, []Entry{{ID: id, Type: TypeChunk, Length: length, Sealed: 100, Offset: 100}})
		good = ref
	}
	r := &restorer{chunk: MinChunk, records: &reading{lineage: lineage, index: index}, window: []placed{{0, id}}}
	ranges, err := r.locate()
	if err != nil || len(ranges) != 1 || ranges[0].ref != good {
		t.Errorf("%+v, %v", ranges, err)
	}
	r.records.spurn(good.Name, id, corrupt(good.Name.String(), "damaged"))
	if _, err := r.locate(); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("without another copy: %v", err)
	}
}

// Two records name one tree, of which one is too short for its chunks: that this one is damaged says nothing of the other.
func TestASharedNodeIsJudgedForEachBackup(t *testing.T) {
	objects := storetest.NewMemory()
	r := newTestRepository(t, objects, nil)
	long := mustBackup(t, r, specOf(volumeWith(map[int64]byte{0: 1, 299: 2}), nil, nil)).Backup
	h, _ := mustNewest(t, r)
	short, coarse := *long, *long
	short.Tree.Chunks = 200
	coarse.ChunkSize = 2 * MinChunk
	for _, order := range [][]*Backup{{long, &short, &coarse}, {&coarse, &short, long}} {
		c, err := r.chain(testLineage)
		if err != nil {
			t.Fatal(err)
		}
		check, err := newLineageCheck(t.Context(), c, nil, h.Live)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range order {
			if wrong, err := check.treeOf(t.Context(), b); err != nil || (len(wrong) == 0) != (b == long) {
				t.Errorf("%d chunks of %d: %v, %v", b.Tree.Chunks, b.ChunkSize, wrong, err)
			}
		}
	}
}

// However a destination is rolled back while a backup is written, and wherever its writer dies then, what others committed to
// the older state can be restored after a repair, at the latest.
func TestNothingThatOthersCommitIsLostWhenADestinationIsRolledBack(t *testing.T) {
	base := storetest.NewMemory()
	first := mustBackup(t, newTestRepository(t, base, nil), specOf(volumeWith(map[int64]byte{0: 1}), nil, nil))
	a := openFrom(t, base, "a")
	h, _ := mustNewest(t, a)
	mustBackup(t, a, specOf(volumeWith(map[int64]byte{0: 1, 5: 9}), nil, nil))
	v := volumeWith(map[int64]byte{7: 3})
	requests := 1
	for at := 1; at <= requests; at++ { // the request before which it is rolled back
		for dies := at; dies <= requests+1; dies++ { // the first request that is not sent
			objects, count := base.Clone(), 0
			var others *Written
			faults := storetest.NewFaults(objects)
			writer := openFrom(t, faults, "a")
			writer.serial = true
			faults.On(storetest.Any, "", 0, func(_ *storetest.Request, send func() error) error {
				if count++; count == at {
					loseHeads(t, openFrom(t, objects, "c"), objects, h.Number)
					others = mustBackup(t, openFrom(t, objects, "b"), specOf(v, nil, nil))
				}
				if count >= dies {
					return fault.Errorf(fault.ErrUnreachable, "dead")
				}
				return send()
			})
			_, _ = writer.Backup(t.Context(), specOf(volumeWith(map[int64]byte{6: 9}), nil, nil))
			if dies > requests {
				requests = max(requests, count)
			}
			if others == nil {
				continue
			}
			if _, err := Repair(t.Context(), objects, nil, RepairOptions{}); err != nil {
				t.Errorf("rolled back at %d, dead at %d: repair: %v", at, dies, err)
			}
			r := openFrom(t, objects, "d")
			for what, b := range map[string]*Backup{"the others'": others.Backup, "the first": first.Backup} {
				if err := checkContent(t.Context(), r, b, map[bool]*sparse{true: v, false: volumeWith(map[int64]byte{0: 1})}[b == others.Backup]); err != nil {
					t.Errorf("rolled back at %d, dead at %d: %s: %v", at, dies, what, err)
				}
			}
			if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || len(report.Findings) > 0 {
				t.Errorf("rolled back at %d, dead at %d: verify: %+v, %v", at, dies, report.Findings, err)
			}
		}
	}
	if requests < 8 {
		t.Errorf("only %d requests", requests)
	}
}
