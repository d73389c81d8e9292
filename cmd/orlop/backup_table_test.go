package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestBackupListFitsEightyColumns(t *testing.T) {
	p := newBackupPlace(t)
	long := "a-project-of-compose_its-database-volume"
	lineage := "0190f1c2-5d6e-7f80-9a1b-2c3d4e5f6071"
	first := p.back(long, lineage, backupTime, contents(1))
	second := p.back(long, lineage, backupTime.Add(time.Hour), contents(2))
	p.back("db", "id-2", backupTime, contents(3))
	table := p.must("backup", "list", p.dir, "--key-file", p.key)
	lines := strings.Split(table, "\n")
	if len(lines) != 6 || lines[1] != long || !strings.Contains(lines[0], "SNAPSHOT") || !strings.Contains(table, "snap") {
		t.Errorf("%s", table)
	}
	for _, line := range lines {
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	// A short ID of the table names the backup, everywhere.
	for i, url := range []string{first, second} {
		fields := strings.Fields(lines[2+2*i])
		short := fields[len(fields)-1]
		if len(short) < 8 || strings.Contains(short, ".") {
			t.Errorf("%q", short)
		}
		invoke("backup", "inspect", p.dir+"?backup="+short, "--key-file", p.key).wants(t, 0, idOf(url))
		invoke("backup", "inspect", p.dir+"?backup="+short+"&volume=db", "--key-file", p.key).wants(t, 3, short)
		invoke("backup", "inspect", p.dir+"?backup="+short[:3], "--key-file", p.key).wants(t, 3)
	}
	invoke("backup", "inspect", p.dir+"?backup="+lineage, "--key-file", p.key).wants(t, 2, "2 backups")
	wide := p.must("backup", "list", p.dir, "--wide", "--key-file", p.key)
	for _, text := range []string{"HOST", "h1", long, idOf(first), idOf(second)} {
		if !strings.Contains(wide, text) {
			t.Errorf("want %q in\n%s", text, wide)
		}
	}
}

func TestNamesAreCutInTheMiddle(t *testing.T) {
	for _, test := range []struct {
		name    string
		columns int
		want    string
	}{
		{"short", 5, "short"}, {"abcdefghij", 5, "ab…ij"}, {"abcdefghij", 6, "abc…ij"}, {"äöüßäöü", 5, "äö…öü"},
	} {
		if got := cut(test.name, test.columns); got != test.want {
			t.Errorf("%q in %d columns: %q, want %q", test.name, test.columns, got, test.want)
		}
	}
}

func TestPruneWithoutRulesSaysSo(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	for _, dry := range []bool{false, true} {
		args := []string{"backup", "prune", p.dir, "--key-file", p.key}
		if dry {
			args = append(args, "--dry-run")
		}
		if got := p.must(args...); !strings.HasPrefix(got, "no rule given, no backup deleted: see --keep-daily") || !strings.Contains(got, "kept 1") {
			t.Errorf("%q", got)
		}
	}
}
