package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// answering returns a client of a server that answers every request with handler.
func answering(t *testing.T, handler http.HandlerFunc) *control.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	_ = server.Listener.Close() // replaced by ours
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	client := control.NewClient(path)
	t.Cleanup(client.Close)
	return client
}

func TestErrorsKeepTheirKindOnTheWay(t *testing.T) {
	for _, kind := range []fault.Kind{
		fault.ErrFailed, fault.ErrInvalid, fault.ErrNotFound, fault.ErrExists, fault.ErrInUse, fault.ErrProtected, fault.ErrNoSpace, fault.ErrCorrupt,
		fault.ErrUnsupported, "of a newer daemon",
	} {
		client := answering(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_ = json.NewEncoder(w).Encode(control.NewErrorBody(fault.Errorf(kind, `volume "x": 100%% %s`, "lost")))
		})
		err := client.Post(t.Context(), "/volumes/delete", control.Request{Name: "x"}, nil)
		if !fault.Is(err, kind) || err.Error() != `volume "x": 100% lost` {
			t.Errorf("%s arrived as %s: %v", kind, fault.KindOf(err), err)
		}
	}
}

func TestQueriesAndRequestsArriveWhole(t *testing.T) {
	yes, command, none := true, `/bin/echo "a b"`, ""
	sent := control.Request{
		Name: "a b\n", AutoName: true, Options: []control.Setting{{Key: "size", Value: "1G"}, {Key: "label", Value: "a=b&c"}}, Mountpoint: "/m ü",
		Size: "5G", Labels: []string{"k="}, Protect: &yes, Detach: true, Snapshots: true, Volumes: []string{"a", "b"}, Discard: true, PreSnapshot: &command, PostSnapshot: &none,
	}
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		var got control.Request
		err := json.NewDecoder(r.Body).Decode(&got)
		raw, encodeErr := json.Marshal(got)
		want, wantErr := json.Marshal(sent)
		if err := errors.Join(err, encodeErr, wantErr); r.Method == http.MethodPost && (err != nil || string(raw) != string(want)) {
			t.Errorf("arrived as %s, want %s (%v)", raw, want, err)
		}
		if r.Method == http.MethodGet && strings.Join(r.URL.Query()["filter"], "|") != "label=a=b&c|label=ü d" {
			t.Errorf("arrived as %s", r.URL)
		}
		if !strings.HasPrefix(r.URL.Path, control.Prefix+"/volumes") {
			t.Errorf("path %s", r.URL.Path)
		}
		_, _ = w.Write([]byte(`{"path":"/p"}`)) // the client would notice
	})
	var mounted control.Mounted
	if err := client.Post(t.Context(), "/volumes/mount", sent, &mounted); err != nil || mounted.Path != "/p" {
		t.Errorf("%+v, %v", mounted, err)
	}
	if err := client.Get(t.Context(), "/volumes", url.Values{"filter": {"label=a=b&c", "label=ü d"}}, &mounted); err != nil {
		t.Error(err)
	}
}

func TestADaemonThatDoesNotAnswerIsUnreachable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := control.NewClient(path).Get(t.Context(), "/info", nil, nil); !fault.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	client := answering(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if err := client.Get(t.Context(), "/info", nil, nil); !fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("it dies in the request: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	client = answering(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if err := client.Get(ctx, "/info", nil, nil); !errors.Is(err, context.Canceled) || fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestAnswersThatAreNoJSONAreErrors(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
	}{{http.StatusBadGateway, "<html>"}, {http.StatusInternalServerError, ""}, {http.StatusBadRequest, "{}"}, {http.StatusOK, "<html>"}, {http.StatusOK, ""}} {
		client := answering(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.status)
			_, _ = w.Write([]byte(test.body)) // the client would notice
		})
		var out control.Mounted
		if err := client.Get(t.Context(), "/info", nil, &out); !fault.Is(err, fault.ErrFailed) {
			t.Errorf("status %d, %q: %v", test.status, test.body, err)
		}
	}
}

func TestAStreamHandsOverEachLineAndTellsHowItEnded(t *testing.T) {
	stop := errors.New("enough")
	for _, test := range []struct {
		name   string
		status int
		body   string
		lines  int
		kind   fault.Kind // empty: no error
		says   string
	}{
		{"whole", http.StatusOK, "{\"offset\":1}\n{\"offset\":2}\n\n", 2, "", ""},
		{"empty", http.StatusOK, "\n", 0, "", ""},
		{"refused", http.StatusNotFound, `{"error":{"kind":"not_found","message":"snapshot \"s\": not found"}}`, 0, fault.ErrNotFound, `snapshot "s": not found`},
		{"refused without a word", http.StatusBadGateway, "", 0, fault.ErrFailed, "502"},
		{"failed on the way", http.StatusOK, "{\"offset\":1}\n{\"error\":{\"kind\":\"corrupt\",\"message\":\"image: damaged\"}}\n", 1, fault.ErrCorrupt, "image: damaged"},
		{"cut off", http.StatusOK, "{\"offset\":1}\n", 1, fault.ErrUnreachable, "unexpected EOF"},
		{"cut off at once", http.StatusOK, "", 0, fault.ErrUnreachable, "unexpected EOF"},
		{"cut off in a line", http.StatusOK, "{\"offset\":1}\n{\"off", 1, fault.ErrUnreachable, "unexpected EOF"},
	} {
		client := answering(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != control.Prefix+"/snapshots/diff" || strings.Join(r.URL.Query()["name"], "|") != "a@ü|b" {
				t.Errorf("arrived as %s", r.URL)
			}
			w.WriteHeader(test.status)
			_, _ = w.Write([]byte(test.body)) // the client would notice
		})
		query := url.Values{"name": {"a@ü", "b"}}
		lines := 0
		err := client.Stream(t.Context(), "/snapshots/diff", query, func([]byte) error { lines++; return nil })
		if lines != test.lines || (err != nil) != (test.kind != "") || err != nil && (!fault.Is(err, test.kind) || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %d lines and %v, want %d and %q %s", test.name, lines, err, test.lines, test.kind, test.says)
		}
		if test.lines == 0 {
			continue
		}
		if err := client.Stream(t.Context(), "/snapshots/diff", query, func([]byte) error { return fmt.Errorf("line: %w", stop) }); !errors.Is(err, stop) {
			t.Errorf("%s: the caller's error became %v", test.name, err)
		}
	}
}

func TestAStreamEndsWhenItIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("{}\n")) // the client would notice
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	})
	err := client.Stream(ctx, "/snapshots/diff", nil, func([]byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}
