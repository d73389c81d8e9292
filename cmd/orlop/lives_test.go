//go:build root

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

func TestShutdownLeavesMountsAndTheNextDaemonFindsThem(t *testing.T) {
	h := startHost(t)
	for _, name := range []string{"docker", "user", "idle"} {
		h.must(t, "create", name, "--size", "16M")
	}
	path := h.docker(t, "Mount", dockerRequest{Name: "docker", ID: "container"}).Mountpoint
	h.must(t, "mount", "user")
	if err := os.WriteFile(filepath.Join(path, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	mounts, devices := h.mounts(t), h.devices(t)
	for _, stop := range []func(){
		func() { h.must(t, "shutdown"); h.await(t) },
		func() { h.stop(t) },
	} {
		stop()
		for _, socket := range []string{h.control, h.plugin} {
			if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", socket, err)
			}
		}
		if got := h.orlop("list"); got.code != 6 {
			t.Errorf("%s", got)
		}
		if text, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(text) != "content" {
			t.Errorf("%q, %v", text, err)
		}
		h.start(t)
		if now := h.mounts(t); !slices.Equal(now, mounts) {
			t.Errorf("mounts %q, want %q", now, mounts)
		}
		if now := h.devices(t); !slices.Equal(now, devices) {
			t.Errorf("loop devices %q, want %q", now, devices)
		}
		for name, kind := range map[string]string{"docker": "docker", "user": "user"} {
			if view := h.view(t, name); !view.Mounted || view.State != "ready" || len(view.Holders) != 1 || view.Holders[0].Kind != kind {
				t.Errorf("%+v", view)
			}
		}
		if again := h.docker(t, "Mount", dockerRequest{Name: "docker", ID: "container"}).Mountpoint; again != path {
			t.Errorf("mounted at %s, want %s", again, path)
		}
	}
	h.docker(t, "Unmount", dockerRequest{Name: "docker", ID: "container"})
	h.must(t, "umount", "user")
	if got := h.mounts(t); !slices.Equal(got, []string{filepath.Join(h.root, "pool")}) {
		t.Errorf("mounts %q, want the pool only", got)
	}
	if got := h.devices(t); len(got) != 1 {
		t.Errorf("loop devices %q, want the pool's only", got)
	}
}

func TestShutdownDetachRefusesWhileVolumesAreHeld(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	h.must(t, "create", "b", "--size", "16M")
	h.docker(t, "Mount", dockerRequest{Name: "a", ID: "container"})
	h.must(t, "mount", "b")
	refused := func(words ...string) {
		t.Helper()
		got := h.orlop("shutdown", "--detach")
		if got.code != 4 {
			t.Fatalf("want exit code 4: %s", got)
		}
		for _, word := range words {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("no word of %q: %s", word, got)
			}
		}
		if got := h.orlop("--json", "shutdown", "--detach"); got.failure(t).Error.Kind != fault.ErrInUse {
			t.Errorf("%s", got)
		}
		h.must(t, "list") // it goes on
	}
	refused("a (by docker mount container)", "b (by 'orlop mount'")
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "container"})
	refused("b (by 'orlop mount'")
	h.must(t, "umount", "b")
	h.must(t, "shutdown", "--detach")
	if code := h.await(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if mounts, devices := h.mounts(t), h.devices(t); len(mounts) > 0 || len(devices) > 0 {
		t.Errorf("left: mounts %q, loop devices %q", mounts, devices)
	}
	h.start(t)
	h.docker(t, "Mount", dockerRequest{Name: "a", ID: "container"})
}

// TestShutdownDetachRefusesWhileAFileIsOpen: no holder is recorded, and the kernel knows better.
func TestShutdownDetachRefusesWhileAFileIsOpen(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	path := h.docker(t, "Mount", dockerRequest{Name: "a", ID: "container"}).Mountpoint
	f, err := os.Create(filepath.Join(path, "open"))
	if err != nil {
		t.Fatal(err)
	}
	h.docker(t, "Unmount", dockerRequest{Name: "a", ID: "container"}) // success: what is used is kept
	view := h.view(t, "a")
	got := h.orlop("shutdown", "--detach")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if !view.Mounted || !view.Kept || len(view.Holders) != 0 {
		t.Errorf("%+v", view)
	}
	if got.code != 4 || !strings.Contains(got.stderr, path) {
		t.Errorf("%s", got)
	}
}

// expectRefusal starts a second daemon that must not come up.
func expectRefusal(t *testing.T, code int, words []string, flags ...string) {
	t.Helper()
	l := begin(flags...)
	ready := l.isReady()
	l.cancel()
	<-l.done
	if ready || l.code != code {
		t.Errorf("%q: ready %t, exit code %d, want %d:\n%s", flags, ready, l.code, code, l.log)
	}
	for _, word := range words {
		if !strings.Contains(l.log.String(), word) {
			t.Errorf("no word of %q:\n%s", word, l.log)
		}
	}
}

