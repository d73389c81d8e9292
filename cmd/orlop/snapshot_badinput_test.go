//go:build root

package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// makeSnapshots adds to the fixtures: "small" has the snapshots "kept" and "only", "with" has "one", and "used", which is
// mounted for a container and a user, has "kept" and "while-used".
func makeSnapshots(t *testing.T, h *host) {
	t.Helper()
	h.must(t, "create", "with", "--size", "16M")
	h.must(t, "create", "used", "--size", "16M")
	h.must(t, "mount", "used")
	h.docker(t, "Mount", dockerRequest{Name: "used", ID: "container-2"})
	for _, ref := range []string{"small@kept", "small@only", "used@kept", "used@while-used", "with@one"} {
		volume, name, _ := strings.Cut(ref, "@")
		h.must(t, "snapshot", "create", volume, "--name", name)
	}
}

// badReferenceInputs sends names that can be no snapshot's, nor a volume's, through every verb.
func badReferenceInputs() (inputs []badInput) {
	add := func(what, ref string, cli []string, path string, request *control.Request) {
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("%s %.40q", what, ref), kind: fault.ErrInvalid, says: []string{strconv.Quote(ref), allowedNames}, cli: cli, path: path, request: request,
		})
	}
	for _, name := range badVolumeNames {
		refs := []string{"small@" + name, name + "@kept"}
		if !strings.Contains(name, "@") {
			refs = append(refs, name)
		}
		for _, ref := range refs {
			volume, _, both := strings.Cut(ref, "@")
			add("snapshot inspect", ref, []string{"snapshot", "inspect", "--", ref}, "/snapshots/inspect?"+url.Values{"name": {ref}}.Encode(), nil)
			add("snapshot delete", ref, []string{"snapshot", "delete", "--", ref}, "/snapshots/delete", &control.Request{Name: ref})
			add("snapshot restore", ref, []string{"snapshot", "restore", "--", ref}, "/snapshots/restore", &control.Request{Name: ref, Discard: true})
			add("snapshot diff", ref, []string{"snapshot", "diff", "--", "small@kept", ref}, "/snapshots/diff?"+url.Values{"name": {"small@kept", ref}}.Encode(), nil)
			if both || volume != "" {
				inputs = append(inputs, option("from", ref, strconv.Quote(ref), allowedNames))
			}
		}
		add("snapshot create of", name, []string{"snapshot", "create", "--", "small", name}, "/snapshots/create", &control.Request{Volumes: []string{"small", name}})
		if name != "" { // which the control API takes for no name
			add("snapshot create named", name, []string{"snapshot", "create", "small", "--name=" + name}, "/snapshots/create", &control.Request{Volumes: []string{"small"}, Name: name})
			add("snapshot list of", name, []string{"snapshot", "list", "--", name}, "/snapshots?"+url.Values{"volume": {name}}.Encode(), nil)
		}
	}
	return append(inputs, badInput{name: "snapshot create with an empty name", kind: fault.ErrInvalid, says: []string{"the name is empty"}, cli: []string{"snapshot", "create", "small", "--name="}},
		badInput{name: "snapshot list of an empty name", kind: fault.ErrInvalid, says: []string{"the name is empty"}, cli: []string{"snapshot", "list", ""}})
}

// snapshotVerb is what snapshot inspect, delete, restore and diff all answer about one snapshot.
func snapshotVerb(ref string, kind fault.Kind, says ...string) (inputs []badInput) {
	query := url.Values{"name": {ref}}.Encode()
	for _, verb := range []string{"inspect", "delete", "restore", "diff"} {
		input := badInput{name: verb + " " + ref, kind: kind, says: says, cli: []string{"snapshot", verb, ref}, path: "/snapshots/" + verb}
		switch verb {
		case "inspect", "diff":
			input.path += "?" + query
		default:
			input.request = &control.Request{Name: ref}
		}
		inputs = append(inputs, input)
	}
	return inputs
}

