package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup/repo"
)

// breakHead damages the newest head of a lineage, so that nothing of it can be read.
func (p *backupPlace) breakHead(lineage string) {
	p.t.Helper()
	heads := filepath.Join(p.dir, "lineages", lineage, "heads")
	rewrite(p.t, filepath.Join(heads, newestIn(p.t, heads)), "x")
}

// breakData damages what a lineage holds of the contents of volumes.
func (p *backupPlace) breakData(lineage string) {
	p.t.Helper()
	packs, err := filepath.Glob(filepath.Join(p.dir, "lineages", lineage, "sessions", "*", "*.data"))
	if err != nil || len(packs) == 0 {
		p.t.Fatalf("%q, %v", packs, err)
	}
	for _, path := range packs {
		data, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		rewrite(p.t, path, string(data))
	}
}

func idOf(url string) string {
	_, id, _ := strings.Cut(url, "backup=")
	id, _, _ = strings.Cut(id, "&")
	return id
}

func TestADamagedLineageKeepsPruneFromNoOther(t *testing.T) {
	p := newBackupPlace(t)
	var gone []string
	for _, id := range []string{"id-1", "id-2", "id-3"} {
		gone = append(gone, idOf(p.back(id, id, backupTime, contents(1))))
		p.back(id, id, backupTime.Add(time.Hour), contents(2))
	}
	p.breakHead("id-2")
	got := invoke("backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key)
	got.wants(t, 7, "deleted "+gone[0], "deleted "+gone[2], "id-2", "deleted 2 backups, freed")
	if got := invoke("--json", "backup", "list", p.dir, "--key-file", p.key); strings.Count(got.stdout, `"url"`) != 2 {
		t.Errorf("%s", got)
	}
}

// What Thin refuses to remove must not be printed as forgotten.
func TestPruneNamesOnlyWhatIsForgotten(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	packs, err := filepath.Glob(filepath.Join(p.dir, "lineages", "id-1", "sessions", "*", "*.data"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%q, %v", packs, err)
	}
	for _, pack := range packs {
		wipe(t, pack)
	}
	invoke("backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key, "--dry-run").wants(t, 7, "would delete 0 backups\n")
	invoke("backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key).wants(t, 7, "deleted 0 backups, freed")
	if left := p.views(); len(left) != 2 {
		t.Errorf("%+v", left)
	}
}

func TestPruneRefusesFiltersThatAreEmptyOrMatchNothing(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--volume-name", ""}, 2, "--volume-name"},
		{[]string{"--host", ""}, 2, "--host"},
		{[]string{"--volume-name", "dbb"}, 3, `"dbb"`},
		{[]string{"--host", "h2"}, 3, `"h2"`},
		{[]string{"--volume-name", "db", "--host", "h2"}, 3, `"h2"`},
		{[]string{"--volume-name", "dbb", "--dry-run"}, 3, `"dbb"`},
	} {
		invoke(append([]string{"backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key}, test.args...)...).wants(t, test.code, test.says)
	}
	if left := p.views(); len(left) != 2 {
		t.Errorf("%+v", left)
	}
	p.must("backup", "prune", p.dir, "--keep-last", "1", "--volume-name", "db", "--host", "h1", "--key-file", p.key)
	invoke("backup", "verify", p.dir, "--sample", "", "--key-file", p.key).wants(t, 2, "--sample")
}

func TestADamagedLineageBlocksNoVolumeOfAnother(t *testing.T) {
	p := newBackupPlace(t)
	hurt := p.back("db", "id-1", backupTime, contents(1))
	good := p.back("web", "id-2", backupTime, contents(2))
	p.breakHead("id-1")
	image := filepath.Join(t.TempDir(), "image")
	for _, args := range [][]string{{"inspect", p.dir + "?volume=web"}, {"verify", p.dir + "?volume=web", "--data"}, {"restore", p.dir + "?volume=web", "--to-file", image}} {
		got := invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...)
		got.wants(t, 0, `"web"`, "id-1")
		if len(got.warnings()) != 1 {
			t.Errorf("%v: %s", args, got)
		}
	}
	p.must("backup", "inspect", good, "--key-file", p.key)
	invoke("backup", "inspect", p.dir+"?volume=db", "--key-file", p.key).wants(t, 7, `"db"`, "id-1")
	invoke("backup", "inspect", hurt, "--key-file", p.key).wants(t, 7, "id-1")
}

// What verify found before it could look no further is worth as much, and is damage to whoever reads the exit code only.
func TestVerifyTellsWhatItFoundBeforeItFailed(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	unwritable := filepath.Join(memory(t), "verified.json.lock")
	if err := os.Mkdir(unwritable, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []bool{false, true} {
		if damaged {
			p.breakData("id-1")
		}
		got := invoke("backup", "verify", p.dir, "--data", "--key-file", p.key)
		got.wants(t, map[bool]int{false: 1, true: 7}[damaged], unwritable)
		if strings.Count(got.stderr, p.url()) != 1 {
			t.Errorf("want one error that names the destination\n%s", got)
		}
		if told := strings.Contains(got.stdout, idOf(url)); told != damaged || damaged == (got.stdout == "") {
			t.Errorf("%s", got)
		}
	}
}

func TestVerifyOfOneBackupJudgesThatOnly(t *testing.T) {
	p := newBackupPlace(t)
	hurt := p.back("db", "id-1", backupTime, contents(1))
	p.breakData("id-1")
	good := p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	invoke("backup", "verify", p.dir, "--data", "--key-file", p.key).wants(t, 7, idOf(hurt))
	invoke("backup", "verify", hurt, "--data", "--key-file", p.key).wants(t, 7, idOf(hurt))
	p.must("backup", "verify", good, "--data", "--key-file", p.key)
	wipe(t, filepath.Join(p.dir, repo.ConfigName))
	invoke("backup", "verify", good, "--key-file", p.key).wants(t, 0, repo.ConfigName)
}

func TestFindingsAreAboutABackupIfTheyHurtIt(t *testing.T) {
	one := &repo.Backup{Lineage: "l", Record: "one"}
	for _, test := range []struct {
		finding repo.Finding
		only    *repo.Backup
		want    bool
	}{
		{repo.Finding{Object: "lineages/l/sessions/s/1.data"}, nil, true},
		{repo.Finding{Object: "lineages/l/sessions/s/1.data"}, one, false},
		{repo.Finding{Object: "lineages/l/sessions/s/1.data", Backups: []string{"l.two"}}, one, false},
		{repo.Finding{Object: "lineages/l/sessions/s/1.data", Backups: []string{"l.two", "l.one"}}, one, true},
		{repo.Finding{Object: repo.ConfigName}, one, false},
		{repo.Finding{Object: repo.HeadName("l", 7)}, one, false},
		{repo.Finding{Object: repo.HeadName("l", 7), Backups: []string{"l.one"}}, one, true},
	} {
		if got := affects(repo.Report{Findings: []repo.Finding{test.finding}}, test.only); got != test.want {
			t.Errorf("%+v: %t", test.finding, got)
		}
	}
	if affects(repo.Report{}, nil) || affects(repo.Report{}, one) {
		t.Error("nothing was found")
	}
}

// A repair that failed has not found everything in order.
func TestARepairThatFailedPrintsNoSuccess(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	other := p.dir + "-too"
	p.must("backup", "init", other, "--key-file", p.key)
	config, err := os.ReadFile(filepath.Join(other, repo.ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, filepath.Join(p.dir, repo.ConfigName), string(config))
	wipe(t, filepath.Join(os.Getenv("XDG_CACHE_HOME"), "orlop"))
	for _, args := range [][]string{{"backup", "repair"}, {"--json", "backup", "repair"}} {
		if got := invoke(append(args, p.dir, "--key-file", p.key)...); got.code != 7 || got.stdout != "" {
			t.Errorf("%s", got)
		}
	}
}

func TestRepairExitsWithDamageAsLongAsDataIsLost(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	p.breakData("id-1")
	for _, flags := range [][]string{{"--dry-run"}, nil, {"--dry-run"}} {
		got := invoke(append([]string{"--json", "backup", "repair", p.dir, "--key-file", p.key}, flags...)...)
		var steps []repo.Step
		if err := json.Unmarshal([]byte(got.stdout), &steps); err != nil || got.code != 7 || got.stderr != "" || len(steps) != 1 || !steps[0].Lost || steps[0].Done {
			t.Errorf("%v: %v\n%s", flags, err, got)
		}
	}
	for _, flag := range []string{"--dry-run", "--drop-damaged"} {
		if text := p.must("--json", "backup", "repair", p.dir, "--drop-damaged", "--key-file", p.key, flag); strings.Contains(text, `"lost": true`) {
			t.Errorf("%s: %s", flag, text)
		}
	}
}

// What is only to be done is no damage that stays.
func TestADryRunOfARepairThatLosesNothingSucceeds(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	wipe(t, filepath.Join(p.dir, repo.ConfigName))
	for _, args := range [][]string{{"--dry-run"}, {}} {
		invoke(append([]string{"backup", "repair", p.dir, "--key-file", p.key}, args...)...).wants(t, 0, repo.ConfigName)
	}
}

func TestURLsInJSONCanBeCopied(t *testing.T) {
	p := newBackupPlace(t)
	url := p.back("db", "id-1", backupTime, contents(1))
	image := filepath.Join(t.TempDir(), "image <&>")
	for _, args := range [][]string{
		{"backup", "inspect", url}, {"backup", "inspect", url, url}, {"--json", "backup", "list", p.dir},
		{"--json", "backup", "restore", url, "--to-file", image}, {"--json", "backup", "restore", url, "--to-file", image},
	} {
		got := invoke(append(args, "--key-file", p.key)...)
		text := got.stdout + got.stderr
		if strings.Contains(text, `\u00`) || !strings.Contains(text, url) && !strings.Contains(text, image) {
			t.Errorf("%v: %s", args, got)
		}
	}
}

// Of the first backup's pack a quarter is needed by the second.
func TestPruneWritesWhatIsNeededOfWastefulPacksAnew(t *testing.T) {
	p := newBackupPlace(t)
	data := make([]byte, 40*repo.MinChunk)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(data)
	p.back("db", "id-1", backupTime, data)
	_, _ = source.Read(data[:30*repo.MinChunk])
	url := p.back("db", "id-1", backupTime.Add(time.Hour), data)
	stored := func() (size int64) {
		packs, err := filepath.Glob(filepath.Join(p.dir, "lineages", "*", "sessions", "*", "*.data"))
		if err != nil {
			t.Fatal(err)
		}
		for _, pack := range packs {
			info, err := os.Stat(pack)
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		return size
	}
	before := stored()
	var view struct{ Freed int64 }
	if err := json.Unmarshal([]byte(p.must("--json", "backup", "prune", p.dir, "--keep-last", "1", "--key-file", p.key)), &view); err != nil {
		t.Fatal(err)
	}
	now := stored()
	if limit := int64(len(data)) * 11 / 10; now > limit || view.Freed < (before-now)*9/10 {
		t.Errorf("%d bytes of %d are left, at most %d are wanted; freed %d", now, before, limit, view.Freed)
	}
	p.restores(url)
	p.must("backup", "verify", p.dir, "--data", "--key-file", p.key)
	if got := p.must("backup", "prune", p.dir, "--key-file", p.key); !strings.Contains(got, "freed 0 B") {
		t.Errorf("a second time: %s", got)
	}
}

// The newest backup of a volume is damaged: nobody gets an older one without being told, and verify looks at the newest.
func TestAnOlderBackupInPlaceOfADamagedOneIsTold(t *testing.T) {
	p := newBackupPlace(t)
	old := p.back("db", "id-1", backupTime, contents(1))
	before := p.packs("id-1")
	newest := p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	volume, key := p.dir+"?volume=db", []string{"--key-file", p.key}
	run := func(args ...string) outcome { return invoke(append(args, key...)...) }
	good := map[string]string{}
	for _, pack := range p.packs("id-1") {
		if slices.Contains(before, pack) {
			continue
		}
		data, err := os.ReadFile(pack)
		if err != nil {
			t.Fatal(err)
		}
		good[pack] = string(data)
		data[len(data)/2] ^= 1
		rewrite(t, pack, string(data))
	}
	image := filepath.Join(t.TempDir(), "image")
	run("backup", "restore", volume, "--to-file", image).wants(t, 7, "after a repair")
	for range 2 {
		run("backup", "verify", volume, "--data").wants(t, 7, idOf(newest))
	}
	told := run("backup", "restore", volume, "--to-file", image+"-2")
	told.wants(t, 0, "warning", idOf(newest)+" of 20", idOf(old)+" of 20")
	run("--json", "backup", "restore", volume, "--to-file", image+"-3").wants(t, 0, `"warnings":["the newest backup`, idOf(newest))
	run("backup", "inspect", volume).wants(t, 0, "warning", idOf(old))
	for pack, data := range good {
		rewrite(t, pack, data)
	}
	run("backup", "verify", p.dir).wants(t, 0, "no damage found")
	got := run("backup", "inspect", volume)
	if got.wants(t, 0, idOf(newest)); len(got.warnings()) > 0 {
		t.Errorf("%s", got)
	}
}

// packs are the files of the packs with data.
func (p *backupPlace) packs(lineage string) []string {
	p.t.Helper()
	packs, err := filepath.Glob(filepath.Join(p.dir, "lineages", lineage, "sessions", "*", "*.data"))
	if err != nil {
		p.t.Fatal(err)
	}
	return packs
}

func TestBackupsThatAreGoneAsAWholeAreGivenUpOnlyIfAsked(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	p.back("web", "id-2", backupTime, contents(2))
	p.must("backup", "list", p.dir, "--key-file", p.key)
	if err := os.RemoveAll(filepath.Join(p.dir, "lineages", "id-1")); err != nil {
		t.Fatal(err)
	}
	invoke("backup", "verify", p.dir, "--key-file", p.key).wants(t, 7, "id-1", "of which nothing else is known", "--key-file")
	for _, dry := range []string{"--dry-run=true", "--dry-run=false"} {
		invoke("backup", "repair", p.dir, dry, "--key-file", p.key).wants(t, 7, "to do: nothing is left", "--drop-damaged")
	}
	p.must("backup", "repair", p.dir, "--drop-damaged", "--key-file", p.key)
	p.must("backup", "verify", p.dir, "--key-file", p.key)
}

func TestAStrayFileAmongTheLineagesIsNone(t *testing.T) {
	p := newBackupPlace(t)
	p.back("db", "id-1", backupTime, contents(1))
	if err := os.WriteFile(filepath.Join(p.dir, "lineages", "desktop.ini"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"list", "verify", "repair", "prune"} {
		p.must("backup", command, p.dir, "--key-file", p.key)
	}
}
