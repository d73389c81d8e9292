//go:build root

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A backupPlace is a destination in a directory, with its key.
type backupPlace struct{ dir, key string }

// newBackupPlace creates a repository in a directory of the test's.
func (h *host) newBackupPlace(t *testing.T) backupPlace {
	t.Helper()
	dir := t.TempDir()
	p := backupPlace{filepath.Join(dir, "nas"), filepath.Join(dir, "key")}
	h.orlop.run("key", "create", p.key).must(t)
	h.orlop.run("backup", "init", p.dir, "--key-file", p.key).must(t)
	return p
}

// backUp makes a volume with a file, backs it up, deletes it with its snapshots, and returns the backup's URL and the
// SHA-256 of the file.
func (h *host) backUp(t *testing.T, p backupPlace, volume string) (url, sum string) {
	t.Helper()
	h.create(t, volume, "size=64M")
	sum = h.once(t, "dd if=/dev/urandom of=/data/file bs=1M count=8 2> /dev/null; sync; "+sumOfFile, "-v", volume+":/data")
	url = h.orlop.run("backup", "create", volume, "--dest", p.dir, "--key-file", p.key).must(t)
	h.remove(t, volume)
	return url, sum
}

const sumOfFile = "sha256sum < /data/file"

// remove deletes a volume with its snapshots, among them those that backups keep.
func (h *host) remove(t *testing.T, volume string) {
	t.Helper()
	h.orlop.run("delete", "--snapshots", volume).must(t)
}

// packs returns the paths of the packs of chunks in a destination.
func (p backupPlace) packs(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(p.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".data" {
			paths = append(paths, path)
		}
		return err
	})
	check(t, err)
	if len(paths) == 0 {
		t.Fatalf("no packs in %s", p.dir)
	}
	return paths
}

// stateOf returns the state of a volume as orlop list shows it.
func (h *host) stateOf(t *testing.T, volume string) string {
	t.Helper()
	var views []struct{ Name, State string }
	check(t, json.Unmarshal([]byte(h.orlop.run("list", "--json").must(t)), &views))
	for _, v := range views {
		if v.Name == volume {
			return v.State
		}
	}
	return ""
}

func TestDockerVolumeCreateRestoresABackup(t *testing.T) {
	h := sharedHost(t)
	p := h.newBackupPlace(t)
	url, sum := h.backUp(t, p, "db")
	h.create(t, "copy", "backup="+url, "key-file="+p.key, "keep=daily:7", "no-backup=true")
	defer h.remove(t, "copy")
	if got := h.once(t, sumOfFile, "-v", "copy:/data"); got != sum {
		t.Errorf("a container reads a file with sum %s from the restored volume, want %s", got, sum)
	}
	var view struct {
		State, Keep string
		NoBackup    bool `json:"no_backup"`
		Restore     struct{ URL string }
	}
	check(t, json.Unmarshal([]byte(h.orlop.run("inspect", "copy").must(t)), &view))
	if view.State != "ready" || view.Keep != "daily:7" || !view.NoBackup || view.Restore.URL != url {
		t.Errorf("orlop inspect shows %+v", view)
	}
}

// damages are what may befall a destination, by their names. Each returns what takes it back.
var damages = map[string]func(t *testing.T, p backupPlace) (restore func()){
	"pack damaged": func(t *testing.T, p backupPlace) func() {
		return p.changePacks(t, func(path string, content []byte) error {
			return os.WriteFile(path, bytes.Repeat([]byte{1}, len(content)), 0o600)
		})
	},
	"pack missing": func(t *testing.T, p backupPlace) func() {
		return p.changePacks(t, func(path string, _ []byte) error { return os.Remove(path) })
	},
}

// changePacks changes every pack, and returns what takes that back.
func (p backupPlace) changePacks(t *testing.T, change func(path string, content []byte) error) (restore func()) {
	t.Helper()
	whole := map[string][]byte{}
	for _, path := range p.packs(t) {
		content, err := os.ReadFile(path)
		check(t, err)
		whole[path] = content
		check(t, os.Chmod(path, 0o600))
		check(t, change(path, content))
	}
	return func() {
		for path, content := range whole {
			check(t, os.WriteFile(path, content, 0o600))
		}
	}
}

