//go:build root

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// A badInput is refused at every front door that it can come through, and changes nothing.
type badInput struct {
	name    string
	kind    fault.Kind
	says    []string         // in every message
	cli     []string         // nil: cannot be said there
	path    string           // of the control API; empty: cannot be said there
	request *control.Request // nil: a GET
	call    string           // of Docker's protocol; empty: cannot be said there
	docker  dockerRequest
}

// The fixtures: "small" has 16 MiB and a label, "locked" is protected, "busy" is mounted for a container and a user.
const allowedNames = "1 to 128 letters, digits"

var badVolumeNames = []string{
	"", ".", "..", "../x", "/etc/passwd", "a/b", "-rf", "--size", "_a", ".hidden", " ", "a b", "a\nb", "a\n", "a\tb", "ä", "数据", "a\x7fb", "a:b", "a@b", "a,b", "a=b",
	"a%2f", `a\b`, "$(id)", "a;b", "*", strings.Repeat("a", 129), strings.Repeat("x", 5000),
}

// badNameInputs sends a bad name through every verb.
func badNameInputs() (inputs []badInput) {
	for _, name := range badVolumeNames {
		shown := strconv.Quote(name)
		add := func(verb string, request *control.Request, path, call string, flags ...string) {
			inputs = append(inputs, badInput{
				name: fmt.Sprintf("%s %.40q", verb, name), kind: fault.ErrInvalid, says: []string{shown, allowedNames},
				cli: append(append([]string{verb}, flags...), "--", name), path: path, request: request, call: call, docker: dockerRequest{Name: name, ID: "x"},
			})
		}
		add("create", &control.Request{Name: name}, "/volumes/create", "Create")
		add("delete", &control.Request{Name: name}, "/volumes/delete", "Remove")
		add("inspect", nil, "/volumes/inspect?"+url.Values{"name": {name}}.Encode(), "Path")
		add("mount", &control.Request{Name: name}, "/volumes/mount", "Mount")
		add("umount", &control.Request{Name: name}, "/volumes/umount", "Unmount")
		add("resize", &control.Request{Name: name, Size: "1G"}, "/volumes/resize", "", "--size", "1G")
		add("set", &control.Request{Name: name, Labels: []string{"k=v"}}, "/volumes/set", "", "--label", "k=v")
		add("trim", &control.Request{Name: name}, "/volumes/trim", "")
	}
	return inputs
}

// option is a bad option of a new volume, at all three doors.
func option(key, value string, says ...string) badInput {
	dockerKey, dockerValue := key, value
	if k, v, ok := strings.Cut(value, "="); key == "label" && ok {
		dockerKey, dockerValue = "label."+k, v
	}
	return badInput{
		name: fmt.Sprintf("create with %s %.60q", key, value), kind: fault.ErrInvalid, says: says, cli: []string{"create", "new", "--" + key + "=" + value},
		path: "/volumes/create", request: &control.Request{Name: "new", Options: []control.Setting{{Key: key, Value: value}}},
		call: "Create", docker: dockerRequest{Name: "new", Opts: map[string]string{dockerKey: dockerValue}},
	}
}

