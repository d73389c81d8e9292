// Package storetest holds what every implementation of store.Store is tested with: the conformance suite, which goes
// through the contract sentence by sentence, a store in memory, and a decorator whose requests go wrong as told.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A Harness is a store under test.
type Harness struct {
	// Store is empty at first. The suite leaves it empty.
	Store store.Store

	// Other is a second way to the same objects, as another host has. nil stands for Store.
	Other store.Store
}

// Run runs the conformance suite.
func Run(t *testing.T, h Harness) {
	if h.Other == nil {
		h.Other = h.Store
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t, Store: h.Store, other: h.Other}
			s.Cleanup(s.clear)
			c.run(s)
		})
	}
}

var cases = []struct {
	name string
	run  func(*suite)
}{
	{"ObjectsReadBackAsPut", objectsReadBackAsPut},
	{"LargestObjectReadsBackAndALargerOneIsRefused", largestObjectReadsBack},
	{"PutRefusesATakenName", putRefusesATakenName},
	{"OneOfRacingWritersWins", oneOfRacingWritersWins},
	{"RacingWritersOfDifferentNamesAllWin", racingWritersOfDifferentNamesAllWin},
	{"SlicesAreNotShared", slicesAreNotShared},
	{"RangesAreExact", rangesAreExact},
	{"RangePastTheEndIsCorrupt", rangePastTheEndIsCorrupt},
	{"MissingObjectsAreNotFound", missingObjectsAreNotFound},
	{"BelowAnObjectIsNothing", belowAnObjectIsNothing},
	{"DirectoriesAreNotObjects", directoriesAreNotObjects},
	{"DeleteConverges", deleteConverges},
	{"DeletedNameCanBeTakenAgain", deletedNameCanBeTakenAgain},
	{"ListIsOfOneDirectory", listIsOfOneDirectory},
	{"ListRisesByTheBytesOfNames", listRisesByTheBytesOfNames},
	{"ListHasNoLimit", listHasNoLimit},
	{"ListEndsWithAnErrorOfFn", listEndsWithAnErrorOfFn},
	{"ListedObjectsCanBeDeletedAtOnce", listedObjectsCanBeDeletedAtOnce},
	{"ListDuringChangesShowsWhatStays", listDuringChangesShowsWhatStays},
	{"PutsAndDeletesInOneDirectorySucceed", putsAndDeletesInOneDirectorySucceed},
	{"ReadersNeverSeeAPart", readersNeverSeeAPart},
	{"LongNamesAreTaken", longNamesAreTaken},
	{"BadNamesAreRefused", badNamesAreRefused},
	{"DoneContextsStopEverything", doneContextsStopEverything},
	{"ProbePasses", probePasses},
}

// A suite is one test of one store.
type suite struct {
	*testing.T
	store.Store
	other store.Store
}

// clear leaves the store empty, whatever happened.
func (s *suite) clear() {
	ctx := context.Background()
	names, err := list(ctx, s.other, "")
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, o := range names {
		g.Go(func() error { return s.Delete(ctx, o.Name) })
	}
	err = errors.Join(err, g.Wait())
	left, listErr := list(ctx, s.Store, "")
	if err = errors.Join(err, listErr); err != nil || len(left) > 0 {
		s.Errorf("clean up: %v left, %v", left, err)
	}
}

// parallel is how many requests are made at once.
const parallel = 16

// content makes n bytes that no other seed makes.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	_, _ = source.Read(b) // never fails
	return b
}

func list(ctx context.Context, s store.Store, prefix string) (objects []store.Object, err error) {
	err = s.List(ctx, prefix, func(o store.Object) error {
		objects = append(objects, o)
		return nil
	})
	return objects, err
}

func (s *suite) put(name string, data []byte) {
	s.Helper()
	s.ok(s.Put(s.Context(), name, data))
}

// has fails unless both ways lead to the object.
func (s *suite) has(name string, want []byte) {
	s.Helper()
	for _, way := range []store.Store{s.Store, s.other} {
		got, err := way.Get(s.Context(), name)
		s.ok(err)
		if !bytes.Equal(got, want) {
			s.Fatalf("%s: want %s, got %s", name, brief(want), brief(got))
		}
	}
}

// lists fails unless both ways list exactly the names under prefix, in this order.
func (s *suite) lists(prefix string, want ...string) {
	s.Helper()
	for _, way := range []store.Store{s.Store, s.other} {
		objects, err := list(s.Context(), way, prefix)
		s.ok(err)
		if got := names(objects); !slices.Equal(got, want) {
			s.Fatalf("prefix %q: want %q, got %q", prefix, want, got)
		}
	}
}

func names(objects []store.Object) (names []string) {
	for _, o := range objects {
		names = append(names, o.Name)
	}
	return names
}

// absent fails if either way leads to an object of that name.
func (s *suite) absent(name string) {
	s.Helper()
	for _, way := range []store.Store{s.Store, s.other} {
		_, err := way.Get(s.Context(), name)
		s.kind(err, fault.ErrNotFound, "get "+name)
		_, err = way.GetRange(s.Context(), name, 0, 1)
		s.kind(err, fault.ErrNotFound, "get range of "+name)
		objects, err := list(s.Context(), way, "")
		s.ok(err)
		if slices.Contains(names(objects), name) {
			s.Fatalf("%s is listed", name)
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

func brief(b []byte) string { return fmt.Sprintf("%d bytes %x", len(b), b[:min(len(b), 16)]) }