func TestASecondDaemonOnTheRootIsRefused(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	h.must(t, "mount", "a")
	before := h.state(t)
	expectRefusal(t, 4, []string{"another orlop daemon uses this root"}, "--root", h.root, "--control-socket", h.dir+"/c2", "--plugin-socket", h.dir+"/p2", "--pool-size", "4G")
	if after := h.state(t); after != before {
		t.Errorf("changed:%s", changes(before, after))
	}
	for _, socket := range []string{"c2", "p2"} {
		if _, err := os.Lstat(filepath.Join(h.dir, socket)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made: %v", socket, err)
		}
	}
}

func TestSocketsThatAnswerAreNotStolen(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "16M")
	for _, stolen := range []string{"control", "plugin"} {
		second := newHost(t)
		flags := slices.Clone(second.flags)
		socket := h.control
		if stolen == "plugin" {
			socket = h.plugin
		}
		flags = append(flags, "--"+stolen+"-socket", socket)
		expectRefusal(t, 4, []string{socket, "another process answers"}, flags...)
		for _, own := range []string{second.control, second.plugin} {
			if _, err := os.Lstat(own); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", own, err)
			}
		}
		h.must(t, "inspect", "a")
		h.docker(t, "Get", dockerRequest{Name: "a"})
	}
}

// TestAStartThatFailsLeavesNothingAttached: each of these fails after a pool could be made.
func TestAStartThatFailsLeavesNothingAttached(t *testing.T) {
	other := startHost(t, "--metrics", "127.0.0.1:0")
	metrics := regexp.MustCompile(`metrics=(\S+)`).FindStringSubmatch(other.life.log.String())[1]
	for name, test := range map[string]struct {
		code  int
		flags []string
	}{
		"plugin socket taken":   {4, []string{"--plugin-socket", other.plugin}},
		"control socket taken":  {4, []string{"--control-socket", other.control}},
		"metrics address taken": {4, []string{"--metrics", metrics}},
		"another pool missing":  {3, []string{"--pool", "loop", "--pool", "more=loop:/nonexistent"}},
	} {
		h := onExt4(t)
		expectRefusal(t, test.code, nil, append(slices.Clone(h.flags), test.flags...)...)
		if mounts, devices := h.mounts(t), h.devices(t); len(mounts) > 0 || len(devices) > 0 {
			t.Errorf("%s: left mounts %q, loop devices %q", name, mounts, devices)
		}
		for _, own := range []string{h.control, h.plugin} {
			if _, err := os.Lstat(own); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s is left: %v", name, own, err)
			}
		}
		h.start(t) // as if nothing had been
		h.must(t, "create", "a", "--size", "16M")
		h.must(t, "mount", "a")
		h.stop(t)
		before := h.mounts(t)
		expectRefusal(t, test.code, nil, append(slices.Clone(h.flags), test.flags...)...)
		if after := h.mounts(t); !slices.Equal(after, before) {
			t.Errorf("%s: of an earlier start were mounted %q, and now %q", name, before, after)
		}
	}
}

