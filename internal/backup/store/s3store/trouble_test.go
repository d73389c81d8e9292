package s3store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"encoding/pem"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/s3store/s3test"
	"orlop/internal/fault"
)

// brisk are limits for tests.
var brisk = limits{
	connect: 10 * time.Second, stall: 10 * time.Second, attempts: 4, unproven: 2,
	firstWait: 2 * time.Millisecond, maxWait: 10 * time.Millisecond, total: time.Minute,
}

var testKeys = Credentials{Access: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI-this-is-secret", Token: "token-this-is-secret"}

// at returns the store at an endpoint, with limits for tests.
func at(t *testing.T, endpoint string, from Credentials, l limits) *Store {
	t.Helper()
	s, err := open(Place{Bucket: s3test.Bucket, Prefix: "host/orlop", Endpoint: endpoint}, from, l, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// requests are one of each kind.
func requests(s *Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"put": func(ctx context.Context) error { return s.Put(ctx, "a/b", []byte("x")) },
		"get": func(ctx context.Context) error { _, err := s.Get(ctx, "a/b"); return err },
		"range": func(ctx context.Context) error {
			_, err := s.GetRange(ctx, "a/b", 0, 1)
			return err
		},
		"list":   func(ctx context.Context) error { return s.List(ctx, "", func(store.Object) error { return nil }) },
		"top":    func(ctx context.Context) error { return s.Top(ctx, func(string) error { return nil }) },
		"delete": func(ctx context.Context) error { return s.Delete(ctx, "a/b") },
		"many":   func(ctx context.Context) error { return s.DeleteAll(ctx, []string{"a/b", "a/c"}) },
	}
}

// webPage answers as a web server does.
func webPage(status int, header ...string) s3test.Effect {
	return func(*s3test.Request, func(*s3test.Request) s3test.Answer) s3test.Answer {
		a := s3test.ErrorAnswer(status, "", header...)
		a.Header.Set("Content-Type", "text/html; charset=utf-8")
		a.Body = []byte("<!doctype html><html><body>Welcome</body></html>")
		return a
	}
}

func TestRefusedRequestsSayWhatHelps(t *testing.T) {
	skewed := time.Now().Add(-3 * time.Hour).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		effect s3test.Effect
		kind   fault.Kind
		says   []string
		tries  int // of each request
	}{
		"bucket missing":      {s3test.Status(404, "NoSuchBucket"), fault.ErrFailed, []string{`bucket "backups" does not exist`, "create it"}, 1},
		"unknown access key":  {s3test.Status(403, "InvalidAccessKeyId"), fault.ErrFailed, []string{"does not know the access key"}, 1},
		"wrong secret key":    {s3test.Status(403, "SignatureDoesNotMatch"), fault.ErrFailed, []string{"secret key does not belong"}, 1},
		"expired":             {s3test.Status(400, "ExpiredToken"), fault.ErrFailed, []string{"have expired"}, 1},
		"access denied":       {s3test.Status(403, "AccessDenied"), fault.ErrFailed, []string{"need the permission"}, 1},
		"wrong region":        {s3test.Status(301, "PermanentRedirect", "X-Amz-Bucket-Region", "eu-central-1"), fault.ErrFailed, []string{"region eu-central-1", "backups@eu-central-1"}, 1},
		"region not told":     {s3test.Status(400, "AuthorizationHeaderMalformed"), fault.ErrFailed, []string{"backups@REGION"}, 1},
		"clock ahead":         {s3test.Status(403, "RequestTimeTooSkewed", "Date", skewed), fault.ErrFailed, []string{"clock is 3h0m", "ahead of the server's"}, 1},
		"disk full":           {s3test.Status(507, "InsufficientStorage"), fault.ErrNoSpace, []string{"no space left"}, 1},
		"quota":               {s3test.Status(403, "QuotaExceeded"), fault.ErrNoSpace, []string{"quota", "prune"}, 1},
		"web page":            {webPage(200), fault.ErrFailed, []string{"no S3 endpoint", "web page"}, 1},
		"web page not found":  {webPage(404), fault.ErrFailed, []string{"no S3 endpoint", "web page"}, 1},
		"redirecting website": {webPage(302, "Location", "https://login.example.com/"), fault.ErrFailed, []string{"no S3 endpoint", "login.example.com"}, 1},
		"archived":            {s3test.Status(403, "InvalidObjectState"), fault.ErrFailed, []string{"archive class"}, 1},
		"body too large":      {webPage(413), fault.ErrUnsupported, []string{"too large", "64 MiB"}, 1},
		"not implemented":     {s3test.Status(501, "NotImplemented"), fault.ErrUnsupported, []string{"does not support"}, 1},
		"busy":                {s3test.Status(503, "SlowDown"), fault.ErrUnreachable, []string{"cannot serve", "tried 4 times"}, 4},
		"throttled":           {s3test.Status(429, "TooManyRequests"), fault.ErrUnreachable, []string{"cannot serve", "tried 4 times"}, 4},
		"gateway":             {webPage(502), fault.ErrUnreachable, []string{"cannot serve", "tried 4 times"}, 4},
		"cut":                 {s3test.Lose, fault.ErrUnreachable, []string{"cannot reach", "tried 2 times"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := s3test.NewProxy(t, nil)
			p.Always(c.effect)
			for op, request := range requests(at(t, p.URL, testKeys, brisk)) {
				before := len(p.Seen())
				err := request(t.Context())
				if !fault.Is(err, c.kind) {
					t.Fatalf("%s: kind %s: %v", op, fault.KindOf(err), err)
				}
				for _, text := range c.says {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%s: it does not say %q: %v", op, text, err)
					}
				}
				// A connection that was kept may be found closed: then net/http sends some requests again by itself.
				if tries := len(p.Seen()) - before; tries != c.tries && c.kind != fault.ErrUnreachable {
					t.Errorf("%s: %d requests", op, tries)
				}
				noSecret(t, err)
			}
		})
	}
}

