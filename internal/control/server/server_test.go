package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// ask sends a request to the control API of a daemon that must not be needed to answer it.
func ask(t *testing.T, shutdown Shutdown, method, path, body string) (status int, failure control.ErrorBody, raw string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	Handler(nil, "test", shutdown, slog.New(slog.DiscardHandler)).ServeHTTP(recorder, httptest.NewRequest(method, path, strings.NewReader(body)))
	raw = recorder.Body.String()
	if err := json.Unmarshal([]byte(raw), &failure); err != nil {
		t.Errorf("%s %s: %q is no JSON: %v", method, path, raw, err)
	}
	if got := recorder.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("%s %s: Content-Type %q", method, path, got)
	}
	return recorder.Code, failure, raw
}

func TestFailuresOfRequestsAreInTheLog(t *testing.T) {
	var log strings.Builder
	handler := Handler(nil, "test", func(context.Context, bool) error { return errors.New("in use: db") }, slog.New(slog.NewTextHandler(&log, nil)))
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/shutdown", strings.NewReader("{}")))
	if !strings.Contains(log.String(), `level=INFO msg="request failed" request=/v1/shutdown error="in use: db"`) {
		t.Errorf("log: %q", log.String())
	}
}

func TestEachKindHasAStatus(t *testing.T) {
	for kind, want := range map[fault.Kind]int{
		fault.ErrFailed: 500, fault.ErrInvalid: 400, fault.ErrNotFound: 404, fault.ErrExists: 409, fault.ErrInUse: 409, fault.ErrProtected: 409,
		fault.ErrNoSpace: 507, fault.ErrUnreachable: 502, fault.ErrCorrupt: 422, fault.ErrUnsupported: 501, "of a later version": 500,
	} {
		refuse := func(context.Context, bool) error {
			return fmt.Errorf("attempt: %w", fault.Errorf(kind, "volume %q", "x"))
		}
		status, failure, raw := ask(t, refuse, http.MethodPost, "/v1/shutdown", "{}")
		if status != want || failure.Error.Kind != kind || failure.Error.Message != `attempt: volume "x"` {
			t.Errorf("kind %s: status %d, want %d: %s", kind, status, want, raw)
		}
	}
	status, failure, _ := ask(t, func(context.Context, bool) error { return errors.New("plain") }, http.MethodPost, "/v1/shutdown", "{}")
	if status != 500 || failure.Error.Kind != fault.ErrFailed {
		t.Errorf("an error without kind: status %d, kind %s", status, failure.Error.Kind)
	}
}

func TestShutdownIsToldWhetherToDetach(t *testing.T) {
	for body, want := range map[string]bool{`{}`: false, `{"detach":true}`: true, `{"detach":false}`: false} {
		called := 0
		status, _, _ := ask(t, func(_ context.Context, detach bool) error {
			called++
			if detach != want {
				t.Errorf("%s: detach %t", body, detach)
			}
			return nil
		}, http.MethodPost, "/v1/shutdown", body)
		if status != 200 || called != 1 {
			t.Errorf("%s: status %d, called %d times", body, status, called)
		}
	}
}

func TestRequestsThatCannotBeReadAreInvalid(t *testing.T) {
	stop := func(context.Context, bool) error {
		t.Error("shut down")
		return nil
	}
	for _, path := range []string{"/v1/shutdown", "/v1/volumes/create", "/v1/volumes/delete", "/v1/volumes/set", "/v1/volumes/mount", "/v1/volumes/umount", "/v1/volumes/resize", "/v1/volumes/trim"} {
		for _, body := range []string{
			"", " ", "{", "[]", `"x"`, "5", `{"name":5}`, `{"nome":"x"}`, `{"name":"x"}{"name":"y"}`, `{"name":"x"} x`, `{"options":{"size":"1G"}}`, `{"labels":"k=v"}`,
			`{"detach":"yes"}`, `{"name":"` + strings.Repeat("x", 1<<20) + `"}`,
		} {
			status, failure, raw := ask(t, stop, http.MethodPost, path, body)
			if status != 400 || failure.Error.Kind != fault.ErrInvalid || failure.Error.Message == "" {
				t.Errorf("%s %.30q: status %d: %s", path, body, status, raw)
			}
		}
	}
}

func TestUnknownRequestsAreNotFound(t *testing.T) {
	for _, request := range []string{"GET /", "GET /v1", "GET /v2/info", "POST /v1/volumes", "GET /v1/volumes/create", "POST /v1/volumes/frobnicate", "DELETE /v1/volumes", "GET /v1/shutdown", "GET /info"} {
		method, path, _ := strings.Cut(request, " ")
		status, failure, raw := ask(t, nil, method, path, "{}")
		if status != 404 || failure.Error.Kind != fault.ErrNotFound || !strings.Contains(failure.Error.Message, path) {
			t.Errorf("%s: status %d: %s", request, status, raw)
		}
	}
}

func TestVersionTellsTheAPI(t *testing.T) {
	status, _, raw := ask(t, nil, http.MethodGet, "/v1/version", "")
	if status != 200 || strings.TrimSpace(raw) != `{"version":"test","api":"v1"}` {
		t.Errorf("status %d: %s", status, raw)
	}
}
