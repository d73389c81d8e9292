// Command orlop is the volume manager: "orlop daemon" owns the volumes of this host, the other commands talk to it.
package main

import (
	"context"
	"os"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	// Never given back to their defaults: a signal that comes late must not change the exit code.
	ctx, _ := notifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}
