package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A terminal is a shell on a pseudo-terminal, as in a user's window.
type terminal struct {
	pty    *os.File
	screen []byte // since the last line was sent
}

const prompt = "READY> "

// shells are started without the user's files, load the script and show prompt.
var shells = map[string]struct {
	argv  []string
	setup string
}{
	"bash":                     {[]string{"bash", "--norc", "--noprofile", "-i"}, "PS1='READY''> '; source <(orlop completion bash)"},
	"bash without host names":  {[]string{"bash", "--norc", "--noprofile", "-i"}, "PS1='READY''> '; shopt -u hostcomplete; source <(orlop completion bash)"},
	"bash with other breaks":   {[]string{"bash", "--norc", "--noprofile", "-i"}, "PS1='READY''> '; COMP_WORDBREAKS=${COMP_WORDBREAKS//[@:]}; source <(orlop completion bash)"},
	"zsh":                      {[]string{"zsh", "-f", "-i"}, "PS1='READY''> '; autoload -Uz compinit; compinit -D -u; source <(orlop completion zsh)"},
	"zsh without compinit":     {[]string{"zsh", "-f", "-i"}, "PS1='READY''> '; ZDOTDIR=$HOME; source <(orlop completion zsh)"},
	"zsh with installed files": {[]string{"zsh", "-f", "-i"}, "PS1='READY''> '; orlop completion zsh >$HOME/_orlop; fpath=($HOME $fpath); autoload -Uz compinit; compinit -D -u"},
	"fish":                     {[]string{"fish", "--no-config", "-i"}, "function fish_prompt; echo -n 'READY''> '; end; orlop completion fish | source"},
}

// openTerminal starts a shell in dir that finds orlop in the directory program.
func openTerminal(t *testing.T, name, program, dir string) *terminal {
	t.Helper()
	shell := shells[name]
	if _, err := exec.LookPath(shell.argv[0]); err != nil {
		if os.Getenv("ORLOP_TEST_TOOLS") != "" {
			t.Fatalf("%s is not installed", shell.argv[0])
		}
		t.Skipf("%s is not installed (tools/deps.sh test)", shell.argv[0])
	}
	pty, tty := openPty(t)
	defer tty.Close()
	home := t.TempDir()
	cmd := exec.Command(shell.argv[0], shell.argv[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, tty, tty, tty
	cmd.Env = append(os.Environ(), "PATH="+program+":"+os.Getenv("PATH"), "HOME="+home, "XDG_CONFIG_HOME="+home,
		"XDG_DATA_HOME="+home, "INPUTRC=/dev/null", "TERM=dumb", "HISTFILE=", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		_ = pty.Close()
	})
	term := &terminal{pty: pty}
	term.send(t, shell.setup+"\r")
	term.await(t, prompt)
	return term
}

// builtOrlop builds the program and returns its path.
func builtOrlop(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "orlop")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "orlop/cmd/orlop").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// programThatShowsItsArguments builds an orlop that completes as the real one, and otherwise prints each argument. It
// returns its directory.
func programThatShowsItsArguments(t *testing.T) string {
	t.Helper()
	dir, program := t.TempDir(), builtOrlop(t)
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in\n%s|completion) exec %q \"$@\" ;;\nesac\nprintf '<%%s>' \"$@\"\necho '<end>'\n", completeVerb, program)
	if err := os.WriteFile(filepath.Join(dir, "orlop"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// openPty returns both ends of a pseudo-terminal. Reading the first takes deadlines.
func openPty(t *testing.T) (pty, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	pty = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200})
	}
	if err == nil {
		tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pty, tty
}

func (term *terminal) send(t *testing.T, text string) {
	t.Helper()
	term.screen = nil
	if _, err := term.pty.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// await reads the shell's output until it contains text.
func (term *terminal) await(t *testing.T, text string) {
	t.Helper()
	if err := term.pty.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for !bytes.Contains(term.screen, []byte(text)) {
		n, err := term.pty.Read(buf)
		if err != nil {
			t.Fatalf("no %q: %v; on the screen:\n%s", text, err, term.screen)
		}
		term.screen = append(term.screen, buf[:n]...)
	}
}

// run types a command line, with tabs in it, and returns the arguments that the program got.
func (term *terminal) run(t *testing.T, line string) string {
	t.Helper()
	term.send(t, "orlop "+line+"\r")
	term.await(t, "<end>")
	shown := string(term.screen)
	_, rest, found := strings.Cut(shown[:strings.Index(shown, "<end>")], "<")
	term.screen = term.screen[strings.Index(shown, "<end>"):]
	term.await(t, prompt)
	if !found {
		t.Fatalf("%q: on the screen:\n%s", line, shown)
	}
	return strings.Trim(strings.ReplaceAll(rest, "><", " "), ">")
}

// typedLines are command lines with tabs, and the arguments that the program then gets.
var typedLines = []struct{ typed, want string }{
	{"snap\trestore web\t", "snapshot restore web@before"},
	{"snapshot delete db@t\t", "snapshot delete db@two"},
	{"snapshot delete db@\tt\t", "snapshot delete db@two"},
	{"snapshot diff web@b\tdb@b\t", "snapshot diff web@before db@before"},
	{"snapshot diff \"web@b\tdb@b\t", "snapshot diff web@before db@before"},
	{"create x --from db@t\t--si\t1G", "create x --from db@two --size 1G"},
	{"create x --from=db@t\t", "create x --from=db@two"},
	{"create --fs x\ty", "create --fs xfs y"},
	{"create --fs=x\ty", "create --fs=xfs y"},
	{"list --fil\tlab\tapp\t", "list --filter label=app=shop"},
	{"list --filter label=team\t", "list --filter label=team=a b"},
	{"inspect do\tw\t", "inspect docs web"},
	{"umo\t\t", "umount db"},
	{"create mi\t", "create mi"},
	{"inspect mi\t", "inspect mi"},
	{"key create mi\t", "key create mine"},
	{"backup list d --key-file my\t", "backup list d --key-file my key"},
	{"backup list d --key-file=min\t", "backup list d --key-file=mine"},
	{"mount db --mountpoint mo\t", "mount db --mountpoint mount here/"},
	{"--json insp\tdo\t", "--json inspect docs"},
	{"snapshot create --na\tfoo do\t", "snapshot create --name foo docs"},
}

// typedInVariants is how many rows of the table below other set-ups of a shell must pass: those in which set-ups differ.
const typedInVariants = 8

// TestShellsCompleteOnATerminal presses Tab in real shells.
func TestShellsCompleteOnATerminal(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"mine", "my key"} {
		rewrite(t, filepath.Join(dir, name), "")
	}
	if err := os.Mkdir(filepath.Join(dir, "mount here"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ORLOP_SOCKET", daemonWithNames(t))
	program := programThatShowsItsArguments(t)
	for name := range shells {
		t.Run(name, func(t *testing.T) {
			term := openTerminal(t, name, program, dir)
			rows := typedLines
			if strings.Contains(name, " ") {
				rows = rows[:typedInVariants]
			}
			for _, test := range rows {
				got := term.run(t, test.typed)
				if strings.TrimSuffix(got, "/") != strings.TrimSuffix(test.want, "/") {
					t.Errorf("%q ran orlop %s, want %s", test.typed, got, test.want)
				}
			}
			ask := "orlop snapshot delete db@\t\t"
			if name == "fish" {
				ask = "complete -C 'orlop snapshot delete db@'\r" // a dumb terminal gets no list from Tab
			}
			term.send(t, ask)
			term.await(t, "two")
			term.await(t, "before")
		})
	}
}
