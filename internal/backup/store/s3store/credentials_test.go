package s3store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/backup/store/s3store/s3test"
	"orlop/internal/fault"
)

// bare clears what the environment says of credentials.
func bare(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const keysFile = `# comment
[default]
aws_access_key_id = one
aws_secret_access_key = secret-1

[profile]
aws_access_key_id=two
AWS_SECRET_ACCESS_KEY=secret=2
aws_session_token=token-2
region = eu-central-1
`

func TestTheFirstSourceOfKeysCounts(t *testing.T) {
	bare(t)
	if _, err := newSource(Credentials{}); !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "no S3 credentials") {
		t.Errorf("none: %v", err)
	}
	given := Credentials{Access: "given", Secret: "g"}
	file := Credentials{File: write(t, filepath.Join(t.TempDir(), "keys"), keysFile), Access: "ignored", Secret: "ignored"}
	expect := func(from Credentials, access, secret, token string) {
		t.Helper()
		s, err := newSource(from)
		if err != nil {
			t.Fatal(err)
		}
		if k := s.keys; k.AccessKeyID != access || k.SecretAccessKey != secret || k.SessionToken != token {
			t.Errorf("%s: %+v", from, k.AccessKeyID)
		}
	}
	write(t, filepath.Join(os.Getenv("HOME"), ".aws", "credentials"), strings.ReplaceAll(keysFile, "one", "home"))
	expect(Credentials{}, "home", "secret-1", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write(t, filepath.Join(t.TempDir(), "shared"), strings.ReplaceAll(keysFile, "one", "shared")))
	expect(Credentials{}, "shared", "secret-1", "")
	t.Setenv("AWS_PROFILE", "profile")
	expect(Credentials{}, "two", "secret=2", "token-2")
	expect(file, "two", "secret=2", "token-2")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "environment")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "e")
	expect(Credentials{}, "environment", "e", "")
	expect(given, "given", "g", "")
	expect(file, "one", "secret-1", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if _, err := newSource(Credentials{}); !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "only one of") {
		t.Errorf("half: %v", err)
	}
}

func TestFilesOfKeysThatCannotServeAreRefusedWithoutQuotingThem(t *testing.T) {
	bare(t)
	for name, text := range map[string]string{
		"empty": "", "another section": "[other]\naws_access_key_id=a\naws_secret_access_key=very-secret\n",
		"half": "[default]\naws_secret_access_key=very-secret\n", "no section": "aws_access_key_id=a\naws_secret_access_key=very-secret\n",
		"a bare key": "very-secret\n",
	} {
		path := write(t, filepath.Join(t.TempDir(), "keys"), text)
		_, err := newSource(Credentials{File: path})
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "very-secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newSource(Credentials{File: filepath.Join(t.TempDir(), "missing")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestCredentialsPrintNoSecret(t *testing.T) {
	c := testKeys
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credentials", c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), log.String(), c.ID()} {
		if strings.Contains(text, c.Secret) || strings.Contains(text, c.Token) {
			t.Errorf("it shows a secret: %s", text)
		}
	}
	other := c
	other.Secret += "x"
	if c.ID() == other.ID() || c.ID() != testKeys.ID() {
		t.Error("IDs do not tell credentials apart")
	}
}

// Keys in a file are replaced before they expire, or when they have.
func TestKeysAreReadAgainWhenTheyAreRefused(t *testing.T) {
	bare(t)
	path := write(t, filepath.Join(t.TempDir(), "keys"), strings.ReplaceAll(keysFile, "one", "OLDKEY"))
	for _, code := range []string{"ExpiredToken", "InvalidAccessKeyId", "AccessDenied"} {
		p := s3test.NewProxy(t, nil)
		p.Always(func(r *s3test.Request, _ func(*s3test.Request) s3test.Answer) s3test.Answer {
			if strings.Contains(r.Header.Get("Authorization"), "OLDKEY") {
				write(t, path, strings.ReplaceAll(keysFile, "one", "NEWKEY"))
				return s3test.ErrorAnswer(403, code)
			}
			return answers(r, nil)
		})
		write(t, path, strings.ReplaceAll(keysFile, "one", "OLDKEY"))
		s := at(t, p.URL, Credentials{File: path}, brisk)
		if _, err := s.Get(t.Context(), "a"); err != nil || len(p.Seen()) != 2 {
			t.Errorf("%s: %v, requests %v", code, err, p.Seen())
		}
	}
}

func TestKeysThatStayTheSameAreTriedOnce(t *testing.T) {
	bare(t)
	p := s3test.NewProxy(t, nil)
	p.Always(s3test.Status(403, "ExpiredToken"))
	s := at(t, p.URL, Credentials{File: write(t, filepath.Join(t.TempDir(), "keys"), keysFile)}, brisk)
	if _, err := s.Get(t.Context(), "a"); !strings.Contains(fmt.Sprint(err), "have expired") || len(p.Seen()) != 1 {
		t.Errorf("%v, requests %v", err, p.Seen())
	}
	if err := os.Remove(s.keys.from.File); err != nil {
		t.Fatal(err)
	}
	s.keys.mu.Lock()
	s.keys.renewed = true
	s.keys.mu.Unlock()
	if _, err := s.Get(t.Context(), "a"); !strings.Contains(fmt.Sprint(err), "no such file") || strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("the file is gone: %v", err)
	}
}
