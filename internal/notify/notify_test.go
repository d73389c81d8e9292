package notify

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"orlop/internal/fault"
)

// A listener is a service on this host that keeps what it was asked.
type listener struct {
	*httptest.Server
	mu    sync.Mutex
	heard []string // METHOD PATH?QUERY BODY
	heads []http.Header
}

// listen starts a service. It answers as answer does, or 200 if that is nil.
func listen(t *testing.T, answer http.HandlerFunc) *listener {
	t.Helper()
	l := &listener{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		l.mu.Lock()
		l.heard = append(l.heard, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+string(body)))
		l.heads = append(l.heads, r.Header)
		l.mu.Unlock()
		if answer != nil {
			answer(w, r)
		}
	}))
	t.Cleanup(l.Close)
	return l
}

// take returns what was heard since the last call.
func (l *listener) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	heard := l.heard
	l.heard = nil
	return heard
}

// A warned collects warnings.
type warned struct {
	mu    sync.Mutex
	lines []string
}

func (w *warned) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, err.Error())
}

func (w *warned) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := w.lines
	w.lines = nil
	return lines
}

func newNotifier(t *testing.T, config Config) *Notifier {
	t.Helper()
	if config.Warn == nil {
		config.Warn = func(err error) { t.Errorf("warned: %v", err) }
	}
	n, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var (
	good = Report{Host: "alpha", Destination: "file:///mnt/nas", Volumes: []Volume{{Name: "db"}, {Name: "web"}}}
	bad  = Report{Host: "alpha", Destination: "file:///mnt/nas", Volumes: []Volume{{Name: "db", Err: errors.New(`snapshot "s": not found`)}, {Name: "web"}}}
)

func TestPingsGoToTheStartTheURLItselfAndItsFailure(t *testing.T) {
	for _, test := range []struct{ given, start, success, fail string }{
		{"", "/start", "/", "/fail"},
		{"/", "/start", "/", "/fail"},
		{"/token", "/token/start", "/token", "/token/fail"},
		{"/token/", "/token/start", "/token/", "/token/fail"},
		{"/token?rid=1&x=y", "/token/start?rid=1&x=y", "/token?rid=1&x=y", "/token/fail?rid=1&x=y"},
		{"/a%2Fb/?x=y#part", "/a%2Fb/start?x=y", "/a%2Fb/?x=y", "/a%2Fb/fail?x=y"},
	} {
		l := listen(t, nil)
		n := newNotifier(t, Config{Ping: l.URL + test.given})
		n.Start(t.Context()).Finish(t.Context(), good)
		if got := l.take(); !slices.Equal(got, []string{"GET " + test.start, "GET " + test.success}) {
			t.Errorf("%s: a success pings %q", test.given, got)
		}
		n.Start(t.Context()).Finish(t.Context(), bad)
		got := l.take()
		if len(got) != 2 || got[0] != "GET "+test.start || !strings.HasPrefix(got[1], "POST "+test.fail+" ") {
			t.Errorf("%s: a failure pings %q", test.given, got)
			continue
		}
		for _, want := range []string{"Volumes that failed: 1 of 2", "alpha", "file:///mnt/nas", `db: snapshot "s": not found`} {
			if !strings.Contains(got[1], want) {
				t.Errorf("the report lacks %q: %s", want, got[1])
			}
		}
	}
}

func TestRunThatFailedAsAWholeReportsItsError(t *testing.T) {
	l := listen(t, nil)
	n := newNotifier(t, Config{Ping: l.URL})
	ctx, cancel := context.WithCancel(t.Context())
	run := n.Start(ctx)
	<-run.began
	cancel() // as ^C does
	run.Finish(ctx, Report{Host: "alpha", Destination: "file:///mnt/nas", Err: errors.New("interrupted")})
	if got := l.take(); len(got) != 2 || !strings.HasPrefix(got[1], "POST /fail ") || !strings.Contains(got[1], "Error: interrupted") {
		t.Errorf("%q", got)
	}
}

func TestRedirectKeepsTheReportAndTellsNoOtherHostTheURL(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		final := listen(t, nil)
		l := listen(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, final.URL+"/moved"+strings.TrimPrefix(r.URL.Path, "/token"), status)
		})
		newNotifier(t, Config{Ping: l.URL + "/token"}).Start(t.Context()).Finish(t.Context(), bad)
		got := final.take()
		if len(got) != 2 || got[0] != "GET /moved/start" || !strings.HasPrefix(got[1], "POST /moved/fail ") || !strings.Contains(got[1], "not found") {
			t.Errorf("%d: %q", status, got)
		}
		for _, head := range final.heads {
			if head.Get("Referer") != "" {
				t.Errorf("%d: Referer %q", status, head.Get("Referer"))
			}
		}
	}
}