// badSnapshotInputs are about volumes and snapshots that exist.
func badSnapshotInputs() (inputs []badInput) {
	inputs = append(inputs, snapshotVerb("kept", fault.ErrInvalid, "ambiguous", "small@kept (", "used@kept (")...)
	inputs = append(inputs, snapshotVerb("nope", fault.ErrNotFound, `"nope"`, "small@kept", "used@while-used", "with@one")...)
	inputs = append(inputs, snapshotVerb("small@nope", fault.ErrNotFound, `"small@nope"`, "small@kept", "small@only")...)
	inputs = append(inputs, snapshotVerb("nope@kept", fault.ErrNotFound, `volume "nope"`)...)
	inputs = append(inputs, snapshotVerb("locked@kept", fault.ErrNotFound, `"locked@kept"`, "there is none")...)
	for _, test := range []struct {
		name    string
		kind    fault.Kind
		says    []string
		cli     []string
		request control.Request
	}{
		{"a name that is taken", fault.ErrExists, []string{"small@kept"}, []string{"small", "--name", "kept"}, control.Request{Volumes: []string{"small"}, Name: "kept"}},
		{"a name that one of several has", fault.ErrExists, []string{"small@only"}, []string{"locked", "small", "--name", "only"}, control.Request{Volumes: []string{"locked", "small"}, Name: "only"}},
		{"a volume that is not there", fault.ErrNotFound, []string{`"nope"`}, []string{"small", "nope"}, control.Request{Volumes: []string{"small", "nope"}}},
		{"a volume given twice", fault.ErrInvalid, []string{`"small"`, "twice"}, []string{"small", "used", "small"}, control.Request{Volumes: []string{"small", "used", "small"}}},
	} {
		inputs = append(inputs, badInput{
			name: "snapshot create: " + test.name, kind: test.kind, says: test.says, cli: append([]string{"snapshot", "create"}, test.cli...), path: "/snapshots/create", request: &test.request,
		})
	}
	for _, label := range []string{"k", "", "=v", "k=", "-k=v", "k k=v", "ü=v", "k=a\nb", strings.Repeat("k", 129) + "=v", "k=" + strings.Repeat("v", 1025)} {
		inputs = append(inputs, badInput{
			name: fmt.Sprintf("snapshot create with label %.40q", label), kind: fault.ErrInvalid, says: []string{"label"}, cli: []string{"snapshot", "create", "small", "--label=" + label},
			path: "/snapshots/create", request: &control.Request{Volumes: []string{"small"}, Labels: []string{label}},
		})
	}
	many := badInput{name: "snapshot create with 65 labels", kind: fault.ErrInvalid, says: []string{"65", "64"}, cli: []string{"snapshot", "create", "small"}, path: "/snapshots/create"}
	many.request = &control.Request{Volumes: []string{"small"}}
	for i := range 65 {
		many.cli = append(many.cli, "--label", fmt.Sprintf("k%d=v", i))
		many.request.Labels = append(many.request.Labels, fmt.Sprintf("k%d=v", i))
	}
	return append(inputs, many,
		badInput{name: "snapshot create with a label twice", kind: fault.ErrInvalid, says: []string{`"k"`, "twice"}, cli: []string{"snapshot", "create", "small", "--label", "k=a", "--label", "k=b"}, path: "/snapshots/create", request: &control.Request{Volumes: []string{"small"}, Labels: []string{"k=a", "k=b"}}},
		badInput{name: "snapshot create of nothing", kind: fault.ErrInvalid, says: []string{"no volume"}, path: "/snapshots/create", request: &control.Request{Name: "s"}},
		badInput{
			name: "snapshot restore in use", kind: fault.ErrInUse, says: []string{`"used"`, "container-2", "orlop umount used"}, cli: []string{"snapshot", "restore", "while-used"},
			path: "/snapshots/restore", request: &control.Request{Name: "used@while-used", Discard: true},
		},
		badInput{
			name: "delete with snapshots of the user's", kind: fault.ErrProtected, says: []string{`"with"`, "has 1 snapshot (one)", "orlop delete --snapshots with"}, cli: []string{"delete", "with"},
			path: "/volumes/delete", request: &control.Request{Name: "with"}, call: "Remove", docker: dockerRequest{Name: "with"},
		},
		badInput{
			name: "delete with snapshots what is protected", kind: fault.ErrProtected, says: []string{`"locked"`, "--unprotect"}, cli: []string{"delete", "locked", "--snapshots"},
			path: "/volumes/delete", request: &control.Request{Name: "locked", Snapshots: true},
		},
		badInput{name: "delete with snapshots what is in use", kind: fault.ErrInUse, says: []string{`"used"`, "container-2"}, cli: []string{"delete", "--snapshots", "used"}, path: "/volumes/delete", request: &control.Request{Name: "used", Snapshots: true}},
		badInput{name: "snapshot diff of nothing", kind: fault.ErrInvalid, says: []string{"one or two"}, path: "/snapshots/diff"},
		badInput{name: "snapshot diff of three", kind: fault.ErrInvalid, says: []string{"one or two"}, path: "/snapshots/diff?name=only&name=while-used&name=one"},
		badInput{name: "snapshot diff of two volumes", kind: fault.ErrInvalid, says: []string{"small@only", "with@one"}, cli: []string{"snapshot", "diff", "only", "one"}, path: "/snapshots/diff?name=only&name=one"},
	)
}

