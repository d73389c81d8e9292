//go:build root

package main

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"orlop/internal/namespacetest"
)

// TestMain runs the tests in a mount namespace of their own. Otherwise a process that makes itself one, as Docker's tests
// do, would take copies of our mounts with it, and our volumes would rightly be in use.
func TestMain(m *testing.M) {
	if args := os.Getenv(spaceDaemonArgs); args != "" {
		os.Exit(beSpaceDaemon(args))
	}
	if dir := os.Getenv(spaceWriterDir); dir != "" {
		os.Exit(beSpaceWriter(dir))
	}
	// A process that ignores these, under nohup say, hands that down to the commands that tests interrupt; one that is
	// notified of them does not.
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	os.Exit(namespacetest.Run(m.Run))
}
