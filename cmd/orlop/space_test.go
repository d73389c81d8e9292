//go:build root

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
	product "orlop/internal/daemon"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	spacePatience = 5 * time.Minute // for a state to come about
)

// scratchDisk mounts a new filesystem in a sparse file until the test's end.
func scratchDisk(t *testing.T, fstype string, size int64) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test attaches loop devices and mounts filesystems: run it as root (without root: make test-unit)")
	}
	home := t.TempDir()
	image, dir := filepath.Join(home, "disk"), filepath.Join(home, "mnt")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	mkfs := map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		"xfs":  {"mkfs.xfs", "-q", "-m", "reflink=1", image},
	}[fstype]
	command(t, mkfs...)
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	if err := unix.Mount(device, dir, fstype, unix.MS_NOATIME, "discard"); err != nil {
		t.Fatalf("mount %s: %v", device, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func command(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// spaceDaemonArgs makes the test binary a daemon; the arguments stand on lines of their own.
const spaceDaemonArgs = "ORLOP_TEST_SPACE_DAEMON_ARGS"

// beSpaceDaemon is the daemon of the tests below.
func beSpaceDaemon(args string) int {
	ctx, _ := notifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	return run(ctx, strings.Split(args, "\n"), os.Stdout, os.Stderr)
}

// A spaceDaemon is a daemon with a data root of its own.
type spaceDaemon struct {
	t       *testing.T
	root    string
	sockets string
	flags   []string
	log     *lockedBuffer
	cmd     *exec.Cmd
	done    chan error
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startSpaceDaemon starts a daemon on root that is stopped and detached at the test's end.
func startSpaceDaemon(t *testing.T, root string, flags ...string) *spaceDaemon {
	t.Helper()
	sockets, err := os.MkdirTemp("", "orlop-space-") // a test's own directory is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	d := &spaceDaemon{t: t, root: root, sockets: sockets, flags: flags, log: &lockedBuffer{}}
	d.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.log)
		}
		for _, v := range d.volumes() {
			if v.Mounted {
				d.orlop("umount", v.Name)
			}
		}
		if out := d.orlop("shutdown", "--detach"); out.code != 0 {
			t.Errorf("detach: %v", out)
		}
		d.end()
	})
	return d
}

func (d *spaceDaemon) start() {
	d.t.Helper()
	args := append([]string{
		"orlop", "daemon", "--root", d.root, "--control-socket", filepath.Join(d.sockets, "control.sock"),
		"--plugin-socket", filepath.Join(d.sockets, "plugin.sock"),
	}, d.flags...)
	d.cmd, d.done = exec.Command(os.Args[0]), make(chan error, 1)
	d.cmd.Env = append(os.Environ(), spaceDaemonArgs+"="+strings.Join(args, "\n"))
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	cmd, done := d.cmd, d.done
	go func() { done <- cmd.Wait() }()
	d.await("the daemon answers", func() bool { return len(done) > 0 || d.orlop("info").code == 0 })
	if len(done) > 0 {
		d.t.Fatalf("the daemon ended at its start:\n%s", d.log)
	}
}

// end stops the daemon and leaves volumes and pool as they are.
func (d *spaceDaemon) end() {
	d.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be ending
	if err := <-d.done; err != nil {
		d.t.Errorf("the daemon ended with %v", err)
	}
}

// kill ends the daemon as a crash would.
func (d *spaceDaemon) kill() {
	d.t.Helper()
	_ = d.cmd.Process.Kill()
	if err := <-d.done; err == nil {
		d.t.Error("the daemon ended by itself before it was killed")
	}
}

func (d *spaceDaemon) orlop(args ...string) outcome {
	return invoke(append([]string{"--socket", filepath.Join(d.sockets, "control.sock")}, args...)...)
}

// must is orlop for what has to succeed.
func (d *spaceDaemon) must(args ...string) string {
	d.t.Helper()
	out := d.orlop(args...)
	if out.code != 0 {
		d.t.Fatalf("orlop %s: %v", strings.Join(args, " "), out)
	}
	return strings.TrimSpace(out.stdout)
}

