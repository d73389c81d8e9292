package main

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"orlop/internal/backup/store/dirstore"
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

// splitDestination reads a destination, with a query behind it or not.
func splitDestination(text string) (d destination, query string, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		path, query, _ := strings.Cut(text, "?")
		if path == "" || strings.ContainsRune(path, 0) {
			return destination{}, "", fault.Errorf(fault.ErrInvalid, "destination %q: this is no path: %s", text, destinationHelp)
		}
		dir, err := filepath.Abs(path)
		if err != nil {
			return destination{}, "", fmt.Errorf("destination %q: %w", text, err)
		}
		return destination{dir}, query, nil
	}
	switch scheme {
	case "file", "vfs":
	case "s3":
		return destination{}, "", fault.Errorf(fault.ErrUnsupported, "destination %q: buckets are not supported yet: %s", text, destinationHelp)
	default:
		return destination{}, "", fault.Errorf(fault.ErrInvalid, "destination %q: the scheme %q is not known: %s", text, scheme, destinationHelp)
	}
	path, query, _ := strings.Cut(rest, "?")
	dir, err := url.PathUnescape(path)
	if err != nil || !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return destination{}, "", fault.Errorf(fault.ErrInvalid, "destination %q: no absolute path follows %s://: %s", text, scheme, destinationHelp)
	}
	return destination{filepath.Clean(dir)}, query, nil
}

// String is the destination's URL, the same however it was written.
func (d destination) String() string { return (&url.URL{Scheme: "file", Path: d.dir}).String() }

// open opens the store, which must be there.
func (d destination) open() (*dirstore.Store, error) {
	s, err := dirstore.Open(d.dir)
	if fault.Is(err, fault.ErrNotFound) {
		return nil, fault.Errorf(fault.ErrNotFound, "%w; %s", err, d.initHint())
	}
	return s, err
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
