//go:build root

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A host is orlop and Docker on a scratch directory, with nothing else of the machine in it.
type host struct {
	dir    string
	plugin string // name of the volume driver
	orlop  *orlop
	docker *dockerd
	relay  *relay // between them, if the test wants one
	closed sync.Once
	seen   int // length of orlop's log when a volume was last known to be in use
}

// Where Docker looks for plugins. All of them are empty at first, and this run's alone.
const (
	socketDir = "/run/docker/plugins"
	specDir   = "/etc/docker/plugins"
	libDir    = "/usr/lib/docker/plugins"
)

// openHost starts a host. It must be closed, also after an error.
func openHost(withRelay bool, dockerFlags ...string) (h *host, err error) {
	dir, err := os.MkdirTemp("", "orlop-e2e-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	plugin := filepath.Base(dir)
	published := filepath.Join(socketDir, plugin+".sock")
	h = &host{dir: dir, plugin: plugin, docker: &dockerd{dir: dir, cgroup: "/" + plugin}}
	hosts.add(h)
	socket := published
	if withRelay {
		socket = filepath.Join(dir, "plugin.sock")
		if h.relay, err = newRelay(published, socket); err != nil {
			return h, err
		}
	}
	h.orlop = newOrlop(dir, plugin, socket)
	if err := h.orlop.start(); err != nil {
		return h, err
	}
	if err := h.docker.start(dockerFlags...); err != nil {
		return h, err
	}
	return h, h.docker.importImages()
}

// close ends both daemons, takes away whatever a failed test left, and tells what orlop left behind.
func (h *host) close() (err error) {
	h.closed.Do(func() {
		defer hosts.remove(h)
		errs := []error{h.docker.close()}
		if h.orlop != nil {
			errs = append(errs, h.orlop.close())
		}
		if h.relay != nil {
			errs = append(errs, h.relay.close())
		}
		published := filepath.Join(socketDir, h.plugin+".sock")
		if err := os.Remove(published); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, sweep(h.dir), removeTree(h.dir))
		err = errors.Join(errs...)
	})
	return err
}

// newHost starts a host for one test, which then runs in parallel with others.
func newHost(t *testing.T, withRelay bool, dockerFlags ...string) *host {
	t.Helper()
	t.Parallel()
	return newLoneHost(t, withRelay, dockerFlags...)
}

// newLoneHost is newHost for a test that does not run in parallel: for one that lists volumes.
func newLoneHost(t *testing.T, withRelay bool, dockerFlags ...string) *host {
	t.Helper()
	h, err := openHost(withRelay, dockerFlags...)
	if h != nil {
		t.Cleanup(func() {
			h.tell(t)
			if err := h.close(); err != nil {
				t.Error(err)
			}
		})
	}
	check(t, err)
	return h
}

var openShared = sync.OnceValues(func() (*host, error) { return openHost(false) })

// sharedHost returns the one host of the tests that stop no daemon. They run one after the other; each finds it
// without volumes and containers, and the kernel must show that it left none.
func sharedHost(t *testing.T) *host {
	t.Helper()
	h, err := openShared()
	check(t, err)
	t.Cleanup(func() {
		h.tell(t)
		if containers := strings.Fields(h.docker.run("ps", "-aq").must(t)); len(containers) > 0 {
			h.docker.run(append([]string{"rm", "-f"}, containers...)...).must(t)
		}
		if volumes := strings.Fields(h.volumes(t)); len(volumes) > 0 {
			h.docker.run(append([]string{"volume", "rm"}, volumes...)...).must(t)
		}
		h.wantReleased(t)
		if images := h.images(t); len(images) > 0 {
			t.Errorf("images of deleted volumes: %q", images)
		}
	})
	return h
}

// tell logs the daemons' last words if the test failed.
func (h *host) tell(t *testing.T) {
	if t.Failed() && h.orlop != nil {
		t.Logf("orlop's log ends:\n%s\ndocker's log ends:\n%s", tail(h.orlop.logPath, 40), tail(h.docker.path("docker.log"), 25))
	}
}

// mountpoint is where a volume belongs in the host's mount table.
func (h *host) mountpoint(volume string) string { return filepath.Join(h.orlop.root, "mounts", volume) }

// volumeLoops returns the loop devices of volumes: those on images in the pool, not the pool's own.
func (h *host) volumeLoops() map[string]string { return loops(filepath.Join(h.orlop.root, "pool")) }

// images returns the image files in the pool.
func (h *host) images(t *testing.T) (found []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(h.orlop.root, "pool"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".img") {
			found = append(found, path)
		}
		return err
	})
	check(t, err)
	return found
}

