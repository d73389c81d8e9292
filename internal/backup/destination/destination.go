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

	"orlop/internal/backup/store/s3store"
	"orlop/internal/fault"
)

// A Destination is where a repository is: a directory, or a prefix in a bucket. The zero Destination is none; Parse returns
// usable ones, which can be compared. It holds no secret.
type Destination struct {
	dir    string        // absolute; empty for a bucket
	bucket s3store.Place // zero for a directory
}

// Credentials say where the keys for buckets come from.
type Credentials = s3store.Credentials

const forms = "use /DIR, file:///DIR, vfs:///DIR or s3://BUCKET[@REGION]/PREFIX"

// Parse reads a destination: /DIR, file:///DIR, vfs:///DIR, or s3://BUCKET[@REGION]/PREFIX[?endpoint=http://HOST:PORT]. A relative
// path is taken from the working directory of the process. Text that begins like a scheme or like a host, as s3:bucket and
// user@nas:dir do, is never taken for a directory. Parse fails with fault.ErrInvalid. It does not touch the destination.
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
	if strings.EqualFold(scheme, "s3") && ok {
		// The text is not repeated in errors: a secret may stand in it.
		place, query, err := parseBucket(rest, query)
		if err != nil {
			return Destination{}, "", fmt.Errorf("S3 destination: %w", err)
		}
		return Destination{bucket: place}, query, nil
	}
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
	return Destination{dir: dir}, err
}

// ofScheme is the destination of what follows a scheme, in lower case, and its two slashes.
func ofScheme(scheme, rest string) (Destination, error) {
	switch scheme {
	case "file", "vfs":
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
	return Destination{dir: filepath.Clean(dir)}, nil
}

// String returns the destination's URL, the same however it was written. Parse reads it.
func (d Destination) String() string {
	if d.IsBucket() {
		return bucketURL(d.bucket)
	}
	return (&url.URL{Scheme: "file", Path: d.dir}).String()
}

// IsBucket reports whether the destination is in a bucket, for which credentials are needed.
func (d Destination) IsBucket() bool { return d.bucket != s3store.Place{} }

// doubt is what to ask where a repository is missing.
func (d Destination) doubt() string {
	if d.IsBucket() {
		return "are the bucket, the prefix and the endpoint right?"
	}
	return "is the disk mounted?"
}

// Quoted returns the destination's URL in single quotes, to be typed into a shell.
func (d Destination) Quoted() string { return "'" + strings.ReplaceAll(d.String(), "'", `'\''`) + "'" }

// isTaken reports whether something else than a directory is there, in whose place no repository can be made.
func (d Destination) isTaken() bool {
	if d.IsBucket() {
		return false
	}
	info, err := os.Stat(d.dir)
	return err == nil && !info.IsDir()
}
