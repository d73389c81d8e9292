package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup"
	"orlop/internal/backup/repo"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

// backupPlace is a destination with its key, and what was backed up to it.
type backupPlace struct {
	t    *testing.T
	dir  string
	key  string
	made map[string][]byte // contents by URL
}

// newBackupPlace makes an encrypted repository by the command line. What commands remember goes to a directory of the
// test's.
func newBackupPlace(t *testing.T) *backupPlace {
	t.Helper()
	dir := t.TempDir()
	p := &backupPlace{t: t, dir: filepath.Join(dir, "a place"), key: filepath.Join(dir, "key"), made: map[string][]byte{}}
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("ORLOP_DEST", "")
	t.Setenv("ORLOP_KEY_FILE", "")
	p.must("key", "create", p.key)
	if got := p.must("backup", "init", p.dir, "--key-file", p.key); got != p.url() {
		t.Fatalf("init prints %q, want %q", got, p.url())
	}
	return p
}

func (p *backupPlace) url() string { return "file://" + strings.ReplaceAll(p.dir, " ", "%20") }

// must runs a command that must succeed silently, and returns what it prints.
func (p *backupPlace) must(args ...string) string {
	p.t.Helper()
	got := invoke(args...)
	if got.code != 0 || got.stderr != "" {
		p.t.Fatalf("%v: %s", args, got)
	}
	return strings.TrimSuffix(got.stdout, "\n")
}

