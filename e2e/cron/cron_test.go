//go:build root

// Package cron has a real cron daemon run backups, as docs/backup.md says. It is a package of its own because it waits for
// minutes, which others use, and because it covers directories of the host.
package cron

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"orlop/internal/namespacetest"
)

// TestMain runs the test in a mount namespace of its own: what it covers, it covers for itself alone.
func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

// limit is how long anything may take on a machine that is busy otherwise.
const limit = 10 * time.Minute

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// documentedCrontab is the file for /etc/cron.d that docs/backup.md shows, run each minute instead of each hour.
func documentedCrontab(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/backup.md")
	check(t, err)
	start := strings.Index(string(text), "\n    MAILTO=")
	if start < 0 {
		t.Fatal("docs/backup.md shows no crontab")
	}
	block, _, _ := strings.Cut(string(text[start:]), "\n\n")
	crontab := strings.ReplaceAll(block, "\n    ", "\n") + "\n"
	each := strings.Replace(crontab, "\n17 * * * * root /usr/local/bin/orlop backup run --all ", "\n* * * * * root /usr/local/bin/orlop backup run --all ", 1)
	if each == crontab {
		t.Fatalf("the crontab has no hourly run: %s", crontab)
	}
	return each
}

// orlop runs the program as root's shell does, and returns what it printed.
func orlop(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/usr/local/bin/orlop", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("orlop %q: %v: %s", args, err, stderr.String())
	}
	return stdout.String()
}

// startDaemon starts a daemon with its data root in a new directory, and returns when it answers. At the test's end it
// detaches everything and ends, and the directory goes.
func startDaemon(t *testing.T) (log fmt.Stringer) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "orlop-cron-")
	check(t, err)
	t.Cleanup(func() {
		_ = exec.Command("chattr", "-R", "-f", "-i", dir).Run() // closed mount points
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	daemon := exec.Command("/usr/local/bin/orlop", "daemon", "--root", filepath.Join(dir, "root"), "--pool-size", "2G", "--plugin-socket", filepath.Join(dir, "plugin.sock"))
	output, err := os.Create(filepath.Join(dir, "log"))
	check(t, err)
	daemon.Stdout, daemon.Stderr = output, output
	daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ends as the test says
	err = errors.Join(daemon.Start(), output.Close())
	check(t, err)
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	t.Cleanup(func() {
		out, err := exec.Command("/usr/local/bin/orlop", "shutdown", "--detach").CombinedOutput()
		if err != nil {
			t.Errorf("shutdown: %v: %s", err, out)
			_ = daemon.Process.Kill() // and what is attached is told by whoever looks for leftovers
		}
		if err := <-ended; err != nil {
			t.Errorf("the daemon ended: %v", err)
		}
	})
	for deadline := time.Now().Add(limit); exec.Command("/usr/local/bin/orlop", "info").Run() != nil; <-time.After(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not answer:\n%s", logFile(output.Name()))
		}
	}
	return logFile(output.Name())
}

// A logFile is shown by what is in it.
type logFile string

func (l logFile) String() string {
	text, err := os.ReadFile(string(l))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestCronBacksUpFromTheDocumentedCrontab runs a real cron daemon, which wakes up once a minute. The places that the crontab
// names are covered by the test's.
func TestCronBacksUpFromTheDocumentedCrontab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
	dir, bin := t.TempDir(), t.TempDir()
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(bin, "orlop"), "orlop/cmd/orlop").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	crontab := documentedCrontab(t)
	for name, covered := range map[string]string{"mnt": "/mnt", "home": "/root", "run": "/run", "cron.d": "/etc/cron.d", "spool": "/var/spool/cron"} {
		with := filepath.Join(dir, name)
		check(t, os.Mkdir(with, 0o755))
		namespacetest.Cover(t, covered, with)
	}
	for _, made := range []string{"/mnt/nas", "/var/spool/cron/crontabs", "/run/orlop"} {
		check(t, os.Mkdir(made, 0o755))
	}
	namespacetest.Cover(t, "/usr/local/bin", bin)
	if _, err := os.Stat("/etc/crontab"); err == nil {
		namespacetest.Cover(t, "/etc/crontab", "/dev/null")
	}
	log := startDaemon(t)
	orlop(t, "key", "create", "/root/orlop.key")
	orlop(t, "backup", "init", "file:///mnt/nas/orlop", "--key-file", "/root/orlop.key")
	orlop(t, "create", "db", "--size", "64M")
	check(t, os.WriteFile("/etc/cron.d/orlop-backup", []byte(crontab), 0o644))
	cron := exec.Command("cron", "-f")
	cron.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := cron.Start(); err != nil {
		t.Fatalf("%v: install Debian's cron (make deps)", err)
	}
	defer func() {
		_ = cron.Process.Kill()
		_ = cron.Wait() // killed
	}()
	for deadline := time.Now().Add(limit); ; <-time.After(time.Second) {
		var made []json.RawMessage
		list := orlop(t, "--json", "backup", "list", "file:///mnt/nas/orlop", "--key-file", "/root/orlop.key")
		check(t, json.Unmarshal([]byte(list), &made))
		if len(made) >= 2 && !hasChildren(t, cron.Process.Pid) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("cron made %d backups; the daemon's log:\n%s", len(made), log)
		}
	}
}

func hasChildren(t *testing.T, pid int) bool {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	check(t, err)
	return len(children) > 0
}
