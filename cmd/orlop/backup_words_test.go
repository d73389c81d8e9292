package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop/internal/fault"
)

func TestDestinationsThatLookLikeOtherPlacesAreNoDirectories(t *testing.T) {
	p := newBackupPlace(t)
	t.Chdir(t.TempDir())
	for text, says := range map[string]string{
		"s3:bucket":           "two slashes must follow s3:",
		"s3:/bucket/dir":      "two slashes must follow s3:",
		"user@nas:dir":        "./user@nas:dir",
		"nas:/srv/orlop":      "./nas:/srv/orlop",
		"file:rel":            "./file:rel",
		":":                   "./:",
		"://x":                `scheme ""`,
		"S3://bucket":         "use s3://bucket/orlop",
		"file:///a%zz":        `"%zz": write %25`,
		"file://localhost":    "no absolute path",
		"file://localhostile": "no absolute path",
	} {
		got := invoke("backup", "init", text, "--key-file", p.key)
		if got.code != 2 || !strings.Contains(got.stderr, says) {
			t.Errorf("%s: want exit code 2 and %q\n%s", text, says, got)
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
	if got := invoke("key", "create", filepath.Join(missing, "k")); got.code != 3 || !strings.Contains(got.stderr, "directory "+missing+" does not exist") {
		t.Errorf("%s", got)
	}
}

func TestGroupsShowTheirOwnHelp(t *testing.T) {
	for _, group := range []string{"backup", "key", "snapshot", "device"} {
		for _, args := range [][]string{{group}, {"help", group}, {group, "help"}, {group, "--help"}, {"--help", group}} {
			got := invoke(args...)
			if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "orlop "+group+" - ") || !strings.Contains(got.stdout, "COMMANDS:") {
				t.Errorf("%q: %s", args, got)
			}
		}
		got := invoke(group, "frob")
		if got.code != 2 || !strings.Contains(got.stderr, "'orlop "+group+" --help'") {
			t.Errorf("%s frob: %s", group, got)
		}
	}
}

func TestWhoeverAsksForHelpRunsNothing(t *testing.T) {
	p := newBackupPlace(t)
	path := filepath.Join(t.TempDir(), "k")
	for _, args := range [][]string{
		{"help", "key", "create", path}, {"key", "help", "create", path}, {"key", "create", path, "--help"}, {"key", "create", "-h", path},
	} {
		if got := p.must(args...); !strings.Contains(got, "orlop key create - ") {
			t.Errorf("%q: %s", args, got)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a key was made")
	}
}

func TestCommandsThatTakeADestinationNameTheEnvironment(t *testing.T) {
	p := newBackupPlace(t)
	for _, command := range []string{"init", "list", "verify", "repair", "prune"} {
		help := p.must("backup", command, "--help")
		if !strings.Contains(help, "ORLOP_DEST stands for DEST") || !strings.Contains(help, "ORLOP_KEY_FILE") {
			t.Errorf("%s: %s", command, help)
		}
		if got := invoke("backup", command); got.code != 2 || !strings.Contains(got.stderr, "DEST") || !strings.Contains(got.stderr, "set ORLOP_DEST") {
			t.Errorf("%s", got)
		}
	}
	if got := invoke("backup", "inspect"); got.code != 2 || strings.Contains(got.stderr, "ORLOP_DEST") {
		t.Errorf("%s", got)
	}
}

func TestBackupCommandsInterruptedSayThatAndExitOne(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{
		{"verify", p.dir, "--data"}, {"restore", url, "--to-file", filepath.Join(t.TempDir(), "image")}, {"inspect", url}, {"delete", url}, {"prune", p.dir},
	} {
		args = append(append([]string{"backup"}, args...), "--key-file", p.key)
		got := invokeUntil(ctx, args...)
		if got.code != 1 || strings.Count(got.stderr, "interrupted") != 1 || strings.Contains(got.stderr, "context") {
			t.Errorf("%q: %s", args, got)
		}
		got = invokeUntil(ctx, append([]string{"--json"}, args...)...)
		if body := got.failure(t); body.Error.Kind != fault.ErrFailed || !strings.Contains(body.Error.Message, "interrupted") {
			t.Errorf("%q: %s", args, got)
		}
	}
	p.restores(url)
}

func TestOneThingIsCountedAsOne(t *testing.T) {
	p := newBackupPlace(t)
	invoke("backup", "verify", p.dir, "--key-file", p.key).wants(t, 0, "no damage found: 0 backups, 0 packs, 0 of them read (0 B)")
	p.back("db", "id-1", backupTime, contents(1))
	invoke("backup", "verify", p.dir, "--data", "--key-file", p.key).wants(t, 0, "no damage found: 1 backup, 2 packs, 2 of them read")
	p.back("db", "id-1", backupTime.Add(time.Hour), contents(1))
	prune := []string{"backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key}
	invoke(append(prune, "--dry-run")...).wants(t, 0, "would delete 1 backup, kept 1\n")
	invoke(prune...).wants(t, 0, "deleted 1 backup, kept 1, freed")
	invoke(prune...).wants(t, 0, "deleted 0 backups, kept 1, freed")
	p.breakData("id-1")
	invoke("backup", "verify", p.dir, "--data", "--key-file", p.key).wants(t, 7, "\n1 damaged object: 1 backup, ")
}

func TestPruneNamesTheRuleThatIsWrong(t *testing.T) {
	p := newBackupPlace(t)
	for flag, value := range map[string]string{
		"--keep-last": "-1", "--keep-hourly": "-1", "--keep-daily": "-1", "--keep-weekly": "-1", "--keep-monthly": "-1", "--keep-yearly": "-1",
		"--keep-within": "5w",
	} {
		got := invoke("backup", "prune", p.dir, flag, value, "--key-file", p.key)
		if got.code != 2 || !strings.Contains(got.stderr, flag+" ") || !strings.Contains(got.stderr, value) {
			t.Errorf("%s", got)
		}
	}
}

// A key whose ID nobody saw is of no use: nothing else prints that.
func TestAKeyWhoseIDCannotBePrintedIsNotMade(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	file := filepath.Join(t.TempDir(), "key")
	var stderr strings.Builder
	if code := run(t.Context(), []string{"orlop", "key", "create", file}, full, &stderr); code != 5 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
}