func noSecret(t *testing.T, err error) {
	t.Helper()
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
		if strings.Contains(text, "secret"[:6]+"-") || strings.Contains(text, testKeys.Secret) || strings.Contains(text, testKeys.Token) {
			t.Errorf("it shows a secret: %s", text)
		}
	}
}

func TestABucketThatIsMissingCanBeToldFromOtherFailures(t *testing.T) {
	p := s3test.NewProxy(t, nil)
	p.Always(s3test.Status(404, "NoSuchBucket"))
	_, err := at(t, p.URL, testKeys, brisk).Get(t.Context(), "config")
	var missing *NoBucketError
	if !errors.As(err, &missing) || missing.Place.Bucket != s3test.Bucket {
		t.Error(err)
	}
}

// answers succeeds with a get.
func answers(*s3test.Request, func(*s3test.Request) s3test.Answer) s3test.Answer {
	return s3test.Answer{Status: 200, Header: http.Header{"Etag": {`"1"`}, "Last-Modified": {time.Now().UTC().Format(http.TimeFormat)}, "Content-Type": {contentType}}, Body: []byte("x")}
}

func TestRequestsAreRepeatedAfterWhatPasses(t *testing.T) {
	for name, effect := range map[string]s3test.Effect{
		"503": s3test.Status(503, "SlowDown"), "500": s3test.Status(500, "InternalError"), "lost": s3test.Lose, "cut": func(r *s3test.Request, _ func(*s3test.Request) s3test.Answer) s3test.Answer {
			a := answers(r, nil)
			a.Body, a.Cut = []byte("half of it"), true
			return a
		},
	} {
		p := s3test.NewProxy(t, nil)
		p.Always(answers)
		s := at(t, p.URL, testKeys, brisk)
		if _, err := s.Get(t.Context(), "a"); err != nil { // the server is known from here on
			t.Fatal(err)
		}
		for n := range brisk.attempts - 1 {
			p.On(nil, n+1, effect)
		}
		if data, err := s.Get(t.Context(), "a"); err != nil || string(data) != "x" || p.Pending() > 0 {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	p := s3test.NewProxy(t, nil)
	p.On(nil, 1, s3test.Status(503, "SlowDown", "Retry-After", "1"))
	p.Always(answers)
	began := time.Now()
	if _, err := at(t, p.URL, testKeys, brisk).Get(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(began); waited < time.Second {
		t.Errorf("it waited for %s", waited)
	}
}

func TestRetryAfterIsSecondsOrADateAndBounded(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-3": 0, "soon": 0, "86400": longestAsked,
		now.Add(7 * time.Second).Format(http.TimeFormat): 7 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestPausesGrowAreRandomAndBounded(t *testing.T) {
	s := at(t, "http://127.0.0.1:1", testKeys, standard)
	longest, shortest := map[int]time.Duration{}, map[int]time.Duration{}
	for range 2000 {
		for _, n := range []int{1, 3, 5, 100} {
			wait := s.pause(n, 0)
			longest[n] = max(longest[n], wait)
			if shortest[n] == 0 || wait < shortest[n] {
				shortest[n] = wait
			}
		}
		if wait := s.pause(1, 2*time.Second); wait < 2*time.Second || wait > 3*time.Second {
			t.Fatalf("asked for 2s: %s", wait)
		}
	}
	for n, most := range map[int]time.Duration{1: standard.firstWait, 3: 4 * standard.firstWait, 5: 16 * standard.firstWait, 100: standard.maxWait} {
		if longest[n] > most || longest[n] < most/2 || shortest[n] > most/2 {
			t.Errorf("attempt %d: %s to %s", n, shortest[n], longest[n])
		}
	}
}

// A server that takes the request and says nothing must not hold a backup for ever.
func TestASilentServerIsLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close() // when the test ends
		}
	}()
	impatient := brisk
	impatient.stall = 100 * time.Millisecond
	s := at(t, "http://"+l.Addr().String(), testKeys, impatient)
	for op, request := range requests(s) {
		if err := request(t.Context()); !fault.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("%s: %v", op, err)
		}
	}
	if err := s.Put(t.Context(), "large", make([]byte, store.MaxSize)); !fault.Is(err, fault.ErrUnreachable) {
		t.Errorf("large: %v", err)
	}
}