// create makes a volume through Docker.
func (h *host) create(t *testing.T, volume string, options ...string) {
	t.Helper()
	args := []string{"volume", "create", "--driver", h.plugin}
	for _, option := range options {
		args = append(args, "--opt", option)
	}
	h.docker.run(append(args, volume)...).must(t)
}

// runArgs begins a docker run. The container dies at once of Docker's stop signal, as a shell as first process
// would not.
func (h *host) runArgs(args ...string) []string {
	return append([]string{"run", "--network", "none", "--stop-signal", "KILL", "--volume-driver", h.plugin}, args...)
}

// container starts a container that stays, with a volume at /data.
func (h *host) container(t *testing.T, name, volume string, more ...string) {
	t.Helper()
	args := append(h.runArgs("--detach", "--name", name, "-v", volume+":/data"), more...)
	h.docker.run(append(args, plainImage, "sleep", "3600")...).must(t)
}

// sh runs a script in a running container and returns what it prints.
func (h *host) sh(t *testing.T, container, script string) string {
	t.Helper()
	return h.docker.run("exec", container, "sh", "-ec", script).must(t)
}

// once runs a script in a container made for it, with volumes given as for docker run's -v, and returns what it
// prints.
func (h *host) once(t *testing.T, script string, more ...string) string {
	t.Helper()
	args := append(h.runArgs("--rm"), more...)
	return h.docker.run(append(args, plainImage, "sh", "-ec", script)...).must(t)
}

// write writes a file of the volume through a container, to the disk.
func (h *host) write(t *testing.T, container, file, text string) {
	t.Helper()
	h.sh(t, container, fmt.Sprintf("echo '%s' > /data/%s; sync", text, file))
}

// wantFile fails unless a container reads just this text.
func (h *host) wantFile(t *testing.T, container, file, want string) {
	t.Helper()
	if got := h.sh(t, container, "cat /data/"+file); got != want {
		t.Errorf("container %s reads %q from %s, want %q", container, got, file, want)
	}
}

// wantInUse fails unless the kernel shows the volume on one loop device, mounted at its place, and the same in every
// container, and the containers can write to it. It returns the device.
func (h *host) wantInUse(t *testing.T, volume string, containers ...string) string {
	t.Helper()
	device := deviceAt("self", h.mountpoint(volume))
	attached := h.volumeLoops()
	image, ok := attached[device]
	if !ok {
		t.Fatalf("volume %s: device %q is mounted at %s, which is none of the loop devices %v", volume, device, h.mountpoint(volume), attached)
	}
	for other, file := range attached {
		if other != device && file == image {
			t.Fatalf("volume %s: both %s and %s are attached to %s", volume, device, other, file)
		}
	}
	for _, container := range containers {
		pid := h.docker.run("inspect", "--format", "{{.State.Pid}}", container).must(t)
		if got := deviceAt(pid, "/data"); got != device {
			t.Fatalf("container %s sees device %q at /data, want %s", container, got, device)
		}
		h.sh(t, container, "echo alive > /data/.alive; cat /data/.alive; rm /data/.alive")
	}
	h.seen = len(h.log(t))
	return device
}

// wantReleased fails unless the kernel comes to show no volume mounted and no image attached: at once, or with the
// settling of each minute where orlop says that it kept a volume since wantInUse: a namespace that is just beginning
// may have a copy of its mount.
func (h *host) wantReleased(t *testing.T) {
	t.Helper()
	const atOnce = 40 * time.Second // on a busy machine, and less than that minute
	err := await(atOnce, "all volumes are unmounted and detached", h.released)
	if err != nil && strings.Contains(h.log(t)[h.seen:], "volume kept") {
		t.Log("volumes were kept; waiting for them to be settled again")
		err = await(patience, "all volumes are unmounted and detached", h.released)
	}
	if err != nil {
		entries, _ := mounts("self", filepath.Join(h.orlop.root, "mounts"))
		t.Fatalf("%v: mounted %v, attached %v", err, entries, h.volumeLoops())
	}
}

// log is what orlop has logged.
func (h *host) log(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(h.orlop.logPath)
	check(t, err)
	return string(log)
}

// released tells whether the kernel shows no volume mounted and no image attached.
func (h *host) released() bool {
	entries, err := mounts("self", filepath.Join(h.orlop.root, "mounts"))
	return err == nil && len(entries) == 0 && len(h.volumeLoops()) == 0
}

// settleByUse uses a volume and ends that use: the next settling of a volume that was kept.
func (h *host) settleByUse(t *testing.T, volume string) {
	t.Helper()
	h.once(t, "true", "-v", volume+":/data")
}
