package s3store

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"orlop/internal/fault"
)

// Credentials say where the keys for a bucket come from: File, or else the keys themselves, or else the environment
// of this process and the files that AWS tools use. Printed or logged, they show no secret.
type Credentials struct {
	File   string // of the form that AWS tools use, read again when the server refuses the keys: an absolute path, or empty
	Access string // access key; empty if the keys are not given
	Secret string
	Token  string // session token of temporary keys, or empty

	CABundle string // certificates of authorities to trust besides the system's, in PEM form: an absolute path, or empty
}

// String names the source without any secret.
func (c Credentials) String() string {
	switch {
	case c.File != "":
		return "credentials in " + c.File
	case c.Access != "":
		return "credentials that were given"
	}
	return "credentials of the environment"
}

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// LogValue is String.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ID tells credentials from others, and shows no secret.
func (c Credentials) ID() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{c.File, c.Access, c.Secret, c.Token, c.CABundle}, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// FromEnvironment returns the credentials that the variables of the environment of this process hold; Access is empty if they hold
// none. AWS_CA_BUNDLE is made an absolute path.
func FromEnvironment() (Credentials, error) {
	c := Credentials{Access: os.Getenv("AWS_ACCESS_KEY_ID"), Secret: os.Getenv("AWS_SECRET_ACCESS_KEY"), Token: os.Getenv("AWS_SESSION_TOKEN")}
	if (c.Access == "") != (c.Secret == "") {
		return c, fault.Errorf(fault.ErrInvalid, "S3 credentials: only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set")
	}
	if bundle := os.Getenv("AWS_CA_BUNDLE"); bundle != "" {
		var err error
		if c.CABundle, err = filepath.Abs(bundle); err != nil {
			return c, fmt.Errorf("AWS_CA_BUNDLE: %w", err)
		}
	}
	return c, nil
}

// ErrNoCredentials is the failure, of kind fault.ErrInvalid, to find any.
var ErrNoCredentials = errors.New("no S3 credentials")

// reread is the age at which keys from files are read again.
const reread = 5 * time.Minute

// A source gives keys to the client, and reads them again when they are old or were refused. It is safe for concurrent use.
type source struct {
	from Credentials

	mu      sync.Mutex // guards what follows
	keys    credentials.Value
	read    time.Time
	number  int  // of times that the keys changed
	renewed bool // they are to be read before the next request
}

var _ credentials.Provider = (*source)(nil)

// newSource reads the keys once.
func newSource(from Credentials) (*source, error) {
	s := &source{from: from}
	if from.CABundle == "" && from.File != "" || from.Access == "" {
		environment, err := FromEnvironment()
		if err != nil && from.File == "" {
			return nil, err
		}
		if s.from.CABundle == "" {
			s.from.CABundle = environment.CABundle
		}
	}
	_, err := s.Retrieve()
	return s, err
}

// A keysError is the failure to read the keys, as opposed to one of a request.
type keysError struct{ error }

func (e keysError) Unwrap() error { return e.error }

// Retrieve reads the keys.
func (s *source) Retrieve() (credentials.Value, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys, err := s.retrieve()
	if err != nil {
		return keys, keysError{err}
	}
	return keys, nil
}

// RetrieveWithCredContext is Retrieve.
func (s *source) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return s.Retrieve()
}

// retrieve reads the keys. The caller holds s.mu.
func (s *source) retrieve() (credentials.Value, error) {
	keys, err := readKeys(s.from)
	if err != nil {
		return credentials.Value{}, err
	}
	if keys != s.keys {
		s.keys = keys
		s.number++
	}
	s.read, s.renewed = time.Now(), false
	return keys, nil
}

// IsExpired reports whether the keys are to be read again before the next request.
func (s *source) IsExpired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewed || time.Since(s.read) > reread
}

// generation tells keys from earlier ones.
func (s *source) generation() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number
}

// renew reads the keys again, after those of a generation were refused, and reports whether they are others now.
func (s *source) renew(refused int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number == refused {
		_, err := s.retrieve()
		if err != nil || s.number == refused {
			return false
		}
	}
	s.renewed = true // the client keeps a copy
	return true
}

// readKeys reads the keys from where they are.
func readKeys(from Credentials) (credentials.Value, error) {
	switch {
	case from.File != "":
		return readFile(from.File, os.Getenv("AWS_PROFILE"))
	case from.Access != "":
		return value(from), nil
	}
	environment, err := FromEnvironment()
	if err != nil {
		return credentials.Value{}, err
	}
	if environment.Access != "" {
		return value(environment), nil
	}
	path := os.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root" // a service has no HOME
		}
		path = filepath.Join(home, ".aws", "credentials")
	}
	keys, err := readFile(path, os.Getenv("AWS_PROFILE"))
	if errors.Is(err, fs.ErrNotExist) {
		return keys, fault.Errorf(fault.ErrInvalid, "%w: neither AWS_ACCESS_KEY_ID is set nor does %s exist", ErrNoCredentials, path)
	}
	return keys, err
}

func value(c Credentials) credentials.Value {
	return credentials.Value{AccessKeyID: c.Access, SecretAccessKey: c.Secret, SessionToken: c.Token, SignerType: credentials.SignatureV4}
}

// readFile reads a section of a file of the form that AWS tools use:
//
//	[default]
//	aws_access_key_id = …
//	aws_secret_access_key = …
//	aws_session_token = …
//
// An empty profile is "default". It fails with fault.ErrInvalid if the keys are not there. No error quotes a line.
func readFile(path, profile string) (credentials.Value, error) {
	if profile == "" {
		profile = "default"
	}
	file, err := os.Open(path)
	if err != nil {
		return credentials.Value{}, fmt.Errorf("S3 credentials: %w", err)
	}
	defer file.Close()
	var c Credentials
	fields := map[string]*string{"aws_access_key_id": &c.Access, "aws_secret_access_key": &c.Secret, "aws_session_token": &c.Token}
	within := false
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if section, ok := strings.CutPrefix(line, "["); ok {
			section, _, _ = strings.Cut(section, "]")
			within = strings.TrimSpace(section) == profile
			continue
		}
		name, text, found := strings.Cut(line, "=")
		if field := fields[strings.ToLower(strings.TrimSpace(name))]; found && within && field != nil {
			*field = strings.TrimSpace(text)
		}
	}
	if err := lines.Err(); err != nil {
		return credentials.Value{}, fmt.Errorf("S3 credentials: read %s: %w", path, err)
	}
	if c.Access == "" || c.Secret == "" {
		return credentials.Value{}, fault.Errorf(fault.ErrInvalid, "S3 credentials: section [%s] of %s lacks aws_access_key_id or aws_secret_access_key", profile, path)
	}
	return value(c), nil
}
