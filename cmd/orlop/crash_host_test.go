//go:build root

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/fs"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/metadata"
)

// crashLimit is how long anything may take before a test gives up on it, on a machine that is busy otherwise.
const crashLimit = 5 * time.Minute

// A crashHost is a data root for the real program, which runs as a process of its own and can be killed.
type crashHost struct {
	dir     string
	program string // empty: this test's, which is quicker to have
	client  *control.Client
	process *exec.Cmd
	ended   chan struct{} // closed when the process has ended
}

func newCrashHost(t *testing.T) *crashHost {
	t.Helper()
	h := newQuickCrashHost(t)
	h.program = h.path("orlop")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", h.program, "orlop/cmd/orlop")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return h
}

// newQuickCrashHost makes a host whose daemon is the program of the tests.
func newQuickCrashHost(t *testing.T) *crashHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
	dir, err := os.MkdirTemp("/tmp", "orlop-crash-")
	check(t, err)
	h := &crashHost{dir: dir}
	h.client = control.NewClient(h.path("control.sock"))
	t.Cleanup(func() { h.remove(t) })
	return h
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *crashHost) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// pool is where the built-in pool is mounted.
func (h *crashHost) pool() string { return h.path("root", "pool") }

// begin starts the daemon.
func (h *crashHost) begin(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(h.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	check(t, err)
	defer log.Close()
	argv := []string{h.program, "daemon", "--root", h.path("root"), "--pool-size", "8G",
		"--control-socket", h.path("control.sock"), "--plugin-socket", h.path("plugin.sock")}
	if h.program == "" {
		h.process = exec.Command(os.Args[0])
		h.process.Env = append(os.Environ(), spaceDaemonArgs+"="+strings.Join(argv, "\n"))
	} else {
		h.process = exec.Command(argv[0], argv[1:]...)
	}
	h.process.Stdout, h.process.Stderr = log, log
	check(t, h.process.Start())
	h.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		_ = process.Wait() // the state tells
		close(ended)
	}(h.process, h.ended)
}

// awaitReady waits until the daemon answers.
func (h *crashHost) awaitReady(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(crashLimit)
	for {
		select {
		case <-h.ended:
			t.Fatalf("the daemon ended: %s\n%s", h.process.ProcessState, h.logTail())
		case <-deadline:
			t.Fatalf("the daemon does not answer:\n%s", h.logTail())
		case <-tick.C:
			if h.client.Get(t.Context(), "/version", nil, nil) == nil {
				return
			}
		}
	}
}

// wasReady tells whether the daemon that was started last has come to answer requests.
func (h *crashHost) wasReady() bool {
	log, err := os.ReadFile(h.path("log"))
	if err != nil {
		return false
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	pid := fmt.Sprintf("killed=%d", h.process.Process.Pid)
	for _, line := range slices.Backward(lines[:len(lines)-1]) { // the last one tells of the kill
		if strings.Contains(line, "msg=ready") {
			return true
		}
		if strings.Contains(line, "killed=") && !strings.Contains(line, pid) {
			return false
		}
	}
	return false
}

// kill ends the daemon with SIGKILL. One that ended by itself before has failed.
func (h *crashHost) kill(t *testing.T) {
	t.Helper()
	select {
	case <-h.ended:
		t.Errorf("the daemon ended before it was killed: %s", h.process.ProcessState)
	default:
	}
	check(t, h.process.Process.Kill())
	<-h.ended
	h.client.Close()
	log, err := os.OpenFile(h.path("log"), os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	_, err = fmt.Fprintf(log, "\nkilled=%d\n", h.process.Process.Pid)
	check(t, errors.Join(err, log.Close()))
}

// awaitEnd waits for the daemon to stop as it was told to.
func (h *crashHost) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-h.ended:
	case <-time.After(crashLimit):
		t.Fatalf("the daemon does not stop:\n%s", h.logTail())
	}
	if !h.process.ProcessState.Success() {
		t.Errorf("the daemon ended: %s", h.process.ProcessState)
	}
}

func (h *crashHost) logTail() string {
	log, err := os.ReadFile(h.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-8<<10):])
}

// remove takes away whatever a failed test left.
func (h *crashHost) remove(t *testing.T) {
	if t.Failed() {
		t.Logf("the daemon's log ends:\n%s", h.logTail())
	}
	if h.process != nil {
		_ = h.process.Process.Kill() // it may have ended
		<-h.ended
	}
	h.client.Close()
	mounts := h.mounts(t)
	if len(mounts) > 0 && !t.Failed() {
		t.Errorf("left mounted: %q", mounts)
	}
	for _, dir := range slices.Backward(mounts) {
		_ = fs.Thaw(dir) // what is unmounted frozen lives on unseen
		awaitHolds(t, "unmount "+dir, func() bool { return fs.Unmount(dir) == nil })
	}
	h.wantDetached(t)
	if len(h.mounts(t)) > 0 {
		return // nothing is deleted near a mount
	}
	_ = exec.Command("chattr", "-R", "-f", "-i", h.path("root")).Run() // closed mount points
	if err := os.RemoveAll(h.dir); err != nil {
		t.Error(err)
	}
}