// badCopyInputs are about copies that cannot be made.
func badCopyInputs() (inputs []badInput) {
	for from, says := range map[string][]string{"nope": {`volume "nope"`}, "small@nope": {"small@kept", "small@only"}, "nope@kept": {`volume "nope"`}, "only": {`volume "only"`}} {
		input := option("from", from, says...)
		input.kind = fault.ErrNotFound
		inputs = append(inputs, input)
	}
	for _, from := range []string{"small", "small@kept"} {
		for _, more := range []struct{ key, value, says string }{
			{"size", "8M", "16 MiB"}, {"size", "16773120", "16 MiB"}, {"size", "17T", "16 TiB"}, {"fs", "xfs", "ext4"}, {"pool", "nope", `"loop"`},
		} {
			input := option("from", from, more.says)
			input.name += " and " + more.key + " " + more.value
			input.cli = append(input.cli, "--"+more.key+"="+more.value)
			input.request.Options = append(input.request.Options, control.Setting{Key: more.key, Value: more.value})
			input.docker.Opts[more.key] = more.value
			inputs = append(inputs, input)
		}
	}
	taken := option("from", "small@kept", `"locked"`)
	taken.name, taken.kind, taken.cli[1], taken.request.Name, taken.call = "create what exists as a copy", fault.ErrExists, "locked", "locked", ""
	twice := badInput{name: "from twice", kind: fault.ErrInvalid, says: []string{`"from"`, "twice"}, path: "/volumes/create"}
	twice.request = &control.Request{Name: "new", Options: []control.Setting{{Key: "from", Value: "small"}, {Key: "from", Value: "small"}}}
	return append(inputs, taken, twice)
}

// badHookInputs are refused although the daemon allows no hooks: first for what they are, then for that.
func badHookInputs() (inputs []badInput) {
	for _, key := range []string{"pre-snapshot", "post-snapshot"} {
		for line, kind := range map[string]fault.Kind{
			`/bin/echo "open`: fault.ErrInvalid, `'`: fault.ErrInvalid, "/bin/echo \\": fault.ErrInvalid, "a\nb": fault.ErrInvalid, "/bin/" + strings.Repeat("x", 5000): fault.ErrInvalid,
			" \t": fault.ErrInvalid, "/bin/true": fault.ErrUnsupported,
		} {
			says := []string{key}
			if kind == fault.ErrUnsupported {
				says = []string{"--allow-hooks"}
			}
			set := badInput{name: fmt.Sprintf("set %s %.40q", key, line), kind: kind, says: says, cli: []string{"set", "small", "--" + key + "=" + line}, path: "/volumes/set"}
			set.request = &control.Request{Name: "small", PreSnapshot: &line}
			if key == "post-snapshot" {
				set.request = &control.Request{Name: "small", PostSnapshot: &line}
			}
			create := option(key, line, says...)
			create.kind, create.call = kind, ""
			inputs = append(inputs, set, create)
		}
		docker := option(key, "/bin/true", "not for docker")
		docker.name, docker.cli, docker.path = "docker's option "+key, nil, ""
		inputs = append(inputs, docker)
	}
	return inputs
}
