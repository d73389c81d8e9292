//go:build root

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

func TestTheRootOfANewVolumeIsEmptyAndHasItsOwnerAndMode(t *testing.T) {
	h := startHost(t)
	for i, test := range []struct {
		flags    []string
		uid, gid uint32
		mode     uint32
	}{
		{nil, 0, 0, 0o755}, {[]string{"--uid", "999", "--gid", "998", "--mode", "0700"}, 999, 998, 0o700}, {[]string{"--mode", "1777"}, 0, 0, 0o1777},
		{[]string{"--uid", "4294967294", "--gid", "70000", "--mode", "6750"}, 4294967294, 70000, 0o6750}, {[]string{"--mode", "0"}, 0, 0, 0},
	} {
		for _, fs := range []string{"ext4", "xfs"} {
			name := fs + "-" + strconv.Itoa(i)
			h.must(t, append([]string{"create", name, "--fs", fs, "--size", "300M"}, test.flags...)...)
			for range 2 { // the second mount changes nothing either
				path := h.docker(t, "Mount", dockerRequest{Name: name, ID: "x"}).Mountpoint
				if left := names(t, path); len(left) > 0 {
					t.Errorf("%s: not empty: %q", name, left)
				}
				var stat unix.Stat_t
				if err := unix.Stat(path, &stat); err != nil {
					t.Fatal(err)
				}
				if stat.Uid != test.uid || stat.Gid != test.gid || stat.Mode&0o7777 != test.mode {
					t.Errorf("%s: %d:%d %o, want %d:%d %o", name, stat.Uid, stat.Gid, stat.Mode&0o7777, test.uid, test.gid, test.mode)
				}
				h.docker(t, "Unmount", dockerRequest{Name: name, ID: "x"})
			}
		}
	}
}

// A gate holds every mkfs.ext4 that is started from here on, until it is opened.
type gate struct{ arrived, opened *os.File }

// closeGate puts a mkfs.ext4 that waits first in PATH.
func closeGate(t *testing.T) *gate {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	real, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\necho here > " + dir + "/arrived\nread word < " + dir + "/opened\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "mkfs.ext4"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	open := func(name string) *os.File {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0) // for both, so that no open blocks
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	g := &gate{arrived: open("arrived"), opened: open("opened")}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return g
}

// await returns when a mkfs.ext4 waits at the gate.
func (g *gate) await(t *testing.T) {
	t.Helper()
	if err := g.arrived.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.arrived.Read(make([]byte, 5)); err != nil {
		t.Fatalf("no mkfs.ext4 came: %v", err)
	}
}

func (g *gate) open(t *testing.T) {
	t.Helper()
	if _, err := g.opened.WriteString("go\n"); err != nil {
		t.Error(err)
	}
}

func TestASlowMkfsDelaysNobodyElse(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "ready", "--size", "16M")
	g := closeGate(t)
	first, joined := make(chan outcome, 1), make(chan dockerAnswer, 1)
	go func() { first <- h.orlop("create", "slow", "--size", "16M") }()
	g.await(t)
	go func() {
		got, err := h.ask(context.Background(), "Create", dockerRequest{Name: "slow"})
		if err != nil {
			got.Err = err.Error()
		}
		joined <- got
	}()
	// None of these could end while mkfs holds, did it keep them waiting.
	h.docker(t, "Mount", dockerRequest{Name: "ready", ID: "x"})
	h.docker(t, "Unmount", dockerRequest{Name: "ready", ID: "x"})
	h.must(t, "resize", "ready", "--size", "24M")
	h.must(t, "set", "ready", "--label", "k=v")
	h.must(t, "create", "other", "--fs", "xfs", "--size", "300M")
	h.must(t, "delete", "other")
	h.must(t, "list")
	h.must(t, "info")
	h.docker(t, "List", dockerRequest{})
	if got := h.docker(t, "Get", dockerRequest{Name: "slow"}); got.Volume.Status["state"] != "creating" {
		t.Errorf("%+v", got.Volume)
	}
	if view := h.view(t, "slow"); view.State != "creating" {
		t.Errorf("%+v", view)
	}
	select {
	case got := <-joined:
		t.Errorf("the second Create did not wait for the first: %+v", got)
	case got := <-first:
		t.Errorf("mkfs did not hold: %s", got)
	default:
	}
	g.open(t)
	if got := <-first; got.code != 0 || got.stdout != "slow\n" {
		t.Errorf("%s", got)
	}
	if got := <-joined; got.Err != "" {
		t.Errorf("the second Create: %+v", got)
	}
	h.docker(t, "Mount", dockerRequest{Name: "slow", ID: "x"})
}

