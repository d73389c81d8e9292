//go:build root

package main

import (
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

	"golang.org/x/sys/unix"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func TestCommandsKeepTheirContract(t *testing.T) {
	h := startHost(t, "--default-size", "32M")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *host)
	}{
		{"list without volumes", listWithoutVolumes},
		{"create prints just the name", createPrintsName},
		{"flags stand anywhere", flagsStandAnywhere},
		{"names may look like commands", namesLikeCommands},
		{"inspect prints an object or an array", inspectShapes},
		{"several names are all tried", severalNames},
		{"labels and filters", labelsAndFilters},
		{"protection", protection},
		{"mount and umount", mountPrintsPath},
		{"umount never drops docker's holder", umountKeepsDocker},
		{"umount says why a volume stays mounted", umountSaysWhy},
		{"a mount point of the user's choice", chosenMountpoint},
		{"resize", resizeGrows},
		{"IDs and their beginnings", idsWork},
		{"sizes", sizesAreRoundedAndExplained},
		{"trim", trimPrints},
		{"info and version", infoAndVersion},
		{"errors", errorsOnStderr},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, h)
			h.letGo(t)
			var views []daemon.View
			if err := json.Unmarshal([]byte(h.must(t, "list", "--json")), &views); err != nil {
				t.Fatal(err)
			}
			for _, view := range views {
				h.must(t, "set", view.Name, "--unprotect")
				h.must(t, "delete", view.Name)
			}
		})
	}
}

func listWithoutVolumes(t *testing.T, h *host) {
	if got := h.must(t, "list", "--json"); got != "[]" {
		t.Errorf("list --json: %q, want []", got)
	}
	if got := h.must(t, "list", "--json", "--filter", "label=none"); got != "[]" {
		t.Errorf("list --json --filter: %q, want []", got)
	}
	if got := h.must(t, "list"); got != "NAME  SIZE  USED  USE%  FS  STATE  MOUNTED" {
		t.Errorf("list: %q", got)
	}
	if got := h.must(t, "trim", "--json"); got != "[]" {
		t.Errorf("trim --json: %q, want []", got)
	}
}

func createPrintsName(t *testing.T, h *host) {
	if got := h.orlop("create", "db"); got.code != 0 || got.stdout != "db\n" || got.stderr != "" {
		t.Errorf("%s", got)
	}
	made := h.must(t, "create")
	if !regexp.MustCompile(`^volume-[0-9a-f]{16}$`).MatchString(made) {
		t.Errorf("the name made up is %q", made)
	}
	if again := h.must(t, "create"); again == made {
		t.Errorf("the name %q was made up twice", made)
	}
	long := strings.Repeat("0f", 64)
	if got := h.must(t, "create", long); got != long {
		t.Errorf("%q", got)
	}
	var view map[string]any
	if err := json.Unmarshal([]byte(h.must(t, "create", "full", "--json", "--size", "16M")), &view); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{
		"name", "id", "size", "used", "filesystem", "pool", "mountpoint", "mounted", "holders", "created", "labels", "protected", "state", "snapshots", "last_backup",
	} {
		if _, there := view[field]; !there {
			t.Errorf("no field %q: there is %q", field, slices.Sorted(maps.Keys(view)))
		}
	}
	for field, value := range map[string]string{
		"name": `"full"`, "size": "1.6777216e+07", "filesystem": `"ext4"`, "pool": `"loop"`, "mountpoint": `""`, "mounted": "false", "holders": "[]",
		"labels": "{}", "protected": "false", "state": `"ready"`, "snapshots": "[]", "last_backup": "null", "mount_options": "[]", "kept": "false",
	} {
		if raw, err := json.Marshal(view[field]); err != nil || string(raw) != strings.ReplaceAll(value, "1.6777216e+07", "16777216") {
			t.Errorf("%s: %s (%v), want %s", field, raw, err, value)
		}
	}
	created, err := time.Parse(time.RFC3339, fmt.Sprint(view["created"]))
	if err != nil || !strings.HasSuffix(fmt.Sprint(view["created"]), "Z") || time.Since(created) > time.Hour {
		t.Errorf("created: %v, %v", view["created"], err)
	}
}

