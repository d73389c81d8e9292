//go:build root

package s3store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/s3store/s3test"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

// world is a real server, a proxy before it, and stores through the proxy.
type world struct {
	server *s3test.Server
	proxy  *s3test.Proxy
	store  *Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	server := s3test.Start(t)
	w := &world{server: server, proxy: s3test.NewProxy(t, server)}
	w.store = w.open(t)
	return w
}

func (w *world) keys() Credentials {
	return Credentials{Access: w.server.Access, Secret: w.server.Secret}
}

// open returns another store of the same objects.
func (w *world) open(t *testing.T) *Store {
	t.Helper()
	return at(t, w.proxy.URL, w.keys(), brisk)
}

func TestConformance(t *testing.T) {
	w := newWorld(t)
	storetest.Run(t, storetest.Harness{Store: w.store, Other: w.open(t)})
	if left := w.server.Keys(t, s3test.Bucket); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// Each request is let go wrong once in each way, while the store does each thing. It succeeds all the same.
func TestAStoreSurvivesEveryRequestThatGoesWrong(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if err := w.store.Put(ctx, "first", nil); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 1000)
	effects := map[string]s3test.Effect{
		"503": s3test.Status(503, "SlowDown"), "503 after": s3test.Then(503, "SlowDown"), "500 after": s3test.Then(500, "InternalError"),
		"429": s3test.Status(429, "TooManyRequests"), "lost": s3test.Lose, "reply lost": s3test.LoseReply, "reply cut": s3test.CutReply,
		"409": s3test.Status(409, "OperationAborted"), "gateway": webPage(502),
	}
	hits := map[string]int{}
	for name, effect := range effects {
		for nth := 1; ; nth++ {
			w.proxy.Clear()
			w.proxy.On(nil, nth, effect)
			object := fmt.Sprintf("objects/%s/%d", strings.ReplaceAll(name, " ", "-"), nth)
			if err := w.store.Put(ctx, object, data); err != nil && !fault.Is(err, fault.ErrExists) {
				t.Fatalf("%s, request %d: put: %v", name, nth, err)
			}
			if err := w.store.Put(ctx, object, []byte("other")); !fault.Is(err, fault.ErrExists) {
				t.Fatalf("%s, request %d: put again: %v", name, nth, err)
			}
			got, err := w.store.Get(ctx, object)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s, request %d: get: %d bytes, %v", name, nth, len(got), err)
			}
			got, err = w.store.GetRange(ctx, object, 5, 7)
			if err != nil || string(got) != "5678901" {
				t.Fatalf("%s, request %d: get range: %q, %v", name, nth, got, err)
			}
			var listed []string
			err = w.store.List(ctx, "objects/", func(o store.Object) error { listed = append(listed, o.Name); return nil })
			if err != nil || len(listed) != 1 || listed[0] != object {
				t.Fatalf("%s, request %d: list: %q, %v", name, nth, listed, err)
			}
			if err := w.store.Delete(ctx, object); err != nil {
				t.Fatalf("%s, request %d: delete: %v", name, nth, err)
			}
			if err := w.store.DeleteAll(ctx, []string{object, "objects/none"}); err != nil {
				t.Fatalf("%s, request %d: delete all: %v", name, nth, err)
			}
			if w.proxy.Pending() > 0 {
				break
			}
			hits[name]++
		}
	}
	for name := range effects {
		if hits[name] < 7 {
			t.Errorf("%s was met by %d requests", name, hits[name])
		}
	}
}

