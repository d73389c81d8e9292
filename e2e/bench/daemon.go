package main

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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startLimit = time.Minute
	stopLimit  = time.Minute
)

// A daemon is an orlop daemon with a root of its own.
type daemon struct {
	bench   *bench
	root    string
	flags   []string
	cmd     *exec.Cmd
	ended   chan struct{} // closed when it has ended
	plugin  *http.Client
	mounted map[string]bool // volumes that are mounted through call
}

// newDaemon prepares a daemon with a root called name, which is detached at the end.
func (b *bench) newDaemon(name string, flags ...string) (*daemon, error) {
	d := &daemon{bench: b, root: filepath.Join(b.dir, name), flags: flags, mounted: map[string]bool{}}
	if err := os.Mkdir(d.root, 0o711); err != nil {
		return nil, err
	}
	d.plugin = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket("plugin"))
		},
	}}
	b.later(d.close)
	return d, nil
}

func (d *daemon) socket(name string) string { return filepath.Join(d.root, name+".sock") }

// start starts the daemon and returns how long it took until Docker was answered.
func (d *daemon) start(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(filepath.Join(d.root, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	args := append([]string{"daemon", "--root", d.root, "--plugin-socket", d.socket("plugin"), "--control-socket", d.socket("control")}, d.flags...)
	d.cmd = exec.Command(d.bench.program, args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for us: we end it
	begin := time.Now()
	if err := d.cmd.Start(); err != nil {
		return 0, err
	}
	d.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // how it ended shows in its log
		close(ended)
	}(d.cmd, d.ended)
	limit, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := d.call(limit, "Capabilities", nil, nil)
		if err == nil {
			return time.Since(begin), nil
		}
		select {
		case <-d.ended:
			return 0, d.failed("ended at its start")
		case <-limit.Done():
			return 0, d.failed("does not answer: " + err.Error())
		case <-time.After(time.Millisecond):
		}
	}
}

// failed is an error with the end of the daemon's log.
func (d *daemon) failed(what string) error {
	log, _ := os.ReadFile(filepath.Join(d.root, "log")) // without it the error is only shorter
	return fmt.Errorf("the daemon %s; its log ends:\n%s", what, log[max(0, len(log)-2000):])
}

// running tells whether the daemon was started and has not ended.
func (d *daemon) running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// stop ends the daemon, with flags for orlop shutdown, and kills it if it does not end.
func (d *daemon) stop(ctx context.Context, flags ...string) error {
	if !d.running() {
		return nil
	}
	_, err := d.orlop(ctx, append([]string{"shutdown"}, flags...)...)
	if err == nil {
		select {
		case <-d.ended:
			return nil
		case <-time.After(stopLimit):
			err = errors.New("the daemon does not end after shutdown")
		}
	}
	err = errors.Join(err, d.cmd.Process.Kill())
	<-d.ended
	return err
}

// close ends the daemon for good, with its volumes unmounted and its pool detached.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	defer d.plugin.CloseIdleConnections()
	var errs []error
	if !d.running() {
		_, err := d.start(ctx) // to detach the pool
		errs = append(errs, err)
	}
	for name := range d.mounted {
		errs = append(errs, d.unmount(ctx, name))
	}
	return errors.Join(append(errs, d.stop(ctx, "--detach"))...)
}

// orlop runs the orlop command against the daemon and returns its standard output.
func (d *daemon) orlop(ctx context.Context, args ...string) ([]byte, error) {
	return d.bench.runner.Run(ctx, append([]string{d.bench.program, "--socket", d.socket("control")}, args...)...)
}

// call sends one call of Docker's volume plugin protocol, as Docker would.
func (d *daemon) call(ctx context.Context, name string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/VolumeDriver."+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := d.plugin.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", name, body, raw)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(raw, answer)
	}
	return err
}

// volumeRequest is the body of the calls about one volume.
type volumeRequest struct {
	Name string
	ID   string            `json:",omitempty"`
	Opts map[string]string `json:",omitempty"`
}

const holder = "bench"

func (d *daemon) create(ctx context.Context, name string, options map[string]string) error {
	return d.call(ctx, "Create", volumeRequest{Name: name, Opts: options}, nil)
}

// mount returns the volume's mount point.
func (d *daemon) mount(ctx context.Context, name string) (string, error) {
	var answer struct{ Mountpoint string }
	err := d.call(ctx, "Mount", volumeRequest{Name: name, ID: holder}, &answer)
	d.mounted[name] = true
	return answer.Mountpoint, err
}

func (d *daemon) unmount(ctx context.Context, name string) error {
	delete(d.mounted, name)
	return d.call(ctx, "Unmount", volumeRequest{Name: name, ID: holder}, nil)
}

func (d *daemon) get(ctx context.Context, name string) error {
	return d.call(ctx, "Get", volumeRequest{Name: name}, nil)
}

func (d *daemon) remove(ctx context.Context, name string) error {
	return d.call(ctx, "Remove", volumeRequest{Name: name}, nil)
}

// memory returns the daemon's present and its largest resident size in MiB.
func (d *daemon) memory() (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "VmRSS:" && fields[0] != "VmHWM:" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return 0, 0, err
		}
		if fields[0] == "VmRSS:" {
			now = kib / 1024
		} else {
			peak = kib / 1024
		}
	}
	return now, peak, nil
}