func flagsStandAnywhere(t *testing.T, h *host) {
	for i, args := range [][]string{
		{"create", "v0", "--size", "16M", "--label", "k=v", "--json"}, {"--json", "create", "--size", "16M", "--label", "k=v", "v1"},
		{"create", "--json", "--label=k=v", "v2", "--size=16M"}, {"create", "--size", "16M", "--json", "--label", "k=v", "--", "v3"},
	} {
		var view daemon.View
		if err := json.Unmarshal([]byte(h.must(t, args...)), &view); err != nil {
			t.Fatal(err)
		}
		if view.Name != fmt.Sprintf("v%d", i) || view.Size != 16<<20 || view.Labels["k"] != "v" {
			t.Errorf("%q: %+v", args, view)
		}
	}
	if got := h.orlop("create", "--", "--size"); got.code != 2 || !strings.Contains(got.stderr, `"--size"`) {
		t.Errorf("-- does not end flags: %s", got)
	}
	if got := h.orlop("delete", "v0", "--", "--json"); got.code != 2 || !strings.HasPrefix(got.stderr, "orlop: ") || !strings.Contains(got.stderr, `"--json"`) {
		t.Errorf("-- does not end global flags: %s", got)
	}
}

func namesLikeCommands(t *testing.T, h *host) {
	for _, name := range []string{"list", "help", "h", "create", "daemon", "delete"} {
		if got := h.must(t, "create", name, "--size", "16M"); got != name {
			t.Errorf("create %s: %q", name, got)
		}
		if view := h.view(t, name); view.Name != name {
			t.Errorf("inspect %s: %+v", name, view)
		}
		h.must(t, "delete", name)
	}
}

func inspectShapes(t *testing.T, h *host) {
	h.must(t, "create", "a")
	h.must(t, "create", "b")
	var one daemon.View
	if err := json.Unmarshal([]byte(h.must(t, "inspect", "a")), &one); err != nil || one.Name != "a" {
		t.Errorf("%+v, %v", one, err)
	}
	var many []daemon.View
	if err := json.Unmarshal([]byte(h.must(t, "inspect", "b", "a")), &many); err != nil || len(many) != 2 || many[0].Name != "b" || many[1].Name != "a" {
		t.Errorf("%+v, %v", many, err)
	}
	if err := json.Unmarshal([]byte(h.must(t, "list", "--json")), &many); err != nil || len(many) != 2 || many[0].Name != "a" {
		t.Errorf("%+v, %v", many, err)
	}
	if table := strings.Split(h.must(t, "ls"), "\n"); len(table) != 3 || !strings.HasPrefix(table[1], "a ") || !strings.Contains(table[1], "32 MiB") {
		t.Errorf("%q", table)
	}
	if got := h.orlop("inspect", "nope"); got.code != 3 || got.stdout != "" || got.stderr != "orlop: volume \"nope\": not found\n" {
		t.Errorf("%s", got)
	}
}

func severalNames(t *testing.T, h *host) {
	for _, name := range []string{"a", "b", "c"} {
		h.must(t, "create", name)
	}
	got := h.orlop("inspect", "a", "nope", "b", "../x")
	var views []daemon.View
	if err := json.Unmarshal([]byte(got.stdout), &views); err != nil || len(views) != 2 || views[0].Name != "a" || views[1].Name != "b" {
		t.Errorf("%v: %s", err, got)
	}
	if lines := strings.Split(strings.TrimSpace(got.stderr), "\n"); got.code != 3 || len(lines) != 2 || !strings.Contains(lines[0], `"nope"`) || !strings.Contains(lines[1], `"../x"`) {
		t.Errorf("want exit code 3 and both failures: %s", got)
	}
	if got := h.orlop("delete", "../x", "a", "nope", "b"); got.code != 2 || strings.Count(got.stderr, "\n") != 2 || got.stdout != "a\nb\n" {
		t.Errorf("want the first failure's exit code 2: %s", got)
	}
	if got := h.orlop("--json", "rm", "nope", "../x", "c"); got.code != 3 || strings.Count(got.stderr, `{"error":{`) != 2 {
		t.Errorf("want exit code 3 and two JSON errors: %s", got)
	}
	if got := h.must(t, "list", "--json"); got != "[]" {
		t.Errorf("not all were tried: %s", got)
	}
}