func (d *spaceDaemon) info() (info product.Info) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(d.must("info")), &info); err != nil {
		d.t.Fatal(err)
	}
	return info
}

func (d *spaceDaemon) volumes() (views []product.View) {
	d.t.Helper()
	out := d.orlop("--json", "list")
	if err := json.Unmarshal([]byte(out.stdout), &views); err != nil {
		d.t.Errorf("list: %v: %v", err, out)
	}
	return views
}

// dockerStatus is what Docker shows of a volume.
func (d *spaceDaemon) dockerStatus(volume string) map[string]any {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.sockets, "plugin.sock"))
		},
	}}
	response, err := client.Post("http://plugin/VolumeDriver.Get", "", strings.NewReader(`{"Name":"`+volume+`"}`))
	if err != nil {
		d.t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		Volume struct{ Status map[string]any }
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		d.t.Fatal(err)
	}
	return answer.Volume.Status
}

// await polls until done, and ends the test if that takes too long.
func (d *spaceDaemon) await(what string, done func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(spacePatience)
	for !done() {
		if time.Now().After(deadline) {
			d.t.Fatalf("not within %v: %s", spacePatience, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// warned waits until a pool is warned of with this text, in info and in Docker's status of its volume.
func (d *spaceDaemon) warned(volume, text string) {
	d.t.Helper()
	d.await("info warns of "+text, func() bool { return strings.Contains(strings.Join(d.info().Pools[0].Warnings, "\n"), text) })
	d.await("docker's status warns of "+text, func() bool { return strings.Contains(fmt.Sprint(d.dockerStatus(volume)["warnings"]), text) })
}

func freeIn(t *testing.T, dir string) (size, free int64) {
	t.Helper()
	size, free, err := fs.Space(dir)
	if err != nil {
		t.Fatal(err)
	}
	return size, free
}

// fillTo allocates a file in dir until this share of its filesystem is in use.
func fillTo(t *testing.T, dir string, share float64) {
	t.Helper()
	size, free := freeIn(t, dir)
	want := free - int64(float64(size)*(1-share))
	if want <= 0 {
		return
	}
	f, err := os.CreateTemp(dir, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(f.Name()) })
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, want), f.Close()); err != nil {
		t.Fatalf("fill %s with %d of %d bytes: %v", dir, want, free, err)
	}
}

// fillUp takes every block that is left in dir's filesystem, and goes on until done, if it comes back.
func fillUp(t *testing.T, dir string, done func() bool) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Cleanup(func() { _ = os.Remove(f.Name()) })
	deadline := time.Now().Add(spacePatience)
	for at, piece := int64(0), 64*mib; ; {
		if err := unix.Fallocate(int(f.Fd()), 0, at, piece); err == nil {
			at += piece
			continue
		} else if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINTR) {
			t.Fatalf("fill %s: %v", dir, err)
		}
		if piece > 4096 {
			piece /= 4
			continue
		}
		if _, free := freeIn(t, dir); free < mib && done() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not full", dir)
		}
		piece = 64 * mib
		<-time.After(5 * time.Millisecond)
	}
}

