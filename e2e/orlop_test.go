//go:build root

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// An orlop is the daemon under test with its data root and sockets, whether it runs or not.
type orlop struct {
	root, plugin string // data root, name of the volume driver
	control      string // socket for the command line
	socket       string // socket for Docker
	logPath      string
	flags        []string      // besides those that every daemon gets
	ahead        time.Duration // how much more time has passed for it since the kernel started
	*process
}

// start starts the daemon and returns when it listens at both sockets and answers.
func (o *orlop) start() (err error) {
	if o.running() {
		return errors.New("orlop runs already")
	}
	name, args := program, append([]string{"daemon", "--root", o.root, "--plugin-name", o.plugin,
		"--plugin-socket", o.socket, "--control-socket", o.control, "--pool-size", "20G", "--default-size", "1G"}, o.flags...)
	if o.ahead > 0 { // in a time namespace; each command runs the next in its own place, so that the process is the daemon
		name, args = "unshare", append([]string{"--time", "--boottime", strconv.Itoa(int(o.ahead.Seconds())),
			"sh", "-c", `exec nsenter --time=/proc/$$/ns/time_for_children "$@"`, "sh", program}, args...)
	}
	o.process, err = start(o.logPath, nil, name, args...)
	if err != nil {
		return err
	}
	return o.ready(func() bool { return answers(o.socket) && o.recovered() })
}

// recovered reports whether the daemon answers requests. It listens before that.
func (o *orlop) recovered() bool {
	client := unixClient(o.control)
	client.Timeout = time.Second
	defer client.CloseIdleConnections()
	response, err := client.Get("http://orlop/v1/version")
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// later starts the daemon again, for which time has passed meanwhile.
func (o *orlop) later(by time.Duration) error {
	o.ahead += by
	return errors.Join(o.stop(), o.start())
}

// answers tells whether somebody listens at a unix socket.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// suspend stops the daemon where it is, until resume or its end.
func (o *orlop) suspend() error { return o.cmd.Process.Signal(syscall.SIGSTOP) }

// run runs the orlop command against this daemon.
func (o *orlop) run(args ...string) result {
	return run([]string{"ORLOP_SOCKET=" + o.control}, program, args...)
}

// call sends one call of Docker's volume plugin protocol, with no body at all for a nil request, and returns the
// status and the answer. A connection that is closed without an answer is an error.
func (o *orlop) call(name string, request map[string]any) (status int, answer map[string]any, err error) {
	var body io.Reader
	if request != nil {
		raw, err := json.Marshal(request)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(raw)
	}
	client := unixClient(o.socket)
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+name, body)
	if err != nil {
		return 0, nil, err
	}
	response, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return response.StatusCode, nil, fmt.Errorf("answer to %s: %w", name, err)
	}
	return response.StatusCode, answer, nil
}

// unixClient returns an HTTP client for whoever listens at a unix socket.
func unixClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

// release drops every holder, so that nothing keeps the pool from being detached.
func (o *orlop) release() error {
	list := o.run("list", "--json")
	var volumes []struct {
		Name    string
		Holders []struct{ ID, Kind string }
	}
	if err := json.Unmarshal([]byte(list.stdout), &volumes); err != nil {
		return fmt.Errorf("%v: %w", list, err)
	}
	var errs []error
	for _, v := range volumes {
		for _, h := range v.Holders {
			if h.Kind == "user" {
				if r := o.run("umount", v.Name); r.code != 0 {
					errs = append(errs, errors.New(r.String()))
				}
				continue
			}
			status, answer, err := o.call("VolumeDriver.Unmount", map[string]any{"Name": v.Name, "ID": h.ID})
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("release %s: %v", v.Name, answer["Err"])
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// close ends the daemon for good, with its pool detached, and tells what was wrong with it in its life.
func (o *orlop) close() error {
	var errs []error
	if o.running() {
		_ = o.cmd.Process.Signal(syscall.SIGCONT) // a test may have suspended it and failed
	} else {
		errs = append(errs, o.start())
	}
	if o.running() {
		errs = append(errs, o.release())
		if r := o.run("shutdown", "--detach"); r.code != 0 {
			errs = append(errs, errors.New(r.String()), o.kill())
		} else if err := await(stopLimit, "orlop ends after shutdown", func() bool { return !o.running() }); err != nil {
			errs = append(errs, err, o.kill())
		} else if o.err != nil {
			errs = append(errs, fmt.Errorf("orlop daemon: %w", o.err))
		}
	}
	log, err := os.ReadFile(o.logPath)
	for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		if i := bytes.Index(log, []byte(bad)); i >= 0 {
			errs = append(errs, fmt.Errorf("orlop's log has %q:\n%s", bad, log[max(i-200, 0):min(i+4000, len(log))]))
		}
	}
	if leaked := left(o.root); len(leaked) > 0 {
		errs = append(errs, fmt.Errorf("left by orlop: %q", leaked))
	}
	return errors.Join(append(errs, err)...)
}

// newOrlop describes a daemon below dir. It is not started.
func newOrlop(dir, plugin, socket string) *orlop {
	return &orlop{
		root: filepath.Join(dir, "root"), plugin: plugin, control: filepath.Join(dir, "control.sock"), socket: socket,
		logPath: filepath.Join(dir, "orlop.log"),
	}
}

// tail returns the end of a log file.
func tail(path string, lines int) string {
	log, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(log, []byte("\n"))
	return string(bytes.Join(all[max(len(all)-lines, 0):], nil))
}

// killAndRestart kills the daemon wherever it is and starts it again.
func (o *orlop) killAndRestart() error { return errors.Join(o.kill(), o.start()) }
