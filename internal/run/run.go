// Package run starts external commands: argument vectors without a shell, in the C locale, with a time limit,
// and with the command's own words in the error.
package run

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"orlop/internal/fault"
)

// DefaultLimit is the time a command gets where its Runner names none.
const DefaultLimit = 100 * time.Second

// packages names the Debian package of each command that Orlop starts, for the error of a missing one.
var packages = map[string]string{
	"mkfs.ext4": "e2fsprogs",
	"e2fsck":    "e2fsprogs",
	"resize2fs": "e2fsprogs",
	"mkfs.xfs":  "xfsprogs",

	"lvm":        "lvm2",
	"thin_delta": "thin-provisioning-tools",
	"thin_dump":  "thin-provisioning-tools",
	"thin_ls":    "thin-provisioning-tools",
}

// A Runner runs commands. The zero Runner is ready; a Runner is safe for concurrent use.
type Runner struct {
	Limit time.Duration // of one command; DefaultLimit if zero
	Env   []string      // added to the environment, NAME=value
	Clean bool          // pass on only what names the user, the shell and the time zone of this process's environment
	Nice  int           // added to the command's nice value: a positive one lets the daemon's answers go first

	// Stop is sent to a command that overruns the limit or outlives its context, if it is set, instead of SIGKILL. That
	// follows after Grace.
	Stop  syscall.Signal
	Grace time.Duration
}

// An ExitError is the failure of a command that ran and exited with Code.
type ExitError struct {
	Argv   []string
	Code   int
	Output string // the last lines of standard error, or of standard output where that is empty
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Argv, " "), e.Code, e.Output)
}

// Run starts argv and returns its standard output. It fails with an *ExitError if the command exits non-zero,
// and with fault.ErrUnsupported if the command is not installed. A command that overruns the limit or outlives
// ctx is killed, with what it has started itself.
func (r Runner) Run(ctx context.Context, argv ...string) ([]byte, error) {
	stdout, _, err := r.Capture(ctx, argv...)
	return stdout, err
}

// Capture is Run that also returns what the command wrote to standard error.
func (r Runner) Capture(ctx context.Context, argv ...string) (stdout, stderr []byte, err error) {
	var out bytes.Buffer
	stderr, err = r.to(ctx, &out, argv)
	var exit *ExitError
	if err == nil || errors.As(err, &exit) {
		return out.Bytes(), stderr, err
	}
	return nil, stderr, err
}

// Stream is Run that passes standard output on to read while the command runs. It fails with read's error, if that has
// one; read need not read to the end.
func (r Runner) Stream(ctx context.Context, read func(io.Reader) error, argv ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := r.to(ctx, out, argv)
		_ = out.CloseWithError(err) // never fails; a nil error ends the stream
		done <- err
	}()
	readErr := read(in)
	if readErr != nil {
		cancel()
	}
	_, _ = io.Copy(io.Discard, in) // else the command could wait for its reader for ever
	err := <-done
	if readErr != nil && (err == nil || ctx.Err() != nil) {
		return readErr
	}
	return err
}

// to runs argv with its standard output going to w, and returns what it wrote to standard error.
func (r Runner) to(ctx context.Context, w io.Writer, argv []string) ([]byte, error) {
	limit := r.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var stderr bytes.Buffer
	end := &tailWriter{w: w}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = slices.Concat(r.inherited(), []string{"LC_ALL=C", "PATH=" + searchPath()}, r.Env)
	cmd.Stdout, cmd.Stderr = end, &stderr
	cmd.WaitDelay = max(r.Grace, time.Second)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, cmp.Or(r.Stop, syscall.SIGKILL)) }
	if resolved, err := Find(argv[0]); err == nil {
		cmd.Path, cmd.Err = resolved, nil
	}
	err := r.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stderr.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, missing(argv[0])
	case ctx.Err() != nil:
		return stderr.Bytes(), fmt.Errorf("%s: %w (limit %s)", strings.Join(argv, " "), ctx.Err(), limit)
	case errors.As(err, &exit):
		return stderr.Bytes(), &ExitError{Argv: argv, Code: exit.ExitCode(), Output: tail(stderr.String(), end.String())}
	}
	return stderr.Bytes(), fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
}

// maxTail is how much of a command's standard output is kept to be quoted.
const maxTail = 64 << 10

// A tailWriter passes on what is written to it and keeps the end of it.
type tailWriter struct {
	w    io.Writer
	kept []byte
}

func (t *tailWriter) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if surplus := len(t.kept) - maxTail; surplus > maxTail {
		t.kept = append([]byte(nil), t.kept[surplus:]...)
	}
	return t.w.Write(b)
}

func (t *tailWriter) String() string { return string(t.kept) }

// inherited returns what a command sees of this process's environment.
func (r Runner) inherited() []string {
	if !r.Clean {
		return os.Environ()
	}
	var env []string
	for _, name := range []string{"HOME", "LOGNAME", "SHELL", "TZ", "USER"} {
		if value, is := os.LookupEnv(name); is {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func (r Runner) start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if r.Nice != 0 {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, cmd.Process.Pid, r.Nice) // it runs all the same
	}
	return nil
}

// Find returns the path of a command, looking in the system's sbin directories too. It fails with
// fault.ErrUnsupported and the package to install.
func Find(command string) (string, error) {
	for _, dir := range strings.Split(searchPath(), ":") {
		path := dir + "/" + command
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", missing(command)
}

func missing(command string) error {
	if pkg, ok := packages[command]; ok {
		return fault.Errorf(fault.ErrUnsupported, "%s is not installed: apt-get install %s", command, pkg)
	}
	return fault.Errorf(fault.ErrUnsupported, "%s is not installed", command)
}

// searchPath is PATH with the directories of system commands, which cron and some shells leave out.
func searchPath() string {
	path := os.Getenv("PATH")
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if !strings.Contains(":"+path+":", ":"+dir+":") {
			path += ":" + dir
		}
	}
	return strings.TrimPrefix(path, ":")
}

// tail returns the last lines of the first text that has any, on one line.
func tail(texts ...string) string {
	for _, text := range texts {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if len(lines) > 5 {
			lines = lines[len(lines)-5:]
		}
		if joined := strings.Join(lines, "; "); joined != "" {
			return joined
		}
	}
	return "(no output)"
}
