package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"orlop/internal/fault"
)

// A destination is where a repository is: a directory.
type destination struct {
	dir string // absolute
}

const destinationHelp = "use /DIR, file:///DIR or vfs:///DIR"

// parseDestination reads a destination. A path is made absolute.
func parseDestination(text string) (destination, error) {
	d, query, err := splitDestination(text)
	if err == nil && query != "" {
		err = fault.Errorf(fault.ErrInvalid, "destination %q: this is the URL of a backup: leave out what is behind the question mark", text)
	}
	return d, err
}

// splitDestination reads a destination, with a query behind it or not. A text that begins like a scheme or like a host,
// as s3:bucket and user@nas:dir do, is never taken for a directory.
func splitDestination(text string) (d destination, query string, err error) {
	place, query, _ := strings.Cut(text, "?")
	scheme, rest, ok := strings.Cut(place, ":")
	switch {
	case !ok || strings.Contains(scheme, "/"):
		d, err = directory(place)
	case strings.HasPrefix(rest, "//"):
		d, err = schemeDestination(strings.ToLower(scheme), rest[len("//"):])
	default:
		err = fault.Errorf(fault.ErrInvalid, "there is a colon before the first slash: %s; say ./%s for a directory of this name", destinationHelp, place)
	}
	if err != nil {
		return destination{}, "", fmt.Errorf("destination %q: %w", text, err)
	}
	return d, query, nil
}

// directory is the destination of a path.
func directory(path string) (destination, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return destination{}, fault.Errorf(fault.ErrInvalid, "this is no path: %s", destinationHelp)
	}
	dir, err := filepath.Abs(path)
	return destination{dir}, err
}

// schemeDestination is the destination of what follows a scheme, in lower case, and its two slashes.
func schemeDestination(scheme, rest string) (destination, error) {
	switch scheme {
	case "file", "vfs":
	case "s3":
		return destination{}, fault.Errorf(fault.ErrUnsupported, "buckets are not supported yet: %s", destinationHelp)
	default:
		return destination{}, fault.Errorf(fault.ErrInvalid, "the scheme %q is not known: %s", scheme, destinationHelp)
	}
	if host, path, ok := strings.Cut(rest, "/"); ok && strings.EqualFold(host, "localhost") {
		rest = "/" + path
	}
	dir, err := url.PathUnescape(rest)
	if err != nil {
		return destination{}, fault.Errorf(fault.ErrInvalid, "%w: write %%25 for a percent sign", err)
	}
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return destination{}, fault.Errorf(fault.ErrInvalid, "no absolute path follows %s://: %s", scheme, destinationHelp)
	}
	return destination{filepath.Clean(dir)}, nil
}

// String is the destination's URL, the same however it was written.
func (d destination) String() string { return (&url.URL{Scheme: "file", Path: d.dir}).String() }

// isTaken tells whether something else than a directory is there: nobody can make a repository in its place.
func (d destination) isTaken() bool {
	info, err := os.Stat(d.dir)
	return err == nil && !info.IsDir()
}

// initHint tells how to make a repository here.
func (d destination) initHint() string {
	return fmt.Sprintf("if no repository was ever made there, make one: orlop backup init %s --key-file FILE", d.quoted())
}

// quoted is the destination for a shell.
func (d destination) quoted() string { return quoted(d.String()) }

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// A backupURL names a backup: one by its ID, or the newest good one of a volume.
type backupURL struct {
	destination
	backup string // <lineage>.<record>, or empty
	volume string // name, or empty
}

// parseBackupURL reads DEST?backup=ID&volume=NAME, of which one may be missing.
func parseBackupURL(text string) (backupURL, error) {
	d, query, err := splitDestination(text)
	if err != nil {
		return backupURL{}, err
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return backupURL{}, fault.Errorf(fault.ErrInvalid, "backup URL %q: %w", text, err)
	}
	u := backupURL{destination: d, backup: values.Get("backup"), volume: values.Get("volume")}
	for name, given := range values {
		if name != "backup" && name != "volume" || len(given) != 1 || given[0] == "" {
			return backupURL{}, fault.Errorf(fault.ErrInvalid, "backup URL %q: only backup= and volume= may be behind the question mark, once each and not empty", text)
		}
	}
	if u.backup == "" && u.volume == "" {
		return backupURL{}, fault.Errorf(fault.ErrInvalid, "backup URL %q: which backup? see orlop backup list %s", text, d.quoted())
	}
	return u, nil
}

// String is the URL; quote it in a shell.
func (u backupURL) String() string {
	var parts []string
	if u.backup != "" {
		parts = append(parts, "backup="+url.QueryEscape(u.backup))
	}
	if u.volume != "" {
		parts = append(parts, "volume="+url.QueryEscape(u.volume))
	}
	return u.destination.String() + "?" + strings.Join(parts, "&")
}
