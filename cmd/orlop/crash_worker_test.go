//go:build root

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"orlop/fs"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// A crashVolume is what a worker knows of a volume: what was acknowledged, and what is not yet.
type crashVolume struct {
	name    string
	exists  bool
	xfs     bool
	size    int64
	label   string
	holder  string // Docker's mount ID, "user" for 'orlop mount', or empty
	path    string // where it is mounted
	files   map[string][sha256.Size]byte
	serial  int
	pending *crashStep // not answered when the daemon was killed
}

// A crashStep is one request, and what is so once it is acknowledged.
type crashStep struct {
	name  string
	do    func() error
	apply func()
}

func (v *crashVolume) request() control.Request { return control.Request{Name: v.name} }

// A worker works on its own volumes, one request after the other.
type worker struct {
	load    *load
	rng     *rand.Rand
	volumes []*crashVolume
	writing atomic.Bool
}

// work goes on until the daemon has been killed.
func (w *worker) work(t *testing.T, stop chan struct{}) {
	for {
		v := w.volumes[w.rng.IntN(len(w.volumes))]
		step := w.choose(w.load.host, v)
		v.pending = &step
		err := step.do()
		if err != nil && fault.Is(err, fault.ErrUnreachable) {
			w.load.hit(step.name)
			return
		}
		v.pending = nil
		if err != nil {
			t.Errorf("%s of %s: %v", step.name, v.name, err)
			return
		}
		step.apply()
		select {
		case <-stop:
			return
		default:
		}
	}
}

// choose picks one of the steps that make sense now; one that was not hit yet is more likely.
func (w *worker) choose(h *crashHost, v *crashVolume) crashStep {
	steps := v.steps(h, w)
	fresh := slices.DeleteFunc(slices.Clone(steps), func(s crashStep) bool { return w.load.wasHit(s.name) })
	if len(fresh) > 0 && w.rng.IntN(2) == 0 {
		steps = fresh
	}
	return steps[w.rng.IntN(len(steps))]
}

const crashMiB = int64(1) << 20

// steps lists what may be asked for next.
func (v *crashVolume) steps(h *crashHost, w *worker) []crashStep {
	v.serial++
	switch {
	case !v.exists:
		size := (16 + 4*w.rng.Int64N(4)) * crashMiB
		return []crashStep{
			{"create", func() error { return h.create(v.name, size, "ext4") }, v.created(size, false)},
			{"docker create", func() error {
				return h.docker("Create", dockerRequest{Name: v.name, Opts: map[string]string{"size": fmt.Sprint(size), "label.version": "0"}}, nil)
			}, v.created(size, false)},
			{"create xfs", func() error { return h.create(v.name, 300*crashMiB, "xfs") }, v.created(300*crashMiB, true)},
		}
	case v.holder == "":
		return append(v.anyTime(h, "resize"), v.mountSteps(h)...)
	}
	return append(v.anyTime(h, "resize mounted"), v.mountedSteps(h, w)...)
}

func (v *crashVolume) created(size int64, xfs bool) func() {
	return func() {
		v.exists, v.size, v.xfs, v.label, v.files = true, size, xfs, "0", map[string][sha256.Size]byte{}
	}
}

func (v *crashVolume) deleted() { v.exists, v.files = false, nil }

// anyTime lists what may be asked for whether the volume is mounted or not.
func (v *crashVolume) anyTime(h *crashHost, resize string) []crashStep {
	size, label := v.size+4*crashMiB, fmt.Sprint(v.serial)
	steps := []crashStep{
		{"set", func() error {
			return h.post("/volumes/set", control.Request{Name: v.name, Labels: []string{"version=" + label}}, nil)
		}, func() { v.label = label }},
		{"trim", func() error { return h.post("/volumes/trim", v.request(), nil) }, func() {}},
	}
	if size > 400*crashMiB || !v.mayGrow() {
		return steps
	}
	return append(steps, crashStep{resize, func() error {
		return h.post("/volumes/resize", control.Request{Name: v.name, Size: fmt.Sprint(size)}, nil)
	}, func() { v.size = size }})
}

// mayGrow tells whether a resize is not refused. Without CAP_SYS_RESOURCE a mounted ext4 is, while a container that Docker
// has asked for may be starting.
func (v *crashVolume) mayGrow() bool {
	ext4, err := fs.Lookup("ext4")
	return v.holder == "" || v.holder == "user" || v.xfs || err == nil && ext4.GrowsMounted()
}

func (v *crashVolume) mountSteps(h *crashHost) []crashStep {
	var mounted control.Mounted
	var answer dockerAnswer
	id := fmt.Sprintf("id-%d", v.serial)
	return []crashStep{
		{"mount", func() error { return h.post("/volumes/mount", v.request(), &mounted) }, func() { v.holder, v.path = "user", mounted.Path }},
		{"docker mount", func() error {
			return h.docker("Mount", dockerRequest{Name: v.name, ID: id}, &answer)
		}, func() { v.holder, v.path = id, answer.Mountpoint }},
		{"delete", func() error { return h.post("/volumes/delete", v.request(), nil) }, v.deleted},
		{"docker remove", func() error { return h.docker("Remove", dockerRequest{Name: v.name}, nil) }, v.deleted},
	}
}

