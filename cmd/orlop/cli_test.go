package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orlop/internal/control"
	"orlop/internal/fault"
)

// An outcome is what one invocation of the command line left behind.
type outcome struct {
	stdout, stderr string
	code           int
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", o.code, o.stdout, o.stderr)
}

// invoke runs the program in this process.
func invoke(args ...string) outcome { return invokeUntil(context.Background(), args...) }

// invokeUntil is invoke with an end, which is what ^C is.
func invokeUntil(ctx context.Context, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	code := run(ctx, append([]string{"orlop"}, args...), &stdout, &stderr)
	return outcome{stdout.String(), stderr.String(), code}
}

// failure is the JSON that stderr holds after a failure with --json.
func (o outcome) failure(t *testing.T) (body control.ErrorBody) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(o.stderr))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil {
		t.Errorf("stderr is no JSON error: %v\n%s", err, o)
	}
	return body
}

// nowhere is the path of a socket that nobody listens at.
func nowhere(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "control.sock")
}

// leaves lists each command that does something, as its words.
func leaves() (commands [][]string) {
	for _, command := range new(cli).app().Commands {
		if len(command.Subcommands) == 0 {
			commands = append(commands, []string{command.Name})
		}
		for _, sub := range command.Subcommands {
			commands = append(commands, []string{command.Name, sub.Name})
		}
	}
	return commands
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	for _, words := range leaves() {
		for _, flag := range []string{"--help", "-h"} {
			got := invoke(append(slices.Clone(words), flag)...)
			example := "Example: "
			if words[0] != "completion" {
				example += "orlop " + strings.Join(words, " ")
			}
			_, after, found := strings.Cut(got.stdout, "Example: ")
			if got.code != 0 || got.stderr != "" || !found || !strings.Contains("Example: "+after, "orlop "+strings.Join(words, " ")) {
				t.Errorf("%v %s: want help with %q\n%s", words, flag, example, got)
			}
			if strings.Contains(got.stdout, "`") {
				t.Errorf("%v %s: backquotes in\n%s", words, flag, got)
			}
		}
	}
}

func TestHelpListsEveryCommand(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"-h"}} {
		got := invoke(args...)
		if got.code != 0 || got.stderr != "" {
			t.Errorf("%v: %s", args, got)
		}
		for _, words := range leaves() {
			if !strings.Contains(got.stdout, "\n   "+words[0]+" ") && !strings.Contains(got.stdout, "\n   "+words[0]+",") {
				t.Errorf("%v: no word of %q", args, words[0])
			}
		}
		last := 0
		for _, group := range []string{"VOLUME", "SNAPSHOT AND BACKUP", "DAEMON", "OTHER"} {
			at := strings.Index(got.stdout, "\n"+group+" COMMANDS:\n")
			if at <= last {
				t.Errorf("%v: the group %s is at %d, behind %d:\n%s", args, group, at, last, got.stdout)
			}
			last = at
		}
	}
}

// withoutDaemon are calls of each command that needs a daemon, complete and right.
var withoutDaemon = [][]string{
	{"shutdown"}, {"shutdown", "--detach"}, {"info"}, {"create"}, {"create", "v", "--size", "1G"}, {"set", "v", "--protect"},
	{"list"}, {"ls"}, {"list", "--filter", "label=k"}, {"inspect", "v"}, {"inspect", "v", "w"}, {"delete", "v"}, {"rm", "v", "w"},
	{"mount", "v"}, {"mount", "v", "--mountpoint", "/mnt"}, {"umount", "v"}, {"unmount", "v"}, {"resize", "v", "--size", "1G"},
	{"trim"}, {"trim", "v"},
	{"snapshot", "create", "v"}, {"snapshot", "create", "v", "w", "--name", "s", "--label", "k=v"}, {"snapshot", "list"}, {"snapshot", "ls", "v"},
	{"snapshot", "inspect", "s"}, {"snapshot", "inspect", "v@s", "t"}, {"snapshot", "delete", "s", "t"}, {"snapshot", "rm", "s"},
	{"snapshot", "restore", "s"}, {"snapshot", "restore", "s", "--discard-current"}, {"snapshot", "diff", "s"}, {"snapshot", "diff", "s", "t"},
	{"create", "v", "--from", "w@s"}, {"delete", "v", "--snapshots"}, {"set", "v", "--pre-snapshot", "true"},
}

