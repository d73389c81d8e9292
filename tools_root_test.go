//go:build root

package orlop_test

import (
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