func awaitHolds(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(crashLimit); !holds(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("in vain: %s", what)
			return
		}
	}
}

// mounts lists what is mounted below the host's directory, in mount order.
func (h *crashHost) mounts(t *testing.T) (dirs []string) {
	t.Helper()
	table, err := fs.Table(h.dir)
	check(t, err)
	for _, entry := range table {
		dirs = append(dirs, entry.Mountpoint)
	}
	return dirs
}

// wantDetached checks that no loop device is left on a file below the host's directory.
func (h *crashHost) wantDetached(t *testing.T) {
	t.Helper()
	var left []string
	awaitHolds(t, "detach every loop device", func() bool {
		paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		check(t, err)
		left = nil
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), h.dir+"/") {
				left = append(left, strings.TrimSpace(string(text)))
			}
		}
		return len(left) == 0
	})
	if len(left) > 0 {
		t.Errorf("left attached: %q", left)
	}
}

func (h *crashHost) images(t *testing.T) []string {
	t.Helper()
	return names(t, filepath.Join(h.pool(), "images"))
}

// wantCleanImages checks the filesystem of every volume; none is mounted. Those of snapshots are as they were when they
// were taken: a copy that was mounted once stands for each.
func (h *crashHost) wantCleanImages(t *testing.T) {
	t.Helper()
	for _, name := range h.images(t) {
		image, isImage := strings.CutSuffix(filepath.Join(h.pool(), "images", name), ".img")
		if !isImage {
			continue
		}
		raw, err := os.ReadFile(image + ".json")
		check(t, err)
		var record struct{ Volume *metadata.Volume }
		check(t, json.Unmarshal(raw, &record))
		if record.Volume == nil {
			continue
		}
		argv := []string{"e2fsck", "-f", "-n", image + ".img"}
		if record.Volume.Filesystem == "xfs" {
			argv = []string{"xfs_repair", "-n", image + ".img"}
		}
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("volume %s: %q: %v\n%s", record.Volume.Name, argv, err, out)
		}
	}
}

// wantNoRecords checks that the metadata knows neither volumes nor devices, holders or announcements.
func (h *crashHost) wantNoRecords(t *testing.T) {
	t.Helper()
	store, err := metadata.Open(h.path("root"))
	check(t, err)
	defer store.Close()
	check(t, store.View(func(tx *metadata.Tx) error {
		volumes, err1 := tx.Volumes()
		devices, err2 := tx.Devices()
		holders, err3 := tx.Holders("")
		intents, err4 := tx.Intents()
		if len(volumes)+len(devices)+len(holders)+len(intents) > 0 {
			t.Errorf("left in the metadata: %v %v %v %v", volumes, devices, holders, intents)
		}
		return errors.Join(err1, err2, err3, err4)
	}))
}

// orlop runs the command line against the daemon.
func (h *crashHost) orlop(args ...string) outcome {
	return invoke(append([]string{"--socket", h.path("control.sock")}, args...)...)
}

// post sends a request to the control API. A daemon that dies before it answers is fault.ErrUnreachable.
func (h *crashHost) post(path string, request control.Request, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), crashLimit)
	defer cancel()
	return h.client.Post(ctx, path, request, out)
}

func (h *crashHost) create(name string, size int64, filesystem string) error {
	return h.post("/volumes/create", control.Request{Name: name, Options: []control.Setting{
		{Key: "size", Value: fmt.Sprint(size)}, {Key: "fs", Value: filesystem}, {Key: "label", Value: "version=0"},
	}}, nil)
}

// docker makes a call of Docker's protocol. It fails as post does.
func (h *crashHost) docker(call string, request dockerRequest, out *dockerAnswer) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), crashLimit)
	defer cancel()
	status, raw, err := send(ctx, h.path("plugin.sock"), http.MethodPost, "/VolumeDriver."+call, body)
	if err != nil {
		return fault.Errorf(fault.ErrUnreachable, "%s: %w", call, err)
	}
	var answer dockerAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	if status != http.StatusOK || answer.Err != "" {
		return fmt.Errorf("%s %+v: status %d: %s", call, request, status, answer.Err)
	}
	if out != nil {
		*out = answer
	}
	return nil
}

// view returns what the daemon shows of a volume. What is just being deleted in the background, the volume or snapshots of
// it, is waited for.
func (h *crashHost) view(t *testing.T, name string) (view daemon.View, there bool) {
	t.Helper()
	awaitHolds(t, "end of the deletion of "+name, func() bool {
		view = daemon.View{}
		err := h.client.Get(t.Context(), "/volumes/inspect", url.Values{"name": {name}}, &view)
		there = err == nil
		if err != nil && !fault.Is(err, fault.ErrNotFound) {
			t.Fatal(err)
		}
		return view.State != string(metadata.Removing) && !slices.ContainsFunc(view.Snapshots, func(s daemon.SnapshotView) bool {
			return s.State == string(metadata.Removing)
		})
	})
	return view, there
}
