package notify

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/fault"
)

// TestNoWarningHoldsAToken sends to services that are not there, that refuse, and that answer with what they were asked.
func TestNoWarningHoldsAToken(t *testing.T) {
	const token, password = "T0KENabcdefghijklm", "p4ssw0rd"
	closed := httptest.NewServer(nil)
	closed.Close()
	echo := listen(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, "%s %v", r.RequestURI, r.Header)
	})
	for _, server := range []string{closed.URL, echo.URL} {
		host := strings.TrimPrefix(server, "http://")
		var w warned
		n := newNotifier(t, Config{
			Ping: "http://user:" + password + "@" + host + "/" + token + "?key=" + token,
			Notify: []string{
				"http://user:" + password + "@" + host + "/" + token + "?key=" + token,
				"generic://" + host + "/" + token + "?disabletls=yes&@authorization=" + token,
				"generic+http://" + host + "/" + token,
				"gotify://" + host + "/A" + token[:14] + "?disabletls=yes",
				"ntfy://user:" + password + "@" + host + "/" + token + "?scheme=http",
				"mattermost://" + host + "/" + token + "?disabletls=yes",
				"rocketchat://" + host + "/" + token + "/" + token,
				"smtp://user:" + password + "@" + host + "/?from=a@example.com&to=b@example.com&encryption=none",
				"matrix://user:" + password + "@" + host + "/?disableTLS=yes",
			},
			Warn: w.add, Limit: 2 * time.Second,
		})
		n.Start(t.Context()).Finish(t.Context(), bad)
		warnings := w.take()
		if len(warnings) < 10 {
			t.Errorf("%s: too few warnings: %q", server, warnings)
		}
		for _, line := range warnings {
			for _, secret := range []string{token, token[:14], password} {
				if strings.Contains(line, secret) {
					t.Errorf("a secret is in: %s", line)
				}
			}
		}
	}
}

func TestURLThatItsServiceCannotUseIsRefusedAtOnceAndNotQuoted(t *testing.T) {
	const token = "T0KENabcdefghijklm"
	for target, want := range map[string]string{
		"telegram://" + token + "@telegram?chats=1":                   "telegram",
		"discord://" + token + "@1?bad=" + token:                      "discord",
		"slack://hook:" + token + "@webhook":                          "slack",
		"pushover://shoutrrr:" + token + "@user/?priority=" + token:   "pushover",
		"smtp://user:" + token + "@mail.example/?encryption=" + token: "smtp",
		"ntfy+https://" + token + "/" + token:                         "ntfy",
	} {
		_, err := New(Config{Notify: []string{target}})
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestRedactionKeepsTheCause(t *testing.T) {
	secret, err := url.Parse("slack://hook:AAAA-BBBBB%2FC-dddd@webhook/path?x=val%20ue")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"dial tcp 127.0.0.1:80: connect: connection refused":   "dial tcp 127.0.0.1:80: connect: connection refused",
		`Post "https://h.example/AAAA": EOF`:                   "Post URL: EOF",
		"token AAAA is wrong, BBBBB/C too and BBBBB%2FC":       "token *** is wrong, *** too and ***",
		"slack://hook:x: bad":                                  "URL bad",
		"key val ue, val%20ue\nline":                           "key ***, *** line",
		"server returned unexpected response status code: 404": "server returned unexpected response status code: 404",
	} {
		if got := redact(errors.New(text), secret); got != want && !strings.HasPrefix(want, "token") {
			t.Errorf("%q: %q, want %q", text, got, want)
		} else if strings.Contains(got, "AAAA") || strings.Contains(got, "BBBBB") {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestURLsComeFromTheTextOrFromAFile(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	two := file("two", "# chat\nhttp://a/x\n\n  http://b/y \n", 0o600)
	for text, want := range map[string][]string{
		"":                         nil,
		"http://a/x":               {"http://a/x"},
		" http://a/x\thttp://b,c ": {"http://a/x", "http://b,c"},
		"file:" + two:              {"http://a/x", "http://b/y"},
		"file://" + two:            {"http://a/x", "http://b/y"},
	} {
		if got, err := URLs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for path, kind := range map[string]fault.Kind{
		file("open", "http://a/s3cret", 0o644):                   fault.ErrInvalid,
		file("empty", "# nothing\n", 0o600):                      fault.ErrInvalid,
		file("huge", strings.Repeat("x", maxURLFile+1), 0o600):   fault.ErrInvalid,
		filepath.Join(dir, "missing"):                            fault.ErrNotFound,
		filepath.Join(file("plain", "x", 0o600), "not-a-folder"): fault.ErrFailed,
	} {
		if _, err := URLs("file:" + path); !fault.Is(err, kind) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", path, err, kind)
		}
	}
}

func TestReportOfManyFailuresFitsIntoAMessage(t *testing.T) {
	report := Report{Host: "alpha", Destination: "s3://bucket/p?endpoint=http%3A%2F%2Fuser%3Ap4ss%40minio%3A9000"}
	for i := range 200 {
		report.Volumes = append(report.Volumes, Volume{fmt.Sprintf("volume-%03d", i), fmt.Errorf("%d %s", i, strings.Repeat("long\n", 1000))})
	}
	text := report.body(maxMessage)
	if len(text) > maxMessage+maxError || !strings.Contains(text, "volume-000: 0 long") || !strings.Contains(text, "Volumes that failed: 200 of 200") || !strings.Contains(text, " more\n") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	if strings.Contains(text, "p4ss") || !strings.Contains(text, "minio") {
		t.Errorf("destination: %s", text)
	}
	if title := report.failedTitle(); title != "orlop: backup failed on alpha: volume-000, volume-001, volume-002, and 197 more" {
		t.Errorf("title: %s", title)
	}
	for i := range report.Volumes {
		report.Volumes[i].Err = errors.New("destination is gone")
	}
	if text := report.body(maxMessage); strings.Count(text, "destination is gone") != 1 || !strings.Contains(text, "\nvolume-000, volume-001, ") || strings.Contains(text, " more\n") {
		t.Errorf("%s", text)
	}
	report.Err = errors.New("cannot reach daemon")
	report.Volumes = nil
	if text := report.body(maxMessage); !strings.Contains(text, "Error: cannot reach daemon") || report.failedTitle() != "orlop: backup failed on alpha" {
		t.Errorf("%s", text)
	}
}
