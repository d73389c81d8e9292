package orlop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const backupEnv = "/etc/orlop/backup.env"

// installed runs make install into a directory, and returns it and the prefix that the units name.
func installed(t *testing.T) (dest, prefix string) {
	t.Helper()
	dest, prefix = t.TempDir(), t.TempDir()
	mustInstall(t, dest, prefix)
	if err := os.Symlink(filepath.Join(dest, prefix, "bin"), filepath.Join(prefix, "bin")); err != nil {
		t.Fatal(err)
	}
	return dest, prefix
}

func mustInstall(t *testing.T, dest, prefix string) {
	t.Helper()
	if out, err := exec.Command("make", "--no-print-directory", "install", "DESTDIR="+dest, "PREFIX="+prefix).CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
}

func TestInstalledUnitsPassTheirCheck(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("ORLOP_TEST_TOOLS") != "" {
			t.Fatal("systemd-analyze is not installed")
		}
		t.Skip("systemd-analyze is not installed (tools/deps.sh test)")
	}
	dest, prefix := installed(t)
	units, err := filepath.Glob(filepath.Join(dest, "etc/systemd/system/*"))
	if err != nil || len(units) != 4 {
		t.Fatalf("%q, %v", units, err)
	}
	verify := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=yes"}, units...)...)
	verify.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+filepath.Dir(units[0])+":")
	if out, err := verify.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
	if unit := read(t, filepath.Join(dest, "etc/systemd/system/orlop-backup.service")); !strings.Contains(unit, "ExecStart="+prefix+"/bin/orlop backup run --all") {
		t.Errorf("%s", unit)
	}
}

func TestInstallKeepsTheSettingsOfBackupsAndTheirSecrets(t *testing.T) {
	dest, prefix := installed(t)
	env := filepath.Join(dest, backupEnv)
	if info, err := os.Stat(env); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if err := os.WriteFile(env, []byte("ORLOP_DEST=/mnt/nas\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustInstall(t, dest, prefix)
	if got := read(t, env); got != "ORLOP_DEST=/mnt/nas\n" {
		t.Errorf("overwritten: %s", got)
	}
}

// TestBackupServiceRefusesToStartUnedited runs the unit's check with the environment that the file gives it.
func TestBackupServiceRefusesToStartUnedited(t *testing.T) {
	unit := read(t, "packaging/orlop-backup.service")
	if !strings.Contains(unit, "\nEnvironmentFile=-"+backupEnv+"\n") {
		t.Errorf("%s is not read", backupEnv)
	}
	check := regexp.MustCompile(`(?m)^ExecStartPre=/bin/sh -c '(.*)'$`).FindStringSubmatch(unit)
	if check == nil {
		t.Fatal("no check in the unit")
	}
	script := strings.ReplaceAll(check[1], "$$", "$") // as systemd does
	run := func(edit func(string) string) (string, error) {
		env := filepath.Join(t.TempDir(), "backup.env")
		if err := os.WriteFile(env, []byte(edit(read(t, "packaging/backup.env"))), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", "set -a; . "+env+"; set +a; "+script)
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(func(text string) string { return text }); err == nil || !strings.Contains(out, backupEnv+": ORLOP_DEST is empty") {
		t.Errorf("unedited: %v: %s", err, out)
	}
	set := func(text string) string {
		text = strings.Replace(text, "\nORLOP_DEST=\n", "\nORLOP_DEST=/mnt/nas\n", 1)
		return regexp.MustCompile(`(?m)^#(ORLOP_)`).ReplaceAllString(text, "$1") // the examples too
	}
	if out, err := run(set); err != nil || out != "" {
		t.Errorf("edited: %v: %s", err, out)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
