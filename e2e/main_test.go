//go:build root

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is the orlop binary under test.
var program string

func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) == "" {
		os.Exit(runInside())
	}
	os.Exit(runTests(m))
}

// insideVariable tells the test binary that it runs in a mount namespace of its own.
const insideVariable = "ORLOP_E2E_INSIDE"

// pluginDirs are where Docker looks for plugins.
var pluginDirs = []string{socketDir, specDir, libDir}

// runInside runs this binary again in a mount namespace of its own: the tests of other packages, and a Docker of
// this machine, then do not take our mounts into their namespaces, nor we theirs.
func runInside() (code int) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: these tests attach loop devices and start a Docker daemon: run them as root (without root: make test-unit)")
		return 1
	}
	for _, dir := range pluginDirs {
		remove, err := makeDirs(dir)
		defer remove()
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM) // the other one ends, and we with it
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes it private
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "e2e: enter a mount namespace:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// makeDirs makes a directory with all above it. Those that were not there are removed by remove, unless they are
// used by then.
func makeDirs(dir string) (remove func(), err error) {
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	return func() {
		for _, d := range made {
			_ = os.Remove(d) // not empty: somebody uses it
		}
	}, os.MkdirAll(dir, 0o755)
}

func runTests(m *testing.M) (code int) {
	dir, err := prepare()
	defer func() { _ = os.RemoveAll(dir) }() // of a program that nobody needs any more
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	interrupted := make(chan os.Signal, 1)
	signal.Reset(os.Interrupt, syscall.SIGTERM)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	over := timeout()
	go func() {
		select {
		case <-interrupted:
		case <-over:
			fmt.Fprintf(os.Stderr, "e2e: the time is over; goroutines:\n%s", stacks())
		}
		_ = hosts.close() // what is left is not worth a word now
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}()
	code = m.Run()
	if err := hosts.close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	return code
}

// timeout is a while before the end that go test -timeout sets, which would leave the daemons behind.
func timeout() <-chan time.Time {
	flag.Parse()
	limit, err := time.ParseDuration(flag.Lookup("test.timeout").Value.String())
	if err != nil || limit == 0 {
		return nil
	}
	return time.After(max(limit-time.Minute, limit/2))
}

func stacks() []byte {
	text := make([]byte, 1<<20)
	return text[:runtime.Stack(text, true)]
}

// prepare hides the machine's plugins, builds the program with the race detector and returns the directory it is in.
func prepare() (dir string, err error) {
	for _, dir := range pluginDirs {
		if err := unix.Mount("orlop-e2e", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return "", fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	// A program with the race detector waits 1 s at its end otherwise, also the command line.
	err = errors.Join(os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=10"),
		os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"))
	if err != nil {
		return "", err
	}
	for _, tool := range []string{"docker", "dockerd", "containerd", "runc", "podman", "busybox", "unshare", "nsenter", "chattr"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("%w: run tools/deps.sh build test", err)
		}
	}
	if dir, err = os.MkdirTemp("", "orlop-e2e-program-"); err != nil {
		return "", err
	}
	program = filepath.Join(dir, "orlop")
	build := exec.Command("go", "build", "-race", "-buildvcs=false", "-o", program, "orlop/cmd/orlop")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
}

// hosts is every host that is not closed yet.
var hosts registry

type registry struct {
	mu   sync.Mutex
	open map[*host]bool
}

func (r *registry) add(h *host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = map[*host]bool{}
	}
	r.open[h] = true
}

func (r *registry) remove(h *host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, h)
}

func (r *registry) close() error {
	r.mu.Lock()
	var open []*host
	for h := range r.open {
		open = append(open, h)
	}
	r.mu.Unlock()
	var errs []error
	for _, h := range open {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}
