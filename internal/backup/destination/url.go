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

// ParseURL reads DEST?backup=ID&volume=NAME, of which one may be missing; behind the endpoint of a bucket a & stands for the question
// mark. It fails as Parse does, and with fault.ErrInvalid
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

// IsURL reports whether text has the form of a backup's URL, and not of a destination alone. ParseURL may refuse it.
func IsURL(text string) bool {
	where, query, found := strings.Cut(text, "?")
	scheme, _, _ := strings.Cut(where, ":")
	if !found || !strings.EqualFold(scheme, "s3") {
		return found
	}
	for part := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(part, "="); name == "backup" || name == "volume" {
			return true
		}
	}
	return false
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
	at := u.Destination.String()
	separator := "?"
	if strings.Contains(at, "?") {
		separator = "&"
	}
	return at + separator + strings.Join(parts, "&")
}
