package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

func objectsReadBackAsPut(s *suite) {
	for i, size := range []int{0, 1, 4095, 4096, 1<<20 + 1} {
		name, data := fmt.Sprintf("sizes/%d", size), content(uint64(i), size)
		s.put(name, data)
		s.has(name, data)
		objects, err := list(s.Context(), s.other, "sizes/")
		s.ok(err)
		if len(objects) != i+1 {
			s.Fatalf("%d objects put, listed %v", i+1, objects)
		}
		for _, o := range objects {
			if o.Name != fmt.Sprintf("sizes/%d", o.Size) {
				s.Fatalf("listed with a wrong size: %v", objects)
			}
		}
	}
	s.put("nil", nil)
	s.has("nil", nil)
}

func largestObjectReadsBack(s *suite) {
	data := content(1, store.MaxSize+1)
	s.kind(s.Put(s.Context(), "large", data), fault.ErrInvalid, "put of too much")
	s.absent("large")
	data = data[:store.MaxSize]
	s.put("large", data)
	s.has("large", data)
	tail, err := s.GetRange(s.Context(), "large", store.MaxSize-3, 3)
	s.ok(err)
	if !bytes.Equal(tail, data[store.MaxSize-3:]) {
		s.Fatalf("its last bytes: %s", brief(tail))
	}
}

func putRefusesATakenName(s *suite) {
	s.put("a/taken", []byte("first"))
	for _, way := range []store.Store{s.Store, s.other} {
		for _, data := range []string{"other", "first", "", "longer than the first"} {
			s.kind(way.Put(s.Context(), "a/taken", []byte(data)), fault.ErrExists, "put again")
		}
	}
	s.has("a/taken", []byte("first"))
	s.put("a/empty", nil)
	s.kind(s.Put(s.Context(), "a/empty", []byte("x")), fault.ErrExists, "put over an empty object")
	s.has("a/empty", nil)
}

func oneOfRacingWritersWins(s *suite) {
	for round := range 20 {
		name := fmt.Sprintf("race/%d/head", round)
		var winner atomic.Int64
		var g errgroup.Group
		start := make(chan struct{})
		for i := range parallel {
			g.Go(func() error {
				way, data := s.Store, content(uint64(i), 1000+i)
				if i%2 == 1 {
					way = s.other
				}
				<-start
				switch err := way.Put(s.Context(), name, data); {
				case err == nil && !winner.CompareAndSwap(0, int64(i+1)):
					return fmt.Errorf("writers %d and %d have both won", i+1, winner.Load())
				case err != nil && !fault.Is(err, fault.ErrExists):
					return err
				}
				// Who lost must see the winner's at once.
				_, err := way.Get(s.Context(), name)
				return err
			})
		}
		close(start)
		s.ok(g.Wait())
		if winner.Load() == 0 {
			s.Fatal("nobody has won")
		}
		i := int(winner.Load()) - 1
		s.has(name, content(uint64(i), 1000+i))
	}
}

func racingWritersOfDifferentNamesAllWin(s *suite) {
	var g errgroup.Group
	name := func(i int) string { return fmt.Sprintf("new/%d/deep/%d", i%3, i) }
	for i := range 4 * parallel {
		way := []store.Store{s.Store, s.other}[i%2]
		g.Go(func() error { return way.Put(s.Context(), name(i), content(uint64(i), 100)) })
	}
	s.ok(g.Wait())
	for i := range 4 * parallel {
		s.has(name(i), content(uint64(i), 100))
	}
}

func slicesAreNotShared(s *suite) {
	data := []byte("as it was put")
	s.put("mine", data)
	data[0] = 'X'
	s.has("mine", []byte("as it was put"))
	got, err := s.Get(s.Context(), "mine")
	s.ok(err)
	got[0] = 'Y'
	part, err := s.GetRange(s.Context(), "mine", 0, 2)
	s.ok(err)
	part[0] = 'Z'
	s.has("mine", []byte("as it was put"))
}