// back backs up data as a volume does that was snapshotted at a time, and returns the backup's URL.
func (p *backupPlace) back(volume, id string, created time.Time, data []byte) string {
	p.t.Helper()
	ctx := context.Background()
	objects, err := dirstore.Open(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	defer objects.Close()
	key, err := repo.ReadKeyFile(p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := repo.Open(ctx, objects, key)
	if err != nil {
		p.t.Fatal(err)
	}
	spec := repo.BackupSpec{Source: bytes.NewReader(data)}
	spec.Backup = repo.Backup{
		Lineage: id, Size: int64(len(data)), ChunkSize: repo.MinChunk, Created: created, Host: "h1", Writer: "test",
		Volume: repo.Named{ID: id, Name: volume}, Snapshot: repo.Named{ID: "s", Name: "snap"}, Filesystem: "ext4", Consistency: "frozen",
	}
	spec.Extents = func(_ context.Context, _ *repo.Backup, fn func(repo.Extent) error) error {
		return fn(repo.Extent{Length: int64(len(data))})
	}
	written, err := r.Backup(ctx, spec)
	if err != nil {
		p.t.Fatal(err)
	}
	url := p.url() + "?backup=" + written.ID() + "&volume=" + volume
	p.made[url] = data
	return url
}

// contents is a few chunks that do not compress and many zeroes.
func contents(seed uint64) []byte {
	data := make([]byte, 30*repo.MinChunk+77)
	random := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = random.Read(data[repo.MinChunk : 4*repo.MinChunk])
	return data
}

func (p *backupPlace) views(args ...string) (views []backup.View) {
	p.t.Helper()
	text := p.must(append([]string{"--json", "backup", "list", p.dir, "--key-file", p.key}, args...)...)
	if err := json.Unmarshal([]byte(text), &views); err != nil {
		p.t.Fatalf("%v: %s", err, text)
	}
	return views
}

var backupTime = time.Now().UTC().Add(-72 * time.Hour).Truncate(time.Second)

func TestBackupsAreListedInspectedRestoredAndDeleted(t *testing.T) {
	p := newBackupPlace(t)
	if got := p.must("--json", "backup", "list", p.dir, "--key-file", p.key); got != "[]" {
		t.Errorf("empty: %s", got)
	}
	first := p.back("db", "id-1", backupTime, contents(1))
	second := p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	other := p.back("web", "id-2", backupTime, contents(3))
	views := p.views()
	if len(views) != 3 || views[0].URL != first || views[1].URL != second || views[2].URL != other {
		t.Fatalf("%+v", views)
	}
	v := views[0]
	if v.Volume != "db" || v.VolumeID != "id-1" || v.Host != "h1" || v.Snapshot != "snap" || !v.Encrypted || v.Size != int64(len(contents(1))) ||
		v.Created != backupTime.Format(time.RFC3339Nano) || v.New != 3*repo.MinChunk || v.Stored <= v.New {
		t.Errorf("%+v", v)
	}
	if only := p.views("--volume-name", "web"); len(only) != 1 || only[0].URL != other {
		t.Errorf("%+v", only)
	}
	if table := p.must("backup", "ls", p.dir, "--key-file", p.key); !strings.Contains(table, "VOLUME") || strings.Count(table, "\n") != 3 || !strings.Contains(table, v.ID[len("id-1."):][:8]) {
		t.Errorf("%s", table)
	}
	var detail backupDetail
	if err := json.Unmarshal([]byte(p.must("backup", "inspect", p.url()+"?volume=db", "--key-file", p.key)), &detail); err != nil || detail.URL != second || detail.Filesystem != "ext4" {
		t.Errorf("%+v, %v", detail, err)
	}
	var both []backupDetail
	if err := json.Unmarshal([]byte(p.must("backup", "inspect", first, other, "--key-file", p.key)), &both); err != nil || len(both) != 2 || both[1].URL != other {
		t.Errorf("%+v, %v", both, err)
	}
	for url, want := range p.made {
		image := filepath.Join(t.TempDir(), "an image")
		if got := p.must("backup", "restore", url, "--to-file", image, "--key-file", p.key); got != image {
			t.Errorf("restore prints %q", got)
		}
		if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, right: %t", url, err, bytes.Equal(got, want))
		}
		if got := invoke("backup", "restore", url, "--to-file", image, "--key-file", p.key); got.code != 4 {
			t.Errorf("onto the image: %s", got)
		}
	}
	if got := p.must("backup", "delete", first, "--key-file", p.key); got != "" {
		t.Errorf("%s", got)
	}
	if got := invoke("backup", "delete", first, "--key-file", p.key); got.code != 3 {
		t.Errorf("a second time: %s", got)
	}
	if got := p.views(); len(got) != 2 || got[0].URL != second {
		t.Errorf("%+v", got)
	}
	p.must("backup", "verify", p.dir, "--data", "--key-file", p.key)
}

func TestRestoreInJSONEndsWithTheResult(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	image := filepath.Join(t.TempDir(), "image")
	var last restoredView
	for line := range strings.Lines(p.must("--json", "backup", "restore", url, "--to-file", image, "--key-file", p.key)) {
		last = restoredView{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
	}
	if last.Event != "done" || last.File != image || last.Backup.URL != url || last.Written != 3*repo.MinChunk {
		t.Errorf("%+v", last)
	}
}

// The destination may be written in every way, and given by the environment.
func TestDestinationsMayBeWrittenInEveryWay(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	t.Setenv("ORLOP_KEY_FILE", p.key)
	for _, way := range []string{p.dir, p.dir + "/", p.url(), "vfs://" + p.dir, "file://" + p.dir + "/."} {
		if got := p.must("--json", "backup", "list", way); !strings.Contains(got, url[:strings.Index(url, "&")]) {
			t.Errorf("%s: %s", way, got)
		}
		image := filepath.Join(t.TempDir(), "image")
		p.must("backup", "restore", way+"?volume=db", "--to-file", image)
	}
	t.Setenv("ORLOP_DEST", p.url())
	p.must("backup", "list")
	p.must("backup", "verify")
	p.must("backup", "prune")
	t.Chdir(filepath.Dir(p.dir))
	p.must("backup", "list", "a place")
}

func TestBadDestinationsAndURLs(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ORLOP_S3_CREDENTIALS"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	p.back("db", "id-2", backupTime, contents(2))
	image := filepath.Join(t.TempDir(), "image")
	empty := t.TempDir()
	for _, test := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"list"}, 2, []string{"DEST"}},
		{[]string{"list", ""}, 2, nil},
		{[]string{"list", "s3://bucket/x"}, 2, []string{"no S3 credentials", "--s3-credentials"}},
		{[]string{"list", "s3://AKIA:topsecret@bucket/x"}, 2, []string{"credentials never stand in a URL"}},
		{[]string{"list", "ftp://x/y"}, 2, []string{"ftp"}},
		{[]string{"list", "file://host/dir"}, 2, []string{"absolute"}},
		{[]string{"list", "file://"}, 2, nil},
		{[]string{"list", url}, 2, []string{"question mark"}},
		{[]string{"list", p.dir, "x"}, 2, []string{"unexpected argument"}},
		{[]string{"list", filepath.Join(empty, "no")}, 3, []string{"orlop backup init", "mounted"}},
		{[]string{"list", empty}, 3, []string{"orlop backup init", "mounted"}},
		{[]string{"verify", empty}, 3, []string{"orlop backup init"}},
		{[]string{"prune", empty}, 3, []string{"orlop backup init"}},
		{[]string{"restore", empty + "?volume=db", "--to-file", image}, 3, []string{"orlop backup init"}},
		{[]string{"restore", p.dir, "--to-file", image}, 2, []string{"which backup"}},
		{[]string{"restore", url, "--to-file", ""}, 2, []string{"--to-file"}},
		{[]string{"restore", p.dir + "?volume=db", "--to-file", image}, 2, []string{"id-1", "id-2"}},
		{[]string{"restore", p.dir + "?volume=no", "--to-file", image}, 3, []string{`"no"`}},
		{[]string{"restore", p.dir + "?backup=a.b", "--to-file", image}, 3, []string{"a.b"}},
		{[]string{"restore", p.dir + "?snapshot=a", "--to-file", image}, 2, nil},
		{[]string{"restore", p.dir + "?volume=", "--to-file", image}, 2, nil},
		{[]string{"restore", p.dir + "?volume=a&volume=b", "--to-file", image}, 2, nil},
		{[]string{"restore", url + "x", "--to-file", image}, 3, nil},
		{[]string{"restore", url, "--to-file", filepath.Join(empty, "no", "image")}, 3, []string{"directory " + filepath.Join(empty, "no") + " does not exist"}},
		{[]string{"restore", url, "--to-file", filepath.Join(p.key, "image")}, 3, []string{p.key + " is not a directory"}},
		{[]string{"restore", url, "--to-file", filepath.Join(p.key, "no", "image")}, 3, []string{filepath.Join(p.key, "no") + " does not exist"}},
		{[]string{"restore", url, "--to-file", empty + "/image/"}, 2, []string{"must name a file, not a directory"}},
		{[]string{"restore", url, "--to-file", empty + "/"}, 2, []string{"must name a file, not a directory"}},
		{[]string{"restore", url, "--to-file", empty}, 4, []string{empty + " already exists"}},
		{[]string{"delete", p.dir + "?volume=db"}, 2, []string{"backup="}},
		{[]string{"verify", p.dir, "--sample", "5"}, 2, []string{"5%"}},
		{[]string{"verify", p.dir, "--sample", "0%"}, 2, nil},
		{[]string{"verify", p.dir, "--sample", "5%", "--data"}, 2, nil},
		{[]string{"prune", p.dir, "--keep-last", "-1"}, 2, nil},
		{[]string{"prune", p.dir, "--keep-last", "0"}, 2, []string{"--keep-last 1"}},
		{[]string{"prune", p.dir, "--keep-within", "5w"}, 2, []string{"5w"}},
		{[]string{"init", p.dir, "--unencrypted"}, 2, []string{"--unencrypted"}},
	} {
		args := append(append([]string{"backup"}, test.args...), "--key-file", p.key)
		got := invoke(args...)
		if got.code != test.code || got.stdout != "" || !strings.HasPrefix(got.stderr, "orlop: ") {
			t.Errorf("%q: want exit code %d\n%s", test.args, test.code, got)
		}
		for _, text := range test.says {
			if !strings.Contains(got.stderr, text) {
				t.Errorf("%q: want %q in\n%s", test.args, text, got)
			}
		}
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestInitMakesOneRepositoryAndNeverTwo(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	before := files(t, p.dir)
	p.must("backup", "init", p.dir, "--key-file", p.key)
	other := filepath.Join(t.TempDir(), "key")
	p.must("key", "create", other)
	for _, test := range []struct {
		args []string
		code int
	}{
		{[]string{p.dir, "--key-file", other}, 7},
		{[]string{p.dir, "--unencrypted"}, 2},
		{[]string{p.dir}, 2},
		{[]string{filepath.Dir(p.dir), "--key-file", p.key}, 4}, // not empty
		{[]string{filepath.Join(p.dir, "no", "such"), "--key-file", p.key}, 3},
		{[]string{p.dir, "--key-file", filepath.Join(p.dir, "no")}, 3},
		{[]string{p.dir, "--key-file", p.dir}, 2},
		{[]string{"s3://bucket", "--key-file", p.key}, 2},
	} {
		if got := invoke(append([]string{"backup", "init"}, test.args...)...); got.code != test.code {
			t.Errorf("%v: want exit code %d\n%s", test.args, test.code, got)
		}
	}
	if after := files(t, p.dir); !maps.EqualFunc(before, after, bytes.Equal) {
		t.Error("init changed the repository")
	}
	p.restores(url)
}

// files are those below a directory with their contents.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			found[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// restores makes sure that a backup comes back.
func (p *backupPlace) restores(url string) {
	p.t.Helper()
	image := filepath.Join(p.t.TempDir(), "image")
	if got := invoke("backup", "restore", url, "--to-file", image, "--key-file", p.key); got.code != 0 {
		p.t.Errorf("%s", got)
	}
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, p.made[url]) {
		p.t.Errorf("%s: %v, right: %t", url, err, bytes.Equal(got, p.made[url]))
	}
}

