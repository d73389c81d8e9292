package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/control"
	"orlop/internal/daemon"
)

// daemonWithNames answers for a daemon with some volumes and snapshots, and returns its socket.
func daemonWithNames(t *testing.T) (socket string) {
	t.Helper()
	return daemonThatAnswers(t, map[string]any{
		"/volumes": []daemon.View{
			{Name: "db", Mounted: true, Labels: map[string]string{"app": "shop", "team": "a b"}}, {Name: "docs"}, {Name: "web", Labels: map[string]string{"app": "shop"}},
		},
		"/snapshots": []daemon.SnapshotView{
			{Volume: "db", Name: "before"}, {Volume: "db", Name: "two"}, {Volume: "web", Name: "before"},
		},
		"/info":   daemon.Info{Pools: []daemon.PoolView{{Name: "fast"}, {Name: "loop"}}},
		"/doctor": []daemon.Finding{{Subject: "device 0192e1c4"}, {Subject: "volume db"}},
	})
}

// daemonThatAnswers answers requests by their paths, and returns the socket at which it does.
func daemonThatAnswers(t *testing.T, answers map[string]any) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[strings.TrimPrefix(r.URL.Path, control.Prefix)]
		if !ok || json.NewEncoder(w).Encode(answer) != nil {
			t.Errorf("asked for %s", r.URL)
		}
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

// completed lists the words that the program offers for the last one of a command line.
func completed(t *testing.T, line string) (words []string) {
	t.Helper()
	got := invoke(append([]string{completeVerb}, strings.Split(line, " ")...)...)
	if got.code != 0 || got.stderr != "" {
		t.Errorf("%q: %s", line, got)
	}
	for row := range strings.Lines(got.stdout) {
		word, _, _ := strings.Cut(strings.TrimSuffix(row, "\n"), "\t")
		words = append(words, word)
	}
	return words
}

func TestCompletionOffersCommandsFlagsNamesAndFiles(t *testing.T) {
	t.Setenv("ORLOP_SOCKET", daemonWithNames(t))
	for line, want := range map[string]string{
		"cre":                                "create",
		"um":                                 "umount",
		"un":                                 "unmount",
		"--soc":                              "--socket",
		"create --si":                        "--size",
		"create v --mou":                     "--mount-option",
		"create d":                           "",
		"create v --size --f":                "",
		"create v --fs ":                     "ext4 xfs",
		"create v --fs=x":                    "--fs=xfs",
		"create v --pool ":                   "fast loop",
		"create v --from d":                  "db docs db@before db@two",
		"create v --from=web@":               "--from=web@before",
		"create v --mount-option noatime,ro": "noatime,ro",
		"create v --mode ":                   "0700 0750 0755",
		"delete d":                           "db docs",
		"rm ":                                "db docs web",
		"rm -":                               "--snapshots --socket --json --verbose --help",
		"rm --snap":                          "--snapshots",
		"rm --snapshots --snap":              "",
		"delete db d":                        "docs",
		"delete -- -":                        "",
		"delete device":                      "",
		"inspect db do":                      "docs",
		"--json mount w":                     "web",
		"mount db ":                          "",
		"mount db --mountpoint ":             shellDirectories,
		"umount ":                            "db",
		"resize --s":                         "--size --socket",
		"resize --size d":                    "",
		"trim d":                             "db docs",
		"list --filter ":                     "label= pool= state= mounted",
		"list --filter state=d":              "state=degraded",
		"list --filter=pool=f":               "--filter=pool=fast",
		"list d":                             "db docs",
		"list db -":                          "--filter --quiet --wide --socket --json --verbose --help",
		"list --filter label=a":              "label=app=shop",
		"list --filter=label=a":              "--filter=label=app=shop",
		"backup run --filter ":               "label=app=shop label=team=a b",
		"backup run --filter pool":           "",
		"device ad":                          "adopt",
		"device adopt 0":                     "0192e1c4",
		"device adopt 0192e1c4 d":            "",
		"device de":                          "delete",
		"snapshot res":                       "restore",
		"snapshot create d":                  "db docs",
		"snapshot create db d":               "docs",
		"snapshot list w":                    "web",
		"snapshot list web ":                 "",
		"snapshot restore --dis":             "--discard-current",
		"snapshot delete db":                 "db@before db@two",
		"snapshot rm db@":                    "db@before db@two",
		"snapshot diff web@before db@b":      "db@before",
		"snapshot inspect web@be":            "web@before",
		"completion f":                       "fish",
		"version ":                           "--socket --json --verbose --help",
		"daemon --log-format ":               "text json",
		"daemon --default-fs x":              "xfs",
		"daemon --root ":                     shellDirectories,
		"backup list m":                      shellFiles,
		"backup verify m":                    shellFiles,
		"backup verify --da":                 "--data",
		"backup delete m":                    shellFiles,
		"backup restore x --to-file m":       shellFiles,
		"backup repair x --key-file --":      shellFiles,
		"backup repair x --key-file=m":       shellFiles,
		"key create m":                       shellFiles,
		"snapshot delete m":                  "",
		"frobnicate ":                        "",
		completeVerb[:4]:                     "",
	} {
		if got := completed(t, line); strings.Join(got, " ") != want {
			t.Errorf("%q: offered %q, want %q", line, got, want)
		}
	}
}

func TestCompletionAsksTheDaemonThatTheCommandLineNames(t *testing.T) {
	t.Setenv("ORLOP_SOCKET", nowhere(t))
	socket := daemonWithNames(t)
	for line, want := range map[string]string{
		"delete w": "", "delete --socket " + socket + " w": "web", "--socket=" + socket + " delete w": "web", "sna": "snapshot", "create --fs x": "xfs",
	} {
		if got := completed(t, line); strings.Join(got, " ") != want {
			t.Errorf("%q: offered %q, want %q", line, got, want)
		}
	}
}

// TestCompletionKnowsEveryParameterAndFlag fails for a command whose usage or flags completion has not been told of.
func TestCompletionKnowsEveryParameterAndFlag(t *testing.T) {
	known := func(path, name string) bool {
		return sources[path+" "+name] != nil || sources[name] != nil || slices.Contains(freeText, name)
	}
	check := func(path string, flags []urfave.Flag) {
		for _, flag := range flags {
			if name := "--" + flag.Names()[0]; takesValue(flag) && !known(path, name) {
				t.Errorf("orlop %s: flag %s is neither in sources nor in freeText", path, name)
			}
		}
	}
	app := new(cli).app()
	check("", app.Flags)
	for _, words := range leaves() {
		path, at := strings.Join(words, " "), locate(app, words)
		check(path, at.command.Flags)
		parameters, _ := parametersOf(at.command)
		for _, parameter := range parameters {
			for _, name := range strings.Split(parameter, "|") {
				if name != strings.ToLower(name) && !known(path, name) {
					t.Errorf("orlop %s: %s is not in sources", path, name)
				}
			}
		}
	}
}