func rangesAreExact(s *suite) {
	data := content(7, 10_000)
	s.put("ranges", data)
	for _, r := range [][2]int64{{0, 1}, {0, 10_000}, {9_999, 1}, {1, 9_999}, {4_096, 4_096}, {4_095, 2}} {
		for _, way := range []store.Store{s.Store, s.other} {
			got, err := way.GetRange(s.Context(), "ranges", r[0], r[1])
			s.ok(err)
			if !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
				s.Fatalf("%d bytes at %d: got %s", r[1], r[0], brief(got))
			}
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, 0}, {5, 0}, {0, -1}, {math.MaxInt64, 1}, {1, math.MaxInt64}} {
		_, err := s.GetRange(s.Context(), "ranges", r[0], r[1])
		s.kind(err, fault.ErrInvalid, fmt.Sprintf("%d bytes at %d", r[1], r[0]))
	}
}

func rangePastTheEndIsCorrupt(s *suite) {
	s.put("short", content(7, 100))
	s.put("empty", nil)
	for _, r := range []struct {
		name           string
		offset, length int64
	}{{"short", 0, 101}, {"short", 99, 2}, {"short", 100, 1}, {"short", 1000, 1}, {"short", 0, 1 << 50}, {"empty", 0, 1}} {
		_, err := s.GetRange(s.Context(), r.name, r.offset, r.length)
		s.kind(err, fault.ErrCorrupt, fmt.Sprintf("%d bytes at %d of %s", r.length, r.offset, r.name))
	}
}

func missingObjectsAreNotFound(s *suite) {
	s.absent("missing")
	s.absent("no/such/directory")
	s.put("there/is", []byte("one"))
	s.absent("there/isnt")
	s.lists("no/such/")
}

func belowAnObjectIsNothing(s *suite) {
	s.put("there/is", []byte("one"))
	_, getErr := s.Get(s.Context(), "there/is/below")
	_, rangeErr := s.GetRange(s.Context(), "there/is/below", 0, 1)
	for _, err := range []error{getErr, rangeErr} {
		if !fault.Is(err, fault.ErrCorrupt) {
			s.kind(err, fault.ErrNotFound, "get below an object")
		}
	}
	objects, err := list(s.Context(), s.other, "there/is/")
	if err != nil {
		s.kind(err, fault.ErrCorrupt, "list below an object")
	}
	if len(objects) > 0 {
		s.Fatalf("below an object there is %v", objects)
	}
	s.ok(s.Delete(s.Context(), "there/is/below"))
	s.lists("", "there/is")
}

func directoriesAreNotObjects(s *suite) {
	s.put("a/b/c", []byte("kept"))
	s.absent("a")
	s.absent("a/b")
	s.ok(s.Delete(s.Context(), "a"))
	s.ok(s.Delete(s.Context(), "a/b"))
	s.ok(s.Delete(s.Context(), "a/b/c/d"))
	s.has("a/b/c", []byte("kept"))
	for _, name := range []string{"a", "a/b", "a/b/c/d"} {
		if err := s.Put(s.Context(), name, nil); err != nil {
			s.kind(err, fault.ErrInvalid, "put "+name)
		}
	}
	s.has("a/b/c", []byte("kept"))
}

func deleteConverges(s *suite) {
	s.ok(s.Delete(s.Context(), "never/was"))
	s.put("a/one", []byte("1"))
	s.put("a/two", []byte("2"))
	s.ok(s.Delete(s.Context(), "a/one"))
	s.absent("a/one")
	s.ok(s.Delete(s.Context(), "a/one"))
	s.ok(s.other.Delete(s.Context(), "a/one"))
	s.has("a/two", []byte("2"))
}

func deletedNameCanBeTakenAgain(s *suite) {
	for _, text := range []string{"first", "second", "third"} {
		s.put("x/y/again", []byte(text))
		s.has("x/y/again", []byte(text))
		s.ok(s.other.Delete(s.Context(), "x/y/again"))
		s.absent("x/y/again")
	}
}

func listIsOfOneDirectory(s *suite) {
	for _, name := range []string{"a/1/x", "a/1/y/z", "a/10/x", "a/1-", "a/1.x", "b/1/x", "a2/1/x"} {
		s.put(name, nil)
	}
	s.lists("a/1/", "a/1/x", "a/1/y/z")
	s.lists("a/10/", "a/10/x")
	s.lists("a/", "a/1-", "a/1.x", "a/1/x", "a/1/y/z", "a/10/x")
	s.lists("a/1/y/", "a/1/y/z")
	s.lists("", "a/1-", "a/1.x", "a/1/x", "a/1/y/z", "a/10/x", "a2/1/x", "b/1/x")
}