func TestKeysThatDoNotFitAreRefused(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	other := filepath.Join(t.TempDir(), "key")
	p.must("key", "create", other)
	open := filepath.Join(t.TempDir(), "open")
	p.must("key", "create", open)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	p.must("backup", "init", plain, "--unencrypted")
	for _, test := range []struct {
		dest, key string
		code      int
		says      string
	}{
		{p.dir, other, 7, "wrong key"},
		{p.dir, "", 2, "--key-file"},
		{p.dir, filepath.Join(p.dir, "no"), 3, "does not exist"},
		{p.dir, open, 2, "chmod 600"},
		{plain, p.key, 2, "not encrypted"},
	} {
		args := []string{"backup", "list", test.dest}
		if test.key != "" {
			args = append(args, "--key-file", test.key)
		}
		if got := invoke(args...); got.code != test.code || !strings.Contains(got.stderr, test.says) {
			t.Errorf("%v: want exit code %d and %q\n%s", args, test.code, test.says, got)
		}
	}
	p.must("backup", "list", plain)
	p.restores(url)
}

func TestPruneKeepsWhatThePolicySays(t *testing.T) {
	p := newBackupPlace(t)
	var urls []string
	for n := range 5 {
		urls = append(urls, p.back("db", "id-1", backupTime.Add(time.Duration(n)*time.Hour), contents(uint64(n))))
	}
	other := p.back("web", "id-2", backupTime, contents(9))
	size := func() (n int) {
		for _, data := range files(t, p.dir) {
			n += len(data)
		}
		return n
	}
	p.must("backup", "prune", p.dir, "--key-file", p.key)
	if got := p.views(); len(got) != 6 {
		t.Fatalf("without a policy %d are left", len(got))
	}
	if got := p.must("backup", "prune", p.dir, "--keep-last", "2", "--dry-run", "--key-file", p.key); len(p.views()) != 6 || strings.Count(got, "would delete") != 4 {
		t.Errorf("dry run: %s", got)
	}
	if got := invoke("backup", "prune", p.dir, "--keep-last", "1", "--host", "h2", "--key-file", p.key); got.code != 3 || len(p.views()) != 6 {
		t.Errorf("backups of another host: %s", got)
	}
	before := size()
	var view pruneView
	text := p.must("--json", "backup", "prune", p.dir, "--keep-last", "2", "--volume-name", "db", "--key-file", p.key)
	if err := json.Unmarshal([]byte(text), &view); err != nil || len(view.Removed) != 3 || view.Kept != 3 || view.Freed < 3*3*repo.MinChunk {
		t.Errorf("%v: %s", err, text)
	}
	if after := size(); after > before-3*3*repo.MinChunk {
		t.Errorf("%d bytes of %d are left", after, before)
	}
	for _, url := range []string{urls[3], urls[4], other} {
		p.restores(url)
	}
	p.must("backup", "verify", p.dir, "--data", "--key-file", p.key)
}