func TestAnInterruptedCreateLeavesNothing(t *testing.T) {
	h := startHost(t)
	g := closeGate(t)
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan outcome, 1)
	go func() { done <- invokeUntil(ctx, "--socket", h.control, "create", "slow", "--size", "16M") }()
	g.await(t)
	interrupt()
	if got := <-done; got.code != 1 || !strings.Contains(got.stderr, "interrupted") {
		t.Errorf("%s", got)
	}
	// The same name waits until the first attempt is undone, and then passes the gate.
	go func() { done <- h.orlop("create", "slow", "--size", "16M", "--label", "second=1") }()
	g.await(t)
	g.open(t)
	if got := <-done; got.code != 0 {
		t.Errorf("%s", got)
	}
	if images := h.images(t); len(images) != 2 {
		t.Errorf("images %q, want one with its record", images)
	}
	if view := h.view(t, "slow"); view.Labels["second"] != "1" || view.State != "ready" {
		t.Errorf("%+v", view)
	}
}

func TestACreateOfDockersGoesOnWhenDockerHangsUp(t *testing.T) {
	h := startHost(t)
	g := closeGate(t)
	ctx, hangUp := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := h.ask(ctx, "Create", dockerRequest{Name: "slow", Opts: map[string]string{"size": "16M", "label.k": "v"}})
		done <- err
	}()
	g.await(t)
	hangUp()
	if err := <-done; err == nil {
		t.Error("the call was answered")
	}
	g.open(t)
	h.docker(t, "Create", dockerRequest{Name: "slow"}) // joins it
	if view := h.view(t, "slow"); view.Labels["k"] != "v" || view.Size != 16<<20 {
		t.Errorf("%+v", view)
	}
}

func TestAFailedMkfsLeavesNothingAndIsTold(t *testing.T) {
	h := startHost(t)
	before := h.state(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mkfs.ext4"), []byte("#!/bin/sh\necho out of luck >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	got := h.orlop("create", "a", "--size", "16M", "--json")
	if body := got.failure(t); got.code != 1 || body.Error.Kind != fault.ErrFailed || !strings.Contains(body.Error.Message, "out of luck") {
		t.Errorf("%s", got)
	}
	if got, err := h.ask(t.Context(), "Create", dockerRequest{Name: "a"}); err != nil || got.status != http.StatusInternalServerError || !strings.Contains(got.Err, "out of luck") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, line := range strings.Split(changes(before, h.state(t)), "\n") { // the database has seen transactions
		if line != "" && !strings.Contains(line, "metadata: ") {
			t.Errorf("the state changed: %s", line)
		}
	}
}

func TestDockersOptionsArriveInTheVolume(t *testing.T) {
	h := startHost(t)
	h.docker(t, "Create", dockerRequest{Name: "a", Opts: map[string]string{
		"size": "20M", "fs": "ext4", "pool": "loop", "driver": "loop", "uid": "10", "gid": "20", "mode": "0710", "mount-option": "noatime,nosuid", "protect": "true",
		"label.app": "shop", "label.tier": "gold",
	}})
	view := h.view(t, "a")
	raw, err := json.Marshal([]any{view.Size, view.Filesystem, view.Pool, view.MountOptions, view.Protected, view.Labels})
	if want := `[20971520,"ext4","loop",["noatime","nosuid"],true,{"app":"shop","tier":"gold"}]`; err != nil || string(raw) != want {
		t.Errorf("%s (%v), want %s", raw, err, want)
	}
	path := h.docker(t, "Mount", dockerRequest{Name: "a", ID: "x"}).Mountpoint
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil || stat.Flags&unix.ST_NOATIME == 0 || stat.Flags&unix.ST_NOSUID == 0 || stat.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %x (%v)", stat.Flags, err)
	}
}