func listRisesByTheBytesOfNames(s *suite) {
	order := []string{"-", "0", "1-1", "1.1", "1/1", "1/10", "1/2", "10", "11/0", "2", "_", "a-b/c", "a.b/c", "a/b", "a/c/d", "a0/b", "a_/b", "aa"}
	for i := range order {
		s.put(order[(i*7)%len(order)], nil) // 7 and 18 have no common divisor
	}
	s.lists("", order...)
}

func listHasNoLimit(s *suite) {
	const count = 3000
	want := make([]string, count)
	var g errgroup.Group
	g.SetLimit(parallel)
	for i := range count {
		want[i] = fmt.Sprintf("many/%06d", i)
		g.Go(func() error { return s.Put(s.Context(), want[i], nil) })
	}
	s.ok(g.Wait())
	s.lists("many/", want...)
	s.lists("", want...)
}

func listEndsWithAnErrorOfFn(s *suite) {
	for _, name := range []string{"a/1", "a/2", "b/3"} {
		s.put(name, nil)
	}
	enough := errors.New("enough")
	calls := 0
	err := s.List(s.Context(), "", func(o store.Object) error {
		calls++
		if o.Name == "a/2" {
			return enough
		}
		return nil
	})
	if err != enough || calls != 2 { //nolint:errorlint // the contract says that it is the same
		s.Fatalf("%d calls, %v", calls, err)
	}
}

func listedObjectsCanBeDeletedAtOnce(s *suite) {
	for i := range 50 {
		s.put(fmt.Sprintf("a/%d/x", i), nil)
		s.put(fmt.Sprintf("a/%d/y", i), nil)
	}
	calls := 0
	s.ok(s.List(s.Context(), "a/", func(o store.Object) error {
		calls++
		return s.Delete(s.Context(), o.Name)
	}))
	if calls != 100 {
		s.Fatalf("%d objects were listed", calls)
	}
	s.lists("")
}

func listDuringChangesShowsWhatStays(s *suite) {
	const count = 60
	for i := range count {
		s.put(fmt.Sprintf("d/%02d/stays", i), nil)
		s.put(fmt.Sprintf("d/%02d/x/goes", i), nil)
	}
	var changing errgroup.Group
	for i := range count {
		if i%15 == 0 {
			changing.Go(func() error { return change(s, i, i+15) })
		}
	}
	done := make(chan error, 1)
	go func() { done <- changing.Wait() }()
	for listings := 0; ; listings++ {
		seen := map[string]int{}
		s.ok(s.other.List(s.Context(), "d/", func(o store.Object) error {
			seen[o.Name]++
			return nil
		}))
		for name, n := range seen {
			if n > 1 {
				s.Fatalf("%s is listed %d times", name, n)
			}
		}
		for i := range count {
			if name := fmt.Sprintf("d/%02d/stays", i); seen[name] != 1 {
				s.Fatalf("%s is not listed", name)
			}
		}
		select {
		case err := <-done:
			s.ok(err)
			return
		default:
		}
	}
}

