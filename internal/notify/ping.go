package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"orlop/internal/fault"
)

const (
	attempts    = 3      // of one ping, where the service does not take it
	pauses      = 16     // so many pauses between attempts fit into the limit
	maxHops     = 10     // redirects of one ping
	maxPingBody = 90_000 // bytes; services keep 10 to 100 kB
)

// parsePing reads the URL of a dead-man service. It fails with fault.ErrInvalid.
func parsePing(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" { // err quotes the URL
		return nil, fault.Errorf(fault.ErrInvalid, "ping URL: is not an http or https URL")
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// A call is one ping.
type call struct {
	of   string // start, success or fail
	body string // sent by POST; the others are GETs
}

// url is where a call goes: the path gets one more element, the query stays behind it.
func (c call) url(base *url.URL) *url.URL {
	if c.of == "success" {
		return base
	}
	u := *base
	u.RawPath = strings.TrimRight(base.EscapedPath(), "/") + "/" + c.of
	u.Path = strings.TrimRight(base.Path, "/") + "/" + c.of
	return &u
}

// send calls until the service has answered 2xx, three times at most. Its error may contain the URL.
func (c call) send(ctx context.Context, base *url.URL, pause time.Duration) (err error) {
	client := newClient()
	defer client.CloseIdleConnections()
	for i := range attempts {
		if i > 0 {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause):
			}
		}
		var final bool
		if final, err = c.try(ctx, client, c.url(base)); err == nil || final {
			return err
		}
	}
	return err
}

// newClient returns a client that follows no redirect: the standard one drops the body of a POST and sends the URL along as
// Referer.
func newClient() *http.Client {
	return &http.Client{
		Transport:     http.DefaultTransport.(*http.Transport).Clone(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// try calls once and follows redirects with the same method and body. The failure is final if trying again is pointless.
func (c call) try(ctx context.Context, client *http.Client, to *url.URL) (final bool, err error) {
	for range maxHops {
		status, next, err := c.request(ctx, client, to)
		switch {
		case err != nil:
			return false, err
		case status/100 == 2:
			return true, nil
		case next == nil:
			return status/100 != 5 && status != http.StatusTooManyRequests, fmt.Errorf("answer is %d %s", status, http.StatusText(status))
		case to.Scheme == "https" && next.Scheme != "https":
			return true, errors.New("redirect from https to another scheme")
		}
		to = next
	}
	return true, errors.New("too many redirects")
}

// request returns the status and, of a redirect, where it leads.
func (c call) request(ctx context.Context, client *http.Client, to *url.URL) (status int, next *url.URL, err error) {
	method := http.MethodGet
	if c.body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, to.String(), strings.NewReader(c.body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("User-Agent", "orlop")
	if c.body != "" {
		request.Header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // the status is the answer
	_ = response.Body.Close()
	if response.StatusCode/100 != 3 {
		return response.StatusCode, nil, nil
	}
	next, err = response.Location()
	if err != nil {
		return response.StatusCode, nil, nil //nolint:nilerr // a redirect without a target is reported as its status
	}
	return response.StatusCode, next, nil
}