func TestCommandsWithoutDaemonExitSix(t *testing.T) {
	socket := nowhere(t)
	for _, args := range withoutDaemon {
		got := invoke(append([]string{"--socket", socket}, args...)...)
		if got.code != 6 || !strings.HasPrefix(got.stderr, "orlop: ") || !strings.Contains(got.stderr, socket) || !strings.Contains(got.stderr, "orlop daemon") {
			t.Errorf("%v: want exit code 6 and a message with the socket and 'orlop daemon'\n%s", args, got)
		}
		got = invoke(append([]string{"--socket", socket, "--json"}, args...)...)
		if body := got.failure(t); got.code != 6 || body.Error.Kind != fault.ErrUnreachable || !strings.Contains(body.Error.Message, socket) {
			t.Errorf("--json %v: want exit code 6 and kind unreachable\n%s", args, got)
		}
	}
}

func TestCommandsInterruptedSayThatAndExitOne(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := invokeUntil(ctx, "--socket", nowhere(t), "list")
	if got.code != 1 || !strings.Contains(got.stderr, "interrupted") {
		t.Errorf("%s", got)
	}
}

func TestVersionNeedsNoDaemon(t *testing.T) {
	socket := nowhere(t)
	got := invoke("--socket", socket, "version")
	if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "orlop   "+version) || !strings.Contains(got.stdout, "daemon  not reachable at "+socket) {
		t.Errorf("%s", got)
	}
	got = invoke("version", "--json", "--socket", socket)
	var both map[string]map[string]string
	if err := json.Unmarshal([]byte(got.stdout), &both); err != nil || got.code != 0 {
		t.Fatalf("%v: %s", err, got)
	}
	if daemon, there := both["daemon"]; both["client"]["version"] != version || both["client"]["api"] != "v1" || !there || daemon != nil {
		t.Errorf("%s", got)
	}
}

func TestSocketComesFromTheEnvironmentUnlessAFlagSaysOtherwise(t *testing.T) {
	variable, flag := nowhere(t), nowhere(t)
	t.Setenv("ORLOP_SOCKET", variable)
	if got := invoke("list"); got.code != 6 || !strings.Contains(got.stderr, variable) {
		t.Errorf("with ORLOP_SOCKET: %s", got)
	}
	if got := invoke("list", "--socket", flag); got.code != 6 || !strings.Contains(got.stderr, flag) {
		t.Errorf("with ORLOP_SOCKET and --socket: %s", got)
	}
}

func TestVerboseSaysWhichDaemonIsAsked(t *testing.T) {
	socket := nowhere(t)
	if got := invoke("list", "--verbose", "--socket", socket); !strings.HasPrefix(got.stderr, "orlop: daemon at "+socket+"\n") {
		t.Errorf("%s", got)
	}
}

