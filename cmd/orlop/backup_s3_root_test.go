//go:build root

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/backup/store/s3store/s3test"
)

// A bucketVault is a vault in a bucket, with what stands between.
type bucketVault struct {
	vault
	server *s3test.Server
	proxy  *s3test.Proxy
	keys   string // file of the credentials
}

// newBucketVault makes a repository in a bucket, with credentials in a file, and none in the environment.
func newBucketVault(t *testing.T) *bucketVault {
	t.Helper()
	aloneInCache(t)
	noAmbientKeys(t)
	server := s3test.Start(t)
	b := &bucketVault{server: server, proxy: s3test.NewProxy(t, server), keys: filepath.Join(t.TempDir(), "s3keys")}
	b.writeKeys(t, server.Access, server.Secret)
	t.Setenv("ORLOP_S3_CREDENTIALS", b.keys)
	b.vault = newVault(t, "s3://"+s3test.Bucket+"/hosts/a%20b?endpoint="+b.proxy.URL, true)
	b.proxy.Clear()
	return b
}

func (b *bucketVault) writeKeys(t *testing.T, access, secret string) {
	t.Helper()
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", access, secret)
	check(t, os.WriteFile(b.keys, []byte(text), 0o600))
}

// noAmbientKeys hides what this machine knows of keys for buckets.
func noAmbientKeys(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CA_BUNDLE", "ORLOP_S3_CREDENTIALS"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
}