// change deletes and puts objects in the directories from number first to before last.
func change(s *suite, first, last int) error {
	for i := first; i < last; i++ {
		err := s.Delete(s.Context(), fmt.Sprintf("d/%02d/x/goes", i))
		if err == nil {
			err = s.Put(s.Context(), fmt.Sprintf("d/%02d/comes", i), nil)
		}
		if err == nil {
			err = s.Put(s.Context(), fmt.Sprintf("d/%02d/x/comes", i), nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func putsAndDeletesInOneDirectorySucceed(s *suite) {
	var g errgroup.Group
	for i := range parallel {
		way := []store.Store{s.Store, s.other}[i%2]
		g.Go(func() error {
			name := fmt.Sprintf("comes/and/goes/%d", i)
			for range 30 {
				if err := way.Put(s.Context(), name, []byte(name)); err != nil {
					return err
				}
				if _, err := way.Get(s.Context(), name); err != nil {
					return err
				}
				if err := way.Delete(s.Context(), name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	s.ok(g.Wait())
	s.lists("")
}

func readersNeverSeeAPart(s *suite) {
	data := content(3, 5<<20)
	const rounds = 8
	var g errgroup.Group
	g.Go(func() error {
		for i := range rounds {
			if err := s.Put(s.Context(), fmt.Sprintf("parts/%d", i), data); err != nil {
				return err
			}
		}
		return nil
	})
	for i := 0; i < rounds; {
		name := fmt.Sprintf("parts/%d", i)
		objects, err := list(s.Context(), s.other, "parts/")
		s.ok(err)
		for _, o := range objects {
			if o.Size != int64(len(data)) {
				s.Fatalf("listed: %v", o)
			}
		}
		got, err := s.other.Get(s.Context(), name)
		if fault.Is(err, fault.ErrNotFound) {
			if len(objects) > i {
				s.Fatalf("%s was listed, and now: %v", name, err)
			}
			continue
		}
		s.ok(err)
		if !bytes.Equal(got, data) {
			s.Fatalf("%s: got %s", name, brief(got))
		}
		i++
	}
	s.ok(g.Wait())
}

// longName is as long as a name may be, and has the longest segment.
var longName = strings.Repeat(strings.Repeat("s", store.MaxSegment)+"/", 3) + strings.Repeat("t", 125)

func longNamesAreTaken(s *suite) {
	if len(longName) != store.MaxName {
		s.Fatalf("the name has %d bytes", len(longName))
	}
	s.put(longName, []byte("long"))
	s.has(longName, []byte("long"))
	s.lists("", longName)
	every := "abcdefghijklmnopqrstuvwxyz/0123456789/a._-b/-/_-_/a..b"
	s.put(every, nil)
	s.lists("a/")
	s.lists("abcdefghijklmnopqrstuvwxyz/", every)
	s.ok(s.Delete(s.Context(), longName))
	s.lists("", every)
}

// BadNames are names that every store refuses.
var BadNames = []string{
	"", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", ".a", "a/.nfs0001", "a.", "a./b", "A", "a b", "a\x00",
	"a\n", "ä", "a%2fb", "a~", "a+b", "a\\b", "a:b", strings.Repeat("s", store.MaxSegment+1), "u/" + longName,
}

func badNamesAreRefused(s *suite) {
	ctx := s.Context()
	nothing := func(store.Object) error { return nil }
	for _, name := range BadNames {
		what := fmt.Sprintf("name %.40q", name)
		s.kind(s.Put(ctx, name, nil), fault.ErrInvalid, what)
		_, err := s.Get(ctx, name)
		s.kind(err, fault.ErrInvalid, what)
		_, err = s.GetRange(ctx, name, 0, 1)
		s.kind(err, fault.ErrInvalid, what)
		s.kind(s.Delete(ctx, name), fault.ErrInvalid, what)
		s.kind(s.List(ctx, name+"/", nothing), fault.ErrInvalid, what)
	}
	for _, prefix := range []string{"a", "a/b", "/", "a//", "../", "A/"} {
		s.kind(s.List(ctx, prefix, nothing), fault.ErrInvalid, "prefix "+prefix)
	}
	s.lists("")
}

func doneContextsStopEverything(s *suite) {
	s.put("there", []byte("there"))
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	nothing := func(store.Object) error { return nil }
	_, getErr := s.Get(ctx, "there")
	_, rangeErr := s.GetRange(ctx, "there", 0, 1)
	for what, err := range map[string]error{
		"put":    s.Put(ctx, "new", nil),
		"get":    getErr,
		"range":  rangeErr,
		"list":   s.List(ctx, "", nothing),
		"empty":  s.List(ctx, "empty/", nothing),
		"delete": s.Delete(ctx, "there"),
	} {
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s: %v", what, err)
		}
	}
	s.lists("", "there")

	ctx, cancel = context.WithCancel(s.Context())
	s.put("two", nil)
	calls := 0
	err := s.List(ctx, "", func(store.Object) error {
		calls++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		s.Errorf("cancelled after the first of two: %d calls, %v", calls, err)
	}
}

func probePasses(s *suite) {
	s.ok(store.Probe(s.Context(), s.Store))
	s.lists("")
}