func labelsAndFilters(t *testing.T, h *host) {
	h.must(t, "create", "a", "--label", "app=shop", "--label", "tier=gold")
	h.must(t, "create", "b", "--label", "app=shop", "--label", "note=a=b, c ü")
	h.must(t, "create", "c")
	for _, test := range []struct {
		filters []string
		want    string
	}{
		{nil, "a b c"}, {[]string{"label=app"}, "a b"}, {[]string{"label=app=shop"}, "a b"}, {[]string{"label=app=sho"}, ""}, {[]string{"label=ap"}, ""},
		{[]string{"label=app", "label=tier=gold"}, "a"}, {[]string{"label=note=a=b, c ü"}, "b"}, {[]string{"label=app="}, ""},
	} {
		args := []string{"list", "--json"}
		for _, filter := range test.filters {
			args = append(args, "--filter", filter)
		}
		var views []daemon.View
		if err := json.Unmarshal([]byte(h.must(t, args...)), &views); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, view := range views {
			got = append(got, view.Name)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%q: %q, want %q", test.filters, got, test.want)
		}
	}
	if got := h.orlop("set", "a", "--label", "tier=", "--label", "app=bank", "--label", "new=1", "--label", "never="); got.code != 0 || got.stdout != "" {
		t.Errorf("%s", got)
	}
	if got := h.view(t, "a").Labels; !maps.Equal(got, map[string]string{"app": "bank", "new": "1"}) {
		t.Errorf("labels %v", got)
	}
}

func protection(t *testing.T, h *host) {
	h.must(t, "create", "a", "--protect")
	refused := func() {
		t.Helper()
		if got := h.orlop("delete", "a"); got.code != 4 || !strings.Contains(got.stderr, "orlop set a --unprotect") {
			t.Errorf("%s", got)
		}
		if got := h.orlop("delete", "a", "--json"); got.failure(t).Error.Kind != fault.ErrProtected {
			t.Errorf("%s", got)
		}
		if got, err := h.ask(t.Context(), "Remove", dockerRequest{Name: "a"}); err != nil || got.status != 500 || !strings.Contains(got.Err, "protected") {
			t.Errorf("%+v, %v", got, err)
		}
	}
	refused()
	h.must(t, "set", "a", "--unprotect")
	h.must(t, "set", "a", "--protect")
	refused()
	var view daemon.View
	if err := json.Unmarshal([]byte(h.must(t, "set", "a", "--unprotect", "--json")), &view); err != nil || view.Protected {
		t.Errorf("%+v, %v", view, err)
	}
	h.must(t, "delete", "a")
}

func mountPrintsPath(t *testing.T, h *host) {
	h.must(t, "create", "a")
	want := filepath.Join(h.root, "mounts", "a")
	for range 2 {
		if got := h.must(t, "mount", "a"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	view := h.view(t, "a")
	if !view.Mounted || view.Mountpoint != want || len(view.Holders) != 1 || view.Holders[0].Kind != "user" || view.Kept {
		t.Errorf("%+v", view)
	}
	if got := h.orlop("delete", "a"); got.code != 4 || !strings.Contains(got.stderr, "orlop umount a") {
		t.Errorf("%s", got)
	}
	if got := h.orlop("umount", "a"); got.code != 0 || got.stdout != "" || got.stderr != "" {
		t.Errorf("%s", got)
	}
	h.must(t, "unmount", "a") // what is not mounted is no error
	if view := h.view(t, "a"); view.Mounted || view.Mountpoint != "" || len(view.Holders) != 0 {
		t.Errorf("%+v", view)
	}
	if err := json.Unmarshal([]byte(h.must(t, "mount", "a", "--json")), &view); err != nil || !view.Mounted {
		t.Errorf("%+v, %v", view, err)
	}
}

func umountKeepsDocker(t *testing.T, h *host) {
	h.must(t, "create", "a")
	path := h.docker(t, "Mount", dockerRequest{Name: "a", ID: "container"}).Mountpoint
	umount := func() {
		t.Helper()
		if got := h.orlop("umount", "a"); got.code != 0 || got.stdout != "" || !strings.Contains(got.stderr, "stays mounted: in use by docker mount container") {
			t.Errorf("%s", got)
		}
	}
	umount()
	h.must(t, "mount", "a")
	umount()
	view := h.view(t, "a")
	if !view.Mounted || len(view.Holders) != 1 || view.Holders[0].Kind != "docker" || view.Holders[0].ID != "container" {
		t.Errorf("%+v", view)
	}
	if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil || !slices.Contains(h.mounts(t), path) {
		t.Errorf("no longer mounted at %s: %v", path, err)
	}
	h.must(t, "mount", "a")
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "container"})
	if view := h.view(t, "a"); !view.Mounted || len(view.Holders) != 1 || view.Holders[0].Kind != "user" {
		t.Errorf("docker's unmount dropped the user's holder: %+v", view)
	}
}

