// Package control holds the wire types of the control API, HTTP with JSON on a unix socket, and its client. The
// server is in internal/control/server.
package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"

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
	Name         string       `json:"name,omitempty"`          // volume or snapshot: name, ID or beginning of its ID; new snapshots: name or empty
	AutoName     bool         `json:"auto_name,omitempty"`     // create: make a name up
	Options      []Setting    `json:"options,omitempty"`       // create
	Snapshots    bool         `json:"snapshots,omitempty"`     // delete: with the volume's snapshots
	Device       string       `json:"device,omitempty"`        // adopt, delete of a device: its ID or the beginning of it
	Mountpoint   string       `json:"mountpoint,omitempty"`    // mount: absolute path, empty for the volume's own
	Stale        bool         `json:"stale,omitempty"`         // umount: also what Docker or Podman hold and no process uses
	Size         string       `json:"size,omitempty"`          // resize
	Labels       []string     `json:"labels,omitempty"`        // set: key=value, or key= to remove; new snapshots: key=value
	Protect      *bool        `json:"protect,omitempty"`       // set
	PreSnapshot  *string      `json:"pre_snapshot,omitempty"`  // set: command line, or empty to remove
	PostSnapshot *string      `json:"post_snapshot,omitempty"` // set
	Volumes      []string     `json:"volumes,omitempty"`       // new snapshots: of which volumes
	Discard      bool         `json:"discard,omitempty"`       // restore of a snapshot: do not keep what it replaces
	Detach       bool         `json:"detach,omitempty"`        // shutdown
	Keep         *string      `json:"keep,omitempty"`          // set: retention policy of the volume's backups, or empty to have none
	NoBackup     *bool        `json:"no_backup,omitempty"`     // set
	Job          string       `json:"job,omitempty"`           // cancel: ID of the job or the beginning of it
	Destination  string       `json:"destination,omitempty"`   // backups
	URL          string       `json:"url,omitempty"`           // restore: of the backup
	KeyFile      string       `json:"key_file,omitempty"`      // backups: absolute path of the key on the daemon's host
	Credentials  *Credentials `json:"credentials,omitempty"`   // backups: for a bucket; nil for the daemon's own
	Policy       string       `json:"policy,omitempty"`        // backup: retention for volumes that have no policy of their own
	DropSnapshot bool         `json:"drop_snapshot,omitempty"` // backup: do not keep the snapshot for the next one
	InPlace      bool         `json:"in_place,omitempty"`      // restore: to a volume that is there
	Daily        bool         `json:"daily,omitempty"`         // collect: only if that was not done today
}

// Credentials are the keys for a bucket, or the file that has them. The daemon keeps keys in memory only. Printed, they show no
// secret.
type Credentials struct {
	File         string `json:"file,omitempty"` // absolute path on the daemon's host
	AccessKey    string `json:"access_key,omitempty"`
	SecretKey    string `json:"secret_key,omitempty"`
	SessionToken string `json:"session_token,omitempty"`
	CABundle     string `json:"ca_bundle,omitempty"` // absolute path on the daemon's host
}

// String names the file, and no key.
func (c Credentials) String() string { return "credentials " + c.File }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// Collecting answers a request to free what no backup needs.
type Collecting struct {
	Due bool            `json:"due"` // false: it was done lately
	Job json.RawMessage `json:"job,omitempty"`
}

// Mounted answers mount.
type Mounted struct {
	Path string `json:"path"`
}

// Unmounted answers umount.
type Unmounted struct {
	Held string `json:"held,omitempty"` // by whom, if the volume stays mounted because Docker holds it
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
		Kind    fault.Kind    `json:"kind"`
		Message string        `json:"message"`
		Remedy  *fault.Remedy `json:"remedy,omitempty"`
	} `json:"error"`
}

// NewErrorBody returns the body that tells of err.
func NewErrorBody(err error) (b ErrorBody) {
	b.Error.Kind, b.Error.Message = fault.KindOf(err), err.Error()
	if remedy, ok := fault.RemedyOf(err); ok {
		b.Error.Remedy = &remedy
	}
	return b
}

// Err returns the error that a body tells of.
func (b ErrorBody) Err() error {
	err := fault.Errorf(b.Error.Kind, "%s", b.Error.Message)
	if b.Error.Remedy != nil {
		err = fault.WithRemedy(err, *b.Error.Remedy)
	}
	return err
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

// Get asks for a path below Prefix and decodes the answer into out. It fails with the daemon's error and its kind, with
// fault.ErrUnreachable, or with os.ErrPermission for a user who may not connect.
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
	response, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return c.unreachable(err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		return c.refusal(response, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("daemon at %s: read answer: %w", c.socket, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://orlop"+Prefix+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return response, nil
}

// refusal is the error that an answer tells of.
func (c *Client) refusal(response *http.Response, body []byte) error {
	var failure ErrorBody
	if err := json.Unmarshal(body, &failure); err != nil || failure.Error.Message == "" {
		return fmt.Errorf("daemon at %s: %s", c.socket, response.Status)
	}
	return failure.Err()
}

// Stream asks for a path below Prefix and calls fn with each whole line of the answer, JSON each. It fails as Get does, and
// with the error that the daemon met on the way, which is the last line then.
func (c *Client) Stream(ctx context.Context, path string, query url.Values, fn func(line []byte) error) error {
	response, err := c.send(ctx, http.MethodGet, path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		raw, _ := io.ReadAll(response.Body) // whatever came of it
		return c.refusal(response, raw)
	}
	lines := bufio.NewReader(response.Body)
	for {
		line, err := lines.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF): // before the empty line
			return c.unreachable(io.ErrUnexpectedEOF)
		case err != nil:
			return c.unreachable(err)
		}
		if line = line[:len(line)-1]; len(line) == 0 {
			return nil
		}
		var failure ErrorBody
		if bytes.HasPrefix(line, []byte(`{"error"`)) && json.Unmarshal(line, &failure) == nil {
			return failure.Err()
		}
		if err := fn(line); err != nil {
			return err
		}
	}
}

func (c *Client) unreachable(err error) error {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, os.ErrPermission) { // it may well be running
		return fmt.Errorf("daemon at %s: %w: only root and members of the group orlop, if there is one, may use it", c.socket, syscall.EACCES)
	}
	return fault.Errorf(fault.ErrUnreachable, "daemon at %s cannot be reached: %w: is 'orlop daemon' running?", c.socket, err)
}
