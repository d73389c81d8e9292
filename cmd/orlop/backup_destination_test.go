package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
)

// id is the repository's.
func (p *backupPlace) id() string {
	p.t.Helper()
	var view repositoryView
	text := p.must("--json", "backup", "init", p.dir, "--key-file", p.key)
	if err := json.Unmarshal([]byte(text), &view); err != nil {
		p.t.Fatal(err)
	}
	return view.ID
}

func TestInitRefusesPlacesThatHoldAnythingElse(t *testing.T) {
	p := newBackupPlace(t)
	for _, name := range []string{"README", "Documents/", ".ssh/", "notes.txt", "a b", "config/"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		} else {
			rewrite(t, path, "")
		}
		invoke("backup", "init", dir, "--key-file", p.key).wants(t, 4, `"`+strings.TrimSuffix(name, "/")+`"`)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: %v, %v", name, left, err)
		}
	}
}

// What a filesystem and an init that was cut short leave behind is in nobody's way.
func TestInitAcceptsWhatItLeavesBehind(t *testing.T) {
	p := newBackupPlace(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	objects, err := dirstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	if err := store.Probe(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	if err := objects.Put(t.Context(), "probe/x", nil); err != nil {
		t.Fatal(err)
	}
	p.must("backup", "init", dir, "--key-file", p.key)
}

func TestInitNamesTheRepairOfADamagedConfig(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	config := filepath.Join(p.dir, repo.ConfigName)
	hint := "orlop backup repair '" + p.url() + "'"
	for _, anew := range []bool{false, true} {
		args := []string{"backup", "init", p.dir, "--key-file", p.key}
		if anew {
			args = append(args, "--new")
		}
		rewrite(t, config, "x")
		invoke(args...).wants(t, 7, hint)
		wipe(t, config)
		invoke(args...).wants(t, 4, hint)
	}
}

func TestRepairSaysWhatOtherCommandsSayWhereItCannotBegin(t *testing.T) {
	p := newBackupPlace(t)
	empty := t.TempDir()
	for _, dir := range []string{empty, filepath.Join(empty, "no")} {
		list, repair := invoke("backup", "list", dir, "--key-file", p.key), invoke("backup", "repair", dir, "--key-file", p.key)
		if repair != list {
			t.Errorf("want\n%s\nhave\n%s", list, repair)
		}
		repair.wants(t, 3, "orlop backup init", "is the disk mounted?")
	}
	invoke("backup", "repair", p.dir).wants(t, 2, "--key-file FILE")
}

// A file in the way is no disk that is not mounted, and init is no remedy.
func TestDestinationsThatAreFilesAreCalledFiles(t *testing.T) {
	p := newBackupPlace(t)
	for _, known := range []bool{false, true} {
		dir := p.key
		if known {
			wipe(t, p.dir)
			rewrite(t, p.dir, "")
			dir = p.dir
		}
		for _, command := range []string{"list", "verify", "prune", "repair"} {
			got := invoke("backup", command, dir, "--key-file", p.key)
			if got.wants(t, 3, dir+": not a directory, but a file\n"); strings.Contains(got.stderr, "init") || strings.Contains(got.stderr, "mounted") {
				t.Errorf("%s: %s", command, got)
			}
		}
	}
	invoke("backup", "init", p.key, "--key-file", p.key).wants(t, 3, p.key+": not a directory, but a file\n")
}
