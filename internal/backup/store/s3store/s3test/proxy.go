package s3test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// A Request is one that the proxy received.
type Request struct {
	Method string
	Key    string // bucket and key, or the bucket alone; the bucket's query is in Query
	Query  url.Values
	Header http.Header
	Body   []byte
}

// Op names what a request asks for: "put", "get", "head", "delete", "list" or "delete many".
func (r *Request) Op() string {
	switch {
	case r.Method == http.MethodPost && r.Query.Has("delete"):
		return "delete many"
	case r.Method == http.MethodGet && r.Query.Has("list-type"):
		return "list"
	}
	return strings.ToLower(r.Method)
}

// An Answer is what the proxy sends back.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Cut    bool // only the first half of the body is sent, or of the header if there is none, and the connection closed
}

// An Effect is what becomes of a request. forward sends it to the server; the effect may call it never or several times.
type Effect func(r *Request, forward func(*Request) Answer) Answer

// A Proxy passes requests to a server, counts them, and lets some go wrong. With a nil server every request must have an effect.
// It is safe for concurrent use.
type Proxy struct {
	URL string

	server *Server
	client *http.Client

	mu     sync.Mutex // guards what follows
	seen   []string   // operations and keys
	rules  []*proxyRule
	always Effect
}

type proxyRule struct {
	match  func(*Request) bool
	nth    int
	effect Effect
}

// NewProxy starts a proxy. It ends with the test.
func NewProxy(t testing.TB, server *Server) *Proxy {
	t.Helper()
	p := &Proxy{server: server, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}}
	h := httptest.NewServer(p)
	t.Cleanup(func() {
		h.Close()
		p.client.CloseIdleConnections()
	})
	p.URL = h.URL
	return p
}

// On lets the nth request from here on that match accepts have an effect; with nth 0 every one. A nil match accepts all.
func (p *Proxy) On(match func(*Request) bool, nth int, effect Effect) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, &proxyRule{match, nth, effect})
}

// Pending reports how many rules for one request have not met it yet.
func (p *Proxy) Pending() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, rule := range p.rules {
		if rule.nth > 0 {
			n++
		}
	}
	return n
}

// Clear forgets all rules and what was seen.
func (p *Proxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.seen, p.always = nil, nil, nil
}

// Always lets every request that no rule meets have an effect: the kind of server that the proxy plays.
func (p *Proxy) Always(effect Effect) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.always = effect
}

// Seen returns the operations and keys of the requests since the last Clear, in the order of their arrival.
func (p *Proxy) Seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.seen...)
}

// Op returns a match for requests of one operation.
func Op(op string) func(*Request) bool { return func(r *Request) bool { return r.Op() == op } }

// effectOf counts a request and returns its effect, nil if it has none.
func (p *Proxy) effectOf(r *Request) Effect {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, r.Op()+" "+r.Key)
	effect, met := p.always, false
	for i := range p.rules {
		rule := p.rules[i]
		if rule.nth < 0 || rule.match != nil && !rule.match(r) {
			continue
		}
		acts := rule.nth == 0
		if rule.nth > 0 {
			if rule.nth--; rule.nth == 0 {
				acts, rule.nth = true, -1 // spent
			}
		}
		if acts && !met {
			effect, met = rule.effect, true
		}
	}
	return effect
}

// ServeHTTP passes a request on.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r := &Request{request.Method, strings.TrimPrefix(request.URL.EscapedPath(), "/"), request.URL.Query(), request.Header.Clone(), body}
	forward := func(r *Request) Answer { return p.forward(request, r) }
	answer := Answer{}
	if effect := p.effectOf(r); effect != nil {
		answer = effect(r, forward)
	} else {
		answer = forward(r)
	}
	answer.send(w, request.Method)
}

