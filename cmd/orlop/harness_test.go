//go:build root

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
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/internal/control"
	"orlop/internal/daemon"
)

// A host is a data root with its sockets, and the daemon that runs on it, in this process.
type host struct {
	dir, root, control, plugin string
	flags                      []string
	life                       *life // nil while no daemon runs
}

// A life is one run of the daemon.
type life struct {
	cancel func()
	done   chan struct{} // closed when it has ended
	code   int           // its exit code then
	log    *logbook
}

// A logbook keeps what a daemon logs. It is safe for concurrent use.
type logbook struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{} // closed at the word that the daemon is ready
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := isReady(l.text.Bytes())
	l.text.Write(line)
	if !before && isReady(l.text.Bytes()) {
		close(l.ready)
	}
	return len(line), nil
}

func isReady(log []byte) bool {
	return bytes.Contains(log, []byte("msg=ready ")) || bytes.Contains(log, []byte(`"msg":"ready"`))
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newHost makes a place for a daemon that does not run yet. After the test nothing is left of it, whatever happened.
func newHost(t *testing.T, flags ...string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "orlop-test-")
	if err != nil {
		t.Fatal(err)
	}
	return newHostIn(t, dir, flags...)
}

// newHostIn is newHost in a directory that is given, which is removed too.
func newHostIn(t *testing.T, dir string, flags ...string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
	h := &host{dir: dir, root: filepath.Join(dir, "root"), control: filepath.Join(dir, "control.sock"), plugin: filepath.Join(dir, "plugin.sock")}
	h.flags = append([]string{"--root", h.root, "--control-socket", h.control, "--plugin-socket", h.plugin, "--pool-size", "2G"}, flags...)
	t.Cleanup(func() { h.dismantle(t) })
	return h
}

// startHost makes a place with a running daemon.
func startHost(t *testing.T, flags ...string) *host {
	t.Helper()
	h := newHost(t, flags...)
	h.start(t)
	return h
}

// daemons counts those that run in this process.
var daemons atomic.Int32

// begin starts a daemon with flags.
func begin(flags ...string) *life {
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{cancel: cancel, done: make(chan struct{}), log: &logbook{ready: make(chan struct{})}}
	daemons.Add(1)
	go func() {
		defer close(l.done)
		defer daemons.Add(-1)
		l.code = run(ctx, append([]string{"orlop", "daemon"}, flags...), io.Discard, l.log)
	}()
	return l
}

// start starts the daemon and waits until it answers.
func (h *host) start(t *testing.T) {
	t.Helper()
	l := begin(h.flags...)
	select {
	case <-l.log.ready:
		h.life = l
	case <-l.done:
		l.cancel()
		t.Fatalf("the daemon ended with exit code %d:\n%s", l.code, l.log)
	}
}

// await waits for the end of the daemon and returns its exit code.
func (h *host) await(t *testing.T) int {
	t.Helper()
	l := h.life
	select {
	case <-l.done:
	case <-time.After(crashLimit):
		t.Fatalf("the daemon has not ended:\n%s", l.log)
	}
	l.cancel()
	h.life = nil
	return l.code
}

// stop ends the daemon as SIGTERM does.
func (h *host) stop(t *testing.T) {
	t.Helper()
	h.life.cancel()
	if code := h.await(t); code != 0 {
		t.Errorf("the daemon ended with exit code %d", code)
	}
}

// orlop runs the command line against this host.
func (h *host) orlop(args ...string) outcome {
	return invoke(append([]string{"--socket", h.control}, args...)...)
}

// must is orlop for what has to succeed silently; it returns stdout without the last newline.
func (h *host) must(t *testing.T, args ...string) string {
	t.Helper()
	got := h.orlop(args...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("orlop %q: %s", args, got)
	}
	return strings.TrimSuffix(got.stdout, "\n")
}

// view is what inspect shows of a volume.
func (h *host) view(t *testing.T, name string) (view daemon.View) {
	t.Helper()
	if err := json.Unmarshal([]byte(h.must(t, "inspect", name)), &view); err != nil {
		t.Fatal(err)
	}
	return view
}

// send makes one request at a unix socket.
func send(ctx context.Context, socket, method, path string, body []byte) (status int, raw []byte, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://orlop"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	raw, err = io.ReadAll(response.Body)
	return response.StatusCode, raw, err
}