func TestContainersDoNotStartOnAVolumeWhoseRestoreFailed(t *testing.T) {
	h := newLoneHost(t, false)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			p := h.newBackupPlace(t)
			url, sum := h.backUp(t, p, "db")
			repair := damage(t, p)
			r := h.docker.run("volume", "create", "--driver", h.plugin, "--opt", "backup="+url, "--opt", "key-file="+p.key, "db")
			if state := h.stateOf(t, "db"); r.code == 0 || state != "failed" {
				t.Fatalf("the volume is in state %q, want failed: %s", state, r)
			}
			if got := h.volumes(t); got != "db" {
				t.Errorf("docker volume ls prints %q", got)
			}
			h.wantNoStart(t, "db", url)
			check(t, h.orlop.killAndRestart())
			h.wantNoStart(t, "db", url)
			if r := h.orlop.run("backup", "restore", url, "db", "--key-file", p.key); r.code == 0 {
				t.Errorf("the damaged backup is restored: %s", r)
			}
			h.wantNoStart(t, "db", url)
			repair()
			h.orlop.run("backup", "restore", url, "db", "--key-file", p.key).must(t)
			if got := h.once(t, sumOfFile, "-v", "db:/data"); got != sum {
				t.Errorf("after the restore succeeded a container reads a file with sum %s, want %s", got, sum)
			}
			h.remove(t, "db")
		})
	}
}

// wantNoStart fails unless docker run refuses to start a container on a volume whose restore failed and says why and what
// to do, and nothing is mounted.
func (h *host) wantNoStart(t *testing.T, volume, url string) {
	t.Helper()
	r := h.docker.run(append(h.runArgs("--rm", "-v", volume+":/data"), plainImage, "echo", "started")...)
	if r.code == 0 || strings.Contains(r.stdout, "started") {
		t.Errorf("a container started on a volume whose restore failed: %s", r)
	}
	for _, want := range []string{"restore failed", "orlop backup restore", url, "orlop delete " + volume} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("docker run does not say %q: %s", want, r)
		}
	}
	if device := deviceAt("self", h.mountpoint(volume)); device != "" {
		t.Errorf("the volume is mounted: %s", device)
	}
	entries, err := os.ReadDir(h.mountpoint(volume))
	if err == nil {
		t.Errorf("a directory with %d entries stands in for the volume", len(entries))
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A gate holds whoever opens one of some files, until it is opened.
type gate struct {
	events  *os.File
	waiting chan struct{} // closed when the first is held
	open    func()
}

// closeGate closes a gate before the files of a directory.
func closeGate(t *testing.T, paths []string) *gate {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE)
	check(t, err)
	g := &gate{events: os.NewFile(uintptr(fd), "fanotify"), waiting: make(chan struct{})}
	g.open = sync.OnceFunc(func() { check(t, g.events.Close()) }) // allows all that wait
	t.Cleanup(g.open)
	for _, path := range paths {
		check(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, unix.AT_FDCWD, path))
	}
	go func() {
		raw := make([]byte, 4096)
		n, err := g.events.Read(raw)
		if err != nil {
			return // the gate was opened
		}
		var event unix.FanotifyEventMetadata
		if _, err := binary.Decode(raw[:n], binary.NativeEndian, &event); err == nil {
			_ = unix.Close(int(event.Fd)) // of the file that is opened
		}
		close(g.waiting)
	}()
	return g
}

func TestDockerRunWaitsForARestoreThatRunsAndFindsAllOfIt(t *testing.T) {
	h := newHost(t, true)
	p := h.newBackupPlace(t)
	url, sum := h.backUp(t, p, "db")
	gate := closeGate(t, p.packs(t))
	restored := make(chan result, 1)
	go func() { restored <- h.orlop.run("backup", "restore", url, "db", "--key-file", p.key) }()
	eventually(t, "the restore reads a pack", func() bool {
		select {
		case <-gate.waiting:
			return true
		default:
			return false
		}
	})
	if state := h.stateOf(t, "db"); state != "restoring" {
		t.Errorf("the volume is in state %q, want restoring", state)
	}
	_ = h.relay.take("db")
	ran := make(chan result, 1)
	go func() {
		ran <- h.docker.run(append(h.runArgs("--rm", "-v", "db:/data"), plainImage, "sh", "-ec", sumOfFile)...)
	}()
	eventually(t, "Docker calls for the mount", func() bool { return len(h.relay.take("db")) > 0 })
	if device := deviceAt("self", h.mountpoint("db")); device != "" {
		t.Errorf("the volume is mounted while it is being restored: %s", device)
	}
	select {
	case r := <-ran:
		t.Fatalf("docker run did not wait: %s", r)
	default:
	}
	gate.open()
	if got := (<-ran).must(t); got != sum {
		t.Errorf("the container reads a file with sum %s, want %s", got, sum)
	}
	(<-restored).must(t)
	h.remove(t, "db")
}