func badOptionInputs() (inputs []badInput) {
	for _, size := range []string{
		"", "0", "0G", "-1", "-1G", "+1G", "1X", "10P", "10GB", "10Gi", "10 G", " 10G", "10G ", "10G\n", "1e3", "0x10", "1.5", "1..5G", ".5G", "G", "NaN", "Inf", "ten", "１G",
		"9223372036854775808", "9999999999T", "0.0000001K", "-rf", "../x",
	} {
		inputs = append(inputs, option("size", size, strconv.Quote(size)))
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("resize to %q", size), kind: fault.ErrInvalid, says: []string{strconv.Quote(size)}, cli: []string{"resize", "small", "--size=" + size},
			path: "/volumes/resize", request: &control.Request{Name: "small", Size: size},
		})
	}
	for _, size := range []string{"1", "4K", "7M", "8384512", "17592186044417", "17T", "8388607T"} {
		inputs = append(inputs, option("size", size, "size "+size+": out of bounds", "8.0 MiB", "16 TiB"))
	}
	for _, fs := range []string{"", "btrfs", "ext3", "EXT4", "ext4 ", "../ext4", "-rf", "ext4\n"} {
		inputs = append(inputs, option("fs", fs, strconv.Quote(fs), "ext4", "xfs"))
	}
	for _, pool := range []string{"", "nope", "../loop", "loop ", "LOOP", "-rf", "loop\n"} {
		inputs = append(inputs, option("pool", pool, strconv.Quote(pool), "loop"))
	}
	for _, label := range []string{"k", "", "=v", "k=", "-k=v", "k k=v", "ü=v", "k=a\nb", "k=\x1b[31m", "k=\x7f", strings.Repeat("k", 129) + "=v", "k=" + strings.Repeat("v", 1025)} {
		inputs = append(inputs, option("label", label, "label"))
	}
	for _, id := range []string{"", "-1", "4294967295", "4294967296", "root", "1.5", " 1", "0x0", "1e3"} {
		inputs = append(inputs, option("uid", id, strconv.Quote(id), "4294967294"), option("gid", id, strconv.Quote(id), "4294967294"))
	}
	for _, mode := range []string{"", "8", "0o755", "-1", "rwxr-xr-x", "10000", "99999999999999999999", "u+x", "07 55"} {
		inputs = append(inputs, option("mode", mode, strconv.Quote(mode), "octal"))
	}
	for _, word := range []string{"data=writeback", "nobarrier", "bind", "remount", "inode64", "errors=panic", "noatime ro", "NOATIME", "loop", "-rf"} {
		inputs = append(inputs, option("mount-option", word, strconv.Quote(word), "noatime"))
	}
	inputs = append(inputs, option("mount-option", "", `""`, "noatime"), option("mount-option", "noatime,", `""`, "noatime"), option("mount-option", "noatime,barrier=0", `"barrier=0"`))
	for _, word := range []string{"maybe", "", "yes", "2"} {
		inputs = append(inputs, option("protect", word, "protect"))
	}
	for _, key := range []string{"sizes", "SIZE", "o", "size ", "filesystem", "label.", "", "../x"} {
		unknown := option(key, "1", strconv.Quote(key))
		unknown.name, unknown.cli = fmt.Sprintf("create with the unknown option %q", key), nil
		if key != "label." {
			unknown.says = append(unknown.says, "size", "fs", "pool", "label.<key>", "uid", "gid", "mode", "mount-option", "protect", "driver")
		} else {
			unknown.says = []string{"label key"}
		}
		inputs = append(inputs, unknown)
	}
	for _, driver := range []string{"nope", "lvm ", ""} {
		bad := option("driver", driver, strconv.Quote(driver), "loop")
		bad.cli = nil // not a flag
		inputs = append(inputs, bad)
	}
	return append(inputs, combinedOptions()...)
}

// combinedOptions are good alone and bad together.
func combinedOptions() (inputs []badInput) {
	for _, test := range []struct {
		says  string
		flags []string
	}{
		{"xfs", []string{"fs=xfs", "size=299M"}}, {"xfs", []string{"fs=xfs", "size=65T"}}, {`"acl"`, []string{"fs=xfs", "size=1G", "mount-option=acl"}},
		{`"inode64"`, []string{"mount-option=noatime", "mount-option=inode64"}}, {`"k"`, []string{"label=k=a", "label=k=b"}},
	} {
		input := badInput{name: strings.Join(test.flags, " "), kind: fault.ErrInvalid, says: []string{test.says}, cli: []string{"create", "new"}, path: "/volumes/create"}
		input.request = &control.Request{Name: "new"}
		for _, flag := range test.flags {
			key, value, _ := strings.Cut(flag, "=")
			input.cli = append(input.cli, "--"+flag)
			input.request.Options = append(input.request.Options, control.Setting{Key: key, Value: value})
		}
		inputs = append(inputs, input)
	}
	many := badInput{name: "65 labels", kind: fault.ErrInvalid, says: []string{"65", "64"}, cli: []string{"create", "new"}, path: "/volumes/create", request: &control.Request{Name: "new"}}
	many.call, many.docker = "Create", dockerRequest{Name: "new", Opts: map[string]string{}}
	for i := range 65 {
		label := fmt.Sprintf("k%d=v", i)
		many.cli = append(many.cli, "--label", label)
		many.request.Options = append(many.request.Options, control.Setting{Key: "label", Value: label})
		many.docker.Opts[fmt.Sprintf("label.k%d", i)] = "v"
	}
	return append(inputs, many)
}