// A newest backup of next year, or of a year ago, must not cost any backup that a right clock would keep.
func TestPruneAllowsForWrongClocks(t *testing.T) {
	for _, wrong := range []time.Duration{365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		p := newBackupPlace(t)
		for hour := range 3 {
			p.back("db", "id-1", backupTime.Add(time.Duration(hour)*time.Hour), contents(uint64(hour)))
		}
		p.back("db", "id-1", backupTime.Add(3*time.Hour+wrong), contents(3))
		prune := []string{"backup", "prune", p.dir, "--keep-within", "6h", "--key-file", p.key}
		if got := invoke(prune...); got.code != 0 || !strings.Contains(got.stderr, "a clock is or was wrong") || len(p.views()) != 4 {
			t.Errorf("%s\n%d are left", got, len(p.views()))
		}
		var view pruneView
		text := p.must(append([]string{"--json"}, prune...)...)
		if err := json.Unmarshal([]byte(text), &view); err != nil || len(view.Warnings) != 1 || view.Kept != 4 {
			t.Errorf("%v: %s", err, text)
		}
		p.must("backup", "prune", p.dir, "--keep-last", "1", "--force", "--key-file", p.key)
		left := p.views()
		if len(left) != 1 {
			t.Fatalf("forced: %+v", left)
		}
		p.restores(left[0].URL)
	}
}

