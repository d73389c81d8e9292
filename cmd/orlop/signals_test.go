//go:build root

package main

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asProcess is this program run with args by a shell command, which has them as "$@".
func asProcess(shell string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", shell, "sh", os.Args[0])
	cmd.Env = append(os.Environ(), spaceDaemonArgs+"="+strings.Join(append([]string{"orlop"}, args...), "\n"))
	return cmd
}

// TestSignalsForOtherDaemonsDoNotEndThisOne sends it what makes others read their settings or open their logs again, and
// takes away the reader of its log. A request that is under way is answered.
func TestSignalsForOtherDaemonsDoNotEndThisOne(t *testing.T) {
	h := newHost(t)
	cmd, log := h.startProcess(t, `exec "$@"`)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	created := make(chan outcome)
	go func() { created <- h.orlop("create", "a", "--size", "64M") }()
	for range 20 {
		for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2} {
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
		}
		h.must(t, "list")
	}
	if got := <-created; got.code != 0 {
		t.Errorf("create: %s", got)
	}
	h.must(t, "delete", "a") // a line of the log that nothing reads
	h.must(t, "list")
}

// startProcess starts a daemon as a process of its own by a shell command, and returns it once it is ready, with the end of
// the pipe that its log comes from.
func (h *host) startProcess(t *testing.T, shell string) (cmd *exec.Cmd, reader *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = asProcess(shell, append([]string{"daemon"}, h.flags...)...)
	cmd.Stderr = writer
	if err := errors.Join(cmd.Start(), writer.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	var log bytes.Buffer
	for buf := make([]byte, 4096); !isReady(log.Bytes()); {
		n, err := reader.Read(buf)
		log.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v; the daemon's log:\n%s", err, &log)
		}
	}
	return cmd, reader
}

// TestSignalsInterruptACommand, unless it was started to outlive its terminal or runs in a script's background.
func TestSignalsInterruptACommand(t *testing.T) {
	for _, test := range []struct {
		shell  string
		signal syscall.Signal
		ends   bool
	}{
		{`exec "$@"`, syscall.SIGHUP, true}, {`exec "$@"`, syscall.SIGINT, true}, {`exec "$@"`, syscall.SIGTERM, true},
		{`trap "" HUP; exec "$@"`, syscall.SIGHUP, false}, {`trap "" INT; exec "$@"`, syscall.SIGINT, false},
	} {
		dir, err := os.MkdirTemp("", "orlop-signals-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		socket := filepath.Join(dir, "control.sock")
		daemon, err := net.Listen("unix", socket) // that answers nothing
		if err != nil {
			t.Fatal(err)
		}
		defer daemon.Close()
		cmd := asProcess(test.shell, "--socket", socket, "list")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		request, err := daemon.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(test.signal); err != nil {
			t.Fatal(err)
		}
		if test.ends {
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "interrupted") {
				t.Errorf("%s %v: %v: %s", test.shell, test.signal, err, &stderr)
			}
			_ = request.Close()
			continue
		}
		if _, err := http.ReadRequest(bufio.NewReader(request)); err != nil {
			t.Fatal(err)
		}
		if _, err := request.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s %v: %v: %s", test.shell, test.signal, err, &stderr)
		}
		_ = request.Close()
	}
}