// otherBadInputs are about volumes that exist, filters and mount points.
func otherBadInputs(h *host) (inputs []badInput) {
	for _, filter := range []string{"", "label", "label=", "label==v", "name=x", "=", "-rf", "Label=k", "status=ready"} {
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("list with filter %q", filter), kind: fault.ErrInvalid, says: []string{strconv.Quote(filter), "label=<key>"}, cli: []string{"list", "--filter=" + filter},
			path: "/volumes?" + url.Values{"filter": {filter}}.Encode(),
		})
	}
	for _, size := range []string{"8M", "16773120", "1", "15.9M"} {
		inputs = append(inputs, badInput{
			name: "shrink to " + size, kind: fault.ErrInvalid, says: []string{strconv.Quote(size), "16 MiB", "only grow"}, cli: []string{"resize", "small", "--size", size},
			path: "/volumes/resize", request: &control.Request{Name: "small", Size: size},
		})
	}
	inputs = append(inputs, badInput{
		name: "grow beyond the filesystem", kind: fault.ErrInvalid, says: []string{`"17T"`, "16 TiB"}, cli: []string{"resize", "small", "--size", "17T"},
		path: "/volumes/resize", request: &control.Request{Name: "small", Size: "17T"},
	})
	file, full, link := filepath.Join(h.dir, "file"), filepath.Join(h.dir, "full"), filepath.Join(h.dir, "link")
	for _, dir := range []string{
		file, full, link, filepath.Join(h.dir, "nope"), h.root, filepath.Join(h.root, "mounts"), filepath.Join(h.root, "pool"), filepath.Join(h.root, "mounts", "small"),
		filepath.Join(h.root, "mounts", "busy"), h.dir + "/root/../root/scratch", "/", "/proc", "/dev/null", filepath.Join(h.dir, "new\nline"), strings.Repeat("/x", 3000),
	} {
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("mount at %.80q", dir), kind: fault.ErrInvalid, says: []string{"mount point"}, cli: []string{"mount", "small", "--mountpoint", dir},
			path: "/volumes/mount", request: &control.Request{Name: "small", Mountpoint: dir},
		})
	}
	for _, dir := range []string{".", "relative", "-rf", "~"} {
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("mount at %q", dir), kind: fault.ErrInvalid, says: []string{strconv.Quote(dir)}, path: "/volumes/mount",
			request: &control.Request{Name: "small", Mountpoint: dir},
		})
	}
	yes := true
	for _, verb := range []string{"delete", "mount", "umount", "resize", "set", "trim", "inspect"} {
		input := badInput{name: verb + " what does not exist", kind: fault.ErrNotFound, says: []string{`"nope"`}, cli: []string{verb, "nope"}, path: "/volumes/" + verb}
		input.request = &control.Request{Name: "nope"}
		switch verb {
		case "resize":
			input.cli, input.request.Size = append(input.cli, "--size", "1G"), "1G"
		case "set":
			input.cli, input.request.Protect = append(input.cli, "--protect"), &yes
		case "inspect":
			input.path, input.request, input.call, input.docker = "/volumes/inspect?name=nope", nil, "Get", dockerRequest{Name: "nope"}
		case "mount":
			input.call, input.docker = "Mount", dockerRequest{Name: "nope", ID: "x"}
		}
		inputs = append(inputs, input)
	}
	return append(inputs,
		badInput{name: "create what exists", kind: fault.ErrExists, says: []string{`"small"`}, cli: []string{"create", "small"}, path: "/volumes/create", request: &control.Request{Name: "small"}},
		badInput{
			name: "delete what is protected", kind: fault.ErrProtected, says: []string{`"locked"`, "--unprotect"}, cli: []string{"rm", "locked"},
			path: "/volumes/delete", request: &control.Request{Name: "locked"}, call: "Remove", docker: dockerRequest{Name: "locked"},
		},
		badInput{
			name: "delete what is in use", kind: fault.ErrInUse, says: []string{`"busy"`, "container-1", "orlop umount busy"}, cli: []string{"delete", "busy"},
			path: "/volumes/delete", request: &control.Request{Name: "busy"}, call: "Remove", docker: dockerRequest{Name: "busy"},
		},
		badInput{name: "set nothing", kind: fault.ErrInvalid, says: []string{`"small"`, "nothing"}, cli: []string{"set", "small"}, path: "/volumes/set", request: &control.Request{Name: "small"}},
		badInput{
			name: "set a label twice", kind: fault.ErrInvalid, says: []string{`"k"`, "twice"}, cli: []string{"set", "small", "--label", "k=a", "--label", "k=b"},
			path: "/volumes/set", request: &control.Request{Name: "small", Labels: []string{"k=a", "k=b"}},
		},
		badInput{
			name: "set a label without value", kind: fault.ErrInvalid, says: []string{`"bad key"`}, cli: []string{"set", "small", "--label", "good=1", "--label", "bad key=1"},
			path: "/volumes/set", request: &control.Request{Name: "small", Labels: []string{"good=1", "bad key=1"}},
		},
		badInput{name: "mount with a long ID", says: []string{"257", "256"}, call: "Mount", docker: dockerRequest{Name: "small", ID: strings.Repeat("x", 257)}},
		badInput{name: "unmount with a long ID", says: []string{"257", "256"}, call: "Unmount", docker: dockerRequest{Name: "busy", ID: strings.Repeat("x", 257)}},
	)
}

