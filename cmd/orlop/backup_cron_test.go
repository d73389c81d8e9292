//go:build root

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// over covers a path of the host by one of the test's, in the mount namespace of the tests.
func over(t *testing.T, path, with string) {
	t.Helper()
	if err := unix.Mount(with, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
}

// documentedCrontab is the file for /etc/cron.d that docs/backup.md shows, run each minute instead of each hour.
func documentedCrontab(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
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

// TestCronBacksUpFromTheDocumentedCrontab runs a real cron daemon, which wakes up once a minute. The places that the crontab
// names are covered by the test's.
func TestCronBacksUpFromTheDocumentedCrontab(t *testing.T) {
	program := builtOrlop(t)
	dir := t.TempDir()
	crontab := documentedCrontab(t)
	for name, covered := range map[string]string{"mnt": "/mnt", "home": "/root", "run": "/run", "cron.d": "/etc/cron.d", "spool": "/var/spool/cron"} {
		with := filepath.Join(dir, name)
		if err := os.Mkdir(with, 0o755); err != nil {
			t.Fatal(err)
		}
		over(t, covered, with)
	}
	for _, made := range []string{"/mnt/nas", "/var/spool/cron/crontabs"} {
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	over(t, "/usr/local/bin", filepath.Dir(program))
	if _, err := os.Stat("/etc/crontab"); err == nil {
		over(t, "/etc/crontab", "/dev/null")
	}
	h := startHost(t)
	if err := os.Symlink(h.dir, "/run/orlop"); err != nil {
		t.Fatal(err)
	}
	h.must(t, "key", "create", "/root/orlop.key")
	h.must(t, "backup", "init", "file:///mnt/nas/orlop", "--key-file", "/root/orlop.key")
	h.must(t, "create", "db", "--size", "64M")
	if err := os.WriteFile("/etc/cron.d/orlop-backup", []byte(crontab), 0o644); err != nil {
		t.Fatal(err)
	}
	cron := exec.Command("cron", "-f")
	cron.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := cron.Start(); err != nil {
		t.Fatalf("%v: install Debian's cron (make deps)", err)
	}
	defer func() {
		_ = cron.Process.Kill()
		_ = cron.Wait() // killed
	}()
	for deadline := time.Now().Add(4 * time.Minute); ; <-time.After(time.Second) {
		var made []json.RawMessage
		list := h.must(t, "--json", "backup", "list", "file:///mnt/nas/orlop", "--key-file", "/root/orlop.key")
		if err := json.Unmarshal([]byte(list), &made); err != nil {
			t.Fatal(err)
		}
		if len(made) >= 2 && !hasChildren(t, cron.Process.Pid) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("cron made %d backups; the daemon's log:\n%s", len(made), h.life.log)
		}
	}
}

func hasChildren(t *testing.T, pid int) bool {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(children) > 0
}