func removeFillers(t *testing.T, dir string) {
	t.Helper()
	fillers, err := filepath.Glob(filepath.Join(dir, "filler-*"))
	for _, filler := range fillers {
		err = errors.Join(err, os.Remove(filler))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEachNearlyFullLayerIsNamedAndRefusesCreateAndGrowth fills each layer below a volume, in each kind of pool.
func TestEachNearlyFullLayerIsNamedAndRefusesCreateAndGrowth(t *testing.T) {
	for _, test := range []struct {
		name string
		open func(t *testing.T) (d *spaceDaemon, full, layer string)
	}{
		{"host filesystem below the pool file", func(t *testing.T) (*spaceDaemon, string, string) {
			host := scratchDisk(t, "ext4", 3*gib)
			root := filepath.Join(host, "root")
			return startSpaceDaemon(t, root, "--pool-size", "8G"), host, "host filesystem " + root
		}},
		{"filesystem in the pool file", func(t *testing.T) (*spaceDaemon, string, string) {
			host := scratchDisk(t, "ext4", 8*gib)
			root := filepath.Join(host, "root")
			return startSpaceDaemon(t, root, "--pool-size", "2G"), filepath.Join(root, "pool"), "pool filesystem " + root + "/pool"
		}},
		{"filesystem in a preallocated pool file", func(t *testing.T) (*spaceDaemon, string, string) {
			host := scratchDisk(t, "ext4", 3*gib)
			root := filepath.Join(host, "root")
			d := startSpaceDaemon(t, root, "--pool-size", "2G", "--pool-preallocate")
			fillTo(t, host, 0.99)
			d.must("create", "before", "--size", "64M") // the host below is none of its layers
			if info := d.info(); info.Ballast != 0 {
				t.Errorf("a ballast of %d bytes for a pool that needs none", info.Ballast)
			}
			return d, filepath.Join(root, "pool"), "pool filesystem " + root + "/pool"
		}},
		{"directory of the user's", func(t *testing.T) (*spaceDaemon, string, string) {
			disk := scratchDisk(t, "xfs", gib)
			return startSpaceDaemon(t, filepath.Join(t.TempDir(), "root"), "--pool", "loop:"+disk), disk, "pool filesystem " + disk
		}},
		{"data root that can reflink", func(t *testing.T) (*spaceDaemon, string, string) {
			disk := scratchDisk(t, "xfs", 2*gib)
			root := filepath.Join(disk, "root")
			return startSpaceDaemon(t, root), disk, "pool filesystem " + root + "/pool"
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, full, layer := test.open(t)
			d.must("create", "data", "--size", "64M")
			fillTo(t, full, 0.85)
			d.warned("data", layer+" is 8")
			d.must("create", "more", "--size", "64M") // warned is not refused
			fillTo(t, full, 0.98)                     // the ballast gives back one hundredth
			d.warned("data", "create, clone and resize are refused")
			for _, args := range [][]string{{"create", "refused"}, {"resize", "data", "--size", "128M"}} {
				out := d.orlop(args...)
				if out.code != 5 || !strings.Contains(out.stderr, layer+" is 9") || !strings.Contains(out.stderr, "then try again") {
					t.Errorf("orlop %s: %v, want exit code 5 and the name of %s", strings.Join(args, " "), out, layer)
				}
			}
			if n := strings.Count(d.log.String(), "pool is filling up"); n != 2 {
				t.Errorf("warned %d times in the log, want once per mark", n)
			}
			d.must("resize", "data", "--size", "64M") // it has that already
			d.must("mount", "data")
			d.must("umount", "data")
			d.must("delete", "data")
			removeFillers(t, full)
			d.await("the warnings end", func() bool { return len(d.info().Pools[0].Warnings) == 0 })
			d.must("create", "again", "--size", "64M")
		})
	}
}

// TestBallastIsReleasedWhenTheHostIsNearlyFullAndTakenAgain follows the ballast through a shortage.
func TestBallastIsReleasedWhenTheHostIsNearlyFullAndTakenAgain(t *testing.T) {
	host := scratchDisk(t, "ext4", 4*gib)
	root := filepath.Join(host, "root")
	d := startSpaceDaemon(t, root, "--pool-size", "4G")
	size, _ := freeIn(t, host)
	want := size / 100
	held := func() int64 { return d.info().Ballast }
	d.await("the ballast is taken", func() bool { return held() >= want })
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "ballast"), &stat); err != nil || stat.Blocks*512 < want {
		t.Fatalf("the ballast has %d bytes allocated, want %d: %v", stat.Blocks*512, want, err)
	}
	d.must("create", "data", "--size", "64M")
	fillTo(t, host, 1-float64(200*mib)/float64(size))
	d.await("the ballast is released", func() bool { return held() == 0 })
	d.warned("data", "host filesystem "+root)
	if log := d.log.String(); strings.Count(log, "ballast released") != 1 || !strings.Contains(log, "level=ERROR") {
		t.Errorf("the log does not tell of the release, once, as an error:\n%s", log)
	}
	d.end()
	d.start()
	d.warned("data", "host filesystem "+root) // not taken at a start either
	if held() != 0 {
		t.Error("the ballast was taken while the disk was nearly full")
	}
	removeFillers(t, host)
	d.await("the ballast is taken again", func() bool { return held() >= want })
	d.await("the warnings end", func() bool { return len(d.info().Pools[0].Warnings) == 0 })
}

