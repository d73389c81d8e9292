//go:build root

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A dockerd is a private Docker daemon with a containerd of its own, whether it runs or not.
type dockerd struct {
	dir    string
	cgroup string // parent of its containers' cgroups
	*process
	containerd *process
}

func (d *dockerd) path(name string) string { return filepath.Join(d.dir, name) }

// start starts Docker with more flags, and containerd unless it runs already, and returns when it answers.
func (d *dockerd) start(flags ...string) (err error) {
	if d.running() {
		return errors.New("docker runs already")
	}
	if !d.containerd.running() {
		if err := d.startContainerd(); err != nil {
			return err
		}
	}
	// A Docker that was killed leaves its pid file, and the number may be somebody else's by now.
	if err := os.Remove(d.path("docker.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(d.path("daemon.json"), []byte("{}"), 0o600); err != nil { // instead of the host's
		return err
	}
	d.process, err = start(d.path("docker.log"), nil, "dockerd", append([]string{
		"--config-file", d.path("daemon.json"), "--data-root", d.path("data"), "--exec-root", d.path("exec"),
		"--pidfile", d.path("docker.pid"), "--host", "unix://" + d.path("docker.sock"), "--containerd", d.path("containerd.sock"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false",
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", d.cgroup,
	}, flags...)...)
	if err != nil {
		return err
	}
	return d.ready(func() bool {
		_, _, err := d.api(http.MethodGet, "/_ping", nil)
		return err == nil
	})
}

// startContainerd keeps Docker from using the host's containerd, where there is one.
func (d *dockerd) startContainerd() (err error) {
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n",
		d.path("containerd"), d.path("containerd-state"), d.path("containerd.sock"))
	if err := os.WriteFile(d.path("containerd.toml"), []byte(config), 0o600); err != nil {
		return err
	}
	d.containerd, err = start(d.path("containerd.log"), nil, "containerd", "--config", d.path("containerd.toml"))
	if err != nil {
		return err
	}
	return d.containerd.ready(func() bool { return answers(d.path("containerd.sock")) })
}

// api sends a request to Docker's own API.
func (d *dockerd) api(method, path string, request any) (status int, answer []byte, err error) {
	raw, err := json.Marshal(request)
	if err != nil {
		return 0, nil, err
	}
	client := unixClient(d.path("docker.sock"))
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, bytes.NewReader(raw))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(response.Body)
	return response.StatusCode, body.Bytes(), err
}

// run runs the docker command against this daemon.
func (d *dockerd) run(args ...string) result { return d.runInput(nil, args...) }

func (d *dockerd) runInput(input []byte, args ...string) result {
	env := []string{"DOCKER_CONFIG=" + d.path("config"), "DOCKER_CONTEXT=", "DOCKER_API_VERSION="}
	return runInput(env, input, "docker", append([]string{"--host", "unix://" + d.path("docker.sock")}, args...)...)
}

// close ends Docker, its containers, their shims and containerd, running or not, by their process IDs.
func (d *dockerd) close() error {
	var errs []error
	if d.running() {
		list := d.run("ps", "-aq")
		if ids := strings.Fields(list.stdout); len(ids) > 0 {
			if r := d.run(append([]string{"rm", "-f"}, ids...)...); r.code != 0 {
				errs = append(errs, errors.New(r.String()))
			}
		}
		errs = append(errs, d.stop())
	}
	d.killShims()
	if d.containerd != nil {
		errs = append(errs, d.containerd.stop())
	}
	d.removeCgroups()
	return errors.Join(errs...)
}

// killShims ends the shims of our containerd that are left, with the containers they watch.
func (d *dockerd) killShims() {
	shims := map[int]bool{}
	processes, _ := filepath.Glob("/proc/[0-9]*") // no match is no error
	for _, dir := range processes {
		args, err := os.ReadFile(dir + "/cmdline")
		if err == nil && bytes.Contains(args, []byte("\x00-address\x00"+d.path("containerd.sock")+"\x00")) {
			shims[number(dir)] = true
		}
	}
	for _, dir := range processes {
		if shims[parent(dir)] && !shims[number(dir)] {
			_ = syscall.Kill(number(dir), syscall.SIGKILL) // ended by itself
		}
	}
	for pid := range shims {
		_ = syscall.Kill(pid, syscall.SIGKILL) // ended by itself
	}
	_ = await(stopLimit, "shims end", func() bool { // what they leave mounted fails the test
		for pid := range shims {
			if syscall.Kill(pid, 0) == nil && parent(fmt.Sprintf("/proc/%d", pid)) != 0 {
				return false
			}
		}
		return true
	})
}

// number is the process that a directory of /proc is about.
func number(dir string) int {
	pid, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		return 0
	}
	return pid
}

// parent returns the parent of a process, or 0 if it has ended.
func parent(dir string) int {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	pid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return pid
}

// removeCgroups removes what Docker leaves of its cgroup parent; only empty ones can be.
func (d *dockerd) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, below := range []string{"/*", ""} {
			dirs, _ := filepath.Glob(pattern + d.cgroup + below) // no match is no error
			for _, dir := range dirs {
				_ = os.Remove(dir) // a file in a cgroup, or one that is busy
			}
		}
	}
}

// The images of every Docker daemon: busybox alone, and with files at /data that belong to user 1000.
const (
	plainImage = "plain"
	seedImage  = "seed"
)

// importImages makes both images.
func (d *dockerd) importImages() error {
	archives, err := imageArchives()
	if err != nil {
		return err
	}
	for name, archive := range archives {
		if r := d.runInput(archive, "import", "-", name); r.code != 0 {
			return errors.New(r.String())
		}
	}
	return nil
}

// imageArchives returns the content of each image, by its name, made from the host's static busybox.
func imageArchives() (map[string][]byte, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(program); err != nil {
		return nil, fmt.Errorf("%s: %w: install busybox-static", busybox, err)
	}
	archives := map[string][]byte{}
	files := []tar.Header{
		{Name: "bin/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "etc/", Mode: 0o755},
		{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))},
	}
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "ls", "stat", "id", "rm", "mkdir", "touch", "dd", "sync", "sha256sum", "true", "test"} {
		files = append(files, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	seed := append(files[:len(files):len(files)],
		tar.Header{Name: "data/", Mode: 0o750, Uid: 1000, Gid: 1000},
		tar.Header{Name: "data/seed", Mode: 0o640, Uid: 1000, Gid: 1000, Size: int64(len(seedText))},
		tar.Header{Name: "data/sub/", Mode: 0o700, Uid: 1000, Gid: 1000},
	)
	for name, files := range map[string][]tar.Header{plainImage: files, seedImage: seed} {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		for _, header := range files {
			if err := w.WriteHeader(&header); err != nil {
				return nil, err
			}
			content := map[string][]byte{"bin/busybox": program, "data/seed": []byte(seedText)}[header.Name]
			if _, err := w.Write(content); err != nil {
				return nil, err
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		archives[name] = archive.Bytes()
	}
	return archives, nil
}

const seedText = "from the image\n"

// checkStatic fails for a program that needs a dynamic linker.
func checkStatic(program []byte) error {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			return errors.New("not a static program")
		}
	}
	return nil
}
