package repo

import (
	"context"
	"testing"

	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// aScene is a repository with some backups, from which each attempt starts.
type aScene struct {
	objects  *storetest.Memory
	key      *Key
	contents map[string]*sparse // by record
	last     *Written
	v        *sparse // what last holds
	next     *sparse // what is to be backed up
}

// newScene makes a scene in which every operation has something to do: packs that are dead and partly dead, a session that
// a dead process left, objects of a session that is over, and heads to clean up.
func newScene(t *testing.T) *aScene {
	s := &aScene{objects: storetest.NewMemory(), key: newTestKey(t), contents: map[string]*sparse{}}
	r := newTestRepository(t, s.objects, s.key, From(testOrigin("h", "0:0")))
	r.kept = 6
	v := newSparse(300*MinChunk, MinChunk)
	write := func(at int64, value byte) {
		v.blocks[at] = noise(MinChunk, value)
	}
	for generation := range 4 {
		before := v
		v = v.clone()
		write(0, byte(100+generation))
		write(270, byte(generation+1))
		for i := range 3 {
			write(int64(10+3*generation+i), byte(10*generation+i+1))
		}
		if generation == 0 {
			before = nil
		}
		s.last = mustBackup(t, r, specOf(v, s.last, before))
		s.contents[s.last.Record] = v
	}
	s.v, s.next = v, v.clone()
	v = s.next
	write(1, 200)
	write(299, 201)
	delete(v.blocks, 12)
	oldest, _ := mustNewest(t, r)
	if _, err := r.Forget(t.Context(), testLineage, []string{oldest.Backups()[0].Record}); err != nil {
		t.Fatal(err)
	}
	delete(s.contents, oldest.Backups()[0].Record)
	faults := storetest.NewFaults(s.objects)
	cut, err := Open(t.Context(), faults, s.key, From(testOrigin("h", "0:0")))
	if err != nil {
		t.Fatal(err)
	}
	faults.On(storetest.Put, HeadPrefix(testLineage), 2, storetest.FailBefore(nil))
	if w, err := cut.Backup(t.Context(), specOf(s.next, s.last, s.v)); !fault.Is(err, fault.ErrUnreachable) {
		t.Fatalf("a backup that cannot be committed: %v, %v", w, err)
	}
	return s
}

func mustNewest(t testing.TB, r *Repository) (*Head, *Index) {
	t.Helper()
	h, index, err := r.NewestIndexed(t.Context(), testLineage)
	if err != nil {
		t.Fatal(err)
	}
	return h, index
}

// open opens a copy of the scene as another process of the same host does.
func (s *aScene) open(t *testing.T) (*Repository, *storetest.Memory, *storetest.Faults) {
	t.Helper()
	objects := s.objects.Clone()
	faults := storetest.NewFaults(objects)
	r, err := Open(t.Context(), faults, s.key, From(testOrigin("h", "999999999:1")))
	if err != nil {
		t.Fatal(err)
	}
	r.kept, r.serial = 6, true
	return r, objects, faults
}

// check holds that all backups of the scene are there as they were, but for those in gone, and returns the others.
func (s *aScene) check(t *testing.T, r *Repository, gone string) []*Backup {
	t.Helper()
	h, _ := mustNewest(t, r)
	for record, content := range s.contents {
		b, there := h.Backup(record)
		if !there {
			if record != gone {
				t.Errorf("backup %s is lost", record)
			}
			continue
		}
		if err := checkContent(t.Context(), r, b, content); err != nil {
			t.Error(err)
		}
	}
	var others []*Backup
	for _, b := range h.Backups() {
		if s.contents[b.Record] == nil {
			others = append(others, b)
		}
	}
	return others
}

// An anOperation is one that is cut short at each of its requests.
type anOperation struct {
	name string
	do   func(ctx context.Context, r *Repository) error
}

// operations are those that change a repository. Forget removes the oldest backup.
func (s *aScene) operations(oldest string) []anOperation {
	return []anOperation{
		{"backup", func(ctx context.Context, r *Repository) error {
			_, err := r.Backup(ctx, specOf(s.next, s.last, s.v))
			return err
		}},
		{"forget", func(ctx context.Context, r *Repository) error {
			_, err := r.Thin(ctx, testLineage, func([]*Backup) []string { return []string{oldest} })
			return err
		}},
		{"collect", func(ctx context.Context, r *Repository) error {
			_, err := r.Collect(ctx, testLineage, nil)
			return err
		}},
		{"compact", func(ctx context.Context, r *Repository) error {
			_, err := r.Compact(ctx, testLineage, 0.1)
			return err
		}},
	}
}

func TestEveryRequestMayFailBeforeOrAfterItsEffect(t *testing.T) {
	scene := newScene(t)
	var oldest string
	{
		r, _, _ := scene.open(t)
		h, _ := mustNewest(t, r)
		oldest = h.Backups()[0].Record
	}
	for _, operation := range scene.operations(oldest) {
		t.Run(operation.name, func(t *testing.T) {
			t.Parallel()
			forgotten := ""
			if operation.name == "forget" {
				forgotten = oldest
			}
			for what, effect := range map[string]storetest.Effect{
				"before": storetest.FailBefore(nil), "after": storetest.FailAfter(nil), "reply lost": storetest.LoseReply,
				"refused": storetest.FailBefore(fault.ErrExists), "full": storetest.FailBefore(fault.ErrNoSpace),
			} {
				hit := 0
				for n := 1; ; n++ {
					r, objects, faults := scene.open(t)
					on := storetest.Any
					if what == "refused" || what == "full" {
						on = storetest.Put
					}
					faults.On(on, "", n, effect)
					err := operation.do(t.Context(), r)
					if faults.Pending() > 0 {
						if err != nil {
							t.Fatalf("undisturbed: %v", err)
						}
						break
					}
					hit++
					faults.Clear()
					if err != nil && what != "full" && !fault.Is(err, fault.ErrUnreachable) || what == "full" && err != nil && !fault.Is(err, fault.ErrNoSpace) {
						t.Errorf("request %d fails (%s): %v", n, what, err)
					}
					scene.settle(t, r, objects, operation.do, forgotten)
					if t.Failed() {
						t.Fatalf("request %d failed (%s)", n, what)
					}
				}
				t.Logf("%s: %d requests", what, hit)
				if hit == 0 {
					t.Error("no request was made")
				}
			}
		})
	}
}

// settle holds that nothing is lost, that the operation succeeds when it is run again by the host's next process, and that
// a collection frees what was orphaned.
func (s *aScene) settle(t *testing.T, r *Repository, objects *storetest.Memory, again func(context.Context, *Repository) error, gone string) {
	t.Helper()
	s.check(t, r, gone)
	next, err := Open(t.Context(), objects, s.key, From(testOrigin("h", "999999998:1")))
	if err != nil {
		t.Fatal(err)
	}
	next.kept = r.kept
	if err := again(t.Context(), next); err != nil {
		t.Errorf("run again: %v", err)
	}
	if _, err := next.Collect(t.Context(), testLineage, nil); err != nil {
		t.Errorf("collect: %v", err)
	}
	for _, b := range s.check(t, next, gone) {
		if err := checkContent(t.Context(), next, b, s.next); err != nil {
			t.Error(err)
		}
	}
	if err := checkSettled(t.Context(), next, objects, testLineage); err != nil {
		t.Error(err)
	}
}

func TestSceneHasWorkForEveryOperation(t *testing.T) {
	scene := newScene(t)
	r, _, _ := scene.open(t)
	w := mustBackup(t, r, specOf(scene.next, scene.last, scene.v))
	if !w.Adopted || w.Parent != scene.last.Record || w.Stats.Stored > 200000 {
		t.Errorf("the backup adopted %t, has parent %q and stored %d bytes", w.Adopted, w.Parent, w.Stats.Stored)
	}
	r, _, _ = scene.open(t)
	done, err := r.Collect(t.Context(), testLineage, nil)
	if err != nil || done.Sessions != 1 || done.Packs == 0 || done.Objects <= done.Packs || done.Freed == 0 || done.Heads == 0 {
		t.Errorf("collected %+v, %v", done, err)
	}
	r, _, _ = scene.open(t)
	compacted, err := r.Compact(t.Context(), testLineage, 0.1)
	if err != nil || compacted.Replaced == 0 || compacted.Written == 0 {
		t.Errorf("compacted %+v, %v", compacted, err)
	}
	t.Logf("%+v, %+v", done, compacted)
}