// badUsage is refused before any daemon is asked: none is there, and the exit code is 2 all the same.
var badUsage = []struct {
	args []string
	says []string
}{
	{[]string{"frobnicate"}, []string{`"frobnicate"`, "orlop help"}},
	{[]string{"Create", "v"}, []string{`"Create"`, "orlop help"}},
	{[]string{"creat"}, []string{`unknown command "creat": did you mean 'orlop create'? see 'orlop help'`}},
	{[]string{"snapshot", "dlete"}, []string{`did you mean 'orlop snapshot delete'? see 'orlop snapshot --help'`}},
	{[]string{"create", "v", "--sise", "1G"}, []string{"unknown flag --sise: did you mean --size? see 'orlop create --help'"}},
	{[]string{"list", "-z"}, []string{"unknown flag -z: see 'orlop list --help'"}},
	{[]string{"resize", "v", "--size"}, []string{"flag --size: needs a value: see 'orlop resize --help'"}},
	{[]string{"backup", "prune", "--keep-last", "x"}, []string{`flag --keep-last: "x": must be a number: see 'orlop backup prune --help'`}},
	{[]string{"vol create"}, []string{`"vol create"`, "orlop help"}},
	{[]string{"../x"}, []string{`"../x"`, "orlop help"}},
	{[]string{""}, []string{`""`, "orlop help"}},
	{[]string{"--frob"}, []string{"frob", "orlop help"}},
	{[]string{"--frob", "list"}, []string{"frob", "orlop help"}},
	{[]string{"-rf"}, []string{"-rf", "orlop help"}},
	{[]string{"list", "--socket"}, []string{"socket"}},
	{[]string{"--json=maybe", "list"}, []string{`flag --json: "maybe": must be true or false: see 'orlop help'`}},
	{[]string{"list", "--json=2"}, []string{"2", "json"}},
	{[]string{"create", "a", "b"}, []string{`"b"`, "orlop create [NAME]"}},
	{[]string{"create", "--sizes", "1G"}, []string{"sizes", "--help"}},
	{[]string{"create", "v", "-rf"}, []string{"-rf", "--help"}},
	{[]string{"create", "v", "--size"}, []string{"size"}},
	{[]string{"create", "v", "--protect=maybe"}, []string{"maybe", "protect"}},
	{[]string{"create", "v", "--driver", "loop"}, []string{"driver", "--help"}},
	{[]string{"create", "v", "--detach"}, []string{"detach", "--help"}},
	{[]string{"set"}, []string{"orlop set NAME"}},
	{[]string{"set", "a", "b", "--protect"}, []string{`"b"`, "orlop set NAME"}},
	{[]string{"set", "a", "--protect", "--unprotect"}, []string{"--protect", "--unprotect"}},
	{[]string{"set", "a", "--size", "1G"}, []string{"size", "--help"}},
	{[]string{"list", "x", "--filter", "label=k"}, []string{"list: --filter and NAME exclude each other"}},
	{[]string{"ls", "-q", "--wide"}, []string{"--quiet", "--wide"}},
	{[]string{"snapshot", "ls", "-qw"}, []string{"unknown flag --qw"}},
	{[]string{"list", "--filter"}, []string{"filter"}},
	{[]string{"inspect"}, []string{"orlop inspect NAME..."}},
	{[]string{"delete"}, []string{"orlop delete NAME..."}},
	{[]string{"rm"}, []string{"orlop delete NAME..."}},
	{[]string{"delete", "-rf", "v"}, []string{"-rf", "--help"}},
	{[]string{"delete", "--force", "v"}, []string{"force", "--help"}},
	{[]string{"mount"}, []string{"orlop mount NAME"}},
	{[]string{"mount", "a", "/mnt"}, []string{`"/mnt"`, "orlop mount NAME"}},
	{[]string{"mount", "a", "--mountpoint", ""}, []string{"--mountpoint"}},
	{[]string{"mount", "a", "--mountpoint"}, []string{"mountpoint"}},
	{[]string{"umount"}, []string{"orlop umount NAME"}},
	{[]string{"unmount", "a", "b"}, []string{`"b"`, "orlop umount NAME"}},
	{[]string{"resize"}, []string{"orlop resize NAME"}},
	{[]string{"resize", "a"}, []string{"--size", "orlop resize a --size"}},
	{[]string{"resize", "a", "50G"}, []string{`"50G"`}},
	{[]string{"resize", "a", "50G", "--size", "50G"}, []string{`"50G"`, "orlop resize NAME"}},
	{[]string{"delete", "--snapshots"}, []string{"orlop delete NAME..."}},
	{[]string{"delete", "a", "--snapshots=maybe"}, []string{"maybe", "snapshots"}},
	{[]string{"create", "a", "--from"}, []string{"from"}},
	{[]string{"set", "a", "--pre-snapshot"}, []string{"pre-snapshot"}},
	{[]string{"snapshot", "frobnicate"}, []string{`"frobnicate"`, "orlop snapshot --help"}},
	{[]string{"snapshot", "Create", "a"}, []string{`"Create"`, "orlop snapshot --help"}},
	{[]string{"snapshot", "create"}, []string{"orlop snapshot create VOLUME..."}},
	{[]string{"snapshot", "create", "a", "--name"}, []string{"name"}},
	{[]string{"snapshot", "create", "a", "--name", ""}, []string{"the name is empty"}},
	{[]string{"snapshot", "create", "a", "--managed"}, []string{"managed", "--help"}},
	{[]string{"snapshot", "list", "a", "b"}, []string{`"b"`, "orlop snapshot list [VOLUME]"}},
	{[]string{"snapshot", "ls", ""}, []string{"the name is empty"}},
	{[]string{"snapshot", "inspect"}, []string{"orlop snapshot inspect SNAP..."}},
	{[]string{"snapshot", "delete"}, []string{"orlop snapshot delete SNAP..."}},
	{[]string{"snapshot", "rm", "-rf", "s"}, []string{"-rf", "--help"}},
	{[]string{"snapshot", "delete", "s", "--force"}, []string{"force", "--help"}},
	{[]string{"snapshot", "restore"}, []string{"orlop snapshot restore SNAP"}},
	{[]string{"snapshot", "restore", "s", "t"}, []string{`"t"`, "orlop snapshot restore SNAP"}},
	{[]string{"snapshot", "restore", "s", "--discard"}, []string{"discard", "--help"}},
	{[]string{"snapshot", "diff"}, []string{"orlop snapshot diff SNAP [SNAP]"}},
	{[]string{"snapshot", "diff", "a", "b", "c"}, []string{`"c"`, "orlop snapshot diff SNAP [SNAP]"}},
	{[]string{"info", "x"}, []string{`"x"`, "orlop info"}},
	{[]string{"version", "x"}, []string{`"x"`, "orlop version"}},
	{[]string{"shutdown", "now"}, []string{`"now"`, "orlop shutdown"}},
	{[]string{"shutdown", "--force"}, []string{"force", "--help"}},
	{[]string{"completion"}, []string{"orlop completion bash|zsh|fish"}},
	{[]string{"completion", "tcsh"}, []string{`"tcsh"`, "bash", "zsh", "fish"}},
	{[]string{"completion", ""}, []string{`""`, "bash", "zsh", "fish"}},
	{[]string{"completion", "bash", "zsh"}, []string{`"zsh"`, "orlop completion"}},
	{[]string{"daemon", "x"}, []string{`"x"`, "orlop daemon"}},
	{[]string{"daemon", "--frob"}, []string{"frob", "--help"}},
	{[]string{"daemon", "--pool", "zfs"}, []string{`"zfs"`, "loop"}},
	{[]string{"daemon", "--pool", ""}, []string{`""`, "loop"}},
	{[]string{"daemon", "--pool", "loop:relative/dir"}, []string{`"relative/dir"`, "absolute"}},
	{[]string{"daemon", "--pool", "loop:"}, []string{`"loop:"`, "absolute"}},
	{[]string{"daemon", "--pool", "a/b=loop"}, []string{`"a/b"`, "[NAME=]loop"}},
	{[]string{"daemon", "--pool", "=loop"}, []string{`""`, "[NAME=]loop"}},
	{[]string{"daemon", "--pool", "a b=loop"}, []string{`"a b"`, "[NAME=]loop"}},
	{[]string{"daemon", "--pool", "-rf=loop"}, []string{`"-rf"`}},
	{[]string{"daemon", "--pool", "../x=loop"}, []string{`"../x"`, "[NAME=]loop"}},
	{[]string{"daemon", "--pool", "loop", "--pool", "loop:/srv"}, []string{`"loop"`, "name each"}},
	{[]string{"daemon", "--pool", "a=loop:/srv", "--pool", "a=loop"}, []string{`"a"`, "name each"}},
	{[]string{"daemon", "--pool", "lvm"}, []string{`"lvm"`, "VG/THINPOOL"}},
	{[]string{"daemon", "--pool", "lvm:vg"}, []string{`"vg"`, "VG/THINPOOL"}},
	{[]string{"daemon", "--pool", "lvm:vg/thin/x"}, []string{`"vg/thin/x"`, "VG/THINPOOL"}},
	{[]string{"daemon", "--pool", "lvm:-vg/thin"}, []string{`"-vg/thin"`, "VG/THINPOOL"}},
	{[]string{"daemon", "--pool", "a=lvm:vg/thin", "--pool", "b=lvm:vg/thin"}, []string{"same place"}},
	{[]string{"daemon", "--create-thin-pool", "10G"}, []string{"10G", "--pool lvm:VG/THINPOOL"}},
	{[]string{"daemon", "--pool", "lvm:vg/thin", "--create-thin-pool", "much"}, []string{`"much"`, "--create-thin-pool"}},
	{[]string{"daemon", "--pool-size", "1G"}, []string{"1G", "2.0 GiB"}},
	{[]string{"daemon", "--pool-size", "0"}, []string{`"0"`, "--pool-size"}},
	{[]string{"daemon", "--pool-size", "lots"}, []string{`"lots"`, "--pool-size"}},
	{[]string{"daemon", "--default-size", "10X"}, []string{`"10X"`, "--default-size"}},
	{[]string{"daemon", "--default-size", "-1G"}, []string{`"-1G"`, "--default-size"}},
	{[]string{"daemon", "--default-size", ""}, []string{`""`, "--default-size"}},
	{[]string{"daemon", "--default-size", "9999999999T"}, []string{`"9999999999T"`, "--default-size"}},
	{[]string{"daemon", "--log-format", "xml"}, []string{`"xml"`, "text or json"}},
	{[]string{"daemon", "--log-format", ""}, []string{`""`, "text or json"}},
	{[]string{"daemon", "--plugin-name", "a/b"}, []string{`"a/b"`, "'/'"}},
	{[]string{"daemon", "--plugin-name", "a b"}, []string{`"a b"`}},
	{[]string{"daemon", "--plugin-name", ""}, []string{`""`}},
	{[]string{"daemon", "--pool-preallocate=perhaps"}, []string{"perhaps", "pool-preallocate"}},
}

