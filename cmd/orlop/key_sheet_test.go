package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"rsc.io/qr"

	"orlop/internal/backup/repo"
)

// keyLines are the lines of a sheet that are the key.
func keyLines(sheet string) string {
	lines := strings.Split(sheet, "\n")
	at := slices.IndexFunc(lines, func(line string) bool { return strings.TrimSpace(line) == repo.KeyMagic })
	if at < 0 {
		return ""
	}
	return strings.Join(lines[at:at+3], "\n")
}

func TestARecoverySheetTypedIntoAFileIsAKeyFile(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	sheet := p.must("key", "print", p.key)
	for _, line := range strings.Split(sheet, "\n") {
		if utf8.RuneCountInString(line) >= 80 {
			t.Errorf("more than 80 columns: %q", line)
		}
	}
	if strings.Contains(sheet, "\x1b") {
		t.Errorf("escapes outside a terminal: %q", sheet)
	}
	typed := filepath.Join(t.TempDir(), "typed")
	for _, text := range []string{keyLines(sheet), strings.ToLower(keyLines(sheet)) + "\n", strings.ReplaceAll(keyLines(sheet), "\n", " ")} {
		rewrite(t, typed, text)
		if got := invoke("backup", "inspect", url, "--key-file", typed); got.code != 0 {
			t.Errorf("%q: %s", text, got)
		}
	}
	invoke("--json", "key", "print", p.key).wants(t, 0, `"key": "ORLOP-KEY-1 `)
	invoke("key", "print", filepath.Join(t.TempDir(), "none")).wants(t, 3, "does not exist")
	invoke("key", "print", p.dir).wants(t, 2, "directory")
}

// The code is drawn as its modules are, two rows to a line, with the light margin that scanners want.
func TestTheCodeOfARecoverySheetHoldsTheKeyFile(t *testing.T) {
	key, err := repo.NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	code, err := qr.Encode(key.Line(), qr.M)
	if err != nil {
		t.Fatal(err)
	}
	lines := drawn(code)
	for y := range code.Size + 2*quiet {
		row := []rune(lines[y/2])
		if len(row) != code.Size+2*quiet {
			t.Fatalf("row %d has %d modules", y, len(row))
		}
		for x, c := range row {
			dark := c == '█' || c == map[int]rune{0: '▀', 1: '▄'}[y%2]
			if dark != code.Black(x-quiet, y-quiet) {
				t.Errorf("module %d, %d: %t", x-quiet, y-quiet, dark)
			}
		}
	}
}

func TestWhoeverMakesAKeyAtATerminalIsToldToKeepIt(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("ORLOP_KEY_FILE", "")
	key := filepath.Join(dir, "my key")
	atTerminal := func(args ...string) string {
		terminal := openScreen(t, 80)
		var stdout bytes.Buffer
		if code := run(context.Background(), append([]string{"orlop"}, args...), &stdout, terminal.tty); code != 0 {
			t.Errorf("%v: exit code %d", args, code)
		}
		return terminal.close()
	}
	if told := atTerminal("key", "create", key); !strings.Contains(told, "keep a copy of "+key) || !strings.Contains(told, "orlop key print '"+key+"'") {
		t.Errorf("%q", told)
	}
	if told := atTerminal("backup", "init", filepath.Join(dir, "nas"), "--key-file", key); !strings.Contains(told, key) {
		t.Errorf("%q", told)
	}
	if told := atTerminal("backup", "init", filepath.Join(dir, "open"), "--unencrypted"); told != "" {
		t.Errorf("%q", told)
	}
	terminal := openScreen(t, 80)
	if code := run(context.Background(), []string{"orlop", "key", "print", key}, terminal.tty, os.Stderr); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if shown := terminal.close(); !strings.Contains(shown, "\x1b[30;107m") {
		t.Errorf("black on white: %q", shown)
	}
}