// TestFullHostStopsNeitherMountNorUnmountNorDelete has no block left on the host, and then also restarts the daemon.
func TestFullHostStopsNeitherMountNorUnmountNorDelete(t *testing.T) {
	host := scratchDisk(t, "ext4", 4*gib)
	d := startSpaceDaemon(t, filepath.Join(host, "root"), "--pool-size", "6G")
	var names []string
	for i := range 6 {
		names = append(names, fmt.Sprintf("v%d", i))
		d.must("create", names[i], "--size", "128M")
	}
	fillUp(t, host, func() bool { return d.info().Ballast == 0 })
	check := func(names []string) {
		t.Helper()
		for round := range 3 {
			for _, name := range names {
				if _, err := os.ReadDir(d.must("mount", name)); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				d.must("umount", name)
			}
		}
		d.must("delete", names[0])
	}
	check(names[:2])
	d.end()
	fillUp(t, host, func() bool { return true })
	d.start()
	if log := d.log.String(); !strings.Contains(log, "metadata not copied") {
		t.Errorf("the copy succeeded, or nothing told that it did not:\n%s", log)
	}
	if _, err := os.Stat(filepath.Join(d.root, "metadata.db.copy")); err != nil {
		t.Errorf("the former copy: %v", err)
	}
	check(names[1:])
	removeFillers(t, host)
	d.await("the warnings end", func() bool { return len(d.info().Pools[0].Warnings) == 0 })
	d.must("create", "again", "--size", "64M")
	for _, name := range append(names[2:], "again") {
		path := d.must("mount", name)
		if err := os.WriteFile(filepath.Join(path, "file"), []byte("alive"), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// spaceWriterDir makes the test binary a process that writes there.
const spaceWriterDir = "ORLOP_TEST_SPACE_WRITER_DIR"

const chunk = 256 << 10 // bytes that a writer writes and syncs at a time

// chunkOf is the content of a writer's n-th chunk, not compressible and like no other.
func chunkOf(dir string, n int) []byte {
	content := make([]byte, chunk)
	_, _ = rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%s %d", filepath.Base(dir), n))).Read(content) // never fails
	return content
}

// writeChunk appends a chunk to one file, writes it to a new one too, and rewrites a third, all synced.
func writeChunk(dir string, n int) error {
	content := chunkOf(dir, n)
	for _, one := range []struct {
		name  string
		flags int
	}{{"log", os.O_APPEND}, {fmt.Sprintf("file-%06d", n), os.O_EXCL}, {"rewritten-" + strconv.Itoa(n%2), 0}} {
		f, err := os.OpenFile(filepath.Join(dir, one.name), os.O_CREATE|os.O_WRONLY|one.flags, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// beSpaceWriter is what the processes of the tests below do: it writes chunks and says the number of
// each once it is on the disk, until it fails or is killed.
func beSpaceWriter(dir string) int {
	for n := 0; ; n++ {
		if err := writeChunk(dir, n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 3
		}
		fmt.Println(n)
	}
}

// A spaceWriter is a process that writes into a volume.
type spaceWriter struct {
	volume string
	cmd    *exec.Cmd
	acked  atomic.Int64 // chunks that are on the disk, as the kernel promised
	stderr lockedBuffer
	ended  chan struct{}
}

func startWriter(t *testing.T, volume, dir string) *spaceWriter {
	t.Helper()
	w := &spaceWriter{volume: volume, cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	w.cmd.Env = append(os.Environ(), spaceWriterDir+"="+dir)
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
				w.acked.Store(n + 1)
			}
		}
		_ = w.cmd.Wait() // killed, or failed as it should
	}()
	t.Cleanup(func() { w.kill(t) })
	return w
}

// kill ends a writer, which dies only when its volume is not frozen.
func (w *spaceWriter) kill(t *testing.T) {
	t.Helper()
	_ = w.cmd.Process.Kill() // it may have ended
	select {
	case <-w.ended:
	case <-time.After(spacePatience):
		t.Errorf("the writer of volume %s does not die", w.volume)
	}
}

func (w *spaceWriter) alive() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}

// verify fails the test unless everything that the writer was promised to be on the disk is there.
func (w *spaceWriter) verify(t *testing.T, dir string) {
	t.Helper()
	acked := int(w.acked.Load())
	log, err := os.Open(filepath.Join(dir, "log"))
	if err != nil {
		t.Errorf("volume %s: %v", w.volume, err)
		return
	}
	defer log.Close()
	logged := make([]byte, chunk)
	last := map[int]int{}
	for n := range acked {
		want := sha256.Sum256(chunkOf(dir, n))
		if _, err := io.ReadFull(log, logged); err != nil || sha256.Sum256(logged) != want {
			t.Errorf("volume %s: chunk %d of %d is lost from the log (%v)", w.volume, n, acked, err)
			return
		}
		content, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("file-%06d", n)))
		if err != nil || sha256.Sum256(content) != want {
			t.Errorf("volume %s: file %d of %d is lost (%v)", w.volume, n, acked, err)
			return
		}
		last[n%2] = n
	}
	// The rewritten file that was not being written when the writer ended holds its last acknowledged content.
	if n := acked - 1; n >= 0 {
		content, err := os.ReadFile(filepath.Join(dir, "rewritten-"+strconv.Itoa(n%2)))
		if err != nil || sha256.Sum256(content) != sha256.Sum256(chunkOf(dir, n)) {
			t.Errorf("volume %s: rewrite %d is lost (%v)", w.volume, n, err)
		}
	}
	t.Logf("volume %s: %d chunks acknowledged and there; the writer said %q", w.volume, acked, w.stderr.String())
}

// startWriters makes four volumes and a process writing into each, and one volume with something in it to delete.
func startWriters(t *testing.T, d *spaceDaemon, size string) []*spaceWriter {
	t.Helper()
	d.must("create", "spare", "--size", size)
	path := d.must("mount", "spare")
	f, err := os.Create(filepath.Join(path, "something"))
	for n := 0; err == nil && n < int(300*mib/chunk); n++ {
		_, err = f.Write(chunkOf("spare", n))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.must("umount", "spare")
	d.must("create", "idle", "--size", "64M")
	writers := make([]*spaceWriter, 4)
	for i := range writers {
		name := fmt.Sprintf("busy%d", i)
		d.must("create", name, "--size", size)
		writers[i] = startWriter(t, name, d.must("mount", name))
	}
	d.await("each writer writes", func() bool {
		return !slices.ContainsFunc(writers, func(w *spaceWriter) bool { return w.acked.Load() < 5 })
	})
	return writers
}

// restart ends the writers and unmounts and mounts their volumes, as restarted containers do, and looks for what
// they wrote. Then it writes more.
func restart(t *testing.T, d *spaceDaemon, writers []*spaceWriter) {
	t.Helper()
	for _, w := range writers {
		w.kill(t)
		d.must("umount", w.volume)
	}
	for _, w := range writers {
		path := d.must("mount", w.volume)
		w.verify(t, path)
		if err := os.WriteFile(filepath.Join(path, "after"), []byte("alive"), 0o600); err != nil {
			t.Errorf("volume %s: %v", w.volume, err)
		}
	}
	for _, v := range d.volumes() {
		if v.State != "ready" {
			t.Errorf("volume %s is %s: %s", v.Name, v.State, v.Problem)
		}
	}
}

// wantWorking fails unless the daemon does all that a full disk must not stop.
func wantWorking(t *testing.T, d *spaceDaemon, layer string) {
	t.Helper()
	d.warned("idle", layer)
	if out := d.orlop("create", "refused", "--size", "64M"); out.code != 5 {
		t.Errorf("create: %v, want exit code 5", out)
	}
	d.must("mount", "idle")
	d.must("umount", "idle")
	d.must("delete", "spare")
	if n := len(d.volumes()); n != 5 {
		t.Errorf("%d volumes, want 5", n)
	}
}

// TestNothingSyncedIsLostWhenTheHostFillsUp has four volumes written while the host below the pool is filled.
func TestNothingSyncedIsLostWhenTheHostFillsUp(t *testing.T) {
	host := scratchDisk(t, "ext4", 6*gib)
	d := startSpaceDaemon(t, filepath.Join(host, "root"), "--pool-size", "10G")
	d.await("the ballast is taken", func() bool { return d.info().Ballast > 0 })
	writers := startWriters(t, d, "2G")
	fillUp(t, host, func() bool { return d.info().Ballast == 0 })
	wantWorking(t, d, "host filesystem")
	fillUp(t, host, func() bool { return true }) // with what the delete gave back
	before := make([]int64, len(writers))
	for i, w := range writers {
		before[i] = w.acked.Load()
	}
	removeFillers(t, host)
	d.await("each writer goes on, or got an error", func() bool {
		for i, w := range writers {
			if w.alive() && w.acked.Load() <= before[i] {
				return false
			}
		}
		return true
	})
	restart(t, d, writers)
	d.await("the ballast is taken again", func() bool { return d.info().Ballast > 0 })
	d.must("create", "again", "--size", "64M")
}

// TestWritersWaitWhileTheHostIsFullAndGoOnAfterwards fills the host slowly enough to be noticed: then no writer gets
// an error, not even though the daemon is killed while they wait.
func TestWritersWaitWhileTheHostIsFullAndGoOnAfterwards(t *testing.T) {
	host := scratchDisk(t, "ext4", 6*gib)
	d := startSpaceDaemon(t, filepath.Join(host, "root"), "--pool-size", "10G")
	d.await("the ballast is taken", func() bool { return d.info().Ballast > 0 })
	d.must("create", "still", "--size", "64M")
	d.must("mount", "still")
	writers := startWriters(t, d, "2G")
	noneFailed := func() {
		t.Helper()
		for _, w := range writers {
			if !w.alive() {
				t.Fatalf("the writer of volume %s got an error: %s", w.volume, w.stderr.String())
			}
		}
	}
	size, _ := freeIn(t, host)
	fillTo(t, host, 1-float64(220*mib)/float64(size)) // what is left, the writers take
	d.warned("idle", "writers are stalled")
	d.kill()
	d.start()
	d.warned("idle", "writers are stalled")
	noneFailed()
	fillUp(t, host, func() bool { return true })
	d.must("umount", "still") // frozen
	d.must("delete", "still")
	d.must("mount", "idle")
	d.must("umount", "idle")
	before := make([]int64, len(writers))
	for i, w := range writers {
		before[i] = w.acked.Load()
	}
	noneFailed()
	removeFillers(t, host)
	d.await("each writer goes on", func() bool {
		noneFailed()
		for i, w := range writers {
			if w.acked.Load() <= before[i]+1 { // the first may have been on its way
				return false
			}
		}
		return true
	})
	restart(t, d, writers)
}

// TestNothingSyncedIsLostWhenThePoolFillsUp has four volumes written until the pool is full, and the host is not.
func TestNothingSyncedIsLostWhenThePoolFillsUp(t *testing.T) {
	host := scratchDisk(t, "ext4", 8*gib)
	root := filepath.Join(host, "root")
	d := startSpaceDaemon(t, root, "--pool-size", "2G")
	writers := startWriters(t, d, "2G")
	d.await("each writer got an error", func() bool {
		return !slices.ContainsFunc(writers, (*spaceWriter).alive)
	})
	wantWorking(t, d, "pool filesystem")
	restart(t, d, writers)
	for _, w := range writers[:3] {
		d.must("umount", w.volume)
		d.must("delete", w.volume)
	}
	d.await("the warnings end", func() bool { return len(d.info().Pools[0].Warnings) == 0 })
	d.must("create", "again", "--size", "64M")
}