func TestBadUsageExitsTwoAndNamesTheValue(t *testing.T) {
	// A daemon that took a value cannot begin below a file: it would exit with 1.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ORLOP_SOCKET", nowhere(t))
	t.Setenv("ORLOP_ROOT", filepath.Join(file, "root"))
	for _, bad := range badUsage {
		got := invoke(bad.args...)
		if got.code != 2 || !strings.HasPrefix(got.stderr, "orlop: ") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%q: want exit code 2 and one line on stderr\n%s", bad.args, got)
		}
		for _, word := range bad.says {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("%q: no word of %s: %s", bad.args, word, got.stderr)
			}
		}
		if got.stdout != "" {
			t.Errorf("%q: stdout: %s", bad.args, got.stdout)
		}
	}
}

func TestBadUsageIsToldInJSONWhenAsked(t *testing.T) {
	t.Setenv("ORLOP_SOCKET", nowhere(t))
	for _, args := range [][]string{
		{"--json", "frobnicate"}, {"frobnicate", "--json"}, {"info", "x", "--json"}, {"ls", "--quiet", "--json"}, {"--json", "info", "x"},
		{"create", "--sizes", "1G", "--json"}, {"--json", "create", "--sizes", "1G"}, {"--json", "inspect"},
		{"--json", "--frob", "list"}, {"--frob", "list", "--json"}, {"list", "--json", "--socket"},
	} {
		got := invoke(args...)
		if body := got.failure(t); got.code != 2 || body.Error.Kind != fault.ErrInvalid || body.Error.Message == "" {
			t.Errorf("%q: want exit code 2 and kind invalid\n%s", args, got)
		}
	}
}

