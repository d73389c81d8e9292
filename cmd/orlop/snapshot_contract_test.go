//go:build root

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func TestSnapshotCommandsKeepTheirContract(t *testing.T) {
	h := startHost(t, "--default-size", "16M")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *host)
	}{
		{"without snapshots", withoutSnapshots},
		{"create prints just the name", snapshotCreatePrintsName},
		{"create of several prints each", snapshotCreateOfSeveral},
		{"flags stand anywhere", snapshotFlagsStandAnywhere},
		{"list", snapshotList},
		{"inspect prints an object or an array", snapshotInspectShapes},
		{"several names are all tried", snapshotDeleteOfSeveral},
		{"names and IDs", snapshotReferences},
		{"restore", snapshotRestore},
		{"restore needs a volume that nobody uses", snapshotRestoreRefusals},
		{"diff", snapshotDiff},
		{"a clone's size", cloneSize},
		{"a clone has its origin's filesystem and pool", cloneRefusals},
		{"a clone outlives its origin", cloneOutlivesOrigin},
		{"delete with snapshots", deleteWithSnapshots},
		{"hooks that are not allowed", hooksNotAllowed},
		{"errors", snapshotErrorsOnStderr},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, h)
			h.letGo(t)
			var views []daemon.View
			check(t, json.Unmarshal([]byte(h.must(t, "list", "--json")), &views))
			for _, view := range views {
				h.must(t, "delete", "--snapshots", view.Name)
			}
		})
	}
}

func withoutSnapshots(t *testing.T, h *host) {
	for _, args := range [][]string{{"snapshot", "list", "--json"}, {"--json", "snapshot", "ls"}} {
		if got := h.must(t, args...); got != "[]" {
			t.Errorf("%q: %q, want []", args, got)
		}
	}
	if got := h.must(t, "snapshot", "list"); got != "SNAPSHOT  USED  STATE  CREATED (UTC)" {
		t.Errorf("list: %q", got)
	}
	if got := h.orlop("snapshot", "inspect", "s"); got.code != 3 || !strings.Contains(got.stderr, "there is none") {
		t.Errorf("%s", got)
	}
}

