package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"orlop/internal/fault"
)

// A NoBucketError is the failure of a request to a bucket that does not exist.
type NoBucketError struct{ Place Place }

// Error returns what is wrong and what helps.
func (e *NoBucketError) Error() string {
	return fmt.Sprintf("bucket %q does not exist at %s: create it there, or correct its name or the endpoint", e.Place.Bucket, e.Place.endpoint())
}

// responseOf returns the reply of a server that is in err's chain, or an empty one.
func responseOf(err error) (r minio.ErrorResponse) {
	errors.As(err, &r)
	return r
}

// A verdict says what an error means.
type verdict struct {
	err     error // for the caller, with a kind
	passing bool  // the same request may succeed later
	keys    bool  // it may succeed with other credentials
}

// refusals are the replies to requests that will not succeed, by their code, with their kind and what helps.
var refusals = map[string]struct {
	kind fault.Kind
	text string
	keys bool
}{
	"InvalidAccessKeyId":    {fault.ErrFailed, "the server does not know the access key: check the S3 credentials, and that they are of this endpoint", true},
	"SignatureDoesNotMatch": {fault.ErrFailed, "the secret key does not belong to the access key, or a proxy changes the request: check the S3 credentials", true},
	"ExpiredToken":          {fault.ErrFailed, "the S3 credentials have expired: get new ones", true},
	"ExpiredTokenException": {fault.ErrFailed, "the S3 credentials have expired: get new ones", true},
	"TokenRefreshRequired":  {fault.ErrFailed, "the S3 credentials have expired: get new ones", true},
	"InvalidToken":          {fault.ErrFailed, "the session token is not valid: check the S3 credentials", true},
	"AccountProblem":        {fault.ErrFailed, "the provider has a problem with the account", false},
	"AllAccessDisabled":     {fault.ErrFailed, "the provider has disabled the bucket", false},
	"QuotaExceeded":         {fault.ErrNoSpace, "the quota of the bucket or the account is used up: raise it, or prune backups", false},
	"XMinioStorageFull":     {fault.ErrNoSpace, "the server's disks are full: make room there, or prune backups", false},
	"EntityTooLarge":        {fault.ErrUnsupported, "the server takes no object of this size", false},
	"InvalidBucketName":     {fault.ErrInvalid, "the server takes this for no bucket's name", false},
	"InvalidObjectState":    {fault.ErrFailed, "the object was moved to an archive class, from which it cannot be read: exclude the prefix from the bucket's lifecycle rules", false},
}

// busy are codes of replies to requests that may succeed later, where the status does not say so.
var busy = []string{
	"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError", "OperationAborted",
	"ConditionalRequestConflict", "ServiceUnavailable", "XAmzContentSHA256Mismatch", "IncompleteBody", "BadDigest",
}

// inTheWay are codes of servers that keep objects as files, where one has the name of a directory of another.
var inTheWay = []string{"ExistingObjectIsDirectory", "ExistingObjectIsFile", "ObjectParentIsFile", "XMinioParentIsObject", "XMinioObjectExistsAsDirectory"}

// judge says what the error of a request means.
func (s *Store) judge(err error, seen *reply) verdict {
	var keys keysError
	response := responseOf(err)
	switch {
	case fault.KindOf(err) != fault.ErrFailed || errors.As(err, &keys):
		return verdict{err: err} // it was judged where it was met
	case response.StatusCode != 0 || response.Code != "":
		return s.judgeReply(response, seen)
	}
	return s.judgeConnection(err)
}