// state is all that a refused request must not change.
func (h *host) state(t *testing.T) string {
	t.Helper()
	database, err := os.ReadFile(filepath.Join(h.root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	var images []string
	for _, name := range h.images(t) {
		info, err := os.Stat(filepath.Join(h.root, "pool", "images", name))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, fmt.Sprint(name, " ", info.Size()))
	}
	var views []daemon.View
	if err := json.Unmarshal([]byte(h.must(t, "list", "--json")), &views); err != nil {
		t.Fatal(err)
	}
	for i := range views {
		views[i].Used, views[i].FillView = 0, nil // a mounted filesystem writes when it likes
	}
	return fmt.Sprintf("volumes: %+v\nmetadata: %x\nimages: %q\nmount points: %q\nscratch: %q\nmounts: %q\nloop devices: %q\nroot: %q", views, sha256.Sum256(database),
		images, names(t, filepath.Join(h.root, "mounts")), names(t, filepath.Join(h.root, "scratch")), h.mounts(t), h.devices(t), names(t, h.root))
}

// changes returns the lines of two states that differ.
func changes(before, after string) (lines string) {
	is := strings.Split(after, "\n")
	for i, was := range strings.Split(before, "\n") {
		if was != is[i] {
			lines += "\n- " + was + "\n+ " + is[i]
		}
	}
	return lines
}

func TestBadInputIsRefusedAtEveryDoorAndChangesNothing(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "small", "--size", "16M", "--label", "app=shop")
	h.must(t, "create", "locked", "--size", "16M", "--protect")
	h.must(t, "create", "busy", "--size", "16M")
	h.must(t, "mount", "busy")
	h.docker(t, "Mount", dockerRequest{Name: "busy", ID: "container-1"})
	full := filepath.Join(h.dir, "full")
	if err := os.MkdirAll(filepath.Join(full, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(h.root, "mounts"), filepath.Join(h.dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	makeSnapshots(t, h)
	inputs := slices.Concat(badNameInputs(), badOptionInputs(), otherBadInputs(h), badReferenceInputs(), badSnapshotInputs(), badCopyInputs(), badHookInputs())
	before := h.state(t)
	doors := map[string]int{}
	for _, input := range inputs {
		if input.cli != nil {
			doors["command line"]++
			throughCLI(t, h, input)
		}
		if input.path != "" {
			doors["control API"]++
			throughAPI(t, h, input)
		}
		if input.call != "" {
			doors["docker"]++
			throughDocker(t, h, input)
		}
		if after := h.state(t); after != before {
			t.Errorf("%s: changed the state:%s", input.name, changes(before, after))
			h.orlop("delete", "new")
			before = h.state(t)
		}
	}
	h.wantWritable(t, "used") // not frozen
	t.Logf("%d inputs: %v", len(inputs), doors)
	for door, count := range doors {
		if count < 60 {
			t.Errorf("only %d inputs through %s", count, door)
		}
	}
}

func says(t *testing.T, input badInput, door, message string) {
	t.Helper()
	for _, word := range input.says {
		if !strings.Contains(message, word) {
			t.Errorf("%s: %s: no word of %.100s: %.300s", input.name, door, word, message)
		}
	}
}

func throughCLI(t *testing.T, h *host, input badInput) {
	t.Helper()
	got := h.orlop(input.cli...)
	if got.code != exitCodes[input.kind] || got.stdout != "" || !strings.HasPrefix(got.stderr, "orlop: ") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("%s: command line: want exit code %d and one line: %.600s", input.name, exitCodes[input.kind], got)
	}
	says(t, input, "command line", got.stderr)
	got = h.orlop(append([]string{"--json"}, input.cli...)...)
	body := got.failure(t)
	if got.code != exitCodes[input.kind] || body.Error.Kind != input.kind {
		t.Errorf("%s: command line with --json: want exit code %d and kind %s: %.600s", input.name, exitCodes[input.kind], input.kind, got)
	}
	says(t, input, "command line with --json", body.Error.Message)
}

// wantedStatus is the HTTP status of each kind that a request can bring about.
var wantedStatus = map[fault.Kind]int{
	fault.ErrInvalid: http.StatusBadRequest, fault.ErrNotFound: http.StatusNotFound, fault.ErrExists: http.StatusConflict, fault.ErrInUse: http.StatusConflict,
	fault.ErrProtected: http.StatusConflict, fault.ErrUnsupported: http.StatusNotImplemented,
}

func throughAPI(t *testing.T, h *host, input badInput) {
	t.Helper()
	method, body := http.MethodGet, ""
	if input.request != nil {
		raw, err := json.Marshal(input.request)
		if err != nil {
			t.Fatal(err)
		}
		method, body = http.MethodPost, string(raw)
	}
	status, failure, err := h.api(t.Context(), method, input.path, body)
	if err != nil || status != wantedStatus[input.kind] || failure.Error.Kind != input.kind {
		t.Errorf("%s: control API: want status %d and kind %s, got %d and %+v (%v)", input.name, wantedStatus[input.kind], input.kind, status, failure, err)
	}
	says(t, input, "control API", failure.Error.Message)
}

func throughDocker(t *testing.T, h *host, input badInput) {
	t.Helper()
	got, err := h.ask(t.Context(), input.call, input.docker)
	if err != nil || got.status != http.StatusInternalServerError {
		t.Errorf("%s: docker: want status 500 and Err, got %+v (%v)", input.name, got, err)
	}
	says(t, input, "docker", got.Err)
}

// TestRequestsThatAreNoRequestsChangeNothing sends what no client of ours would.
func TestRequestsThatAreNoRequestsChangeNothing(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "small", "--size", "16M")
	before := h.state(t)
	for _, body := range []string{"", "{", "[]", "null x", `{"name":"new"}{"name":"new2"}`, `{"nome":"new"}`, `{"name":["new"]}`} {
		for _, verb := range []string{"create", "delete", "set", "mount", "umount", "resize", "trim"} {
			status, failure, err := h.api(t.Context(), http.MethodPost, "/volumes/"+verb, body)
			if err != nil || status != http.StatusBadRequest || failure.Error.Kind != fault.ErrInvalid {
				t.Errorf("%s %.60q: status %d, %+v (%v)", verb, body, status, failure, err)
			}
		}
		for _, verb := range []string{"create", "delete", "restore"} {
			status, failure, err := h.api(t.Context(), http.MethodPost, "/snapshots/"+verb, body)
			if err != nil || status != http.StatusBadRequest || failure.Error.Kind != fault.ErrInvalid {
				t.Errorf("snapshots %s %.60q: status %d, %+v (%v)", verb, body, status, failure, err)
			}
		}
	}
	for _, path := range []string{"/", "/volumes/frobnicate", "/volumes/create/x", "/volume", "/volumes/", "/snapshots/frobnicate", "/snapshots/"} {
		if status, failure, err := h.api(t.Context(), http.MethodGet, path, ""); err != nil || status != http.StatusNotFound || failure.Error.Kind != fault.ErrNotFound {
			t.Errorf("%s: status %d, %+v (%v)", path, status, failure, err)
		}
	}
	if after := h.state(t); after != before {
		t.Errorf("the state changed:%s", changes(before, after))
	}
}

// TestTextThatIsNoUTF8IsRefused: JSON would carry another text than the user gave.
func TestTextThatIsNoUTF8IsRefused(t *testing.T) {
	h := startHost(t)
	if got := h.orlop("create", "new", "--size", "16M", "--label", "k=\xff"); got.code != 2 || !strings.Contains(got.stderr, "UTF-8") {
		t.Errorf("command line: %s", got)
	}
	body := "{\"name\":\"new2\",\"options\":[{\"key\":\"size\",\"value\":\"16M\"},{\"key\":\"label\",\"value\":\"k=\xff\"}]}"
	if status, failure, err := h.api(t.Context(), http.MethodPost, "/volumes/create", body); err != nil || status != http.StatusBadRequest || failure.Error.Kind != fault.ErrInvalid {
		t.Errorf("control API: status %d, %+v (%v)", status, failure, err)
	}
	if got := h.must(t, "list", "--json"); got != "[]" {
		t.Errorf("made: %s", got)
	}
}
