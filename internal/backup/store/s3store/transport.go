package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"mime"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"orlop/internal/fault"
)

// connections is how many connections to a server are kept.
const connections = 16

// A transport sends requests over HTTP/1.1: over HTTP/2 all of them would share one connection and its window. It bounds the
// time of each, and notes what replies say besides their content. It is safe for concurrent use.
type transport struct {
	*http.Transport

	mu       sync.Mutex // guards what follows
	answered bool
	software string   // the last header Server
	resolved []string // the addresses of the server
}

// A reply is what is noted of the last reply to a request; it is kept in the request's context.
type reply struct {
	status     int
	retryAfter time.Duration
	skew       time.Duration // of this host's clock, ahead of the server's; 0 if the server tells no time
}

type replyKey struct{}

// newTransport returns a transport that trusts, besides the system's certificates, those in the PEM file at bundle, if that is
// not empty; and that connects to address instead of those of the host, if that is not empty.
func newTransport(bundle string, l limits, address string) (*transport, error) {
	trusted, err := certificates(bundle)
	if err != nil {
		return nil, err
	}
	t := &transport{}
	t.Transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            t.dial(l, address),
		TLSClientConfig:        &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
		TLSHandshakeTimeout:    l.connect,
		MaxIdleConnsPerHost:    connections,
		IdleConnTimeout:        l.stall / 2,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 1 << 20,
	}
	return t, nil
}

// certificates returns nil, for those of the system, if there is no bundle.
func certificates(bundle string) (*x509.CertPool, error) {
	if bundle == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(bundle)
	if err != nil {
		return nil, fmt.Errorf("certificates for S3: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.Errorf(fault.ErrInvalid, "certificates for S3: %s holds no certificate in PEM form", bundle)
	}
	return pool, nil
}

// dial connects to one address after the other, and remembers which there are.
func (t *transport) dial(l limits, address string) func(ctx context.Context, network, at string) (net.Conn, error) {
	return func(ctx context.Context, network, at string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, l.connect)
		defer cancel()
		host, port, err := net.SplitHostPort(at)
		if err != nil {
			return nil, err
		}
		addresses := []string{address}
		if address == "" {
			if addresses, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
				return nil, err
			}
		}
		t.mu.Lock()
		t.resolved = addresses
		t.mu.Unlock()
		dialer := net.Dialer{KeepAlive: l.stall / 2}
		if len(addresses) > 1 {
			dialer.Timeout = l.connect / time.Duration(len(addresses))
		}
		for _, one := range addresses {
			var conn net.Conn
			if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort(one, port)); err == nil {
				return &stalling{Conn: conn, limit: l.stall}, nil
			}
		}
		return nil, err
	}
}

// stalling is a connection that fails when nothing has moved on it for a while. Writing counts for reading too: a reply is
// waited for while a long request is sent.
type stalling struct {
	net.Conn
	limit time.Duration
}

func (c *stalling) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *stalling) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
			return written, err
		}
		var n int
		n, err = c.Conn.Write(b[:min(len(b), 128<<10)])
		written += n
		b = b[n:]
	}
	return written, err
}

// RoundTrip sends a request, notes what its reply says, and makes an error of one that no S3 server gives.
func (t *transport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.answered = true
	if software := response.Header.Get("Server"); software != "" {
		t.software = software
	}
	t.mu.Unlock()
	if seen, ok := request.Context().Value(replyKey{}).(*reply); ok {
		now := time.Now()
		*seen = reply{status: response.StatusCode, retryAfter: retryAfter(response.Header, now)}
		if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
			seen.skew = now.Sub(date)
		}
	}
	if isWebPage(response) {
		_ = response.Body.Close() // it is not read
		return nil, errWebPage{response.StatusCode, response.Header.Get("Location")}
	}
	return response, nil
}

// isWebPage reports whether a reply is for people. Those of gateways that say that a server is busy, or that a request is too
// large, count as what they say.
func isWebPage(response *http.Response) bool {
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode >= 500, response.StatusCode == http.StatusTooManyRequests, response.StatusCode == http.StatusRequestEntityTooLarge:
		return false
	case response.StatusCode >= 300 && response.StatusCode < 400 && response.StatusCode != http.StatusNotModified:
		return kind != "application/xml" && kind != "text/xml" // a bucket of another region is told in XML
	}
	return kind == "text/html"
}

// An errWebPage is the error of a reply that is a web page, or a redirection of a web server.
type errWebPage struct {
	status   int
	location string
}

func (e errWebPage) Error() string {
	if e.location != "" {
		return fmt.Sprintf("the server redirects to %q (HTTP %d)", e.location, e.status)
	}
	return fmt.Sprintf("the server answers with a web page (HTTP %d)", e.status)
}

func (t *transport) hasAnswered() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.answered
}

func (t *transport) server() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.software
}

func (t *transport) addresses() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.resolved...)
}