func TestListingsAndDeletionsGoBeyondAPage(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const count = 2000 // full pages: the last one might be cut off
	var want []string
	var g errgroup.Group
	g.SetLimit(connections)
	for i := range count {
		name := fmt.Sprintf("many/%05d", i)
		want = append(want, name)
		g.Go(func() error { return w.store.Put(ctx, name, nil) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	list := func() (names []string) {
		t.Helper()
		err := w.store.List(ctx, "", func(o store.Object) error { names = append(names, o.Name); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := list(); len(got) != count || got[0] != want[0] || got[count-1] != want[count-1] {
		t.Fatalf("%d listed", len(got))
	}
	// A server that cuts the listing off at 1,000 and says that this is all.
	w.proxy.On(s3test.Op("list"), 0, func(r *s3test.Request, forward func(*s3test.Request) s3test.Answer) s3test.Answer {
		a := forward(r)
		a.Body = bytes.ReplaceAll(a.Body, []byte("<IsTruncated>true</IsTruncated>"), []byte("<IsTruncated>false</IsTruncated>"))
		return a
	})
	if got := list(); len(got) != count {
		t.Errorf("of a listing that was cut off, %d are listed", len(got))
	}
	// A page that fails does not begin the listing again.
	w.proxy.Clear()
	w.proxy.On(s3test.Op("list"), 2, s3test.CutReply)
	if got := list(); len(got) != count || len(w.proxy.Seen()) != 4 {
		t.Errorf("%d listed by %q", len(got), w.proxy.Seen())
	}
	w.proxy.Clear()
	if err := w.store.DeleteAll(ctx, want[:count-1]); err != nil {
		t.Fatal(err)
	}
	if got := list(); len(got) != 1 || len(w.proxy.Seen()) != 3 {
		t.Errorf("%q are left after %q", got, w.proxy.Seen())
	}
}

// A server that lists out of order would let a collection overlook what it must not.
func TestAListingOutOfOrderIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b"} {
		if err := w.store.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.proxy.On(s3test.Op("list"), 0, func(r *s3test.Request, forward func(*s3test.Request) s3test.Answer) s3test.Answer {
		a := forward(r)
		a.Body = bytes.Replace(a.Body, []byte("orlop/b<"), []byte("orlop/Z<"), 1)
		return a
	})
	err := w.store.List(t.Context(), "", func(store.Object) error { return nil })
	if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "out of order") {
		t.Error(err)
	}
}

// What others put into the bucket is not the repository's.
func TestStrangersAreNotListedAndPrefixesAreNotMixedUp(t *testing.T) {
	w := newWorld(t)
	other, err := open(Place{Bucket: s3test.Bucket, Prefix: "host/orlop2", Endpoint: w.proxy.URL}, w.keys(), brisk, "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx := context.Background()
	for _, s := range []*Store{w.store, other} {
		if err := s.Put(ctx, "config", nil); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	err = w.store.Top(ctx, func(name string) error { names = append(names, name); return nil })
	if err != nil || len(names) != 1 || names[0] != "config" {
		t.Errorf("%q, %v", names, err)
	}
	if err := w.store.Delete(ctx, "config"); err != nil {
		t.Fatal(err)
	}
	if left := w.server.Keys(t, s3test.Bucket); len(left) != 1 || left[0] != "host/orlop2/config" {
		t.Errorf("left %q", left)
	}
}

func TestARealServerRefusesWrongKeysAndNamesAMissingBucket(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		keys Credentials
		says string
	}{
		"access key": {Credentials{Access: "nobody", Secret: w.server.Secret}, "does not know the access key"},
		"secret key": {Credentials{Access: w.server.Access, Secret: "guessed"}, "secret key does not belong"},
	} {
		_, err := at(t, w.server.URL, c.keys, brisk).Get(t.Context(), "config")
		if !fault.Is(err, fault.ErrFailed) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := open(Place{Bucket: "nothing-here", Prefix: "p", Endpoint: w.server.URL}, w.keys(), brisk, "")
	if err != nil {
		t.Fatal(err)
	}
	for op, request := range requests(s) {
		if err := request(t.Context()); err == nil || !strings.Contains(err.Error(), `bucket "nothing-here" does not exist`) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// runs is how often something that depends on chance is tried: few here, 20 times in a soak.
func runs() int {
	if os.Getenv("ORLOP_SOAK") != "" {
		return 20
	}
	return 2
}

// ways are two ways to the objects over the proxy.
func (w *world) ways(t *testing.T) []store.Store {
	t.Helper()
	return []store.Store{w.open(t), w.open(t)}
}

func TestTheProbePassesARealServer(t *testing.T) {
	w := newWorld(t)
	for range runs() {
		var trials []store.Trial
		err := store.Race(t.Context(), w.ways(t), func(trial store.Trial) { trials = append(trials, trial) })
		if err != nil || len(trials) != 4 {
			t.Errorf("%v: %+v", err, trials)
		}
	}
	if left := w.server.Keys(t, s3test.Bucket); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestTheProbeRefusesTheThreeBadKindsOfServers(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		plays func() s3test.Effect
		says  string
	}{
		"refuses the condition": {func() s3test.Effect { return s3test.Refusing }, "does not support"},
		"overwrites":            {func() s3test.Effect { return w.proxy.Overwriting }, "overwrites"},
		"lets several win":      {w.proxy.Racy, "concurrent backups would lose data"},
	} {
		for range runs() {
			w.proxy.Clear()
			w.proxy.Always(c.plays())
			err := store.Race(t.Context(), w.ways(t), func(store.Trial) {})
			if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
