//go:build root

package main

import (
	"os"
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
	os.Exit(namespacetest.Run(m.Run))
}
