package destination

import (
	"net/url"
	"strings"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

// A URL names a backup: one by its ID, or the newest good one of a volume.
type URL struct {
	Destination
	Backup string // ID of the backup, <lineage>.<record>; or empty
	Volume string // name of the volume; or empty, if Backup is not
}

// ParseURL reads DEST?backup=ID&volume=NAME, of which one may be missing. It fails as Parse does, and with fault.ErrInvalid
// if the query names no backup or has anything else in it.
func ParseURL(text string) (URL, error) {
	d, query, err := split(text)
	if err != nil {
		return URL{}, err
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return URL{}, fault.Errorf(fault.ErrInvalid, "backup URL %q: %w", text, err)
	}
	u := URL{Destination: d, Backup: values.Get("backup"), Volume: values.Get("volume")}
	for name, given := range values {
		if name != "backup" && name != "volume" || len(given) != 1 || given[0] == "" {
			return URL{}, fault.Errorf(fault.ErrInvalid, "backup URL %q: only backup= and volume= may be behind the question mark, once each and not empty", text)
		}
	}
	if u.Backup == "" && u.Volume == "" {
		return URL{}, &Error{Destination: d, Remedy: ListBackups, err: fault.Errorf(fault.ErrInvalid, "backup URL %q: which backup?", text)}
	}
	return u, nil
}

// URL returns the URL of a backup in this destination.
func (d Destination) URL(b *repo.Backup) URL {
	return URL{Destination: d, Backup: b.ID(), Volume: b.Volume.Name}
}

// String returns the URL, which ParseURL reads. It has characters that must be quoted in a shell.
func (u URL) String() string {
	var parts []string
	if u.Backup != "" {
		parts = append(parts, "backup="+url.QueryEscape(u.Backup))
	}
	if u.Volume != "" {
		parts = append(parts, "volume="+url.QueryEscape(u.Volume))
	}
	return u.Destination.String() + "?" + strings.Join(parts, "&")
}