func TestStaleSocketsAreReplacedAndFilesAreNot(t *testing.T) {
	h := newHost(t)
	for _, path := range []string{h.control, h.plugin} {
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		listener.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.start(t)
	h.must(t, "list")
	h.docker(t, "List", dockerRequest{})
	h.stop(t)
	for _, path := range []string{h.control, h.plugin} {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		expectRefusal(t, 4, []string{path, "not a socket"}, h.flags...)
		if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSocketsAreForRootOnly(t *testing.T) {
	h := startHost(t)
	for _, path := range []string{h.control, h.plugin} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 && (mode != 0o660 || path != h.control) {
			t.Errorf("%s has mode %o", path, mode)
		}
	}
}

// TestDefaultsThatNoVolumeCanHaveAreRefusedBeforeAnythingHappens: a typing error must not leave a pool behind that
// is mounted and that no daemon looks after.
func TestDefaultsThatNoVolumeCanHaveAreRefusedBeforeAnythingHappens(t *testing.T) {
	for _, flags := range [][]string{{"--default-fs", "zfs"}, {"--default-fs", ""}, {"--default-size", "4M"}, {"--default-size", "17T"}, {"--default-fs", "xfs", "--default-size", "100M"}} {
		h := newHost(t)
		expectRefusal(t, 2, flags[:0], append(slices.Clone(h.flags), flags...)...)
		if mounts, devices, files := h.mounts(t), h.devices(t), names(t, h.root); len(mounts) > 0 || len(devices) > 0 || len(files) > 0 {
			t.Errorf("%q: left mounts %q, loop devices %q, files %q", flags, mounts, devices, files)
		}
	}
}

func TestDaemonReadsItsFlagsFromTheEnvironment(t *testing.T) {
	h := newHost(t)
	for name, value := range map[string]string{
		"ORLOP_ROOT": h.root, "ORLOP_POOL": "main=loop", "ORLOP_POOL_SIZE": "3G", "ORLOP_POOL_PREALLOCATE": "false", "ORLOP_DEFAULT_SIZE": "320M", "ORLOP_DEFAULT_FS": "xfs",
		"ORLOP_PLUGIN_NAME": "other", "ORLOP_PLUGIN_SOCKET": h.plugin, "ORLOP_CONTROL_SOCKET": h.control, "ORLOP_LOG_FORMAT": "json", "ORLOP_SOCKET": h.control,
	} {
		t.Setenv(name, value)
	}
	h.flags = nil
	h.start(t)
	var info daemon.Info
	if err := json.Unmarshal([]byte(invoke("info").stdout), &info); err != nil {
		t.Fatal(err)
	}
	if info.Root != h.root || info.DefaultSize != 320<<20 || info.DefaultFS != "xfs" || info.PluginName != "other" || len(info.Pools) != 1 || info.Pools[0].Name != "main" {
		t.Errorf("%+v", info)
	}
	if file, err := os.Stat(filepath.Join(h.root, "pool.xfs")); err == nil && file.Size() != 3<<30 {
		t.Errorf("the pool has %d bytes", file.Size())
	}
	if !json.Valid([]byte(strings.Split(h.life.log.String(), "\n")[0])) {
		t.Errorf("the log is no JSON:\n%s", h.life.log)
	}
	if view := h.view(t, h.must(t, "create")); view.Filesystem != "xfs" || view.Size != 320<<20 || view.Pool != "main" {
		t.Errorf("%+v", view)
	}
	h.stop(t)
	h.flags = []string{"--default-size", "16M", "--default-fs", "ext4", "--log-format", "text"} // flags win, on each start
	h.start(t)
	if view := h.view(t, h.must(t, "create")); view.Filesystem != "ext4" || view.Size != 16<<20 {
		t.Errorf("%+v", view)
	}
}

// TestAPoolThatDoesNotFitLeavesTheDiskAsItWas: the host must not be full because a size was mistyped.
func TestAPoolThatDoesNotFitLeavesTheDiskAsItWas(t *testing.T) {
	disk := ext4Disk(t, 1<<30)
	free := func() int64 {
		var stat unix.Statfs_t
		if err := unix.Statfs(disk, &stat); err != nil {
			t.Fatal(err)
		}
		return int64(stat.Bavail) * stat.Bsize
	}
	before := free()
	root := filepath.Join(disk, "root")
	expectRefusal(t, 5, []string{"4294967296 bytes", "no space"}, "--root", root, "--control-socket", disk+"/c", "--plugin-socket", disk+"/p", "--pool-size", "4G", "--pool-preallocate")
	if after := free(); after < before-64<<20 {
		t.Errorf("%d bytes were free, and now %d: %q", before, after, names(t, root))
	}
}

// TestExitCodesOfFailedStarts covers the exit codes that no command can bring about without breaking something.
func TestExitCodesOfFailedStarts(t *testing.T) {
	disk := ext4Disk(t, 1<<30)
	sockets := func(name string) []string {
		return []string{"--control-socket", filepath.Join(disk, name+".c"), "--plugin-socket", filepath.Join(disk, name+".p"), "--root", filepath.Join(disk, name)}
	}
	damaged := filepath.Join(disk, "damaged")
	if err := errors.Join(os.Mkdir(damaged, 0o711), os.WriteFile(filepath.Join(damaged, "metadata.db"), []byte(strings.Repeat("rubbish ", 4096)), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		code  int
		flags []string
		says  string
	}{
		{"file/root", 1, nil, "not a directory"},
		{"missing", 3, []string{"--pool", "loop:" + disk + "/nope"}, disk + "/nope"},
		{"damaged", 7, nil, "metadata.db.copy"},
		{"noreflink", 8, []string{"--pool", "loop:" + disk}, "reflink"},
	} {
		expectRefusal(t, test.code, []string{test.says}, append(sockets(test.name), test.flags...)...)
	}
	raw, err := os.ReadFile(filepath.Join(damaged, "metadata.db"))
	if err != nil || string(raw) != strings.Repeat("rubbish ", 4096) {
		t.Errorf("the damaged metadata was touched: %v", err)
	}
}

// Stopped while it recovers, the daemon has done nothing wrong: its service has not failed.
func TestADaemonThatIsStoppedBeforeItIsReadyExitsWithSuccess(t *testing.T) {
	h := newHost(t)
	h.start(t)
	h.must(t, "create", "db", "--size", "16M")
	h.stop(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var log logbook
	log.ready = make(chan struct{})
	if code := run(ctx, append([]string{"orlop", "daemon"}, h.flags...), io.Discard, &log); code != 0 || !strings.Contains(log.String(), "stopped before the daemon was ready") {
		t.Errorf("exit code %d:\n%s", code, &log)
	}
	h.start(t)
	h.must(t, "inspect", "db")
	h.stop(t)
}