// judgeReply judges what a server answered.
func (s *Store) judgeReply(r minio.ErrorResponse, seen *reply) verdict {
	said := told(r)
	if refusal, ok := refusals[r.Code]; ok {
		return verdict{err: fault.Errorf(refusal.kind, "%s%s", refusal.text, said), keys: refusal.keys}
	}
	switch {
	case r.Code == minio.PreconditionFailed || r.StatusCode == http.StatusPreconditionFailed:
		return verdict{err: errTaken}
	case r.Code == minio.NoSuchBucket:
		return verdict{err: fault.Errorf(fault.ErrFailed, "%w", &NoBucketError{s.place})}
	case r.Code == minio.NoSuchKey || r.StatusCode == http.StatusNotFound:
		return verdict{err: fault.Errorf(fault.ErrNotFound, "not found")}
	case slices.Contains(inTheWay, r.Code):
		return verdict{err: fault.Errorf(fault.ErrInvalid, "an object has the name of a directory of others%s", said)}
	case r.Code == "RequestTimeTooSkewed":
		return verdict{err: fault.Errorf(fault.ErrFailed, "this host's clock is %s: set it%s", skewed(seen.skew), said)}
	case isOtherRegion(r):
		return verdict{err: s.otherRegion(r)}
	case r.StatusCode == http.StatusInsufficientStorage:
		return verdict{err: fault.Errorf(fault.ErrNoSpace, "the server has no space left: make room there, or prune backups%s", said)}
	case r.StatusCode == http.StatusRequestEntityTooLarge:
		return verdict{err: fault.Errorf(fault.ErrUnsupported, "the server, or a proxy before it, refuses the object as too large: raise the limit to 64 MiB%s", said)}
	case r.StatusCode == http.StatusNotImplemented || r.Code == "NotImplemented":
		return verdict{err: fault.Errorf(fault.ErrUnsupported, "the server does not support this request, of which backups depend%s", said)}
	case r.StatusCode == http.StatusForbidden:
		return verdict{err: fault.Errorf(fault.ErrFailed, "access denied: the credentials need the permission for this, and for listing the bucket%s", said), keys: true}
	case r.StatusCode >= 500 || r.StatusCode == http.StatusConflict || r.StatusCode == http.StatusTooManyRequests ||
		r.StatusCode == http.StatusRequestTimeout || slices.Contains(busy, r.Code):
		return verdict{err: fault.Errorf(fault.ErrUnreachable, "%s cannot serve the request now%s", s.place.endpoint(), said), passing: true}
	}
	return verdict{err: fault.Errorf(fault.ErrFailed, "%s refuses the request%s", s.place.endpoint(), said)}
}

// told is what a server said, in parentheses. It is cut where it is too long for a message.
func told(r minio.ErrorResponse) string {
	text := strings.Join(strings.Fields(r.Error()), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	if r.StatusCode == 0 {
		return fmt.Sprintf(" (%s: %s)", r.Code, text)
	}
	return fmt.Sprintf(" (HTTP %d, %s: %s)", r.StatusCode, r.Code, text)
}

// skewed says how wrong a clock is.
func skewed(ahead time.Duration) string {
	switch ahead = ahead.Round(time.Second); {
	case ahead > 0:
		return fmt.Sprintf("%s ahead of the server's", ahead)
	case ahead < 0:
		return fmt.Sprintf("%s behind the server's", -ahead)
	}
	return "too far from the server's"
}

// isOtherRegion reports whether a server says that the bucket is in another region.
func isOtherRegion(r minio.ErrorResponse) bool {
	switch r.Code {
	case minio.AuthorizationHeaderMalformed, minio.InvalidRegion, "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException":
		return true
	}
	return r.StatusCode == http.StatusMovedPermanently || r.StatusCode == http.StatusTemporaryRedirect
}

func (s *Store) otherRegion(r minio.ErrorResponse) error {
	if r.Region != "" && r.Region != s.place.Region {
		return fault.Errorf(fault.ErrFailed, "bucket %q is in region %s, not in %s: write it as %s@%s in the URL", s.place.Bucket, r.Region, s.place.Region, s.place.Bucket, r.Region)
	}
	return fault.Errorf(fault.ErrFailed, "bucket %q is not in region %s, or not at this endpoint: write the region as %s@REGION in the URL%s", s.place.Bucket, s.place.Region, s.place.Bucket, told(r))
}

// judgeConnection judges the error of a request that got no reply, or one that cannot be understood.
func (s *Store) judgeConnection(err error) verdict {
	at := s.place.endpoint()
	var page errWebPage
	var syntax *xml.SyntaxError
	var unmarshal xml.UnmarshalError
	switch {
	case errors.As(err, &page), errors.As(err, &syntax), errors.As(err, &unmarshal):
		return verdict{err: fault.Errorf(fault.ErrFailed, "%s is no S3 endpoint: %w", at, cause(err))}
	case isCertificate(err):
		return verdict{err: fault.Errorf(fault.ErrFailed, "cannot trust the certificate of %s: %w: put the certificate of its authority into a file and name that in AWS_CA_BUNDLE", at, cause(err))}
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return verdict{err: fault.Errorf(fault.ErrFailed, "%s speaks no TLS there: use http:// for the endpoint, or correct the port", at)}
	}
	text := cause(err)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		text = errors.New("the connection was cut")
	case isTimeout(err):
		text = errors.New("no answer in time")
	}
	return verdict{err: fault.Errorf(fault.ErrUnreachable, "cannot reach %s: %w%s", at, text, s.proxy()), passing: true}
}

// proxy names the proxy that requests go through, since that may be what is wrong.
func (s *Store) proxy() string {
	at, err := url.Parse(s.place.endpoint())
	if err != nil {
		return ""
	}
	through, err := http.ProxyFromEnvironment(&http.Request{URL: at})
	if err != nil || through == nil {
		return ""
	}
	return fmt.Sprintf(" (through the proxy %s of the environment: see NO_PROXY)", through.Host)
}

// cause drops the method and URL that net/http puts before the error of a request.
func cause(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func isCertificate(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