func TestVerifyNamesDamageAndRepairMendsIt(t *testing.T) {
	p := newBackupPlace(t)
	good := p.back("web", "id-2", backupTime, contents(3))
	hurt := p.back("db", "id-1", backupTime, contents(1))
	object := ""
	for path, data := range files(t, p.dir) {
		if strings.HasSuffix(path, ".data") && strings.Contains(path, "/id-1/") {
			object = path
			data[len(data)/2] ^= 1
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := strings.TrimPrefix(object, p.dir+"/")
	if p.must("backup", "verify", p.dir, "--key-file", p.key); object == "" {
		t.Fatal("no pack")
	}
	got := invoke("backup", "verify", p.dir, "--data", "--key-file", p.key)
	id := hurt[strings.Index(hurt, "backup=")+len("backup=") : strings.Index(hurt, "&")]
	for _, text := range []string{name, id, "volume db", "orlop backup repair"} {
		if !strings.Contains(got.stdout, text) {
			t.Errorf("want %q in\n%s", text, got)
		}
	}
	if got.code != 7 || got.stderr != "" || strings.Contains(got.stdout, "web") {
		t.Errorf("%s", got)
	}
	var report repo.Report
	asJSON := invoke("--json", "backup", "verify", hurt, "--data", "--key-file", p.key)
	if err := json.Unmarshal([]byte(asJSON.stdout), &report); err != nil || asJSON.code != 7 || len(report.Findings) != 1 || !slices.Equal(report.Findings[0].Backups, []string{id}) {
		t.Errorf("%v: %s", err, asJSON)
	}
	p.must("backup", "verify", good, "--data", "--key-file", p.key)
	image := filepath.Join(t.TempDir(), "image")
	for _, url := range []string{hurt, p.dir + "?volume=db"} {
		if got := invoke("backup", "restore", url, "--to-file", image, "--key-file", p.key); got.code != 7 {
			t.Errorf("%s: %s", url, got)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(image)); err != nil || len(left) != 1 || left[0].Name() != "image.orlop-part" {
		t.Errorf("left behind: %v, %v", left, err)
	}
	p.restores(good)
	if got := invoke("backup", "repair", p.dir, "--dry-run", "--key-file", p.key); got.code != 7 || !strings.Contains(got.stdout, name) || !strings.Contains(got.stdout, "--drop-damaged") {
		t.Errorf("%s", got)
	}
	if got := invoke("backup", "repair", p.dir, "--key-file", p.key); got.code != 7 || len(p.views()) != 2 {
		t.Errorf("without consent: %s", got)
	}
	if text := p.must("backup", "repair", p.dir, "--drop-damaged", "--key-file", p.key); !strings.Contains(text, id) {
		t.Errorf("%s", text)
	}
	if text := p.must("backup", "repair", p.dir, "--key-file", p.key); text != "nothing to repair" {
		t.Errorf("%s", text)
	}
	p.must("backup", "verify", p.dir, "--data", "--key-file", p.key)
	p.restores(good)
	if views := p.views(); len(views) != 1 {
		t.Errorf("%+v", views)
	}
}

// What happens to the place of a repository is noticed, and tells what to do; what was committed stays.
func TestTroubleAtTheDestination(t *testing.T) {
	config := func(p *backupPlace) string { return filepath.Join(p.dir, "config") }
	heads := func(p *backupPlace) string { return filepath.Join(p.dir, "lineages", "id-1", "heads") }
	for _, test := range []struct {
		name    string
		trouble func(t *testing.T, p *backupPlace)
		code    int // of restore
		says    string
		mends   []string // what makes it whole again
	}{
		{"config lost", func(t *testing.T, p *backupPlace) { wipe(t, config(p)) }, 0, "", []string{"repair"}},
		{"config damaged", func(t *testing.T, p *backupPlace) { rewrite(t, config(p), "{}\n") }, 0, "", []string{"repair"}},
		{"newest head lost", func(t *testing.T, p *backupPlace) {
			wipe(t, filepath.Join(heads(p), newestIn(t, heads(p))))
		}, 7, "orlop backup repair", []string{"repair"}},
		{"newest head damaged", func(t *testing.T, p *backupPlace) {
			rewrite(t, filepath.Join(heads(p), newestIn(t, heads(p))), "x")
		}, 7, "orlop backup repair", []string{"repair"}},
		{"all heads lost", func(t *testing.T, p *backupPlace) { wipe(t, heads(p)) }, 7, "orlop backup repair", []string{"repair"}},
		{"another repository in its place", func(t *testing.T, p *backupPlace) {
			wipe(t, p.dir)
			if err := os.Mkdir(p.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			objects, err := dirstore.Open(p.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer objects.Close()
			key, err := repo.ReadKeyFile(p.key)
			if err == nil {
				_, err = repo.Init(t.Context(), objects, key)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, 7, "this host knows", nil},
		{"nothing in its place", func(t *testing.T, p *backupPlace) { wipe(t, p.dir) }, 3, "mounted", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newBackupPlace(t)
			url := p.back("db", "id-1", backupTime, contents(1))
			p.must("backup", "verify", p.dir, "--key-file", p.key) // and remember its state
			test.trouble(t, p)
			before := map[string][]byte{}
			if test.code != 3 {
				before = files(t, p.dir)
			}
			image := filepath.Join(t.TempDir(), "image")
			got := invoke("backup", "restore", url, "--to-file", image, "--key-file", p.key)
			if got.code != test.code || !strings.Contains(got.stderr, test.says) {
				t.Errorf("%s", got)
			}
			verified := invoke("backup", "verify", p.dir, "--key-file", p.key)
			if want := map[int]int{0: 7, 7: 7, 3: 3}[test.code]; verified.code != want {
				t.Errorf("%s", verified)
			}
			if test.code != 3 && !maps.EqualFunc(before, files(t, p.dir), bytes.Equal) {
				t.Error("reading changed the repository")
			}
			for _, command := range test.mends {
				if got := invoke("backup", command, p.dir, "--key-file", p.key); got.code != 0 {
					t.Errorf("%s", got)
				}
				p.must("backup", "verify", p.dir, "--data", "--key-file", p.key)
				p.restores(url)
			}
		})
	}
}

func wipe(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newestIn(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("%v, %v", entries, err)
	}
	return entries[len(entries)-1].Name()
}

// A destination that was set back to an older state must not pass for the newest one.
func TestASetBackDestinationIsNoticed(t *testing.T) {
	p := newBackupPlace(t)
	first := p.back("db", "id-1", backupTime, contents(1))
	older := files(t, p.dir)
	p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	p.views()
	wipe(t, p.dir)
	for path, data := range older {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, string(data))
	}
	image := filepath.Join(t.TempDir(), "image")
	if got := invoke("backup", "restore", first, "--to-file", image, "--key-file", p.key); got.code != 7 || !strings.Contains(got.stderr, "set back") {
		t.Errorf("%s", got)
	}
	p.must("backup", "repair", p.dir, "--key-file", p.key)
	p.restores(first)
	// Whoever makes a new repository knows that the old one is gone.
	wipe(t, p.dir)
	p.must("backup", "init", p.dir, "--new", "--key-file", p.key)
	if got := p.views(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestARepositoryOfALaterVersionIsRefused(t *testing.T) {
	p := newBackupPlace(t)
	for _, line := range []string{`"min_reader":99,"features":[]`, `"min_reader":1,"features":["holograms"]`} {
		signed := fmt.Sprintf(`{"magic":"orlop-repository","format":99,%s}`+"\nhmac-sha-256 %064d\n", line, 0)
		rewrite(t, filepath.Join(p.dir, "config"), fmt.Sprintf("%ssha-256 %x\n", signed, sha256.Sum256([]byte(signed))))
		got := invoke("backup", "list", p.dir, "--key-file", p.key)
		if got.code != 8 || !strings.Contains(got.stderr, map[bool]string{true: "99", false: "holograms"}[strings.Contains(line, "99")]) {
			t.Errorf("%s", got)
		}
	}
}

func TestBackupFailuresInJSONHaveTheirKind(t *testing.T) {
	for _, test := range []struct {
		args []string
		kind fault.Kind
	}{
		{[]string{"list", "s3://x/y"}, fault.ErrInvalid},
		{[]string{"list", t.TempDir()}, fault.ErrNotFound},
		{[]string{"inspect", "/x"}, fault.ErrInvalid},
	} {
		got := invoke(append([]string{"--json", "backup"}, test.args...)...)
		if body := got.failure(t); body.Error.Kind != test.kind {
			t.Errorf("%v: %s", test.args, got)
		}
	}
}