// api makes one request of the control API.
func (h *host) api(ctx context.Context, method, path, body string) (status int, failure control.ErrorBody, err error) {
	status, raw, err := send(ctx, h.control, method, control.Prefix+path, []byte(body))
	if err == nil && status != http.StatusOK {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(&failure)
	}
	return status, failure, err
}

// dockerAnswer is what Docker reads of an answer.
type dockerAnswer struct {
	status     int
	Err        string
	Mountpoint string
	Volume     *struct {
		Name, Mountpoint, CreatedAt string
		Status                      map[string]any
	}
	Volumes []struct{ Name, Mountpoint string }
}

// dockerRequest is the body of every call of Docker's.
type dockerRequest struct {
	Name string
	ID   string            `json:",omitempty"`
	Opts map[string]string `json:",omitempty"`
}

// ask makes one call of Docker's protocol.
func (h *host) ask(ctx context.Context, call string, request dockerRequest) (got dockerAnswer, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return got, err
	}
	status, raw, err := send(ctx, h.plugin, http.MethodPost, "/VolumeDriver."+call, body)
	if err == nil {
		err = json.Unmarshal(raw, &got)
	}
	got.status = status
	if err == nil && (status == http.StatusOK) != (got.Err == "") {
		err = fmt.Errorf("%s: status %d with Err %q", call, status, got.Err)
	}
	return got, err
}

// docker is ask for what has to succeed.
func (h *host) docker(t *testing.T, call string, request dockerRequest) dockerAnswer {
	t.Helper()
	got, err := h.ask(t.Context(), call, request)
	if err != nil || got.status != http.StatusOK {
		t.Fatalf("%s %+v: %+v, %v", call, request, got, err)
	}
	return got
}

// mounts lists what is mounted below the host's directory, in mount order.
func (h *host) mounts(t *testing.T) (dirs []string) {
	t.Helper()
	table, err := fs.Table(h.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range table {
		dirs = append(dirs, entry.Mountpoint)
	}
	return dirs
}

// devices lists the loop devices whose backing file is in the host's root or in its pool.
func (h *host) devices(t *testing.T) (devices []string) {
	t.Helper()
	var in []uint64
	for _, dir := range []string{h.root, filepath.Join(h.root, "pool")} {
		var stat unix.Stat_t
		if unix.Stat(dir, &stat) == nil {
			in = append(in, stat.Dev)
		}
	}
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		name := "/dev/" + strings.Split(path, "/")[3]
		backing := strings.TrimSpace(string(text))
		if strings.HasPrefix(backing, h.root+"/") || len(in) == 2 && in[0] != in[1] && fileSystemBehind(name) == in[1] {
			devices = append(devices, name)
		}
	}
	return devices
}

// fileSystemBehind returns the st_dev of a loop device's backing file, or 0.
func fileSystemBehind(device string) uint64 {
	f, err := os.Open(device)
	if err != nil {
		return 0
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return 0
	}
	return info.Device
}

// images lists the files of the pool's devices.
func (h *host) images(t *testing.T) []string {
	t.Helper()
	return names(t, filepath.Join(h.root, "pool", "images"))
}

// names lists a directory; one that does not exist is empty.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return list
}

// dismantle takes the host down: volumes are let go, the daemon detaches its pools, and then nothing may be left.
// What is left all the same is told and removed.
func (h *host) dismantle(t *testing.T) {
	if h.life == nil && (len(h.mounts(t)) > 0 || len(h.devices(t)) > 0) {
		if l := begin(h.flags...); !l.isReady() {
			t.Errorf("no daemon to take the host down: exit code %d:\n%s", l.code, l.log)
			l.cancel()
		} else {
			h.life = l
		}
	}
	if h.life != nil {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", h.life.log)
		}
		h.letGo(t)
		if got := h.orlop("shutdown", "--detach"); got.code != 0 {
			t.Errorf("shutdown --detach: %s", got)
			h.life.cancel()
		}
		if code := h.await(t); code != 0 {
			t.Errorf("the daemon ended with exit code %d", code)
		}
	}
	h.remove(t)
	awaitNoGoroutines(t)
}

