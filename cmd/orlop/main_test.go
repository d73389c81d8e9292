//go:build root

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/fs"
)

// ownNamespace tells this program whether it runs in a mount namespace of its own: "entered", then "ours".
const ownNamespace = "ORLOP_TEST_NAMESPACE"

// TestMain runs the tests in a mount namespace of their own. Otherwise a process that makes itself one meanwhile, as
// Docker's tests do, would take copies of our mounts with it, and our volumes would rightly be in use.
func TestMain(m *testing.M) {
	if args := os.Getenv(spaceDaemonArgs); args != "" {
		os.Exit(beSpaceDaemon(args))
	}
	if dir := os.Getenv(spaceWriterDir); dir != "" {
		os.Exit(beSpaceWriter(dir))
	}
	switch os.Getenv(ownNamespace) {
	case "":
		if os.Geteuid() == 0 {
			os.Exit(enterNamespace())
		}
	case "entered":
		if err := errors.Join(forgetOthersMounts(), os.Setenv(ownNamespace, "ours")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// enterNamespace runs this program again in a new mount namespace and returns its exit code.
func enterNamespace() int {
	program, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	runtime.LockOSThread() // the signal at the parent's death goes by its thread
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownNamespace+"=entered")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL} // Go makes it private
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// forgetOthersMounts takes filesystems on loop devices out of this namespace: they are other tests', and would be
// in use here.
func forgetOthersMounts() error {
	devices, err := filepath.Glob("/sys/block/loop*/dev")
	if err != nil {
		return err
	}
	var loops []string
	for _, path := range devices {
		if number, err := os.ReadFile(path); err == nil {
			loops = append(loops, strings.TrimSpace(string(number)))
		}
	}
	table, err := fs.Table("/")
	if err != nil {
		return err
	}
	slices.Reverse(table)
	for _, entry := range table {
		if slices.Contains(loops, fmt.Sprintf("%d:%d", unix.Major(entry.Device), unix.Minor(entry.Device))) {
			_ = unix.Unmount(entry.Mountpoint, unix.MNT_DETACH) // in this namespace only
		}
	}
	return nil
}
