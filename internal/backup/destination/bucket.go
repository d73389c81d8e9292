package destination

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store"
	"orlop/internal/backup/store/s3store"
	"orlop/internal/fault"
)

var (
	bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	hostName   = regexp.MustCompile(`^([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)
)

// noSecrets is what to do with credentials that stand in a URL.
const noSecrets = "credentials never stand in a URL, which is shown and logged: give them in a file or in the environment"

// bucketKeys are what may be behind the question mark of a bucket's URL; the last two name a backup.
var bucketKeys = []string{"endpoint", "style", "backup", "volume"}

// longestPrefix leaves room in S3's 1,024 bytes for a slash and the longest name of an object.
const longestPrefix = 1024 - 1 - store.MaxName

// parseBucket reads what follows "s3:" and the query behind it, of which it returns what is not about the bucket. Its errors quote
// nothing that may be a secret.
func parseBucket(text, query string) (p s3store.Place, rest string, err error) {
	at, slashes := strings.CutPrefix(text, "//")
	if !slashes {
		return p, "", fault.Errorf(fault.ErrInvalid, "two slashes must follow s3: %s", forms)
	}
	host, path, _ := strings.Cut(at, "/")
	if strings.Contains(host, ":") || strings.Count(host, "@") > 1 {
		return p, "", fault.Errorf(fault.ErrInvalid, "there is a colon, or a second @, before the prefix: %s; %s; a server goes behind ?endpoint=", forms, noSecrets)
	}
	var region string
	p.Bucket, region, _ = strings.Cut(host, "@")
	if !bucketName.MatchString(p.Bucket) {
		return p, "", fault.Errorf(fault.ErrInvalid, "what follows s3:// is no name of a bucket: %s", forms)
	}
	if strings.Contains(host, "@") && !regionName.MatchString(region) {
		return p, "", fault.Errorf(fault.ErrInvalid, "what follows the @ is no name of a region: %s", forms)
	}
	if region != s3store.DefaultRegion {
		p.Region = region
	}
	if p.Prefix, err = parsePrefix(p.Bucket, path); err != nil {
		return p, "", err
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return p, "", fault.Errorf(fault.ErrInvalid, "what is behind the question mark cannot be read: write %%25 for a percent sign")
	}
	for name, given := range values {
		if !slices.Contains(bucketKeys, name) {
			return p, "", fault.Errorf(fault.ErrInvalid, "only endpoint=, style=, backup= and volume= may be behind the question mark; %s", noSecrets)
		}
		if len(given) != 1 {
			return p, "", fault.Errorf(fault.ErrInvalid, "%s= is there %d times", name, len(given))
		}
	}
	if values.Has("endpoint") {
		if p.Endpoint, err = parseEndpoint(values.Get("endpoint")); err != nil {
			return p, "", err
		}
	}
	switch style := values.Get("style"); {
	case style == "host":
		p.HostStyle = p.Endpoint != "" // Amazon knows no other
	case values.Has("style") && style != "path" || style == "path" && p.Endpoint == "":
		return p, "", fault.Errorf(fault.ErrInvalid, "style= must be host, or path for an endpoint")
	}
	values.Del("endpoint")
	values.Del("style")
	return p, values.Encode(), nil
}

// parsePrefix reads the path of a bucket's URL. A bucket holds other things one day: a repository always has a prefix.
func parsePrefix(bucket, path string) (string, error) {
	prefix, err := url.PathUnescape(strings.Trim(path, "/"))
	if err != nil {
		return "", fault.Errorf(fault.ErrInvalid, "the prefix cannot be read: write %%25 for a percent sign")
	}
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return "", fault.Errorf(fault.ErrInvalid, "no prefix follows the bucket: use s3://%s/orlop for example", bucket)
	}
	if len(prefix) > longestPrefix || strings.ContainsFunc(prefix, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' || r == '\\' }) {
		return "", fault.Errorf(fault.ErrInvalid, "the prefix is longer than %d bytes, or holds a backslash or what cannot be printed", longestPrefix)
	}
	for segment := range strings.SplitSeq(prefix, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", fault.Errorf(fault.ErrInvalid, "the prefix has a segment that is empty, . or ..")
		}
	}
	return prefix, nil
}

// parseEndpoint reads the URL of a server and returns it as it is always written.
func parseEndpoint(text string) (string, error) {
	const usage = "endpoint= must be http://HOST[:PORT] or https://HOST[:PORT], without a path"
	scheme, host, ok := strings.Cut(text, "://")
	scheme, host = strings.ToLower(scheme), strings.ToLower(strings.TrimSuffix(host, "/"))
	switch {
	case strings.Contains(host, "@"):
		return "", fault.Errorf(fault.ErrInvalid, "%s; %s", usage, noSecrets)
	case !ok || scheme != "http" && scheme != "https" || !hostName.MatchString(host):
		return "", fault.Errorf(fault.ErrInvalid, "%s", usage)
	}
	for _, port := range []struct{ scheme, suffix string }{{"http", ":80"}, {"https", ":443"}} {
		if scheme == port.scheme {
			host = strings.TrimSuffix(host, port.suffix)
		}
	}
	return scheme + "://" + host, nil
}

// bucketURL is the URL of a place in a bucket.
func bucketURL(p s3store.Place) string {
	text := "s3://" + p.Bucket
	if p.Region != "" {
		text += "@" + p.Region
	}
	text += (&url.URL{Path: "/" + p.Prefix}).EscapedPath()
	if p.Endpoint != "" {
		text += "?endpoint=" + p.Endpoint
	}
	if p.HostStyle {
		text += "&style=host"
	}
	return text
}

// openBucket opens the store. It sends no request.
func openBucket(at Destination, from Credentials) (*s3store.Store, error) {
	s, err := s3store.Open(at.bucket, from)
	if errors.Is(err, s3store.ErrNoCredentials) {
		return nil, &Error{Destination: at, Remedy: GiveCredentials, err: fmt.Errorf("%s: %w", at, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return s, nil
}

// lookIntoBucket reports whether a repository is below the prefix, or what is left of one, and names something else that is, if
// there is anything.
func lookIntoBucket(ctx context.Context, s *s3store.Store) (repository bool, stranger string, err error) {
	err = s.Top(ctx, func(name string) error {
		switch {
		case name == repo.ConfigName, name == lineages+"/":
			repository = true
		case stranger == "" && !slices.Contains(harmless, strings.TrimSuffix(name, "/")):
			stranger = name
		}
		return nil
	})
	if err != nil {
		return false, "", fmt.Errorf("make a repository: %w", err)
	}
	return repository, stranger, nil
}

// isMissingBucket reports whether a request failed because its bucket does not exist.
func isMissingBucket(err error) bool {
	var missing *s3store.NoBucketError
	return errors.As(err, &missing)
}

// missingBucket gives the failure of a request to a bucket that does not exist its kind for those who open repositories: to the
// others it is no missing object.
func missingBucket(err error) error {
	if err != nil && isMissingBucket(err) {
		return fault.Errorf(fault.ErrNotFound, "%w", err)
	}
	return err
}

// WithEndpoint returns the destination at an endpoint, given as behind endpoint= in its URL. It fails with fault.ErrInvalid if it has
// one, or is no bucket.
func (d Destination) WithEndpoint(text string) (Destination, error) {
	if !d.IsBucket() || d.bucket.Endpoint != "" {
		return d, fault.Errorf(fault.ErrInvalid, "endpoint: only for a bucket whose URL names none")
	}
	endpoint, err := parseEndpoint(text)
	if err != nil {
		return d, fmt.Errorf("endpoint: %w", err)
	}
	d.bucket.Endpoint = endpoint
	return d, nil
}

// EnvironmentCredentials returns the credentials in the environment of this process; zero if there are none.
func EnvironmentCredentials() (Credentials, error) { return s3store.FromEnvironment() }
