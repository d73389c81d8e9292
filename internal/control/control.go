// Package control holds the wire types of the control API, HTTP with JSON on a unix socket, and its client. The
// server is in internal/control/server.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"orlop/internal/fault"
)

// Prefix begins the path of every request. A change that an older client would misread gets another one.
const Prefix = "/v1"

// Setting is one option of a new volume, as the user gave it.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Request is the body of every request that changes something. Each verb reads the fields that it needs.
type Request struct {
	Name       string    `json:"name,omitempty"`       // volume: name, ID or beginning of its ID
	AutoName   bool      `json:"auto_name,omitempty"`  // create: make a name up
	Options    []Setting `json:"options,omitempty"`    // create
	Device     string    `json:"device,omitempty"`     // adopt, delete of a device: its ID or the beginning of it
	Mountpoint string    `json:"mountpoint,omitempty"` // mount: absolute path, empty for the volume's own
	Size       string    `json:"size,omitempty"`       // resize
	Labels     []string  `json:"labels,omitempty"`     // set: key=value, or key= to remove
	Protect    *bool     `json:"protect,omitempty"`    // set
	Detach     bool      `json:"detach,omitempty"`     // shutdown
}

// Mounted answers mount.
type Mounted struct {
	Path string `json:"path"`
}

// Trimmed answers trim.
type Trimmed struct {
	Bytes int64 `json:"bytes"`
}

// Version answers version.
type Version struct {
	Version string `json:"version"`
	API     string `json:"api"`
}

// ErrorBody is the body of every answer that is not a success.
type ErrorBody struct {
	Error struct {
		Kind    fault.Kind `json:"kind"`
		Message string     `json:"message"`
	} `json:"error"`
}

// NewErrorBody returns the body that tells of err.
func NewErrorBody(err error) (b ErrorBody) {
	b.Error.Kind, b.Error.Message = fault.KindOf(err), err.Error()
	return b
}

// A Client talks to a daemon. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon that listens on the unix socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for a path below Prefix and decodes the answer into out. It fails with the daemon's error and its kind,
// or with fault.ErrUnreachable.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, out)
}

// Post sends a request to a path below Prefix and decodes the answer into out, unless that is nil. It fails as
// Get does.
func (c *Client) Post(ctx context.Context, path string, request Request, out any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, body, out)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://orlop"+Prefix+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unreachable(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return c.unreachable(err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		var failure ErrorBody
		if err := json.Unmarshal(raw, &failure); err != nil || failure.Error.Message == "" {
			return fmt.Errorf("daemon at %s: %s", c.socket, response.Status)
		}
		return fault.Errorf(failure.Error.Kind, "%s", failure.Error.Message)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("daemon at %s: read answer: %w", c.socket, err)
	}
	return nil
}

func (c *Client) unreachable(err error) error {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: %w", err)
	}
	return fault.Errorf(fault.ErrUnreachable, "daemon at %s cannot be reached: %w: is 'orlop daemon' running?", c.socket, err)
}
