// Package namespacetest runs the tests of a package in a mount namespace of their own. Any program that makes itself a
// mount namespace, as container engines and service managers do, takes copies of all mounts along, and those keep
// filesystems and loop devices busy until it ends. Tests that mount something and expect to be its only user therefore
// mount it where no other program takes copies.
package namespacetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// variable is set in the environment of a process in a new namespace: to "entered", and to "ours" once Inside has
// prepared it.
const variable = "ORLOP_TEST_NAMESPACE"

// Run is what TestMain does: it runs tests, which is m.Run, in a new mount namespace and returns the exit code. Without
// root it runs them where they are. What they leave mounted is gone when they end, whatever ends them.
func Run(tests func() int) int {
	if os.Geteuid() == 0 && !Inside() {
		return Enter()
	}
	return tests()
}

// Inside reports whether this process is in a namespace that Enter made. Its first call in there unmounts, in this
// namespace only, what is mounted from loop devices: those are other programs', and would be busy here.
func Inside() bool {
	switch os.Getenv(variable) {
	case "":
		return false
	case "entered":
		if err := errors.Join(forgetLoops(), os.Setenv(variable, "ours")); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the mount namespace of the tests:", err)
			os.Exit(1)
		}
	}
	return true
}

// Enter runs this program again, with env added to its environment, in a new mount namespace in which no mount
// propagates, and returns its exit code. SIGINT and SIGTERM kill it, as does the end of this process.
func Enter(env ...string) (code int) {
	program, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "enter a mount namespace:", err)
		return 1
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig goes by the thread
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), env...), variable+"=entered")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL} // Go makes it private
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
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		return 1
	}
	return 0
}

// loopMajor is the major number of every loop device.
const loopMajor = "7:"

// unescape undoes what proc(5) does to the names in a mount table.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func forgetLoops() error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // what lies on top comes last
		if fields := strings.Fields(lines[i]); len(fields) > 4 && strings.HasPrefix(fields[2], loopMajor) && fields[4] != "/" {
			_ = unix.Unmount(unescape.Replace(fields[4]), unix.MNT_DETACH) // one below another is gone with it
		}
	}
	return nil
}

// Cover mounts with over path until the test ends. Only this namespace sees it.
func Cover(t testing.TB, path, with string) {
	t.Helper()
	if err := unix.Mount(with, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
}
