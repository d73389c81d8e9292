package run_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"orlop/internal/fault"
	"orlop/internal/run"
)

func TestRunReturnsOutput(t *testing.T) {
	out, err := run.Runner{}.Run(t.Context(), "sh", "-c", `echo "$1"; echo noise >&2; printenv LC_ALL`, "sh", "a  b; $(false)")
	if err != nil || string(out) != "a  b; $(false)\nC\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestFailureCarriesStatusAndLastWords(t *testing.T) {
	for script, wanted := range map[string]string{
		"echo one >&2; echo two >&2; echo out; exit 3": "one; two",
		"echo only out; exit 3":                        "only out",
		"exit 3":                                       "(no output)",
		"for i in 1 2 3 4 5 6 7 8; do echo $i >&2; done; echo; exit 3":    "4; 5; 6; 7; 8",
		"echo '  padded  ' >&2; exit 3":                                   "padded",
		"echo spoken first; echo then an error >&2; exit 3; echo ignored": "then an error",
	} {
		_, err := run.Runner{}.Run(t.Context(), "sh", "-c", script)
		var exit *run.ExitError
		if !errors.As(err, &exit) || exit.Code != 3 || exit.Output != wanted {
			t.Errorf("%s: %v", script, err)
		} else if !strings.Contains(err.Error(), "exit status 3: "+wanted) || !fault.Is(err, fault.ErrFailed) {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestMissingCommandNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := run.Runner{}.Run(t.Context(), "orlop-no-such-command")
	if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "orlop-no-such-command is not installed") {
		t.Error(err)
	}
	if path, err := run.Find("sh"); err != nil || !filepath.IsAbs(path) {
		t.Errorf("outside PATH: %q, %v", path, err)
	}
}

func TestFindTakesExecutableFilesOnly(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, mode := range map[string]os.FileMode{"orlop-plain": 0o644, "orlop-runs": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "orlop-directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, found := range map[string]bool{"orlop-plain": false, "orlop-runs": true, "orlop-directory": false} {
		if path, err := run.Find(name); found != (err == nil) || !found && !fault.Is(err, fault.ErrUnsupported) {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
}

func TestCommandIsKilledAtItsLimitOrWithItsContext(t *testing.T) {
	_, err := run.Runner{Limit: time.Millisecond}.Run(t.Context(), "sleep", "1000")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "sleep 1000") {
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (run.Runner{}).Run(cancelled, "sleep", "1000"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestACleanEnvironmentHasNoSecrets(t *testing.T) {
	t.Setenv("SECRET", "secret")
	t.Setenv("HOME", "/home/somewhere")
	out, err := run.Runner{Clean: true, Env: []string{"ADDED=1"}}.Run(t.Context(), "env")
	if err != nil || strings.Contains(string(out), "SECRET") || !strings.Contains(string(out), "HOME=/home/somewhere\n") ||
		!strings.Contains(string(out), "ADDED=1\n") || !strings.Contains(string(out), "LC_ALL=C\n") || !strings.Contains(string(out), "PATH=") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestStreamPassesOutputOnWhileTheCommandRuns(t *testing.T) {
	var lines []string
	err := run.Runner{}.Stream(t.Context(), func(r io.Reader) error {
		b, err := io.ReadAll(r)
		lines = strings.Fields(string(b))
		return err
	}, "sh", "-c", "echo one; echo noise >&2; echo two")
	if err != nil || len(lines) != 2 {
		t.Errorf("%q, %v", lines, err)
	}
	enough := errors.New("enough")
	err = run.Runner{}.Stream(t.Context(), func(r io.Reader) error {
		_, _ = r.Read(make([]byte, 1))
		return enough
	}, "sh", "-c", "while :; do echo more; done")
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	err = run.Runner{}.Stream(t.Context(), func(r io.Reader) error { _, err := io.ReadAll(r); return err }, "sh", "-c", "echo half; echo broken >&2; exit 3")
	var exit *run.ExitError
	if !errors.As(err, &exit) || exit.Output != "broken" {
		t.Errorf("a command that fails after half of its output: %v", err)
	}
}

func TestCaptureReturnsWhatACommandSaysInPassing(t *testing.T) {
	stdout, stderr, err := run.Runner{}.Capture(t.Context(), "sh", "-c", "echo out; echo warning >&2")
	if err != nil || string(stdout) != "out\n" || string(stderr) != "warning\n" {
		t.Errorf("%q, %q, %v", stdout, stderr, err)
	}
}

func TestCommandWithAStopSignalMayEndByItself(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	r := run.Runner{Limit: 5 * time.Second, Stop: syscall.SIGTERM, Grace: time.Minute} // long enough for the shell to set its trap
	_, err := r.Run(t.Context(), "sh", "-c", `trap 'echo ended > "$1"; exit 0' TERM; while :; do sleep 0.05; done`, "sh", mark)
	if _, statErr := os.Stat(mark); statErr != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", err, statErr)
	}
}