func (v *crashVolume) mountedSteps(h *crashHost, w *worker) []crashStep {
	file := fmt.Sprintf("file-%d", v.serial%8)
	content := make([]byte, 1+w.rng.IntN(256<<10))
	for i := range content {
		content[i] = byte(w.rng.Uint32())
	}
	unmount := crashStep{"docker unmount", func() error {
		return h.docker("Unmount", dockerRequest{Name: v.name, ID: v.holder}, nil)
	}, func() { v.holder = "" }}
	if v.holder == "user" {
		unmount = crashStep{"umount", func() error { return h.post("/volumes/umount", v.request(), nil) }, func() { v.holder = "" }}
	}
	return []crashStep{unmount, {"write", func() error {
		w.writing.Store(true)
		defer w.writing.Store(false)
		return writeDurably(filepath.Join(v.path, file), content)
	}, func() { v.files[file] = sha256.Sum256(content) }}}
}

// writeDurably replaces a file by rename, all synced.
func writeDurably(path string, content []byte) error {
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// verify compares a volume with what was acknowledged, and with what was asked for and not answered, which may have
// happened or not; from then on it is known.
func (v *crashVolume) verify(t *testing.T, h *crashHost) {
	t.Helper()
	pending := v.pending
	v.pending = nil
	view, there := h.view(t, v.name)
	if pending != nil {
		v.decide(h, *pending, view, there)
	}
	if there != v.exists {
		t.Errorf("volume %s: there %t, want %t (not answered: %s)", v.name, there, v.exists, pending)
		return
	}
	if !there {
		return
	}
	if view.State != "ready" || view.Size != v.size || view.Labels["version"] != v.label || view.Problem != "" || view.ReadOnly {
		t.Errorf("volume %s: %+v, want size %d and version %s (not answered: %s)", v.name, view, v.size, v.label, pending)
	}
	if v.holder != "" {
		if !view.Mounted || view.Mountpoint != v.path || len(view.Holders) != 1 {
			t.Errorf("volume %s: held as %s at %s, but %+v (not answered: %s)", v.name, v.holder, v.path, view, pending)
			return
		}
		v.wantFiles(t, v.path)
		return
	}
	var answer dockerAnswer
	check(t, h.docker("Mount", dockerRequest{Name: v.name, ID: "probe"}, &answer))
	v.wantFiles(t, answer.Mountpoint)
	check(t, h.docker("Unmount", dockerRequest{Name: v.name, ID: "probe"}, nil))
	if view, _ := h.view(t, v.name); view.Mounted || len(view.Holders) > 0 {
		t.Errorf("volume %s: unmounted, but %+v (not answered: %s)", v.name, view, pending)
	}
}

func (s *crashStep) String() string {
	if s == nil {
		return "nothing"
	}
	return s.name
}

// decide finds out whether a step that was not answered has happened. Mounts are settled: what was in between is
// asked for again, as Docker does.
func (v *crashVolume) decide(h *crashHost, s crashStep, view daemon.View, there bool) {
	switch s.name {
	case "create", "docker create", "create xfs":
		if there {
			s.apply()
		}
	case "delete", "docker remove":
		if !there {
			s.apply()
		}
	case "resize", "resize mounted", "set":
		if before := *v; there {
			if s.apply(); view.Size != v.size || view.Labels["version"] != v.label {
				v.size, v.label = before.size, before.label
			}
		}
	case "mount", "docker mount", "umount", "docker unmount":
		v.holder = ""
		for _, held := range view.Holders {
			if held.Kind == "user" {
				_ = h.post("/volumes/umount", v.request(), nil) // what is left shows in the next look
			} else {
				_ = h.docker("Unmount", dockerRequest{Name: v.name, ID: held.ID}, nil)
			}
		}
	}
}

// wantFiles checks every file that was synced.
func (v *crashVolume) wantFiles(t *testing.T, dir string) {
	t.Helper()
	for name, want := range v.files {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || sha256.Sum256(content) != want {
			t.Errorf("volume %s: %s is not what was synced (%d bytes, %v)", v.name, name, len(content), err)
		}
	}
	if len(v.files) > 0 {
		return
	}
	if left := names(t, dir); len(left) > 0 && !slices.ContainsFunc(left, isPartial) {
		t.Errorf("volume %s is new, and not empty: %q", v.name, left)
	}
}

// isPartial tells the name of a file that was being written.
func isPartial(name string) bool { return filepath.Ext(name) == ".new" }

// letGo unmounts a volume.
func (v *crashVolume) letGo(t *testing.T, h *crashHost) {
	t.Helper()
	switch v.holder {
	case "":
		return
	case "user":
		check(t, h.post("/volumes/umount", v.request(), nil))
	default:
		check(t, h.docker("Unmount", dockerRequest{Name: v.name, ID: v.holder}, nil))
	}
	v.holder = ""
	deadline := time.Now().Add(30 * time.Second)
	for view, _ := h.view(t, v.name); view.Mounted; view, _ = h.view(t, v.name) {
		if time.Now().After(deadline) {
			t.Fatalf("volume %s stays mounted: %+v", v.name, view)
		}
	}
}
