package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"orlop/internal/daemon"
)

const (
	composeName = "shop-production_postgres-data"                             // as Compose names volumes
	longName    = "mycompany-webshop-production-eu-west_elasticsearch-data-0" // so that nothing else fits beside it
	longProblem = "device 0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e: image is missing: /var/lib/orlop/pool/images/0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e.img"
)

func longNames(t *testing.T) (socket string, volumes []daemon.View, found []daemon.Finding) {
	t.Helper()
	fill := &daemon.FillView{FSSize: 1000, FSFree: 34, Inodes: 10, InodesFree: 1}
	volumes = []daemon.View{
		{Name: "db", Size: 10 << 30, Used: 1023 << 20, Filesystem: "ext4", Pool: "loop", State: "ready"},
		{Name: composeName, Size: 1023 << 30, Used: 1023 << 20, Filesystem: "ext4", Pool: "loop", State: "ready", Mounted: true, Mountpoint: "/var/lib/orlop/mounts/" + composeName, FillView: fill},
		{Name: longName, Size: 10 << 30, Filesystem: "xfs", Pool: "loop", State: "degraded", Problem: longProblem},
	}
	found = []daemon.Finding{
		{Severity: "error", Subject: "volume " + longName, Problem: longProblem, Command: "restore it from a copy, or orlop delete " + longName},
		{Severity: "warning", Subject: "pool loop", Problem: "host filesystem /var/lib/orlop is 93% full: 3.1 GiB left, and it has been for a while by now", Command: "orlop trim"},
	}
	snapshots := []daemon.SnapshotView{
		{Name: "s", Volume: "db", Size: 10 << 30, Used: 1 << 20, State: "ready", Created: "2026-01-02T03:04:05.678Z", Managed: true},
		{Name: "before-restore-20260102T030405Z", Volume: composeName, Size: 10 << 30, Used: 1023 << 20, State: "degraded", Created: "2026-01-02T03:04:05Z"},
	}
	return daemonThatAnswers(t, map[string]any{"/volumes": volumes, "/snapshots": snapshots, "/doctor": found, "/volumes/inspect": volumes[2]}), volumes, found
}

// wantNarrow fails for lines of more than 80 columns, unless they are one word or a command.
func wantNarrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if utf8.RuneCountInString(line) > 80 && strings.Contains(strings.TrimSpace(line), " ") && !strings.HasPrefix(line, "  fix: ") {
			t.Errorf("%d columns: %s", len(line), line)
		}
		if line != strings.TrimRight(line, " ") {
			t.Errorf("blanks at the end of %q", line)
		}
	}
}

func TestListsFitInto80ColumnsAndKeepWholeNames(t *testing.T) {
	socket, volumes, _ := longNames(t)
	t.Setenv("ORLOP_SOCKET", socket)
	got := invoke("list")
	wantNarrow(t, got.stdout)
	for _, text := range []string{"USE%  FS    STATE     MOUNTED\n", composeName + "  1023 GiB  1023 MiB  97%   ext4  ready     yes\n", "\n" + longName + "\n  ", "\n  device 0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e: image is missing:\n  /var/lib/orlop/pool/"} {
		if got.code != 0 || !strings.Contains(got.stdout, text) {
			t.Errorf("no %q: %s", text, got)
		}
	}
	wide := invoke("list", "--wide")
	for _, text := range []string{"/var/lib/orlop/mounts/" + composeName + "\n", "POOL", "FREE", "HOLDERS", "\n" + longName + "  10 GiB"} {
		if !strings.Contains(wide.stdout, text) {
			t.Errorf("no %q: %s", text, wide)
		}
	}
	if got := invoke("list", "-q"); got.stdout != "db\n"+composeName+"\n"+longName+"\n" {
		t.Errorf("%s", got)
	}
	var views []daemon.View
	if got := invoke("list", "--json"); json.Unmarshal([]byte(got.stdout), &views) != nil || len(views) != len(volumes) || views[1].Mountpoint != volumes[1].Mountpoint {
		t.Errorf("%s", got)
	}
	snapshots := invoke("snapshot", "list")
	wantNarrow(t, snapshots.stdout)
	for _, text := range []string{"SNAPSHOT", "db@s ", "1.0 MiB   backup    2026-01-02 03:04:05\n", "\n" + composeName + "@before-restore-20260102T030405Z\n  "} {
		if snapshots.code != 0 || !strings.Contains(snapshots.stdout, text) {
			t.Errorf("no %q: %s", text, snapshots)
		}
	}
	if got := invoke("snapshot", "ls", "--quiet"); got.stdout != "db@s\n"+composeName+"@before-restore-20260102T030405Z\n" {
		t.Errorf("%s", got)
	}
}

func TestListOfNamesShowsThoseVolumesOnly(t *testing.T) {
	socket, _, _ := longNames(t)
	t.Setenv("ORLOP_SOCKET", socket)
	if got := invoke("list", "--quiet", longName); got.code != 0 || got.stdout != longName+"\n" {
		t.Errorf("%s", got)
	}
}

func TestDoctorFitsInto80ColumnsAndCommandsStayInOneLine(t *testing.T) {
	socket, _, found := longNames(t)
	t.Setenv("ORLOP_SOCKET", socket)
	got := invoke("doctor")
	wantNarrow(t, got.stdout)
	lines := strings.Split(got.stdout, "\n")
	for _, f := range found {
		if !slices.Contains(lines, "  fix: "+f.Command) {
			t.Errorf("no line with %q: %s", f.Command, got)
		}
	}
	if got.code != 1 || !strings.Contains(got.stdout, "warning: pool loop: host filesystem") {
		t.Errorf("%s", got)
	}
}

func TestHelpFitsInto80Columns(t *testing.T) {
	for _, words := range append(leaves(), nil, []string{"snapshot"}, []string{"backup"}) {
		got := invoke(append(slices.Clone(words), "--help")...)
		for line := range strings.Lines(got.stdout) {
			if utf8.RuneCountInString(line) > 81 && !strings.Contains(line, "Example: ") && !strings.HasPrefix(line, "   orlop "+strings.Join(words, " ")) {
				t.Errorf("%v: %s", words, line)
			}
		}
		if strings.Contains(got.stdout, "(default: false)") || strings.Contains(got.stdout, " value ") {
			t.Errorf("%v: %s", words, got)
		}
	}
}

func TestJobListFitsInto80ColumnsAndItsIDsTellJobsApart(t *testing.T) {
	jobs := []daemon.JobView{
		{ID: "0192e1c4-8c6f-7d1c-9f60-0a8b5f1c2d3e", Kind: "backup", Volume: composeName, State: "interrupted", Done: 1, Total: 4, Started: "2026-01-02T03:04:05.678Z"},
		{ID: "0192e1c4-8c71-7d1c-9f60-0a8b5f1c2d3e", Kind: "restore", Volume: "db", State: "done", Started: "2026-01-02T03:04:05Z"},
		{ID: "0193e1c4-8c71-7d1c-9f60-0a8b5f1c2d3e", Kind: "collect", State: "running", Started: "2026-01-02T04:04:05Z"},
	}
	t.Setenv("ORLOP_SOCKET", daemonThatAnswers(t, map[string]any{"/jobs": jobs}))
	got := invoke("job", "list")
	wantNarrow(t, got.stdout)
	for _, text := range []string{"\n" + composeName + "\n", "  interrupted  25%   2026-01-02 03:04:05  0192e1c4-8c6\n", " 0192e1c4-8c7\n", "\n-  "} {
		if got.code != 0 || !strings.Contains(got.stdout, text) {
			t.Errorf("no %q: %s", text, got)
		}
	}
}
