//go:build root

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// deadMan is a service that keeps what it hears, METHOD PATH BODY.
type deadMan struct {
	*httptest.Server
	mu    sync.Mutex
	heard []string
}

func newDeadMan(t *testing.T, answer func(*http.Request)) *deadMan {
	d := &deadMan{}
	d.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		d.mu.Lock()
		d.heard = append(d.heard, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		d.mu.Unlock()
		if answer != nil {
			answer(r)
		}
	}))
	t.Cleanup(d.Close)
	return d
}

// take returns what was heard since the last call, a line each.
func (d *deadMan) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	heard := strings.Join(d.heard, "\n")
	d.heard = nil
	return heard
}

func TestRunPingsAndNotifiesOfStartSuccessFailureAndRecovery(t *testing.T) {
	p := newBackupPlace(t)
	h := startHost(t)
	h.must(t, "create", "db", "--size", "64M")
	h.must(t, "create", "web", "--size", "64M")
	d := newDeadMan(t, nil)
	run := func(code int) (heard string) {
		t.Helper()
		got := h.orlop("backup", "run", "--all", "--dest", p.dir, "--key-file", p.key, "--ping", d.URL+"/p", "--notify", d.URL+"/n")
		got.wants(t, code)
		if strings.Contains(got.stderr, d.URL) {
			t.Errorf("a URL is in: %s", got.stderr)
		}
		return d.take()
	}
	if heard := run(0); heard != "GET /p/start\nGET /p" {
		t.Errorf("a success: %s", heard)
	}
	gone := p.dir + "-gone"
	if err := os.Rename(p.dir, gone); err != nil {
		t.Fatal(err)
	}
	heard := run(3)
	for _, want := range []string{"GET /p/start", "POST /p/fail Volumes that failed: 2 of 2.", "db, web: ", "is the disk mounted?", "POST /n {", `"title":"orlop: backup failed on `} {
		if !strings.Contains(heard, want) {
			t.Errorf("a failure lacks %q: %s", want, heard)
		}
	}
	if err := os.Rename(gone, p.dir); err != nil {
		t.Fatal(err)
	}
	if heard := run(0); !strings.Contains(heard, "GET /p/start") || !strings.HasSuffix(heard, "GET /p") && !strings.Contains(heard, "GET /p\n") ||
		!strings.Contains(heard, "backup succeeded again") || !strings.Contains(heard, "Volumes backed up: 2") {
		t.Errorf("a recovery: %s", heard)
	}
	if heard := run(0); heard != "GET /p/start\nGET /p" {
		t.Errorf("another success: %s", heard)
	}
	h.stop(t)
	if heard := run(6); !strings.Contains(heard, "POST /p/fail The backup run failed.") || !strings.Contains(heard, "Error: ") {
		t.Errorf("without a daemon: %s", heard)
	}
}

func TestServicesThatHangChangeNoExitCode(t *testing.T) {
	p := newBackupPlace(t)
	h := startHost(t)
	h.must(t, "create", "db", "--size", "64M")
	d := newDeadMan(t, func(r *http.Request) { <-r.Context().Done() })
	secret := filepath.Join(t.TempDir(), "ping")
	if err := os.WriteFile(secret, []byte(d.URL+"/s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := h.orlop("backup", "run", "--all", "--dest", p.dir, "--key-file", p.key, "--ping", "file:"+secret)
	got.wants(t, 0, "cannot send the start ping", "cannot send the success ping: no answer in time")
	if len(got.warnings()) != 2 || strings.Contains(got.stderr, "s3cret") {
		t.Errorf("%s", got)
	}
	if heard := d.take(); heard != "GET /s3cret/start\nGET /s3cret" {
		t.Errorf("heard %s", heard)
	}
}