// send writes an answer. One of status 0 is none: the connection is closed.
func (a Answer) send(w http.ResponseWriter, method string) {
	if a.Status == 0 || a.Cut && len(a.Body) == 0 {
		panic(http.ErrAbortHandler)
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	if method != http.MethodHead {
		w.Header().Set("Content-Length", fmt.Sprint(len(a.Body)))
	}
	w.WriteHeader(a.Status)
	if a.Cut {
		_, _ = w.Write(a.Body[:len(a.Body)/2]) // whoever reads it sees that the rest is missing
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(a.Body) // the client may be gone
}

// forward sends a request to the server as the client signed it.
func (p *Proxy) forward(from *http.Request, r *Request) Answer {
	target := p.server.URL + "/" + r.Key
	if from.URL.RawQuery != "" {
		target += "?" + from.URL.RawQuery
	}
	request, err := http.NewRequestWithContext(from.Context(), r.Method, target, bytes.NewReader(r.Body))
	if err != nil {
		return Answer{}
	}
	request.Header, request.Host = r.Header, from.Host
	request.ContentLength = int64(len(r.Body))
	if len(r.Body) == 0 {
		request.Body = http.NoBody
	}
	response, err := p.client.Do(request)
	if err != nil {
		return Answer{}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return Answer{}
	}
	header := response.Header.Clone()
	return Answer{Status: response.StatusCode, Header: header, Body: body}
}

// Status answers with a status and S3's error of that code, and the server does not see the request.
func Status(status int, code string, header ...string) Effect {
	return func(*Request, func(*Request) Answer) Answer { return ErrorAnswer(status, code, header...) }
}

// ErrorAnswer is the answer of S3 with an error. The header is pairs of names and values.
func ErrorAnswer(status int, code string, header ...string) Answer {
	body := fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>told by the test</Message></Error>", code)
	a := Answer{Status: status, Header: http.Header{"Content-Type": {"application/xml"}}, Body: []byte(body)}
	for i := 0; i+1 < len(header); i += 2 {
		a.Header.Set(header[i], header[i+1])
	}
	return a
}

// Lose closes the connection before the server sees the request.
func Lose(*Request, func(*Request) Answer) Answer { return Answer{} }

// LoseReply lets the server do what is asked, and closes the connection without an answer.
func LoseReply(r *Request, forward func(*Request) Answer) Answer {
	forward(r)
	return Answer{}
}

// CutReply sends half of the answer and closes the connection.
func CutReply(r *Request, forward func(*Request) Answer) Answer {
	a := forward(r)
	a.Cut = true
	return a
}

// Then answers with an error after the server did what was asked.
func Then(status int, code string) Effect {
	return func(r *Request, forward func(*Request) Answer) Answer {
		forward(r)
		return ErrorAnswer(status, code)
	}
}

// Slow waits before the server sees the request.
func Slow(wait time.Duration) Effect {
	return func(r *Request, forward func(*Request) Answer) Answer {
		time.Sleep(wait)
		return forward(r)
	}
}

// isConditional reports whether a request asks for exclusive creation.
func isConditional(r *Request) bool {
	return r.Method == http.MethodPut && r.Header.Get("If-None-Match") == "*"
}

// Refusing plays a server that does not know the condition, as Backblaze B2.
func Refusing(r *Request, forward func(*Request) Answer) Answer {
	if isConditional(r) {
		return ErrorAnswer(http.StatusNotImplemented, "NotImplemented")
	}
	return forward(r)
}

// unconditional puts an object whether there is one or not. Only its signature could not be passed on: the condition is signed.
func (p *Proxy) unconditional(r *Request) Answer {
	bucket, key, _ := strings.Cut(r.Key, "/")
	key, err := url.PathUnescape(key)
	if err != nil {
		return ErrorAnswer(http.StatusBadRequest, "InvalidURI")
	}
	client, err := p.server.client()
	if err != nil {
		return Answer{}
	}
	info, err := client.PutObject(context.Background(), bucket, key, bytes.NewReader(r.Body), int64(len(r.Body)), minio.PutObjectOptions{DisableMultipart: true})
	if err != nil {
		return ErrorAnswer(http.StatusInternalServerError, "InternalError")
	}
	return Answer{Status: http.StatusOK, Header: http.Header{"Etag": {info.ETag}}}
}

// Overwriting plays a server that ignores the condition, as Google's S3 interface: the last writer wins.
func (p *Proxy) Overwriting(r *Request, forward func(*Request) Answer) Answer {
	if isConditional(r) {
		return p.unconditional(r)
	}
	return forward(r)
}

// Racy returns what plays a server that looks first and creates afterwards: of writers that race, several may win, while one after
// the other all is as it should be.
func (p *Proxy) Racy() Effect {
	var mu sync.Mutex
	taken := map[string]bool{}
	set := func(key string, value bool) {
		mu.Lock()
		defer mu.Unlock()
		taken[key] = value
	}
	return func(r *Request, forward func(*Request) Answer) Answer {
		if r.Method == http.MethodDelete {
			set(r.Key, false)
		}
		if !isConditional(r) {
			return forward(r)
		}
		mu.Lock()
		refused := taken[r.Key]
		mu.Unlock()
		if refused {
			return ErrorAnswer(http.StatusPreconditionFailed, "PreconditionFailed")
		}
		a := p.unconditional(r)
		set(r.Key, a.Status == http.StatusOK)
		return a
	}
}
