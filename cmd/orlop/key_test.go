package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

func TestKeyCreateMakesAKeyOfItsOwnAndNeverReplacesOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "orlop.key")
	got := invoke("key", "create", path)
	if got.code != 0 || got.stderr != "" || !regexp.MustCompile(`^[0-9a-f]{16}\n$`).MatchString(got.stdout) {
		t.Fatalf("%s", got)
	}
	text, err := os.ReadFile(path)
	info, statErr := os.Stat(path)
	if err != nil || statErr != nil || info.Mode() != 0o600 || !regexp.MustCompile(`^ORLOP-KEY-1 ([A-Z2-7]{4}-){13}[A-Z2-7]{4}\n$`).Match(text) {
		t.Errorf("%v, %v, mode %v", err, statErr, info.Mode())
	}
	key, err := repo.ReadKeyFile(path)
	if err != nil || key.ID() != strings.TrimSpace(got.stdout) {
		t.Errorf("%v", err)
	}
	again := invoke("key", "create", path)
	if after, err := os.ReadFile(path); again.code != 4 || err != nil || string(after) != string(text) {
		t.Errorf("a second time: %s", again)
	}
	if strings.Contains(got.String()+again.String(), string(text[12:30])) {
		t.Error("the key was printed")
	}
}

func TestKeyCreateInJSONAndInBadPlaces(t *testing.T) {
	dir := t.TempDir()
	got := invoke("--json", "key", "create", filepath.Join(dir, "k"))
	var view keyView
	if err := json.Unmarshal([]byte(got.stdout), &view); err != nil || len(view.ID) != 16 || view.File != filepath.Join(dir, "k") {
		t.Errorf("%v: %s", err, got)
	}
	for _, test := range []struct {
		args []string
		code int
	}{
		{[]string{"key", "create"}, 2},
		{[]string{"key", "create", ""}, 2},
		{[]string{"key", "create", "a", "b"}, 2},
		{[]string{"key", "make", "a"}, 2},
		{[]string{"key", "create", filepath.Join(dir, "no", "such", "k")}, 3},
		{[]string{"key", "create", filepath.Join(dir, "k", "k")}, 3},
		{[]string{"key", "create", filepath.Join(dir, "slash") + "/"}, 2},
		{[]string{"key", "create", dir}, 4},
	} {
		if got := invoke(test.args...); got.code != test.code || !strings.HasPrefix(got.stderr, "orlop: ") {
			t.Errorf("%v: want exit code %d\n%s", test.args, test.code, got)
		}
	}
	if got := invoke("--json", "key", "create", dir); got.failure(t).Error.Kind != fault.ErrExists {
		t.Errorf("%s", got)
	}
}
