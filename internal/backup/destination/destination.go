// Package destination opens backup repositories by the URLs that users type, and keeps what a host remembers of each. The
// command line and the daemon use it alike: it knows no flags and no commands, and its errors name their remedies in terms
// that callers phrase for their users (see Error).
package destination

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"orlop/internal/fault"
)

// A Destination is where a repository is: a directory. The zero Destination is none; Parse returns usable ones.
type Destination struct {
	dir string // absolute
}

const forms = "use /DIR, file:///DIR or vfs:///DIR"

// Parse reads a destination: /DIR, file:///DIR or vfs:///DIR. A relative path is taken from the working directory of the
// process. Text that begins like a scheme or like a host, as s3:bucket and user@nas:dir do, is never taken for a directory.
// Parse fails with fault.ErrInvalid, and with fault.ErrUnsupported for buckets. It does not touch the destination.
func Parse(text string) (Destination, error) {
	d, query, err := split(text)
	if err == nil && query != "" {
		err = fault.Errorf(fault.ErrInvalid, "destination %q: this is the URL of a backup: leave out what is behind the question mark", text)
	}
	return d, err
}

// split reads a destination, with a query behind it or not.
func split(text string) (d Destination, query string, err error) {
	where, query, _ := strings.Cut(text, "?")
	scheme, rest, ok := strings.Cut(where, ":")
	switch {
	case !ok || strings.Contains(scheme, "/"):
		d, err = directory(where)
	case strings.HasPrefix(rest, "//"):
		d, err = ofScheme(strings.ToLower(scheme), rest[len("//"):])
	default:
		err = fault.Errorf(fault.ErrInvalid, "there is a colon before the first slash: %s; use ./%s for a directory of this name", forms, where)
	}
	if err != nil {
		return Destination{}, "", fmt.Errorf("destination %q: %w", text, err)
	}
	return d, query, nil
}

// directory is the destination of a path.
func directory(path string) (Destination, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return Destination{}, fault.Errorf(fault.ErrInvalid, "this is no path: %s", forms)
	}
	dir, err := filepath.Abs(path)
	return Destination{dir}, err
}

// ofScheme is the destination of what follows a scheme, in lower case, and its two slashes.
func ofScheme(scheme, rest string) (Destination, error) {
	switch scheme {
	case "file", "vfs":
	case "s3":
		return Destination{}, fault.Errorf(fault.ErrUnsupported, "buckets are not supported yet: %s", forms)
	default:
		return Destination{}, fault.Errorf(fault.ErrInvalid, "unknown scheme %q: %s", scheme, forms)
	}
	if host, path, ok := strings.Cut(rest, "/"); ok && strings.EqualFold(host, "localhost") {
		rest = "/" + path
	}
	dir, err := url.PathUnescape(rest)
	if err != nil {
		return Destination{}, fault.Errorf(fault.ErrInvalid, "%w: write %%25 for a percent sign", err)
	}
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return Destination{}, fault.Errorf(fault.ErrInvalid, "no absolute path follows %s://: %s", scheme, forms)
	}
	return Destination{filepath.Clean(dir)}, nil
}

// String returns the destination's URL, the same however it was written. Parse reads it.
func (d Destination) String() string { return (&url.URL{Scheme: "file", Path: d.dir}).String() }

// Quoted returns the destination's URL in single quotes, to be typed into a shell.
func (d Destination) Quoted() string { return "'" + strings.ReplaceAll(d.String(), "'", `'\''`) + "'" }

// isTaken reports whether something else than a directory is there, in whose place no repository can be made.
func (d Destination) isTaken() bool {
	info, err := os.Stat(d.dir)
	return err == nil && !info.IsDir()
}
