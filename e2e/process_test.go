//go:build root

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const (
	// commandLimit is how long a command may take. Docker waits 15 s for a plugin that is down, sometimes twice.
	commandLimit = 5 * time.Minute
	// patience is how long a state may take to come about.
	patience = 2 * time.Minute
	// startLimit is how long a daemon may take to answer.
	startLimit = 5 * time.Minute
	// stopLimit is how long a daemon may take to end.
	stopLimit = 5 * time.Minute
)

// await polls until done or until within is over, and then returns an error that names what was awaited.
func await(within time.Duration, what string, done func() bool) error {
	deadline := time.Now().Add(within)
	for pause := 5 * time.Millisecond; !done(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s", within, what)
		}
		<-time.After(pause)
	}
	return nil
}

// eventually is await for a test, which it ends if the state does not come about.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	check(t, await(patience, what, done))
}

// check ends the test on an error.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A process is a daemon that a test started. Its output goes to a log file.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
	err  error         // how it ended; to be read after done
}

// start starts a daemon in a process group of its own, so that it ends when the test says so and not at ^C.
func start(logPath string, env []string, name string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// running tells whether the process was started and has not ended.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ready waits until the process answers.
func (p *process) ready(answers func() bool) error {
	err := await(startLimit, p.name+" answers", func() bool { return !p.running() || answers() })
	if err == nil && !p.running() {
		err = fmt.Errorf("%s ended at its start: %w", p.name, p.err)
	}
	return err
}

// stop asks the process to end, and returns how it did. One that does not is killed, and that is an error.
func (p *process) stop() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := await(stopLimit, p.name+" ends", func() bool { return !p.running() }); err != nil {
		return errors.Join(err, p.kill())
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w", p.name, p.err)
	}
	return nil
}

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return await(stopLimit, p.name+" dies", func() bool { return !p.running() })
}

// A result is what a command said.
type result struct {
	line           string // the command
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit code %d\nstdout: %s\nstderr: %s", r.line, r.code, r.stdout, r.stderr)
}

// run runs a command. One that cannot be run or takes too long has exit code -1.
func run(env []string, name string, args ...string) result {
	return runInput(env, nil, name, args...)
}

// runInput is run with something to read for the command.
func runInput(env []string, input []byte, name string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{line: fmt.Sprintf("%s %q", name, args), stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.stderr = -1, r.stderr+err.Error()
	}
	return r
}

// must fails on a command that failed, and returns what it printed.
func (r result) must(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		t.Fatal(r)
	}
	return trimmed(r.stdout)
}

func trimmed(s string) string { return string(bytes.TrimSpace([]byte(s))) }
