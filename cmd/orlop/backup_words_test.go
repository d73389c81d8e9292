package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDestinationsThatLookLikeOtherPlacesAreNoDirectories(t *testing.T) {
	p := newBackupPlace(t)
	t.Chdir(t.TempDir())
	for text, says := range map[string]string{
		"s3:bucket":           "./s3:bucket",
		"s3:/bucket/dir":      "./s3:/bucket/dir",
		"user@nas:dir":        "./user@nas:dir",
		"nas:/srv/orlop":      "./nas:/srv/orlop",
		"file:rel":            "./file:rel",
		":":                   "./:",
		"://x":                `scheme ""`,
		"S3://bucket":         "not supported yet",
		"file:///a%zz":        `"%zz": write %25`,
		"file://localhost":    "no absolute path",
		"file://localhostile": "no absolute path",
	} {
		got := invoke("backup", "init", text, "--key-file", p.key)
		if want := map[bool]int{true: 8, false: 2}[text == "S3://bucket"]; got.code != want || !strings.Contains(got.stderr, says) {
			t.Errorf("%s: want exit code %d and %q\n%s", text, want, says, got)
		}
	}
	if left, err := os.ReadDir("."); err != nil || len(left) > 0 {
		t.Errorf("made: %v, %v", left, err)
	}
}

func TestDestinationsMayHaveColonsBehindASlashSchemesInCapitalsAndLocalhost(t *testing.T) {
	p := newBackupPlace(t)
	path := strings.TrimPrefix(p.url(), "file://")
	for _, text := range []string{"FILE://" + path, "Vfs://" + path, "file://localhost" + path, "FILE://LocalHost" + path} {
		p.must("backup", "list", text, "--key-file", p.key)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	for text, want := range map[string]string{"./s3:bucket": "s3:bucket", "a": "a", dir + "/nas:b": "nas:b", "./x:": "x:"} {
		if got := p.must("backup", "init", text, "--key-file", p.key); got != "file://"+filepath.Join(dir, want) {
			t.Errorf("%s: made %s", text, got)
		}
	}
}

func TestAKeyGivenWhereNoneIsWantedIsNamedByWhereItComesFrom(t *testing.T) {
	p := newBackupPlace(t)
	plain := filepath.Join(t.TempDir(), "plain")
	p.must("backup", "init", plain, "--unencrypted")
	t.Setenv("ORLOP_KEY_FILE", p.key)
	got := invoke("backup", "list", plain)
	if got.code != 2 || !strings.Contains(got.stderr, "ORLOP_KEY_FILE") || !strings.Contains(got.stderr, "--key-file ''") {
		t.Errorf("%s", got)
	}
	p.must("backup", "list", plain, "--key-file", "")
	p.must("backup", "list", plain, "--key-file=")
	p.must("backup", "init", plain, "--unencrypted", "--key-file", "")
}

func TestKeyFilesAreReadWithSpaceAtTheEndAndNeverFromDirectories(t *testing.T) {
	p := newBackupPlace(t)
	key, err := os.ReadFile(p.key)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, p.key, strings.TrimSpace(string(key))+" \r\n")
	p.must("backup", "list", p.dir, "--key-file", p.key)
	if got := invoke("backup", "list", p.dir, "--key-file", p.dir); got.code != 2 || !strings.Contains(got.stderr, p.dir+" is a directory") {
		t.Errorf("%s", got)
	}
	missing := filepath.Join(t.TempDir(), "no")
	if got := invoke("key", "create", filepath.Join(missing, "k")); got.code != 3 || !strings.Contains(got.stderr, "directory "+missing+" is not there") {
		t.Errorf("%s", got)
	}
}
