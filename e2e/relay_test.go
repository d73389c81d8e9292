//go:build root

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A call is one of Docker's calls to the plugin.
type call struct {
	verb     string // Mount, Unmount, Get, …
	name, id string
	bodyless bool
}

// A relay stands between Docker and orlop. It notes what Docker calls, so that a test can tell that the sequence it
// is about really came, and lets calls fail.
type relay struct {
	server *http.Server

	mu     sync.Mutex
	calls  []call
	fault  func(call, http.ResponseWriter, *http.Request, http.Handler) // nil: pass on
	served chan struct{}
}

// newRelay listens at socket and passes calls on to the plugin at target.
func newRelay(socket, target string) (*relay, error) {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	r := &relay{served: make(chan struct{})}
	pass := &httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = "http", "plugin" },
		Transport: unixClient(target).Transport,
		// What orlop does not answer, Docker gets no answer to.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	r.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		c, err := readCall(request)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.mu.Lock()
		r.calls = append(r.calls, c)
		fault := r.fault
		r.mu.Unlock()
		if fault != nil {
			fault(c, w, request, pass)
			return
		}
		pass.ServeHTTP(w, request)
	})}
	go func() {
		defer close(r.served)
		_ = r.server.Serve(listener) // ends with close
	}()
	return r, nil
}

// readCall reads a call and leaves its body to be read again.
func readCall(r *http.Request) (call, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return call{}, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var content struct{ Name, ID string }
	if len(body) > 0 {
		err = json.Unmarshal(body, &content)
	}
	_, verb, _ := strings.Cut(strings.Trim(r.URL.Path, "/"), ".")
	return call{verb, content.Name, content.ID, len(body) == 0}, err
}

// take returns the Mount and Unmount calls of a volume since it was last asked, and forgets all calls.
func (r *relay) take(volume string) []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := slices.DeleteFunc(r.calls, func(c call) bool {
		return c.name != volume || c.verb != "Mount" && c.verb != "Unmount"
	})
	r.calls = nil
	return calls
}

// bodyless counts the Get calls that came without a body, which are retries.
func (r *relay) bodyless() (count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if c.verb == "Get" && c.bodyless {
			count++
		}
	}
	return count
}

// refuse answers every call of a verb with an error that orlop never hears of, until pass.
func (r *relay) refuse(verb string) {
	r.setFault(func(c call, w http.ResponseWriter, request *http.Request, pass http.Handler) {
		if c.verb != verb {
			pass.ServeHTTP(w, request)
			return
		}
		refuse(w)
	})
}

// lose lets orlop do what a verb asks for and tells Docker that it failed, until pass: what Docker sees of a call
// that took too long.
func (r *relay) lose(verb string) {
	r.setFault(func(c call, w http.ResponseWriter, request *http.Request, pass http.Handler) {
		if c.verb != verb {
			pass.ServeHTTP(w, request)
			return
		}
		pass.ServeHTTP(&nowhere{header: http.Header{}}, request)
		refuse(w)
	})
}

// pass ends what refuse and lose began.
func (r *relay) pass() { r.setFault(nil) }

func (r *relay) setFault(fault func(call, http.ResponseWriter, *http.Request, http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

func refuse(w http.ResponseWriter) {
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(w, `{"Err":"refused by the test"}`) // a Docker that hung up is not the test's matter
}

func (r *relay) close() error {
	err := r.server.Close()
	<-r.served
	return err
}

// nowhere is an answer that nobody reads.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}

// wantCalls fails unless Docker's calls match the regular expression. Each is a word, verb:letter; equal letters
// stand for equal mount IDs, in the order of their first use.
func wantCalls(t *testing.T, got []call, want string) {
	t.Helper()
	letters := map[string]string{}
	var words []string
	for _, c := range got {
		if letters[c.id] == "" {
			letters[c.id] = string(rune('a' + len(letters)))
		}
		words = append(words, c.verb+":"+letters[c.id])
	}
	sequence := strings.Join(words, " ")
	if !regexp.MustCompile("^(" + want + ")$").MatchString(sequence) {
		t.Errorf("docker called %q, want %q: the test does not provoke what it is about", sequence, want)
	}
}
