//go:build root

package orlop_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// needRoot ends a test that cannot say anything without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test runs what needs root: run it as root (without root: make test-unit)")
	}
}

// TestDependenciesAreInstalledAfterAnotherAptHasEnded has an apt-get whose locks another program holds at the first calls,
// as on a machine that updates itself. It knows no package before its lists are updated.
func TestDependenciesAreInstalledAfterAnotherAptHasEnded(t *testing.T) {
	needRoot(t)
	bin := t.TempDir()
	for _, tool := range []string{"bash", "mktemp", "chmod", "cat", "rm", "grep", "sleep"} {
		path, err := exec.LookPath(tool)
		if err == nil {
			err = os.Symlink(path, filepath.Join(bin, tool))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	calls := filepath.Join(t.TempDir(), "calls")
	apt := `#!/bin/bash
echo "$*" >> ` + calls + `
n=$(grep -c . ` + calls + `)
case $n in
1) echo "E: Unable to locate package shellcheck" >&2; exit 100;;
2) echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)" >&2; exit 100;;
4) echo "E: Could not get lock /var/cache/apt/archives/lock. It is held by process 1 (apt-get)" >&2; exit 100;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte(apt), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/bash", "tools/deps.sh", "lint")
	cmd.Env = []string{"PATH=" + bin}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(text)) {
		options, rest, _ := strings.Cut(line, "=300 ")
		if options != "-o DPkg::Lock::Timeout" {
			t.Errorf("apt-get %s: does not wait for dpkg's lock", line)
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		verbs = append(verbs, verb)
	}
	if got := strings.Join(verbs, " "); got != "install update update install install" {
		t.Errorf("apt-get was called to %s", got)
	}
}

// runMake runs a target and returns what it prints.
func runMake(t *testing.T, umask string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-c", "umask " + umask + `; exec make --no-print-directory "$@"`, "bash"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// files lists what is below dir, by path, with its permissions.
func files(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			found[strings.TrimPrefix(path, dir)] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestInstalledFilesAreReadableWhateverTheUmaskAndUninstallTakesThemFromTheirTree(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if out, err := runMake(t, "077", "install", "DESTDIR="+dir); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	installed := files(t, dir)
	for path, mode := range installed {
		want := fs.FileMode(0o644)
		switch {
		case mode.IsDir() || path == "/usr/local/bin/orlop":
			want = 0o755
		case path == "/etc/orlop/backup.env": // it may come to hold secrets
			want = 0o600
		}
		if mode.Perm() != want {
			t.Errorf("%s: mode %v, want %v", path, mode.Perm(), want)
		}
	}
	for _, path := range []string{
		"/usr/local/bin/orlop", "/usr/local/share/bash-completion/completions/orlop", "/usr/local/share/zsh/site-functions/_orlop",
		"/usr/local/share/fish/vendor_completions.d/orlop.fish", "/etc/systemd/system/orlop.service", "/etc/default/orlop",
	} {
		if _, ok := installed[path]; !ok {
			t.Errorf("%s is not installed", path)
		}
	}
	if out, err := runMake(t, "022", "uninstall", "DESTDIR="+dir, "PURGE=1"); err == nil || !strings.Contains(out, "refused: PURGE=1") {
		t.Errorf("uninstall with DESTDIR and PURGE: %v: %s", err, out)
	}
	if out, err := runMake(t, "022", "uninstall", "DESTDIR="+dir); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for path, mode := range files(t, dir) {
		if !mode.IsDir() && path != "/etc/default/orlop" && path != "/etc/orlop/backup.env" {
			t.Errorf("%s is left", path)
		}
	}
}

// TestUninstallLooksAtTheRootOfTheSettings runs where /etc is another one.
func TestUninstallLooksAtTheRootOfTheSettings(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, sub := range []string{"data root/mounts/vol", "units", "usr"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "data root")
	script := `set -e
mount -t tmpfs none /etc
mkdir /etc/default
[[ ! -d /run/systemd ]] || mount -t tmpfs none /run/systemd
printf 'ORLOP_ROOT="%s"\nORLOP_CONTROL_SOCKET=%s\n' "$1/data root" "$1/c" > /etc/default/orlop
uninstall() { tools/uninstall.sh '' "$1/usr" "$1/units" "$2" -- orlop.service; }
mount -t tmpfs none "$1/data root/mounts/vol"
! uninstall "$1" 1
umount "$1/data root/mounts/vol"
uninstall "$1" ''
[[ -d "$1/data root" ]]
uninstall "$1" 1
`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, words := range []string{root + "/mounts/vol", "refused: these volumes are mounted", "the volumes are still in " + root, "removed, volumes and all"} {
		if !strings.Contains(string(out), words) {
			t.Errorf("nothing of %q: %s", words, out)
		}
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", root, err)
	}
}
