//go:build root

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"orlop/internal/namespacetest"
)

// bare runs a program with no environment at all, in the root directory, as cron and systemd at their barest.
func bare(t *testing.T, program string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env = []string{} // not nil, which stands for ours
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// startBare starts a daemon in a process of its own with no environment at all, and returns what ends it.
func (h *host) startBare(t *testing.T, program string) (end func()) {
	t.Helper()
	log := &logbook{ready: make(chan struct{})}
	cmd := exec.Command(program, append([]string{"daemon"}, h.flags...)...)
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, "/", log
	check(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	end = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v:\n%s", err, log)
		}
	}
	select {
	case <-log.ready:
		return end
	case <-time.After(time.Minute):
		end()
		t.Fatalf("the daemon does not become ready:\n%s", log)
	case err := <-done:
		t.Fatalf("the daemon ended with %v:\n%s", err, log)
	}
	return nil
}

// The daemon and each command of a timetable: no HOME, no PATH, no XDG_CACHE_HOME. They remember what they have to in the home
// directory of the user database, which is covered by an empty one here.
func TestScheduledCommandsNeedNoEnvironment(t *testing.T) {
	program := builtOrlop(t)
	me, err := user.Current()
	check(t, err)
	namespacetest.Cover(t, me.HomeDir, t.TempDir())
	h := newHost(t)
	defer h.startBare(t, program)()
	key, dest := filepath.Join(me.HomeDir, "orlop.key"), "file://"+filepath.Join(t.TempDir(), "nas")
	notify := filepath.Join(me.HomeDir, "notify")
	check(t, os.WriteFile(notify, []byte("http://127.0.0.1:1/\n"), 0o600)) // which is told of no success
	for _, command := range []struct{ line, want string }{
		{"key create KEY", ""},
		{"backup init DEST --key-file KEY", "DEST"},
		{"create db --size 64M", "db"},
		{"create logs --size 320M --fs xfs", "logs"},
		{"backup create db --dest DEST --key-file KEY", "DEST?backup="},
		{"backup run --all --dest DEST --key-file KEY --keep-daily 7 --notify file:NOTIFY", "logs: full backup"},
		{"backup run --all --dest DEST --key-file KEY --keep-last 1 --quiet", ""},
		{"backup prune DEST --key-file KEY --keep-daily 7 --keep-last 1", "kept 2"},
		{"backup verify DEST --key-file KEY", "no damage found"},
		{"backup verify DEST --key-file KEY --sample 50%", "no damage found"},
		{"backup verify DEST --key-file KEY --data", "no damage found"},
		{"backup list DEST --key-file KEY", "db"},
		{"backup repair DEST --key-file KEY --dry-run", ""},
		{"backup restore DEST?volume=db drill --key-file KEY", "drill"},
		{"snapshot create db", "20"}, // its name is the time
		{"job list", "collect"},
		{"trim db", ""},
		{"delete drill", "drill"},
		{"doctor", "no problems found"},
		{"doctor --max-backup-age 26h", "no problems found"},
		{"list --json", `"name": "db"`},
		{"info", `"volumes": 2`},
	} {
		values := strings.NewReplacer("DEST", dest, "KEY", key, "NOTIFY", notify)
		got := bare(t, program, append([]string{"--socket", h.control}, strings.Fields(values.Replace(command.line))...)...)
		if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, values.Replace(command.want)) {
			t.Errorf("orlop %s: %s", command.line, got)
		}
	}
	known, err := filepath.Glob(filepath.Join(me.HomeDir, ".cache/orlop/backup/*/known.json"))
	if err != nil || len(known) != 1 {
		t.Errorf("remembered in %q, %v", known, err)
	}
	if strays, err := filepath.Glob("/.cache*"); err != nil || len(strays) > 0 {
		t.Error(errors.Join(err, errors.New("something is remembered in the root directory")), strays)
	}
}

func TestEveryRestoreTakesItsKeyFromTheEnvironment(t *testing.T) {
	p := newBackupPlace(t)
	h := startHost(t)
	h.must(t, "create", "db", "--size", "64M")
	t.Setenv("ORLOP_KEY_FILE", p.key)
	t.Setenv("ORLOP_DEST", p.dir)
	url := h.must(t, "backup", "create", "db")
	h.must(t, "create", "copy", "--backup", url)
	h.must(t, "backup", "restore", url, "other")
	h.must(t, "create", "new", "--size", "64M") // which needs no key
	for _, name := range []string{"copy", "other"} {
		if v := h.view(t, name); v.State != "ready" || v.Restore == nil {
			t.Errorf("%+v", v)
		}
	}
}