// TestFlagsMayStandAnywhere shows by the words of a refusal how a command line was read.
func TestFlagsMayStandAnywhere(t *testing.T) {
	app := new(cli).app()
	for _, test := range []struct{ given, want string }{
		{"create v --size 1G", "create --size 1G -- v"},
		{"create --size 1G v", "create --size 1G -- v"},
		{"create --size=1G v --label a=b", "create --size=1G --label a=b -- v"},
		{"create v --json", "--json create -- v"},
		{"--json create v", "--json create -- v"},
		{"create --socket /s v", "--socket /s create -- v"},
		{"create v --socket=/s", "--socket=/s create -- v"},
		{"create v --protect --size 1G", "create --protect --size 1G -- v"},
		{"create --protect v", "create --protect -- v"},
		{"create -- --size", "create -- --size"},
		{"create --size 1G -- -v", "create --size 1G -- -v"},
		{"delete a -- b --json", "delete -- a b --json"},
		{"create --size --json v", "create --size --json -- v"},
		{"create v --size", "create --size"},
		{"create v --json --size", "--json create --size"},
		{"create v --size 1G --socket", "--socket"},
		{"create list", "create -- list"},
		{"create help", "create -- help"},
		{"help", "--help"},
		{"help backup", "backup --help"},
		{"backup help", "backup --help"},
		{"--json backup help list", "backup list --help"},
		{"help delete v", "delete --help"},
		{"delete v -h", "delete --help"},
		{"help -- delete v", "--help"},
		{"help frob", "frob"},
		{"--version", "version"},
		{"-v --json", "--json version"},
		{"list -v", "list -v"},
		{"inspect -- --version", "inspect -- --version"},
		{"backup frob --help", "backup frob"},
		{"delete delete rm", "delete -- delete rm"},
		{"inspect a b --json c", "--json inspect -- a b c"},
		{"inspect -", "inspect -- -"},
		{"set v --label a= --label b=c --unprotect", "set --label a= --label b=c --unprotect -- v"},
		{"--verbose list --filter label=k", "--verbose list --filter label=k"},
		{"list", "list"},
		{"", ""},
	} {
		got, help := arrange(app, append([]string{"orlop"}, strings.Fields(test.given)...))
		joined := strings.Join(got, " ")
		if help {
			joined = strings.TrimSpace("orlop "+joined) + " --help"
		}
		if joined != strings.TrimSpace("orlop "+test.want) {
			t.Errorf("%q was arranged as %q, want %q", test.given, joined, test.want)
		}
	}
}

func TestEachKindHasAnExitCode(t *testing.T) {
	for kind, want := range map[fault.Kind]int{
		"": 0, fault.ErrFailed: 1, fault.ErrInvalid: 2, fault.ErrNotFound: 3, fault.ErrExists: 4, fault.ErrInUse: 4, fault.ErrProtected: 4,
		fault.ErrNoSpace: 5, fault.ErrUnreachable: 6, fault.ErrCorrupt: 7, fault.ErrUnsupported: 8, "of a newer daemon": 1,
	} {
		var err error
		if kind != "" {
			err = fmt.Errorf("attempt: %w", fault.Errorf(kind, "volume %q", "x"))
		}
		if got := exitCode(err); got != want {
			t.Errorf("kind %q: exit code %d, want %d", kind, got, want)
		}
	}
}