// timeName is the name of a snapshot that was given none.
var timeName = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z(-[0-9]+)?$`)

func snapshotCreatePrintsName(t *testing.T, h *host) {
	h.must(t, "create", "db")
	if got := h.orlop("snapshot", "create", "db", "--name", "s"); got.code != 0 || got.stdout != "s\n" || got.stderr != "" {
		t.Errorf("%s", got)
	}
	made := map[string]bool{}
	for range 3 { // within a second, too
		name := h.must(t, "snapshot", "create", "db")
		if !timeName.MatchString(name) || made[name] {
			t.Errorf("named %q, after %v", name, made)
		}
		made[name] = true
	}
	long := strings.Repeat("0f", 64)
	if got := h.must(t, "snapshot", "create", "db", "--name", long); got != long {
		t.Errorf("%q", got)
	}
	var view map[string]any
	check(t, json.Unmarshal([]byte(h.must(t, "snapshot", "create", "--json", "db", "--name", "full", "--label", "k=v", "--label", "l=a=b")), &view))
	want := map[string]string{
		"name": `"full"`, "volume": `"db"`, "volume_id": fmt.Sprintf("%q", h.view(t, "db").ID), "size": "16777216", "labels": `{"k":"v","l":"a=b"}`, "state": `"ready"`,
		"managed": "false", "pins": "[]", "consistency": `"unmounted"`,
	}
	for field, value := range want {
		if raw, err := json.Marshal(view[field]); err != nil || string(raw) != value {
			t.Errorf("%s: %s (%v), want %s", field, raw, err, value)
		}
	}
	fields := append(slices.Collect(maps.Keys(want)), "id", "used", "created")
	if got := slices.Sorted(maps.Keys(view)); !slices.Equal(got, slices.Sorted(slices.Values(fields))) {
		t.Errorf("fields %q, want %q", got, fields)
	}
	created, err := time.Parse(time.RFC3339, fmt.Sprint(view["created"]))
	if err != nil || !strings.HasSuffix(fmt.Sprint(view["created"]), "Z") || time.Since(created) > time.Hour {
		t.Errorf("created: %v, %v", view["created"], err)
	}
	if v := h.view(t, "db"); len(v.Snapshots) != 6 || v.Snapshots[5].Name != "full" || v.Snapshots[5].Used <= 0 {
		t.Errorf("inspect of the volume: %+v", v.Snapshots)
	}
	if got := h.docker(t, "Get", dockerRequest{Name: "db"}).Volume.Status["snapshots"]; got != 6. {
		t.Errorf("docker shows %v snapshots", got)
	}
}

func snapshotCreateOfSeveral(t *testing.T, h *host) {
	h.must(t, "create", "a")
	h.must(t, "create", "b")
	if got := h.must(t, "snapshot", "create", "b", "a", "--name", "s"); got != "b@s\na@s" {
		t.Errorf("%q", got)
	}
	var views []daemon.SnapshotView
	check(t, json.Unmarshal([]byte(h.must(t, "snapshot", "create", "a", "b", "--json", "--label", "k=v")), &views))
	if len(views) != 2 || views[0].Volume != "a" || views[1].Volume != "b" || views[0].Name != views[1].Name || !timeName.MatchString(views[0].Name) ||
		views[0].Group == "" || views[0].Group != views[1].Group || views[0].Labels["k"] != "v" || views[1].Labels["k"] != "v" {
		t.Errorf("%+v", views)
	}
	if alone := h.must(t, "snapshot", "inspect", "a@s"); !strings.Contains(alone, `"group"`) {
		t.Errorf("no group: %s", alone)
	}
	for _, args := range [][]string{{"a", "b", "--name", "s"}, {"a", "nope"}, {"a", "b", "a"}} {
		got := h.orlop(append([]string{"snapshot", "create"}, args...)...)
		if all := h.snapshots(t); got.code == 0 || got.stdout != "" || len(all) != 4 {
			t.Errorf("%q: %s; there are %d", args, got, len(all))
		}
	}
}

func snapshotFlagsStandAnywhere(t *testing.T, h *host) {
	h.must(t, "create", "db")
	for i, args := range [][]string{
		{"snapshot", "create", "db", "--name", "s0", "--label", "k=v", "--json"}, {"--json", "snapshot", "create", "--name=s1", "--label", "k=v", "db"},
		{"snapshot", "--json", "create", "--label=k=v", "db", "--name", "s2"}, {"snapshot", "create", "--json", "--name", "s3", "--label", "k=v", "--", "db"},
	} {
		var view daemon.SnapshotView
		check(t, json.Unmarshal([]byte(h.must(t, args...)), &view))
		if view.Name != fmt.Sprintf("s%d", i) || view.Labels["k"] != "v" {
			t.Errorf("%q: %+v", args, view)
		}
	}
	h.must(t, "snapshot", "restore", "db@s0", "--discard-current")
	h.must(t, "snapshot", "restore", "--discard-current", "db@s0")
	if got := h.orlop("snapshot", "create", "db", "--", "--name"); got.code != 2 || !strings.Contains(got.stderr, `"--name"`) {
		t.Errorf("-- does not end flags: %s", got)
	}
}

func snapshotList(t *testing.T, h *host) {
	for _, name := range []string{"b", "a"} {
		h.must(t, "create", name)
		h.must(t, "snapshot", "create", name, "--name", "z-of-"+name)
	}
	h.must(t, "snapshot", "create", "b", "--name", "a-of-b")
	var all []string
	for _, s := range h.snapshots(t) {
		all = append(all, s.Volume+"@"+s.Name)
	}
	if got := strings.Join(all, " "); got != "b@z-of-b a@z-of-a b@a-of-b" {
		t.Errorf("not the oldest first: %s", got)
	}
	if of := h.snapshots(t, h.view(t, "b").ID); len(of) != 2 || of[0].Name != "z-of-b" || of[1].Name != "a-of-b" {
		t.Errorf("%+v", of)
	}
	table := strings.Split(h.must(t, "snapshot", "ls", "a"), "\n")
	if len(table) != 2 || !regexp.MustCompile(`^a@z-of-a +[0-9.]+ KiB +ready +[0-9-]{10} [0-9:]{8}$`).MatchString(table[1]) {
		t.Errorf("%q", table)
	}
	if got := h.orlop("snapshot", "list", "nope"); got.code != 3 || got.stdout != "" || got.stderr != "orlop: volume \"nope\": not found\n" {
		t.Errorf("%s", got)
	}
}

func snapshotInspectShapes(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	h.must(t, "snapshot", "create", "db", "--name", "t")
	var one daemon.SnapshotView
	check(t, json.Unmarshal([]byte(h.must(t, "snapshot", "inspect", "s")), &one))
	var many []daemon.SnapshotView
	check(t, json.Unmarshal([]byte(h.must(t, "snapshot", "inspect", "db@t", "s")), &many))
	if one.Name != "s" || len(many) != 2 || many[0].Name != "t" || many[1].ID != one.ID {
		t.Errorf("%+v, %+v", one, many)
	}
	got := h.orlop("snapshot", "inspect", "s", "nope", "t", "db@../x")
	if err := json.Unmarshal([]byte(got.stdout), &many); err != nil || len(many) != 2 || got.code != 3 || strings.Count(got.stderr, "\n") != 2 {
		t.Errorf("%v: %s", err, got)
	}
}

func snapshotDeleteOfSeveral(t *testing.T, h *host) {
	h.must(t, "create", "db")
	for _, name := range []string{"a", "b", "c"} {
		h.must(t, "snapshot", "create", "db", "--name", name)
	}
	if got := h.orlop("snapshot", "delete", "../x", "db@a", "nope"); got.code != 2 || strings.Count(got.stderr, "\n") != 2 || got.stdout != "db@a\n" {
		t.Errorf("want the first failure's exit code 2: %s", got)
	}
	if got := h.orlop("--json", "snapshot", "rm", "nope", "../x", "b"); got.code != 3 || strings.Count(got.stderr, `{"error":{`) != 2 {
		t.Errorf("want exit code 3 and two JSON errors: %s", got)
	}
	if got := h.must(t, "snapshot", "delete", "c"); got != "c" {
		t.Errorf("%q", got)
	}
	if left := h.snapshots(t); len(left) > 0 {
		t.Errorf("not all were tried: %+v", left)
	}
}

func snapshotReferences(t *testing.T, h *host) {
	h.must(t, "create", "a")
	h.must(t, "create", "b")
	volume := h.view(t, "a").ID
	if got := h.must(t, "snapshot", "create", volume, "--name", "same"); got != "same" {
		t.Errorf("%q", got)
	}
	h.must(t, "snapshot", "create", "b", "--name", "same")
	id := h.snapshots(t, "a")[0].ID
	for _, ref := range []string{"a@same", volume + "@same", volume[:16] + "@same", id, "a@" + id, "a@" + id[:18]} {
		if got := h.must(t, "snapshot", "inspect", ref); !strings.Contains(got, id) {
			t.Errorf("%s: %s", ref, got)
		}
	}
	for ref, code := range map[string]int{
		"same": 2, id[:4]: 2, volume[:4] + "@same": 2, "b@" + id: 3, id[:3]: 3, "@same": 2, "a@": 2, "@": 2, "a@same@x": 2, "": 2, "nope@same": 3,
	} {
		got := h.orlop("snapshot", "inspect", "--", ref)
		if got.code != code || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%q: want exit code %d: %s", ref, code, got)
		}
		named := strings.Contains(got.stderr, "a@same (") && strings.Contains(got.stderr, "b@same (") || strings.Contains(got.stderr, "a (")
		if strings.Contains(got.stderr, "ambiguous") && !named {
			t.Errorf("%q lists no candidates: %s", ref, got)
		}
	}
	h.must(t, "snapshot", "create", "a", "--name", "b") // like a volume
	h.must(t, "create", "of-volume", "--from", "b")
	h.must(t, "create", "of-snapshot", "--from", "a@b")
	if got := h.orlop("create", "x", "--from", "same"); got.code != 3 || !strings.Contains(got.stderr, `volume "same"`) {
		t.Errorf("a snapshot's name alone is no origin: %s", got)
	}
}

// keepFile mounts a volume, writes a file, and unmounts it.
func (h *host) keepFile(t *testing.T, volume, content string) {
	t.Helper()
	check(t, writeDurably(filepath.Join(h.must(t, "mount", volume), "file"), []byte(content)))
	h.must(t, "umount", volume)
}

// wantFile fails unless a volume has what keepFile wrote.
func (h *host) wantFile(t *testing.T, volume, content string) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(h.must(t, "mount", volume), "file")); err != nil || string(got) != content {
		t.Errorf("volume %s has %q, %v, want %q", volume, got, err, content)
	}
	h.must(t, "umount", volume)
}

func snapshotRestore(t *testing.T, h *host) {
	h.must(t, "create", "db", "--label", "k=then")
	h.keepFile(t, "db", "then")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	h.must(t, "set", "db", "--label", "k=now")
	h.keepFile(t, "db", "now")
	before := h.view(t, "db")
	if got := h.must(t, "snapshot", "restore", "s"); got != "" {
		t.Errorf("%q", got)
	}
	h.wantFile(t, "db", "then")
	after := h.view(t, "db")
	if after.ID != before.ID || after.Size != before.Size || after.Created != before.Created || after.Labels["k"] != "now" || after.State != "ready" {
		t.Errorf("%+v, was %+v", after, before)
	}
	kept := h.snapshots(t, "db")
	if len(kept) != 2 || !regexp.MustCompile(`^before-restore-[0-9]{8}T[0-9]{6}Z$`).MatchString(kept[1].Name) || kept[1].State != "ready" || kept[1].Managed {
		t.Fatalf("%+v", kept)
	}
	var view daemon.View
	check(t, json.Unmarshal([]byte(h.must(t, "--json", "snapshot", "restore", "db@"+kept[1].Name, "--discard-current")), &view))
	if view.Name != "db" || len(view.Snapshots) != 2 {
		t.Errorf("%+v", view)
	}
	h.wantFile(t, "db", "now")
	h.must(t, "snapshot", "restore", "s", "--discard-current")
	h.must(t, "snapshot", "restore", "s") // again, from where it stands
	h.wantFile(t, "db", "then")
}

func snapshotRestoreRefusals(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	for _, hold := range []struct {
		by         string
		take, drop func()
	}{
		{"orlop umount db", func() { h.must(t, "mount", "db") }, func() { h.must(t, "umount", "db") }},
		{
			"container-1", func() { h.docker(t, "Mount", dockerRequest{Name: "db", ID: "container-1"}) },
			func() { h.docker(t, "Unmount", dockerRequest{Name: "db", ID: "container-1"}) },
		},
	} {
		hold.take()
		for _, args := range [][]string{{"snapshot", "restore", "s"}, {"snapshot", "restore", "s", "--discard-current"}} {
			if got := h.orlop(args...); got.code != 4 || !strings.Contains(got.stderr, hold.by) {
				t.Errorf("held by %s: %q: %s", hold.by, args, got)
			}
		}
		h.wantWritable(t, "db")
		hold.drop()
	}
	if all, images := h.snapshots(t), h.images(t); len(all) != 1 || len(images) != 4 {
		t.Errorf("left: %+v, %q", all, images)
	}
}

func snapshotDiff(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.must(t, "snapshot", "create", "db", "--name", "old")
	h.keepFile(t, "db", "then")
	h.must(t, "snapshot", "create", "db", "--name", "new")
	h.must(t, "snapshot", "create", "db", "--name", "same")
	changed := h.must(t, "snapshot", "diff", "old", "new")
	if other := h.must(t, "snapshot", "diff", "db@new", "db@old"); other != changed || changed == "" {
		t.Errorf("by their order on the command line: %q and %q", changed, other)
	}
	if got := h.must(t, "--json", "snapshot", "diff", "old", "new"); got != changed {
		t.Errorf("--json: %q, want %q", got, changed)
	}
	if got := h.must(t, "snapshot", "diff", "new", "same"); got != "" {
		t.Errorf("of equal ones: %q", got)
	}
	for _, text := range []string{changed, h.must(t, "snapshot", "diff", "new")} {
		end := int64(0)
		lines := bufio.NewScanner(strings.NewReader(text))
		for lines.Scan() {
			var extent struct {
				Offset, Length int64
				Kind           string
			}
			decoder := json.NewDecoder(strings.NewReader(lines.Text()))
			decoder.DisallowUnknownFields()
			check(t, decoder.Decode(&extent))
			if extent.Offset < end || extent.Length <= 0 || extent.Offset+extent.Length > 16*mib || extent.Kind != "data" && extent.Kind != "hole" {
				t.Errorf("%s after %d", lines.Text(), end)
			}
			end = extent.Offset + extent.Length
		}
		check(t, lines.Err())
	}
	h.must(t, "create", "clone", "--from", "db@new")
	h.must(t, "snapshot", "create", "clone", "--name", "of-clone")
	if got := h.must(t, "snapshot", "diff", "new", "of-clone"); got != "" {
		t.Errorf("of a clone that nobody has written: %q", got)
	}
	h.must(t, "create", "other")
	h.must(t, "snapshot", "create", "other", "--name", "foreign")
	if got := h.orlop("snapshot", "diff", "old", "foreign"); got.code != 2 || got.stdout != "" || !strings.Contains(got.stderr, "db@old") || !strings.Contains(got.stderr, "other@foreign") {
		t.Errorf("%s", got)
	}
}

func cloneSize(t *testing.T, h *host) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		name := "v-" + filesystem
		h.must(t, "create", name, "--size", "320M", "--fs", filesystem, "--mount-option", "noatime", "--label", "k=v")
		h.keepFile(t, name, "content")
		h.must(t, "snapshot", "create", name, "--name", "s")
		for _, from := range []string{name, name + "@s"} {
			if got := h.orlop("create", "x", "--from", from, "--size", "319M"); got.code != 2 || !strings.Contains(got.stderr, from) || !strings.Contains(got.stderr, "at least 320 MiB") {
				t.Errorf("smaller: %s", got)
			}
			var view daemon.View
			check(t, json.Unmarshal([]byte(h.must(t, "create", "same", "--from", from, "--json")), &view))
			if view.Size != 320*mib || view.Filesystem != filesystem || view.Labels["k"] != "v" || !slices.Equal(view.MountOptions, []string{"noatime"}) || len(view.Snapshots) > 0 {
				t.Errorf("%+v", view)
			}
			h.wantFile(t, "same", "content")
			if got := h.must(t, "create", "large", "--from", from, "--size", "448M"); got != "large" {
				t.Errorf("%q", got)
			}
			wantFileAndSize(t, h.must(t, "mount", "large"), "content", 320*mib, 448*mib)
			h.must(t, "umount", "large")
			h.wantSound(t, "large")
			h.must(t, "delete", "same", "large")
		}
	}
}

func cloneRefusals(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	for _, from := range []string{"db", "db@s"} {
		for _, test := range []struct {
			flag, value, says string
		}{{"--fs", "xfs", "ext4"}, {"--pool", "nope", `"loop"`}, {"--size", "15M", "at least 16 MiB"}} {
			if got := h.orlop("create", "x", "--from", from, test.flag, test.value); got.code != 2 || !strings.Contains(got.stderr, from) || !strings.Contains(got.stderr, test.says) {
				t.Errorf("--from %s %s %s: %s", from, test.flag, test.value, got)
			}
		}
		h.must(t, "create", "x", "--from", from, "--fs", "ext4", "--pool", "loop", "--size", "16M") // what it has anyway
		h.must(t, "delete", "x")
		var view daemon.View
		check(t, json.Unmarshal([]byte(h.must(t, "--json", "create", "--from", from, "--uid", "7", "--mode", "0710")), &view))
		info, err := os.Stat(h.must(t, "mount", view.Name))
		check(t, err)
		if info.Mode().Perm() != 0o710 || !strings.HasPrefix(view.Name, "volume-") {
			t.Errorf("%s: %s", view.Name, info.Mode())
		}
		h.must(t, "umount", view.Name)
	}
	if got := h.orlop("create", "db", "--from", "db@s"); got.code != 4 {
		t.Errorf("%s", got)
	}
}

func cloneOutlivesOrigin(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.keepFile(t, "db", "content")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	h.must(t, "create", "of-snapshot", "--from", "db@s")
	h.must(t, "create", "of-volume", "--from", "db")
	h.keepFile(t, "of-volume", "its own")
	h.wantFile(t, "db", "content")
	h.must(t, "snapshot", "delete", "s")
	h.must(t, "delete", "db")
	h.wantFile(t, "of-snapshot", "content")
	h.wantFile(t, "of-volume", "its own")
	h.must(t, "create", "db") // the name is free again
	h.must(t, "create", "grandchild", "--from", "of-snapshot")
	h.must(t, "delete", "of-snapshot")
	h.wantFile(t, "grandchild", "content")
	h.wantSound(t, "grandchild")
}

func deleteWithSnapshots(t *testing.T, h *host) {
	for _, name := range []string{"a", "b"} {
		h.must(t, "create", name)
		for i := range 7 {
			h.must(t, "snapshot", "create", name, "--name", fmt.Sprintf("s%d", i))
		}
	}
	got := h.orlop("delete", "a")
	if got.code != 4 || !strings.Contains(got.stderr, "7 snapshots (s0, s1, s2, s3, s4 …)") || !strings.Contains(got.stderr, "orlop delete --snapshots a") {
		t.Errorf("%s", got)
	}
	if body := h.orlop("--json", "delete", "a").failure(t); body.Error.Kind != fault.ErrProtected {
		t.Errorf("%+v", body)
	}
	h.must(t, "mount", "a")
	if got := h.orlop("delete", "--snapshots", "a", "b"); got.code != 4 || !strings.Contains(got.stderr, "orlop umount a") {
		t.Errorf("while mounted: %s", got)
	}
	h.must(t, "umount", "a")
	if left := h.snapshots(t); len(left) != 7 || left[0].Volume != "a" {
		t.Errorf("%+v", left)
	}
	h.must(t, "set", "a", "--protect")
	if got := h.orlop("delete", "a", "--snapshots"); got.code != 4 || !strings.Contains(got.stderr, "--unprotect") {
		t.Errorf("while protected: %s", got)
	}
	h.must(t, "set", "a", "--unprotect")
	h.must(t, "rm", "a", "--snapshots")
	if left, images := h.snapshots(t), h.images(t); len(left)+len(images) > 0 {
		t.Errorf("left: %+v, %q", left, images)
	}
}

func hooksNotAllowed(t *testing.T, h *host) {
	for _, flag := range []string{"--pre-snapshot", "--post-snapshot"} {
		if got := h.orlop("create", "x", flag, "true"); got.code != 8 || !strings.Contains(got.stderr, "--allow-hooks") {
			t.Errorf("create %s: %s", flag, got)
		}
	}
	h.must(t, "create", "db")
	for _, flag := range []string{"--pre-snapshot", "--post-snapshot"} {
		if got := h.orlop("set", "db", flag, "true"); got.code != 8 || !strings.Contains(got.stderr, "--allow-hooks") {
			t.Errorf("set %s: %s", flag, got)
		}
		if body := h.orlop("--json", "set", "db", flag, "true").failure(t); body.Error.Kind != fault.ErrUnsupported {
			t.Errorf("set %s: %+v", flag, body)
		}
		h.must(t, "set", "db", flag, "") // there is none, and is none
		key := strings.TrimPrefix(flag, "--")
		got, err := h.ask(t.Context(), "Create", dockerRequest{Name: "y", Opts: map[string]string{key: "true"}})
		if err != nil || !strings.Contains(got.Err, "not for docker") {
			t.Errorf("docker's option %s: %+v, %v", key, got, err)
		}
	}
	if v := h.view(t, "db"); len(v.PreSnapshot)+len(v.PostSnapshot) > 0 {
		t.Errorf("%+v", v)
	}
}

func snapshotErrorsOnStderr(t *testing.T, h *host) {
	h.must(t, "create", "db")
	h.must(t, "snapshot", "create", "db", "--name", "s")
	for _, test := range []struct {
		args []string
		code int
		kind fault.Kind
	}{
		{[]string{"snapshot", "create", "db", "--name", "s"}, 4, fault.ErrExists}, {[]string{"snapshot", "create", "nope"}, 3, fault.ErrNotFound},
		{[]string{"snapshot", "create", "db", "--name", "a@b"}, 2, fault.ErrInvalid}, {[]string{"snapshot", "create", "db", "db"}, 2, fault.ErrInvalid},
		{[]string{"snapshot", "list", "nope"}, 3, fault.ErrNotFound}, {[]string{"snapshot", "inspect", "nope"}, 3, fault.ErrNotFound},
		{[]string{"snapshot", "delete", "nope"}, 3, fault.ErrNotFound}, {[]string{"snapshot", "restore", "nope"}, 3, fault.ErrNotFound},
		{[]string{"snapshot", "diff", "nope"}, 3, fault.ErrNotFound}, {[]string{"snapshot", "diff", "s", "nope"}, 3, fault.ErrNotFound},
		{[]string{"create", "x", "--from", "db@nope"}, 3, fault.ErrNotFound}, {[]string{"create", "x", "--from", "nope"}, 3, fault.ErrNotFound},
		{[]string{"delete", "db"}, 4, fault.ErrProtected},
	} {
		if got := h.orlop(test.args...); got.code != test.code || got.stdout != "" || !strings.HasPrefix(got.stderr, "orlop: ") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%q: want exit code %d: %s", test.args, test.code, got)
		}
		got := h.orlop(append([]string{"--json"}, test.args...)...)
		if body := got.failure(t); got.code != test.code || body.Error.Kind != test.kind || body.Error.Message == "" {
			t.Errorf("--json %q: want exit code %d and kind %s: %s", test.args, test.code, test.kind, got)
		}
	}
}
