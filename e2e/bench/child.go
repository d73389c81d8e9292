package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// A cost is what a command took.
type cost struct {
	seconds float64
	cpu     float64 // seconds, of all threads and children
	memory  float64 // MiB resident, at most
}

// measured runs a command in a directory and returns its standard output and what it took.
func measured(ctx context.Context, dir string, env []string, stdin io.Reader, argv ...string) (out []byte, c cost, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	begin := time.Now()
	err = cmd.Run()
	c.seconds = time.Since(begin).Seconds()
	if err != nil {
		return nil, c, fmt.Errorf("%v: %w: %s", argv, err, stderr.Bytes())
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return nil, c, errors.New("the kernel does not say what a process used")
	}
	c.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	c.memory = float64(usage.Maxrss) / 1024
	return stdout.Bytes(), c, nil
}
