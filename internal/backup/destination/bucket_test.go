package destination

import (
	"strings"
	"testing"

	"orlop/internal/backup/store/s3store"
	"orlop/internal/fault"
)

func TestURLsOfBuckets(t *testing.T) {
	for text, want := range map[string]string{
		"s3://bucket/orlop":            "s3://bucket/orlop",
		"S3://bucket/orlop/":           "s3://bucket/orlop",
		"s3://bucket@eu-central-1/a/b": "s3://bucket@eu-central-1/a/b",
		"s3://bucket@us-east-1/a":      "s3://bucket/a",
		"s3://bucket/a%20b":            "s3://bucket/a%20b",
		"s3://my.bucket/a?endpoint=HTTP://Nas.example.com:9000/":  "s3://my.bucket/a?endpoint=http://nas.example.com:9000",
		"s3://bucket/a?endpoint=https://s3.example.com:443":       "s3://bucket/a?endpoint=https://s3.example.com",
		"s3://bucket/a?endpoint=https%3A%2F%2Fs3.example.com":     "s3://bucket/a?endpoint=https://s3.example.com",
		"s3://bucket/a?endpoint=http://[::1]:7480":                "s3://bucket/a?endpoint=http://[::1]:7480",
		"s3://bucket/a?style=host&endpoint=http://s3.example.com": "s3://bucket/a?endpoint=http://s3.example.com&style=host",
		"s3://bucket/a?style=path&endpoint=http://s3.example.com": "s3://bucket/a?endpoint=http://s3.example.com",
	} {
		d, err := Parse(text)
		if err != nil || d.String() != want || !d.IsBucket() || IsURL(text) {
			t.Errorf("%s: %s, %v", text, d, err)
			continue
		}
		again, err := Parse(want)
		if err != nil || again != d {
			t.Errorf("%s is read as %+v and %s as %+v, %v", text, d, want, again, err)
		}
		separator := "?"
		if strings.Contains(text, "?") {
			separator = "&"
		}
		u, err := ParseURL(text + separator + "backup=l.r&volume=db")
		if err != nil || u.Destination != d || u.Backup != "l.r" || u.Volume != "db" || !IsURL(u.String()) {
			t.Errorf("%s: %+v, %v", text, u, err)
		}
		if same, err := ParseURL(u.String()); err != nil || same != u {
			t.Errorf("%s is read as %+v, %v", u, same, err)
		}
	}
}

func TestBadURLsOfBucketsAreRefusedWithoutQuotingSecrets(t *testing.T) {
	for text, says := range map[string]string{
		"s3://":                          "no name of a bucket",
		"s3://b/x":                       "no name of a bucket",
		"s3:///x":                        "no name of a bucket",
		"s3://bucket":                    "s3://bucket/orlop",
		"s3://bucket/":                   "s3://bucket/orlop",
		"s3://bucket//":                  "s3://bucket/orlop",
		"s3://bucket@/x":                 "no name of a region",
		"s3://bucket@EU/x":               "no name of a region",
		"s3://bucket/a//b":               "empty, . or ..",
		"s3://bucket/a/../b":             "empty, . or ..",
		"s3://bucket/%00":                "cannot be printed",
		"s3://bucket/%zz":                "%25",
		"s3://AKIA:topsecret@bucket/x":   "never stand in a URL",
		"s3://AKIA:topsecret/x":          "never stand in a URL",
		"s3:AKIA:topsecret@bucket/x":     "two slashes",
		"s3://a@topsecret@eu-1/x":        "never stand in a URL",
		"s3://bucket:9000/x":             "endpoint=",
		"s3://bucket/x?secret=topsecret": "never stand in a URL",
		"s3://bucket/x?endpoint=http://AKIA:topsecret@nas/":            "never stand in a URL",
		"s3://bucket/x?endpoint=http://nas/path":                       "without a path",
		"s3://bucket/x?endpoint=nas:9000":                              "http://HOST",
		"s3://bucket/x?endpoint=ftp://nas":                             "http://HOST",
		"s3://bucket/x?endpoint=":                                      "http://HOST",
		"s3://bucket/x?endpoint=http://a&endpoint=http://b":            "2 times",
		"s3://bucket/x?style=odd&endpoint=http://nas":                  "style=",
		"s3://bucket/x?style=path":                                     "style=",
		"s3://bucket/x?endpoint=http://nas&topsecret=%zz":              "cannot be read",
		"s3://bucket/" + strings.Repeat("x", 512):                      "longer than",
		"s3://bucket/x?endpoint=http://nas&access_key_id=topsecret&a=": "never stand in a URL",
	} {
		for _, parse := range []func(string) error{
			func(text string) error { _, err := Parse(text); return err },
			func(text string) error { _, err := ParseURL(text + "&volume=db"); return err },
		} {
			err := parse(text)
			if err == nil || !fault.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("%s: %v", text, err)
			}
		}
		if _, err := Parse(text); !strings.Contains(err.Error(), says) {
			t.Errorf("%s: it does not say %q: %v", text, says, err)
		}
	}
}

func TestAnEndpointIsGivenOnceAndToBucketsOnly(t *testing.T) {
	plain, err := Parse("s3://bucket/x")
	if err != nil {
		t.Fatal(err)
	}
	at, err := plain.WithEndpoint("http://nas:9000")
	if err != nil || at.String() != "s3://bucket/x?endpoint=http://nas:9000" {
		t.Errorf("%s, %v", at, err)
	}
	dir, err := Parse("/srv")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []Destination{at, dir} {
		if _, err := d.WithEndpoint("http://nas:9000"); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", d, err)
		}
	}
	if _, err := plain.WithEndpoint("nas"); !fault.Is(err, fault.ErrInvalid) {
		t.Error(err)
	}
}

func TestABucketNeedsCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	w := newWorld(t)
	w.at = Destination{bucket: s3store.Place{Bucket: "bucket", Prefix: "x", Endpoint: "http://127.0.0.1:1"}}
	_, err := Open(t.Context(), w.at, w.options)
	w.wantRemedy(err, fault.ErrInvalid, GiveCredentials)
	_, err = OpenOrInit(t.Context(), w.at, w.options, false)
	w.wantRemedy(err, fault.ErrInvalid, GiveCredentials)
}
