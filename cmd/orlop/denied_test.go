//go:build root

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asNobody runs the command line as a user without rights.
func (h *host) asNobody(t *testing.T, args ...string) (got outcome) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "orlop-nobody-") // $TMPDIR and the directory of this program may be closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a file of a test
	program := filepath.Join(dir, "orlop")
	content, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(program, content, 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), spaceDaemonArgs+"="+strings.Join(append([]string{"orlop"}, args...), "\n"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestUsersWithoutRightsAreToldThatAndNotThatNothingRuns covers commands, version and the daemon itself.
func TestUsersWithoutRightsAreToldThatAndNotThatNothingRuns(t *testing.T) {
	h := startHost(t)
	for _, mode := range []os.FileMode{0o711, 0o700} { // the socket is closed, and then its directory too
		if err := os.Chmod(h.dir, mode); err != nil {
			t.Fatal(err)
		}
		got := h.asNobody(t, "--socket", h.control, "list")
		if got.code != 1 || !strings.Contains(got.stderr, "permission denied: only root and members of the group orlop") || strings.Contains(got.stderr, "running") {
			t.Errorf("%s", got)
		}
		if got := h.asNobody(t, "--socket", h.control, "version"); got.code != 0 || !strings.Contains(got.stdout, "daemon  not reachable by this user") {
			t.Errorf("%s", got)
		}
	}
	root := filepath.Join(h.dir, "theirs")
	if got := h.asNobody(t, "daemon", "--root", root, "--control-socket", root+".c", "--plugin-socket", root+".p"); got.code != 1 || !strings.Contains(got.stderr, "must run as root") {
		t.Errorf("%s", got)
	}
}