// A volume goes to a bucket and comes back in every way that there is.
func TestVolumesComeBackFromABucket(t *testing.T) {
	b := newBucketVault(t)
	h := onReflink(t)
	h.start(t)
	h.must(t, "create", "db", "--size", "100M")
	h.must(t, "mount", "db")
	write := func(text string) {
		t.Helper()
		check(t, os.WriteFile(filepath.Join(h.root, "mounts", "db", "file"), []byte(text), 0o600))
	}
	write("one")
	first := h.backUp(t, b.vault, "db")
	if !strings.HasPrefix(first.URL, b.dir+"&backup=") {
		t.Errorf("its URL is %s", first.URL)
	}
	write("two")
	report, got := h.run(t, b.vault, "--all", "--keep-last", "2")
	if got.code != 0 || !report.OK || len(report.Volumes) != 1 {
		t.Fatalf("%s", got)
	}
	second := report.Volumes[0].URL

	quietly(t, b.with("backup", "verify", b.dir, "--data")...)
	h.restore(t, b.vault, first.URL, "db-one")
	h.wantFile(t, "db-one", "one")
	newest := b.dir + "&volume=db"
	h.must(t, b.with("create", "db-two", "--backup", newest)...)
	h.wantFile(t, "db-two", "two")
	image := filepath.Join(t.TempDir(), "image")
	quietly(t, b.with("backup", "restore", second, "--to-file", image)...)
	restored, want := sumImage(t, image), sumImage(t, h.newestImage(t, "db"))
	if restored.size != want.size || restored.content != want.content {
		t.Error("the image is not what was backed up")
	}

	// Docker passes no credentials: the daemon has its own.
	options := map[string]string{"backup": "s3://" + s3test.Bucket + "/hosts/a%20b?volume=db", "endpoint": b.proxy.URL, "key-file": b.key[1]}
	if answer, err := h.ask(t.Context(), "Create", dockerRequest{Name: "db-docker", Opts: options}); err != nil || !strings.Contains(answer.Err, "no S3 credentials") {
		t.Errorf("without credentials: %+v, %v", answer, err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", b.keys)
	h.docker(t, "Create", dockerRequest{Name: "db-docker", Opts: options})
	h.wantFile(t, "db-docker", "two")

	quietly(t, b.with("backup", "prune", b.dir, "--keep-last", "1")...)
	if left := b.list(t); len(left) != 1 || left[0].URL != second {
		t.Errorf("left: %+v", left)
	}
	quietly(t, b.with("backup", "verify", b.dir, "--data")...)
}

// Secrets stand in no record, log, listing, error or command line.
func TestSecretsOfBucketsAreNowhere(t *testing.T) {
	b := newBucketVault(t)
	t.Setenv("ORLOP_S3_CREDENTIALS", "")
	t.Setenv("AWS_ACCESS_KEY_ID", b.server.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", b.server.Secret)
	h := onReflink(t)
	h.start(t)
	h.must(t, "create", "db", "--size", "100M")
	made := h.backUp(t, b.vault, "db")
	h.restore(t, b.vault, made.URL, "copy")
	t.Setenv("AWS_SECRET_ACCESS_KEY", b.server.Secret+"x") // close to the right one
	failed := h.orlop(b.with("backup", "create", "db", "--dest", b.dir)...)
	failed.wants(t, 1, "secret key does not belong")
	for what, text := range map[string]string{
		"the failure": failed.String(), "jobs": h.must(t, "--json", "job", "list"), "inspect": h.must(t, "inspect", "db", "copy"), "the log": h.life.log.String(),
	} {
		if strings.Contains(text, b.server.Secret) {
			t.Errorf("%s: it shows the secret:\n%s", what, text)
		}
	}
	h.stop(t)
	check(t, filepath.WalkDir(h.root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, ".img") {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(b.server.Secret)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	}))
}

// Requests cost money and time: what a backup sends is bounded.
func TestBackupsToABucketSendFewRequests(t *testing.T) {
	b := newBucketVault(t)
	h := onReflink(t)
	h.start(t)
	h.must(t, "create", "db", "--size", "1G")
	dir := h.must(t, "mount", "db")
	file := filepath.Join(dir, "file")
	fill(t, file, 1, 64<<20)
	h.backUp(t, b.vault, "db")
	h.backUp(t, b.vault, "db") // settles what the filesystem writes late
	count := func(what string, limit int) {
		t.Helper()
		b.proxy.Clear()
		made := h.backUp(t, b.vault, "db")
		seen := b.proxy.Seen()
		t.Logf("%s: %d read, %d stored, %d requests:\n%s", what, made.Read, made.Stored, len(seen), strings.Join(seen, "\n"))
		if len(seen) > limit {
			t.Errorf("%s: %d requests, at most %d are allowed", what, len(seen), limit)
		}
	}
	count("nothing changed", unchangedRequests)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	check(t, err)
	random := rand.New(rand.NewPCG(seed(t), 1))
	for i := range 10 {
		_, err := f.WriteAt(noise(random.Uint64(), 4096), int64(i)*6<<20)
		check(t, err)
	}
	check(t, f.Close())
	count("10 chunks changed", incrementalRequests)
}

// The most requests that a backup sends. A repository that is open already would save the one for the config.
const (
	unchangedRequests   = 20
	incrementalRequests = 21
)

// A server that lets several writers win holds no repository, and the report says why.
func TestServersThatLoseBackupsAreRefused(t *testing.T) {
	b := newBucketVault(t)
	place := "s3://" + s3test.Bucket + "/other?endpoint=" + b.proxy.URL
	got := invoke("--json", "backup", "probe", place)
	got.wants(t, 0, `"ok": true`, "16 writers at once")
	for name, effect := range map[string]s3test.Effect{"B2": s3test.Refusing, "Google": b.proxy.Overwriting, "racy": b.proxy.Racy()} {
		b.proxy.Always(effect)
		for _, args := range [][]string{{"backup", "init", place, "--unencrypted"}, {"backup", "probe", place}} {
			if got := invoke(args...); got.code != 8 || !strings.Contains(got.stderr, "cannot hold backups") {
				t.Errorf("%s: %v: %s", name, args, got)
			}
		}
		b.proxy.Clear()
	}
	for _, key := range b.server.Keys(t, s3test.Bucket) {
		if strings.HasPrefix(key, "other/") {
			t.Errorf("left %s", key)
		}
	}
}

// A prune relies on the server: one that is another now is probed first.
func TestPruneProbesAServerThatIsAnotherNow(t *testing.T) {
	b := newBucketVault(t)
	prune := b.with("backup", "prune", b.dir)
	quietly(t, prune...)
	if seen := strings.Join(b.proxy.Seen(), "\n"); strings.Contains(seen, "/probe/") {
		t.Errorf("it probes at once again:\n%s", seen)
	}
	renamed := func(r *s3test.Request, forward func(*s3test.Request) s3test.Answer) s3test.Answer {
		a := forward(r)
		if a.Header != nil { // the client may have left
			a.Header.Set("Server", "Another/2.0")
		}
		return a
	}
	b.proxy.Clear()
	b.proxy.Always(renamed)
	quietly(t, prune...)
	if seen := strings.Join(b.proxy.Seen(), "\n"); !strings.Contains(seen, "/probe/") {
		t.Errorf("it does not probe:\n%s", seen)
	}
	b.proxy.Clear()
	b.proxy.Always(b.proxy.Overwriting) // by its old name
	invoke(prune...).wants(t, 8, "cannot hold backups")
}
