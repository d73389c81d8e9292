//go:build root

package volume

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of this package run in a mount namespace of their own: whatever else happens on the machine, no other
// process gets copies of their mounts, which would keep volumes busy, and with the last process of the namespace
// every mount, loop device and file of theirs is gone. Their files are in memory: what a disk makes of a sync is not
// what they are about.
const inNamespace = "ORLOP_TEST_IN_NAMESPACE"

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(runInNamespace())
	}
	err := errors.Join(forgetOthersMounts(), unix.Mount("orlop-test", os.TempDir(), "tmpfs", 0, "mode=0711,size=8g"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runInNamespace runs this program again in a new mount namespace and removes what it leaves.
func runInNamespace() (code int) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests attach loop devices and mount filesystems: run them as root (without root: make test-unit)")
		return 1
	}
	program, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "orlop-volume-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig goes by the thread
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1", "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err = cmd.Start(); err == nil {
		go func() {
			<-interrupted
			_ = cmd.Process.Kill()
		}()
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		code = exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := removeLeft(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// removeLeft removes the directory that the tests had, once the kernel has freed what was attached in it.
func removeLeft(dir string) error {
	if !within(10*time.Second, func() bool { return len(attachedBelow(dir)) == 0 }) {
		return fmt.Errorf("left attached: %v", attachedBelow(dir))
	}
	return os.Remove(dir)
}

// forgetOthersMounts takes the loop devices of other tests out of this namespace, which would be busy otherwise.
func forgetOthersMounts() error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		_, source, _ := strings.Cut(lines[i], " - ")
		if len(fields) > 4 && strings.Contains(source, " /dev/loop") {
			_ = unix.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
	return nil
}

// within polls until a condition holds, and tells whether it did before the deadline.
func within(limit time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(limit); !holds(); {
		if time.Now().After(deadline) {
			return false
		}
		<-time.After(time.Millisecond)
	}
	return true
}

// attachedBelow lists the loop devices whose file is below dir, with the file as the kernel shows it.
func attachedBelow(dir string) map[string]string {
	paths, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is sound
	found := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if name := strings.TrimSpace(string(text)); err == nil && strings.HasPrefix(name, dir+"/") {
			found["/dev/"+strings.Split(path, "/")[3]] = name
		}
	}
	return found
}

// check ends a test that cannot go on after an error.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratchDir is a directory of one test. Unlike that of t.TempDir it may keep closed mount points: it goes with the
// namespace.
func scratchDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t-")
	check(t, err)
	return dir
}

// quiet is where the Manager's log goes, which tells of the failures that the tests make.
func quiet() *slog.Logger {
	if testing.Verbose() && os.Getenv("ORLOP_TEST_LOG") != "" {
		return slog.Default()
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}