func TestAHostThatRefusesConnectionsIsSoonGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = at(t, "http://"+l.Addr().String(), testKeys, brisk).Get(t.Context(), "config")
	if !fault.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "tried 2 times") {
		t.Error(err)
	}
}

func TestTLSTroubleSaysWhatHelps(t *testing.T) {
	p := s3test.NewProxy(t, nil)
	p.Always(answers)
	secure := httptest.NewTLSServer(p)
	defer secure.Close()
	secure.Config.ErrorLog = nil
	_, err := at(t, secure.URL, testKeys, brisk).Get(t.Context(), "a")
	if !fault.Is(err, fault.ErrFailed) || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") || len(p.Seen()) > 0 {
		t.Errorf("unknown authority: %v", err)
	}
	_, err = at(t, strings.Replace(p.URL, "http:", "https:", 1), testKeys, brisk).Get(t.Context(), "a")
	if !fault.Is(err, fault.ErrFailed) || !strings.Contains(err.Error(), "use http://") {
		t.Errorf("no TLS: %v", err)
	}
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	trusting := testKeys
	trusting.CABundle = bundle
	if data, err := at(t, secure.URL, trusting, brisk).Get(t.Context(), "a"); err != nil || string(data) != "x" {
		t.Errorf("with the certificate: %v", err)
	}
	for _, c := range []string{filepath.Join(t.TempDir(), "missing"), os.Args[0]} {
		trusting.CABundle = c
		if _, err := open(Place{Bucket: "backups", Endpoint: secure.URL}, trusting, brisk, ""); err == nil {
			t.Errorf("%s is taken for certificates", c)
		}
	}
}

func TestHTTP1IsSpokenWhereHTTP2IsOffered(t *testing.T) {
	var protocol string
	p := s3test.NewProxy(t, nil)
	p.Always(answers)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protocol = r.Proto
		p.ServeHTTP(w, r)
	}))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	trusting := testKeys
	trusting.CABundle = bundle
	if _, err := at(t, secure.URL, trusting, brisk).Get(t.Context(), "a"); err != nil || protocol != "HTTP/1.1" {
		t.Errorf("%s, %v", protocol, err)
	}
}

func TestBucketsStandInThePathOrInTheHost(t *testing.T) {
	for _, c := range []struct {
		place      Place
		host, path string
	}{
		{Place{Bucket: "backups", Prefix: "p", Endpoint: "http://s3.example.com:9000"}, "s3.example.com:9000", "/backups/p/config"},
		{Place{Bucket: "backups", Prefix: "p", Endpoint: "http://s3.example.com:9000", HostStyle: true}, "backups.s3.example.com:9000", "/p/config"},
		{Place{Bucket: "backups", Prefix: "p", Region: "eu-central-1"}, "backups.s3.dualstack.eu-central-1.amazonaws.com", "/p/config"},
		{Place{Bucket: "backups", Prefix: "p"}, "backups.s3.dualstack.us-east-1.amazonaws.com", "/p/config"},
	} {
		s, err := open(c.place, testKeys, brisk, "")
		if err != nil {
			t.Fatal(err)
		}
		var host, path string
		s.transport.Proxy = nil
		s.transport.DialContext = func(_ context.Context, _, at string) (net.Conn, error) {
			host = at
			return nil, errors.New("not now")
		}
		u, err := s.core.PresignedGetObject(t.Context(), c.place.Bucket, s.key("config"), time.Minute, nil)
		if err != nil {
			t.Fatal(err)
		}
		path = u.Path
		_, _ = s.Get(t.Context(), "config")
		if u.Host != c.host || path != c.path || !strings.HasPrefix(host, strings.Split(c.host, ":")[0]+":") {
			t.Errorf("%+v: %s %s, connected to %s", c.place, u.Host, path, host)
		}
	}
}

func TestGetRefusesWhatIsNoObject(t *testing.T) {
	p := s3test.NewProxy(t, nil)
	p.Always(func(r *s3test.Request, _ func(*s3test.Request) s3test.Answer) s3test.Answer {
		a := answers(r, nil)
		a.Body = make([]byte, store.MaxSize+1)
		return a
	})
	s := at(t, p.URL, testKeys, brisk)
	if _, err := s.Get(t.Context(), "a"); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("too large: %v", err)
	}
	if _, err := s.GetRange(t.Context(), "a", 5, 10); !fault.Is(err, fault.ErrUnsupported) {
		t.Errorf("the whole object instead of a range: %v", err)
	}
}