func (l *life) isReady() bool {
	select {
	case <-l.log.ready:
		return true
	case <-l.done:
		return false
	}
}

// letGo drops every holder.
func (h *host) letGo(t *testing.T) {
	var views []daemon.View
	if got := h.orlop("list", "--json"); got.code != 0 || json.Unmarshal([]byte(got.stdout), &views) != nil {
		t.Errorf("list: %s", got)
	}
	for _, view := range views {
		for _, holder := range view.Holders {
			if holder.Kind == "user" {
				h.orlop("umount", view.Name)
			} else if got, err := h.ask(context.Background(), "Unmount", dockerRequest{Name: view.Name, ID: holder.ID}); err != nil || got.Err != "" {
				t.Errorf("unmount %s: %+v, %v", view.Name, got, err)
			}
		}
	}
}

// remove deletes the host's directory, and tells of mounts and devices that should not be there any more.
func (h *host) remove(t *testing.T) {
	mounts, devices := h.mounts(t), h.devices(t)
	if len(mounts) > 0 || len(devices) > 0 {
		t.Errorf("left behind: mounts %q, loop devices %q", mounts, devices)
	}
	slices.Reverse(mounts)
	for _, dir := range mounts {
		if err := fs.Unmount(dir); err != nil {
			t.Error(err)
		}
	}
	for _, device := range devices {
		if f, err := os.Open(device); err == nil {
			_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0) // freed by the kernel already, often
			_ = f.Close()
		}
	}
	if len(h.mounts(t)) > 0 {
		t.Errorf("%s stays: something is still mounted there", h.dir)
		return
	}
	closed, err := filepath.Glob(filepath.Join(h.root, "mounts", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, dir := range append(closed, filepath.Join(h.root, "pool")) {
		_ = fs.RemoveMountpoint(dir) // one with files in it is none; RemoveAll tells
	}
	_ = exec.Command("chattr", "-R", "-f", "-i", filepath.Join(h.root, "pool")).Run() // snapshots, where the root itself is the pool
	if err := os.RemoveAll(h.dir); err != nil {
		t.Error(err)
	}
}

// awaitNoGoroutines fails if the daemon's code still runs although every daemon has ended.
func awaitNoGoroutines(t *testing.T) {
	t.Helper()
	if daemons.Load() > 0 || daemonStacks() == "" {
		return
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(crashLimit)
	for {
		select {
		case <-tick.C:
			if daemonStacks() == "" {
				return
			}
		case <-deadline:
			t.Errorf("goroutines of the daemon are left:\n%s", daemonStacks())
			return
		}
	}
}

// daemonStacks returns the stacks of goroutines that run the daemon's code.
func daemonStacks() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for _, stack := range strings.Split(string(buf), "\n\n") {
		for _, code := range []string{"orlop/internal/volume.", "orlop/snapshot.", "orlop/internal/docker.", "orlop/internal/control/server.", "orlop/metadata.", "orlop/blockdev/loop.", "orlop.serve(", "orlop.answer(", "go.etcd.io/bbolt"} {
			if strings.Contains(stack, code) && !strings.Contains(stack, "daemonStacks") {
				left = append(left, stack)
				break
			}
		}
	}
	return strings.Join(left, "\n\n")
}

// ext4Disk mounts a new ext4 of size bytes in a sparse file, until the test's end, and returns where.
func ext4Disk(t *testing.T, size int64) (dir string) {
	t.Helper()
	home, err := os.MkdirTemp("/tmp", "orlop-disk-")
	if err != nil {
		t.Fatal(err)
	}
	image, dir := filepath.Join(home, "disk"), filepath.Join(home, "mnt")
	t.Cleanup(func() {
		if err := fs.Unmount(dir); err != nil {
			t.Errorf("%v; %s stays", err, home)
			return
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", argv, err, out)
		}
	}
	return dir
}

// onExt4 makes a place for a daemon whose root cannot reflink, so that it gets the built-in pool.
func onExt4(t *testing.T, flags ...string) *host {
	t.Helper()
	h := newHost(t, flags...)
	reflink, err := loop.CanReflink(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	if reflink {
		dir := filepath.Join(ext4Disk(t, 6<<30), "host")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		h = newHostIn(t, dir, flags...)
	}
	return h
}
