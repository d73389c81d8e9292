//go:build root

package main

import (
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The home directory is covered by an empty one, in the mount namespace of the tests.
func TestCommandsRememberUnderABareEnvironment(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	program := builtOrlop(t)
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	if err := unix.Mount(t.TempDir(), me.HomeDir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(me.HomeDir, 0); err != nil {
			t.Error(err)
		}
	}()
	cmd := exec.Command(program, "backup", "list", p.dir, "--key-file", p.key)
	cmd.Env = []string{} // not nil, which stands for ours
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := outcome{stderr: string(out)}
	if got.wants(t, 0, "db"); len(got.warnings()) > 0 {
		t.Errorf("warned: %q", got.warnings())
	}
	known, err := filepath.Glob(filepath.Join(me.HomeDir, ".cache/orlop/backup/*/known.json"))
	if err != nil || len(known) != 1 {
		t.Errorf("remembered in %q, %v", known, err)
	}
}