func TestPingIsTriedAgainOnlyWhereThatMayHelp(t *testing.T) {
	for _, test := range []struct {
		status, times int
		warned        string
	}{
		{503, 3, "503 Service Unavailable"},
		{429, 3, "429 Too Many Requests"},
		{404, 1, "404 Not Found"},
	} {
		l := listen(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(test.status) })
		var w warned
		n := newNotifier(t, Config{Ping: l.URL + "/s3cret", Warn: w.add, Limit: time.Minute})
		if err := (call{of: "start"}).send(t.Context(), n.ping, time.Nanosecond); err == nil || !strings.Contains(err.Error(), test.warned) {
			t.Errorf("%d: %v", test.status, err)
		}
		if got := l.take(); len(got) != test.times {
			t.Errorf("%d: %q, want %d times", test.status, got, test.times)
		}
	}
	times := 0
	l := listen(t, func(w http.ResponseWriter, _ *http.Request) {
		if times++; times == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	if err := (call{of: "start"}).send(t.Context(), newNotifier(t, Config{Ping: l.URL}).ping, time.Nanosecond); err != nil || times != 2 {
		t.Errorf("%v after %d times", err, times)
	}
}

func TestListenersThatHangAreGivenUp(t *testing.T) {
	release := make(chan struct{})
	l := listen(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	var w warned
	state := NewState(t.TempDir())
	n := newNotifier(t, Config{Ping: l.URL + "/s3cret", Notify: []string{l.URL + "/t0ken"}, State: state, Warn: w.add, Limit: 200 * time.Millisecond})
	run := n.Start(t.Context())
	run.Finish(t.Context(), bad) // returns
	warnings := w.take()
	if len(warnings) != 3 {
		t.Errorf("%q: want one each of start, fail and the notification", warnings)
	}
	for _, line := range warnings {
		if strings.Contains(line, "s3cret") || strings.Contains(line, "t0ken") || !strings.Contains(line, "no answer in time") && !strings.Contains(line, "start ping") {
			t.Errorf("warned: %s", line)
		}
	}
	if failed, err := state.failed(bad); err != nil || !failed {
		t.Errorf("the failure is not remembered: %v, %v", failed, err)
	}
}

func TestPeopleAreToldOfEachFailureAndOfTheFirstSuccessAfterIt(t *testing.T) {
	l, other := listen(t, nil), listen(t, nil)
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	finish := func(report Report) {
		// Each run is a process of its own.
		newNotifier(t, Config{Notify: []string{l.URL + "/hook?title=mine&x=y", strings.Replace(other.URL, "http", "generic", 1) + "/?disabletls=yes"}, State: NewState(dir)}).
			Start(t.Context()).Finish(t.Context(), report)
	}
	elsewhere, others := good, good
	elsewhere.Destination = "file:///mnt/other"
	others.Selection = "web"
	for i, step := range []struct {
		report Report
		title  string
	}{
		{good, ""},
		{bad, "orlop: backup failed on alpha: db"},
		{bad, "orlop: backup failed on alpha: db"},
		{elsewhere, ""}, {others, ""},
		{good, "orlop: backup succeeded again on alpha"},
		{good, ""},
	} {
		finish(step.report)
		got, text := l.take(), other.take()
		switch {
		case step.title == "":
			if len(got)+len(text) > 0 {
				t.Errorf("step %d: told %q", i, got)
			}
		case len(got) != 1 || !strings.HasPrefix(got[0], "POST /hook?title=mine&x=y {") || !strings.Contains(got[0], `"title":"`+step.title+`"`) || !strings.Contains(got[0], "file:///mnt/nas"):
			t.Errorf("step %d: told %q, want %q", i, got, step.title)
		case len(text) != 1 || !strings.Contains(text[0], "Destination: file:///mnt/nas"):
			t.Errorf("step %d: the other target was told %q", i, text)
		}
	}
}

func TestRecoveryThatReachedNobodyIsToldNextTime(t *testing.T) {
	up := false
	l := listen(t, func(w http.ResponseWriter, _ *http.Request) {
		if !up {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	var w warned
	n := newNotifier(t, Config{Notify: []string{l.URL + "/s3cret"}, State: NewState(t.TempDir()), Warn: w.add})
	n.Start(t.Context()).Finish(t.Context(), bad)
	n.Start(t.Context()).Finish(t.Context(), good)
	if got := w.take(); len(got) != 2 || !strings.Contains(got[0], "500 Internal Server Error") || strings.Contains(got[0], "s3cret") {
		t.Errorf("%q", got)
	}
	l.take()
	up = true
	n.Start(t.Context()).Finish(t.Context(), good)
	n.Start(t.Context()).Finish(t.Context(), good)
	if got := l.take(); len(got) != 1 || !strings.Contains(got[0], "succeeded again") {
		t.Errorf("%q", got)
	}
}

func TestStateThatCannotBeKeptIsAWarning(t *testing.T) {
	l := listen(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var w warned
	n := newNotifier(t, Config{Notify: []string{l.URL}, State: NewState(filepath.Join(file, "dir")), Warn: w.add})
	n.Start(t.Context()).Finish(t.Context(), bad)
	if got := l.take(); len(got) != 1 {
		t.Errorf("told %q", got)
	}
	if got := w.take(); len(got) != 2 {
		t.Errorf("warned %q", got)
	}
}

func TestNothingGivenIsNothingDone(t *testing.T) {
	n := newNotifier(t, Config{State: NewState(filepath.Join(t.TempDir(), "state"))})
	n.Start(t.Context()).Finish(t.Context(), bad)
	if _, err := os.Stat(n.state.dir); !os.IsNotExist(err) {
		t.Errorf("a state was made: %v", err)
	}
}

func TestURLsThatAreNoneAreRefusedAndNotQuoted(t *testing.T) {
	const token = "s3cr3t"
	for _, ping := range []string{token, "ftp://h/" + token, "http:///" + token, "https://h/%zz" + token, token + ":" + token} {
		if _, err := New(Config{Ping: ping}); !fault.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), token) {
			t.Errorf("ping %s: %v", ping, err)
		}
	}
	for _, target := range []string{token, token + "://x", "https:///" + token, "generic://%zz" + token} {
		if _, err := New(Config{Notify: []string{"ntfy://h/t", target}}); !fault.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), token) || !strings.Contains(err.Error(), "URL 2") {
			t.Errorf("notify %s: %v", target, err)
		}
	}
}
