package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// warnings are the lines of stderr that warn.
func (o outcome) warnings() (lines []string) {
	for line := range strings.Lines(o.stderr) {
		if strings.HasPrefix(line, "orlop: warning: ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// wants checks the exit code of a command, and what it says on both outputs.
func (o outcome) wants(t *testing.T, code int, says ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("want exit code %d\n%s", code, o)
	}
	for _, text := range says {
		if !strings.Contains(o.stdout+o.stderr, text) {
			t.Errorf("want %q in\n%s", text, o)
		}
	}
}

// memories are the directories in which commands remember destinations.
func memories(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "orlop", "backup", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func memory(t *testing.T) string {
	t.Helper()
	dirs := memories(t)
	if len(dirs) != 1 {
		t.Fatalf("remembered: %q", dirs)
	}
	return dirs[0]
}

func TestCommandsGoOnWhereNothingCanBeRemembered(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	rewrite(t, file, "")
	for _, cache := range []string{file, "relative/cache"} {
		p := newBackupPlace(t)
		url := p.back("db", "id-1", backupTime, contents(1))
		last := p.back("db", "id-1", backupTime, contents(2))
		t.Setenv("XDG_CACHE_HOME", cache)
		image := filepath.Join(t.TempDir(), "image")
		for _, args := range [][]string{
			{"list", p.dir}, {"inspect", url, last}, {"verify", p.dir, "--data"}, {"restore", url, "--to-file", image},
			{"delete", url}, {"prune", p.dir, "--keep-last", "1"}, {"repair", p.dir}, {"init", p.dir}, {"init", p.dir + "-too"},
		} {
			got := invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...)
			got.wants(t, 0, cache, "set back to an older state")
			if len(got.warnings()) != 1 || strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("%v: want one warning\n%s", args, got)
			}
		}
		p.made[last] = contents(2)
	}
}

// A disk may become full, or read-only, after the host has got to know the repository.
func TestCommandsGoOnWhenTheirMemoryBecomesUnwritable(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	dir := memory(t)
	lock := filepath.Join(dir, "known.json.lock")
	wipe(t, lock)
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"list", p.dir}, {"verify", p.dir}, {"prune", p.dir}, {"delete", url}} {
		got := invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...)
		got.wants(t, 0, dir)
		if len(got.warnings()) != 1 {
			t.Errorf("%v: want one warning\n%s", args, got)
		}
	}
}

func TestADamagedMemoryIsNotTakenForADamagedRepository(t *testing.T) {
	p := newBackupPlace(t)
	file := filepath.Join(memory(t), "known.json")
	for _, text := range []string{"", "{", "\x00\x00"} {
		rewrite(t, file, text)
		for _, args := range [][]string{{"list", p.dir}, {"repair", p.dir}, {"init", p.dir}, {"init", p.dir, "--new"}} {
			invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...).wants(t, 7, file, "this host remembers", "delete it", "loses nothing")
		}
	}
	if err := os.Rename(p.dir, p.dir+"-unmounted"); err != nil {
		t.Fatal(err)
	}
	invoke("backup", "list", p.dir, "--key-file", p.key).wants(t, 7, file)
	if err := os.Rename(p.dir+"-unmounted", p.dir); err != nil {
		t.Fatal(err)
	}
	wipe(t, file)
	p.must("backup", "list", p.dir, "--key-file", p.key)
}

func TestMistypedDestinationsAreNotRemembered(t *testing.T) {
	p := newBackupPlace(t)
	before := memory(t)
	for _, command := range []string{"list", "verify", "prune", "repair"} {
		for _, dir := range []string{filepath.Dir(p.dir), p.dir + "x"} {
			invoke("backup", command, dir, "--key-file", p.key).wants(t, 3)
		}
	}
	invoke("backup", "init", filepath.Dir(p.dir), "--key-file", p.key).wants(t, 4)
	if after := memory(t); after != before {
		t.Errorf("%s, and before %s", after, before)
	}
}

func TestInitRefusesAPlaceWhoseRepositoryIsGone(t *testing.T) {
	p := newBackupPlace(t)
	known := p.id()
	if err := os.Rename(p.dir, p.dir+"-unmounted"); err != nil {
		t.Fatal(err)
	}
	says := []string{known, "is the disk mounted?", "orlop backup init '" + p.url() + "' --new --key-file FILE"}
	for range 2 {
		invoke("backup", "init", p.dir, "--key-file", p.key).wants(t, 7, says...)
		for _, command := range []string{"list", "repair"} {
			got := invoke("backup", command, p.dir, "--key-file", p.key)
			if got.wants(t, 3, known, "is the disk mounted?"); strings.Contains(got.stderr, "ever made") {
				t.Errorf("%s", got)
			}
		}
		if err := os.MkdirAll(p.dir, 0o700); err != nil { // where the disk should be mounted
			t.Fatal(err)
		}
	}
	if left := files(t, p.dir); len(left) > 0 {
		t.Errorf("made: %v", left)
	}
	p.must("backup", "init", p.dir, "--new", "--key-file", p.key)
	if p.id() == known {
		t.Error("the old repository is there")
	}
	p.must("backup", "list", p.dir, "--key-file", p.key)
}

// A host that cannot forget the old repository would refuse the new one: init must say so, and mend it when it is run again.
func TestInitNewIsDoneWhenTheHostHasForgottenTheOldRepository(t *testing.T) {
	p := newBackupPlace(t)
	known := p.id()
	wipe(t, p.dir)
	lock := filepath.Join(memory(t), "known.json.lock")
	wipe(t, lock)
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	again := []string{"backup", "init", p.dir, "--new", "--key-file", p.key}
	invoke(again...).wants(t, 1, known, "run the command again")
	invoke("backup", "list", p.dir, "--key-file", p.key).wants(t, 7, known)
	wipe(t, lock)
	p.must(again...)
	p.must("backup", "list", p.dir, "--key-file", p.key)
}

// Whoever says --new where the repository is must not lose what the host knows of it.
func TestInitNewChangesNothingWhereTheRepositoryIs(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	p.views()
	file := filepath.Join(memory(t), "known.json")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p.must("backup", "init", p.dir, "--new", "--key-file", p.key)
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("%v\n%s\nand before\n%s", err, after, before)
	}
}
