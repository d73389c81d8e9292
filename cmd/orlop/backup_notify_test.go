package main

import (
	"bytes"
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

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/notify"
)

// notified runs a command that only pings and notifies, once, and returns what the listener heard, METHOD PATH, and the error.
func notified(t *testing.T, failed error, args ...string) (heard []string, stderr string, err error) {
	t.Helper()
	var mu sync.Mutex // the listener's connections are many
	listener := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if failed != nil && r.Method == http.MethodPost && !strings.Contains(string(body), failed.Error()) {
			t.Errorf("%s does not hold the error: %s", r.URL, body)
		}
		heard = append(heard, r.Method+" "+r.URL.Path)
	}))
	defer listener.Close()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "LISTENER", listener.URL)
		if path, ok := strings.CutPrefix(args[i], "file:"); ok {
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, bytes.ReplaceAll(text, []byte("LISTENER"), []byte(listener.URL)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"ORLOP_PING", "ORLOP_NOTIFY"} {
		if text, ok := os.LookupEnv(name); ok {
			t.Setenv(name, strings.ReplaceAll(text, "LISTENER", listener.URL))
		}
	}
	var errs bytes.Buffer
	c := &cli{stdout: io.Discard, stderr: &errs}
	app := &urfave.App{Flags: notifyFlags(), DisableSliceFlagSeparator: true, Action: func(ctx *urfave.Context) error {
		finish, err := c.startRun(ctx, "file:///mnt/nas", "all")
		if err != nil {
			return err
		}
		finish([]notify.Volume{{Name: "db", Err: failed}}, nil)
		return nil
	}}
	err = app.Run(append([]string{"orlop"}, args...))
	mu.Lock()
	defer mu.Unlock()
	return heard, errs.String(), err
}

func TestRunReportsToWhereFlagsFilesOrTheEnvironmentSay(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	file := filepath.Join(dir, "secret")
	broken := errors.New("disk on fire")
	for _, test := range []struct {
		name, file, ping, notify string
		args                     []string
	}{
		{name: "flags", args: []string{"--ping", "LISTENER/p", "--notify", "LISTENER/a", "--notify", "LISTENER/b,c"}},
		{name: "environment", ping: "LISTENER/p", notify: "LISTENER/a LISTENER/b,c"},
		{name: "a file", args: []string{"--ping", "LISTENER/p", "--notify", "file:" + file}, file: "# ours\nLISTENER/a\nLISTENER/b,c\n"},
		{name: "flags win", ping: "LISTENER/x", notify: "LISTENER/x", args: []string{"--ping", "LISTENER/p", "--notify", "LISTENER/a", "--notify", "LISTENER/b,c"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("ORLOP_PING", test.ping)
			t.Setenv("ORLOP_NOTIFY", test.notify)
			heard, stderr, err := notified(t, broken, test.args...)
			slices.Sort(heard)
			if want := []string{"GET /p/start", "POST /a", "POST /b,c", "POST /p/fail"}; err != nil || stderr != "" || !slices.Equal(heard, want) {
				t.Errorf("%v, stderr %q: heard %q, want %q", err, stderr, heard, want)
			}
		})
	}
}

func TestFirstSuccessAfterAFailureIsNotified(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("ORLOP_PING", "")
	for i, failed := range []error{nil, errors.New("gone"), nil, nil} {
		heard, stderr, err := notified(t, failed, "--notify", "LISTENER/hook")
		if want := i == 1 || i == 2; err != nil || stderr != "" || (len(heard) == 1) != want {
			t.Errorf("run %d: %v, stderr %q, heard %q", i, err, stderr, heard)
		}
	}
}

func TestRunThatCannotReportIsRefusedBeforeItBegins(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("ORLOP_NOTIFY", "")
	for _, test := range []struct {
		ping, says string
		code       int
		args       []string
	}{
		{args: []string{"--ping", "s3cret"}, code: 2, says: "ping URL"},
		{ping: "s3cret", code: 2, says: "ping URL"},
		{ping: "http://h/s3cret http://h/s3cret", code: 2, says: "ORLOP_PING: takes one URL"},
		{args: []string{"--notify", "s3cret://x"}, code: 2, says: "notification URL 1"},
		{args: []string{"--notify", "file:/not/there"}, code: 3, says: "--notify: URL file /not/there: not found"},
	} {
		t.Setenv("ORLOP_PING", test.ping)
		c := &cli{stdout: io.Discard, stderr: io.Discard}
		app := &urfave.App{Flags: notifyFlags(), Action: func(ctx *urfave.Context) error {
			_, err := c.startRun(ctx, "file:///mnt/nas", "all")
			return err
		}}
		err := app.Run(append([]string{"orlop"}, test.args...))
		if exitCode(err) != test.code || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q %q: %v", test.ping, test.args, err)
		}
	}
}