func umountSaysWhy(t *testing.T, h *host) {
	h.must(t, "create", "a")
	dir, elsewhere := h.must(t, "mount", "a"), t.TempDir()
	h.docker(t, "Mount", dockerRequest{Name: "a", ID: "container"})
	if got := h.orlop("umount", "a"); got.code != 0 || got.stdout != "" || !strings.Contains(got.stderr, "stays mounted: in use by docker mount container") {
		t.Errorf("held by docker: %s", got)
	}
	if got := h.orlop("umount", "a", "--stale"); got.code != 4 || !strings.Contains(got.stderr, "no process uses it") {
		t.Errorf("held by docker for a moment: %s", got)
	}
	check(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	check(t, unix.Mount(filepath.Join(dir, "sub"), elsewhere, "", unix.MS_BIND, ""))
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "container"})
	for range 2 {
		if got := h.orlop("umount", "a"); got.code != 4 || !strings.Contains(got.stderr, "in use by a mount at "+elsewhere) {
			t.Errorf("bound elsewhere: %s", got)
		}
	}
	if got := h.orlop("doctor"); got.code != 1 || !strings.Contains(got.stdout, elsewhere) {
		t.Errorf("doctor does not name %s: %s", elsewhere, got)
	}
	check(t, unix.Unmount(elsewhere, 0))
	h.must(t, "umount", "a")
	if view := h.view(t, "a"); view.Mounted {
		t.Errorf("%+v", view)
	}
}

func chosenMountpoint(t *testing.T, h *host) {
	h.must(t, "create", "a")
	dir := filepath.Join(h.dir, "chosen")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(h.dir)
	for _, given := range []string{dir, "chosen", "./chosen/"} {
		if got := h.must(t, "mount", "a", "--mountpoint", given); got != dir {
			t.Errorf("--mountpoint %s: %q, want %q", given, got, dir)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(h.root, "mounts", "a")); !slices.Equal(got, []string{"file"}) {
		t.Errorf("the volume shows %q", got)
	}
	if got := h.orlop("delete", "a"); got.code != 4 || !strings.Contains(got.stderr, dir) {
		t.Errorf("%s", got)
	}
	h.must(t, "umount", "a")
	if got := names(t, dir); len(got) > 0 || h.view(t, "a").Mounted {
		t.Errorf("still mounted: %q", got)
	}
}

func resizeGrows(t *testing.T, h *host) {
	for _, kind := range []struct{ fs, from, to string }{{"ext4", "16M", "64M"}, {"xfs", "300M", "0.5G"}} {
		name := "v-" + kind.fs
		h.must(t, "create", name, "--fs", kind.fs, "--size", kind.from)
		want, err := daemon.ParseSize(kind.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.must(t, "resize", name, "--size", kind.to); got != "" {
			t.Errorf("%q", got)
		}
		h.must(t, "resize", name, "--size", kind.to) // the same size again is no error
		if view := h.view(t, name); view.Size != want {
			t.Errorf("%s has %d bytes, want %d", name, view.Size, want)
		}
		var view daemon.View
		h.must(t, "mount", name)
		if err := json.Unmarshal([]byte(h.must(t, "resize", name, "--json", "--size", "1G")), &view); err != nil || view.Size != 1<<30 || !view.Mounted {
			t.Errorf("%+v, %v", view, err)
		}
	}
}

// sizesAreRoundedAndExplained: decimal sizes, of other drivers say, are no multiples of a block.
func sizesAreRoundedAndExplained(t *testing.T, h *host) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, size := range []string{"1.3G", "1000000000"} {
			h.must(t, "create", "a", "--fs", kind, "--size", size)
			h.must(t, "snapshot", "create", "a", "--name", "s")
			for name, from := range map[string]string{"b": "a@s", "c": "a"} {
				h.must(t, "create", name, "--from", from, "--size", size)
				if got := h.docker(t, "Create", dockerRequest{Name: name + "-docker", Opts: map[string]string{"from": from, "size": size}}); got.Err != "" {
					t.Error(got.Err)
				}
				h.must(t, "create", name+"-same", "--from", from)
				for _, name := range []string{name, name + "-docker", name + "-same"} {
					h.must(t, "resize", name, "--size", size)
					if view := h.view(t, name); view.Size != h.view(t, "a").Size || view.Size%4096 != 0 {
						t.Errorf("%s has %d bytes, its origin %d", name, view.Size, h.view(t, "a").Size)
					}
					h.must(t, "delete", name)
				}
			}
			h.must(t, "delete", "a", "--snapshots")
		}
	}
	h.must(t, "create", "a", "--size", "20M")
	logged := strings.Count(h.life.log.String(), "volume resized")
	h.must(t, "resize", "a", "--size", "20M")
	if now := strings.Count(h.life.log.String(), "volume resized"); now != logged {
		t.Error("a resize to the same size is logged")
	}
	if got := h.orlop("resize", "a", "--size", "10M"); got.code != 2 || !strings.Contains(got.stderr, `"10M"`) || !strings.Contains(got.stderr, "10 MiB is below the present 20 MiB") {
		t.Errorf("%s", got)
	}
	if got := h.orlop("create", "b", "--size", "16T"); got.code != 0 || got.stdout != "b\n" || !strings.Contains(got.stderr, "warning: volume \"b\": its size of 16 TiB is more than all of the") {
		t.Errorf("%s", got)
	}
	if got := h.orlop("create", "c", "--size", "16M"); got.stderr != "" {
		t.Errorf("%s", got)
	}
}

