//go:build root

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// hook makes a script that notes how it was called in a file, then runs what body says, and returns its path.
func hook(t *testing.T, journal, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	text := fmt.Sprintf("#!/bin/sh\necho \"$ORLOP_HOOK $ORLOP_VOLUME $ORLOP_SNAPSHOT $# $*\" >> %s\n%s\n", journal, body)
	check(t, os.WriteFile(path, []byte(text), 0o700))
	return path
}

// takeJournal returns the lines that hooks have noted, and forgets them.
func takeJournal(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

func TestHooksRunAroundASnapshotWithTheirArgumentsAndNoShell(t *testing.T) {
	h := startHost(t, "--allow-hooks")
	journal := filepath.Join(t.TempDir(), "journal")
	// The first one writes to the volume: it runs before the freeze, and what it wrote is in the snapshot.
	pre := hook(t, journal, `echo flushed > "$ORLOP_MOUNTPOINT/flushed"`)
	post := hook(t, journal, `rm "$ORLOP_MOUNTPOINT/flushed"`)
	h.must(t, "create", "db", "--size", "16M", "--pre-snapshot", pre+` 'two words' $HOME`)
	h.must(t, "set", "db", "--post-snapshot", post)
	dir := h.must(t, "mount", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	want := "pre-snapshot db s 2 two words $HOME\npost-snapshot db s 0 "
	if got := takeJournal(t, journal); got != want {
		t.Errorf("the hooks noted\n%s\nwant\n%s", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "flushed")); !os.IsNotExist(err) {
		t.Errorf("the second hook has not run: %v", err)
	}
	h.must(t, "set", "db", "--pre-snapshot=", "--post-snapshot=")
	h.onClone(t, "db@s", func(dir string) {
		if _, err := os.Stat(filepath.Join(dir, "flushed")); err != nil {
			t.Errorf("the first hook's work is not in the snapshot: %v", err)
		}
	})
	h.must(t, "snapshot", "create", "db")
	if got := takeJournal(t, journal); got != "" {
		t.Errorf("hooks that were removed noted %s", got)
	}
}

func TestTheHookAfterASnapshotRunsWhateverBecameOfIt(t *testing.T) {
	h := startHost(t, "--allow-hooks")
	journal := filepath.Join(t.TempDir(), "journal")
	good, bad := hook(t, journal, ""), hook(t, journal, "echo it is Tuesday >&2; exit 3")
	for _, name := range []string{"a", "b", "c"} {
		h.must(t, "create", name, "--size", "16M", "--pre-snapshot", good, "--post-snapshot", good)
		h.must(t, "mount", name)
	}
	h.must(t, "set", "b", "--pre-snapshot", bad)
	got := h.orlop("snapshot", "create", "a", "b", "c", "--name", "s")
	if got.code != 1 || !strings.Contains(got.stderr, "it is Tuesday") || !strings.Contains(got.stderr, `volume "b": its pre-snapshot command`) {
		t.Errorf("%s", got)
	}
	want := "pre-snapshot a s 0 \npre-snapshot b s 0 \npost-snapshot a s 0 \npost-snapshot b s 0 "
	if got := takeJournal(t, journal); got != want {
		t.Errorf("the hooks noted\n%s\nwant\n%s", got, want)
	}
	h.must(t, "set", "b", "--pre-snapshot", good)
	h.freeze(t, "b") // fails between the hooks
	if got := h.orlop("snapshot", "create", "a", "b", "--name", "s"); got.code != 4 {
		t.Errorf("%s", got)
	}
	h.thaw(t, "b")
	want = "pre-snapshot a s 0 \npre-snapshot b s 0 \npost-snapshot a s 0 \npost-snapshot b s 0 "
	if got := takeJournal(t, journal); got != want {
		t.Errorf("the hooks noted\n%s\nwant\n%s", got, want)
	}
	h.must(t, "set", "a", "--post-snapshot", bad) // an application that was not brought back must be told of
	if got := h.orlop("snapshot", "create", "a", "--name", "s"); got.code != 1 || !strings.Contains(got.stderr, "its post-snapshot command") {
		t.Errorf("%s", got)
	}
	if all := h.snapshots(t); len(all) > 0 {
		t.Errorf("left: %+v", all)
	}
	for _, name := range []string{"a", "b", "c"} {
		h.wantWritable(t, name)
	}
}

func TestHooksNeedTheDaemonsOwnersWord(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "db", "--size", "16M")
	for _, args := range [][]string{
		{"set", "db", "--pre-snapshot", "/bin/true"}, {"create", "x", "--post-snapshot", "/bin/true"},
	} {
		if got := h.orlop(args...); got.code != 8 || !strings.Contains(got.stderr, "--allow-hooks") {
			t.Errorf("orlop %q: %s", args, got)
		}
	}
	plain := h.flags
	h.stop(t)
	h.flags = append(plain[:len(plain):len(plain)], "--allow-hooks")
	h.start(t)
	h.must(t, "set", "db", "--pre-snapshot", "/bin/true")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	h.stop(t)
	h.flags = plain
	h.start(t)
	for _, args := range [][]string{{"snapshot", "create", "db"}, {"create", "x", "--from", "db"}} {
		if got := h.orlop(args...); got.code != 8 || !strings.Contains(got.stderr, "--allow-hooks") || !strings.Contains(got.stderr, "orlop set db") {
			t.Errorf("orlop %q: %s", args, got)
		}
	}
	h.must(t, "create", "x", "--from", "db@s") // no hook is needed for it
	h.must(t, "set", "db", "--pre-snapshot=", "--post-snapshot=")
	h.must(t, "snapshot", "create", "db")
}

func TestHooksFindNoSecretAndNoMountPointThatIsNone(t *testing.T) {
	t.Setenv("ORLOP_KEY_FILE", "/root/secret.key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	h := startHost(t, "--allow-hooks")
	seen := filepath.Join(t.TempDir(), "environment")
	h.must(t, "create", "db", "--size", "16M", "--pre-snapshot", "sh -c 'env > "+seen+"'")
	for _, mounted := range []bool{false, true} {
		dir := ""
		if mounted {
			dir = h.must(t, "mount", "db")
		}
		h.must(t, "snapshot", "create", "db")
		text, err := os.ReadFile(seen)
		check(t, err)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		if !slices.Contains(lines, "ORLOP_MOUNTPOINT="+dir) || !slices.Contains(lines, "ORLOP_VOLUME=db") {
			t.Errorf("mounted %t: the hook finds %q", mounted, lines)
		}
		if strings.Contains(string(text), "secret") {
			t.Errorf("the hook finds secrets: %q", lines)
		}
	}
}