func idsWork(t *testing.T, h *host) {
	h.must(t, "create", "a")
	id := h.view(t, "a").ID
	if view := h.view(t, id); view.Name != "a" {
		t.Errorf("%+v", view)
	}
	if view := h.view(t, id[:13]); view.Name != "a" {
		t.Errorf("%+v", view)
	}
	h.must(t, "create", "b")
	if got := h.orlop("delete", id[:4]); got.code != 2 || !strings.Contains(got.stderr, "a (") || !strings.Contains(got.stderr, "b (") {
		t.Errorf("an ambiguous beginning: %s", got)
	}
	if got := h.orlop("delete", id[:3]); got.code != 3 {
		t.Errorf("too short a beginning: %s", got)
	}
	h.must(t, "delete", id)
}

func trimPrints(t *testing.T, h *host) {
	h.must(t, "create", "a")
	h.must(t, "create", "b")
	if got := h.must(t, "trim"); strings.Count(got, "given back") != 2 || !strings.HasPrefix(got, "a: ") || !strings.Contains(got, "\nb: ") {
		t.Errorf("%q", got)
	}
	var trimmed []struct {
		Name  string
		Bytes int64
	}
	if err := json.Unmarshal([]byte(h.must(t, "trim", "b", "--json")), &trimmed); err != nil || len(trimmed) != 1 || trimmed[0].Name != "b" || trimmed[0].Bytes < 0 {
		t.Errorf("%+v, %v", trimmed, err)
	}
	if got := h.orlop("trim", "nope", "a"); got.code != 3 || !strings.HasPrefix(got.stdout, "a: ") {
		t.Errorf("%s", got)
	}
	if h.view(t, "a").Mounted {
		t.Error("trim left the volume mounted")
	}
}

func infoAndVersion(t *testing.T, h *host) {
	var info daemon.Info
	if err := json.Unmarshal([]byte(h.must(t, "info")), &info); err != nil {
		t.Fatal(err)
	}
	if info.Root != h.root || info.DefaultSize != 32<<20 || info.DefaultFS != "ext4" || len(info.Pools) != 1 || info.Pools[0].Free <= 0 || info.Version != version {
		t.Errorf("%+v", info)
	}
	if got := h.must(t, "version"); !strings.Contains(got, "daemon  "+version) {
		t.Errorf("%q", got)
	}
	var both map[string]map[string]string
	if err := json.Unmarshal([]byte(h.must(t, "version", "--json")), &both); err != nil || both["daemon"]["version"] != version || both["client"]["version"] != version {
		t.Errorf("%v, %v", both, err)
	}
}

func errorsOnStderr(t *testing.T, h *host) {
	h.must(t, "create", "a")
	for _, test := range []struct {
		args []string
		code int
		kind fault.Kind
	}{
		{[]string{"create", "a"}, 4, fault.ErrExists}, {[]string{"create", "../x"}, 2, fault.ErrInvalid}, {[]string{"set", "nope", "--protect"}, 3, fault.ErrNotFound},
		{[]string{"mount", "nope"}, 3, fault.ErrNotFound}, {[]string{"umount", "nope"}, 3, fault.ErrNotFound}, {[]string{"resize", "nope", "--size", "1G"}, 3, fault.ErrNotFound},
		{[]string{"delete", "nope"}, 3, fault.ErrNotFound}, {[]string{"resize", "a", "--size", "1M"}, 2, fault.ErrInvalid},
	} {
		if got := h.orlop(test.args...); got.code != test.code || got.stdout != "" || !strings.HasPrefix(got.stderr, "orlop: ") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%q: want exit code %d: %s", test.args, test.code, got)
		}
		got := h.orlop(append([]string{"--json"}, test.args...)...)
		if body := got.failure(t); got.code != test.code || got.stdout != "" || body.Error.Kind != test.kind || body.Error.Message == "" {
			t.Errorf("--json %q: want exit code %d and kind %s: %s", test.args, test.code, test.kind, got)
		}
	}
}
