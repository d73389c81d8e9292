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
	name   string
	exists bool
	xfs    bool
	size   int64
	device int64 // size of the device: after a rollback perhaps less than size, until the next mount
	label  string
	holder string // Docker's mount ID, "user" for 'orlop mount', or empty
	path   string // where it is mounted
	crashContent
	snapshots []*crashSnapshot
	serial    int
	writer    *crashWriter // that may still write; nil for none
	pending   *crashStep   // not answered when the daemon was killed
}

// A crashStep is one request, and what is so once it is acknowledged.
type crashStep struct {
	name  string
	do    func() error
	apply func()
	// happened finds out whether a step that was not answered has happened; nil for those that decide knows.
	happened func(t *testing.T, view daemon.View, there bool) bool
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
		w.load.answered.Add(1)
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
		if copies := w.copySteps(h, v); len(copies) > 0 && w.rng.IntN(2) == 0 {
			return copies
		}
		size := (16 + 4*w.rng.Int64N(4)) * crashMiB
		return []crashStep{
			{name: "create", do: func() error { return h.create(v.name, size, "ext4") }, apply: v.created(size, false, noContent)},
			{name: "docker create", do: func() error {
				return h.docker("Create", dockerRequest{Name: v.name, Opts: map[string]string{"size": fmt.Sprint(size), "label.version": "0"}}, nil)
			}, apply: v.created(size, false, noContent)},
			{name: "create xfs", do: func() error { return h.create(v.name, 300*crashMiB, "xfs") }, apply: v.created(300*crashMiB, true, noContent)},
		}
	case v.holder == "":
		return slices.Concat(v.anyTime(h, "resize"), v.mountSteps(h), v.deleteSteps(h), v.restoreSteps(h, w), v.snapshotSteps(h, w, "snapshot"))
	}
	return slices.Concat(v.anyTime(h, "resize mounted"), v.mountedSteps(h, w), v.snapshotSteps(h, w, "snapshot mounted"))
}

func (v *crashVolume) created(size int64, xfs bool, content func() crashContent) func() {
	return func() {
		v.exists, v.size, v.device, v.xfs, v.label, v.crashContent = true, size, size, xfs, "0", content()
	}
}

func (v *crashVolume) deleted() { v.exists, v.crashContent, v.snapshots = false, crashContent{}, nil }

// anyTime lists what may be asked for whether the volume is mounted or not.
func (v *crashVolume) anyTime(h *crashHost, resize string) []crashStep {
	size, label := v.size+4*crashMiB, fmt.Sprint(v.serial)
	steps := []crashStep{
		{name: "set", do: func() error {
			return h.post("/volumes/set", control.Request{Name: v.name, Labels: []string{"version=" + label}}, nil)
		}, apply: func() { v.label = label }},
		{name: "trim", do: func() error { return h.post("/volumes/trim", v.request(), nil) }, apply: func() { v.device = v.size }},
	}
	if size > 400*crashMiB {
		return steps
	}
	refused := false
	return append(steps, crashStep{name: resize, do: func() error {
		err := h.post("/volumes/resize", control.Request{Name: v.name, Size: fmt.Sprint(size)}, nil)
		if refused = fault.Is(err, fault.ErrUnsupported) && !v.mayGrow(); refused {
			return nil
		}
		return err
	}, apply: func() {
		if !refused {
			v.size, v.device = size, size
		}
	}})
}

// mayGrow tells whether a resize must not be refused. Without CAP_SYS_RESOURCE that of a mounted ext4 is while the
// container that Docker mounted it for may be starting.
func (v *crashVolume) mayGrow() bool {
	ext4, err := fs.Lookup("ext4")
	return v.holder == "" || v.holder == "user" || v.xfs || err == nil && ext4.GrowsMounted()
}

func (v *crashVolume) mountSteps(h *crashHost) []crashStep {
	var mounted control.Mounted
	var answer dockerAnswer
	id := fmt.Sprintf("id-%d", v.serial)
	return []crashStep{
		{name: "mount", do: func() error { return h.post("/volumes/mount", v.request(), &mounted) }, apply: func() {
			v.holder, v.path, v.device = "user", mounted.Path, v.size
		}},
		{name: "docker mount", do: func() error {
			return h.docker("Mount", dockerRequest{Name: v.name, ID: id}, &answer)
		}, apply: func() { v.holder, v.path, v.device = id, answer.Mountpoint, v.size }},
	}
}

// deleteSteps lists the ways to delete a volume that is not mounted. Snapshots stand in the way of two of them.
func (v *crashVolume) deleteSteps(h *crashHost) []crashStep {
	if len(v.snapshots) > 0 {
		return []crashStep{{name: "delete with snapshots", do: func() error {
			return h.post("/volumes/delete", control.Request{Name: v.name, Snapshots: true}, nil)
		}, apply: v.deleted}}
	}
	return []crashStep{
		{name: "delete", do: func() error { return h.post("/volumes/delete", v.request(), nil) }, apply: v.deleted},
		{name: "docker remove", do: func() error { return h.docker("Remove", dockerRequest{Name: v.name}, nil) }, apply: v.deleted},
	}
}

func (v *crashVolume) mountedSteps(h *crashHost, w *worker) []crashStep {
	file := fmt.Sprintf("file-%d", v.serial%8)
	content := make([]byte, 1+w.rng.IntN(256<<10))
	for i := range content {
		content[i] = byte(w.rng.Uint32())
	}
	unmount := crashStep{name: "docker unmount", do: func() error {
		return h.docker("Unmount", dockerRequest{Name: v.name, ID: v.holder}, nil)
	}, apply: func() { v.holder = "" }}
	if v.holder == "user" {
		unmount = crashStep{name: "umount", do: func() error { return h.post("/volumes/umount", v.request(), nil) }, apply: func() { v.holder = "" }}
	}
	return []crashStep{unmount, {name: "write", do: func() error {
		w.writing.Store(true)
		defer w.writing.Store(false)
		return writeDurably(filepath.Join(v.path, file), content)
	}, apply: func() { v.files[file] = sha256.Sum256(content) }}}
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

// settle finds out whether what was asked for and not answered has happened; from then on it is known. It returns what
// that was.
func (v *crashVolume) settle(t *testing.T, h *crashHost) (pending *crashStep) {
	t.Helper()
	v.awaitWriter(t)
	if pending, v.pending = v.pending, nil; pending != nil {
		view, there := h.view(t, v.name)
		v.decide(t, h, *pending, view, there)
	}
	return pending
}

// verify compares a volume and its snapshots with what is known of them.
func (v *crashVolume) verify(t *testing.T, h *crashHost, pending *crashStep) {
	t.Helper()
	view, there := h.view(t, v.name)
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
	v.wantSnapshots(t, view, pending)
	if v.holder != "" {
		if !view.Mounted || view.Mountpoint != v.path || len(view.Holders) != 1 {
			t.Errorf("volume %s: held as %s at %s, but %+v (not answered: %s)", v.name, v.holder, v.path, view, pending)
			return
		}
		wantThawed(t, v.path)
		if problem := v.problem(v.path); problem != "" {
			t.Errorf("volume %s: %s (not answered: %s)", v.name, problem, pending)
		}
		return
	}
	if problem := h.look(t, v.name, v.problem); problem != "" {
		t.Errorf("volume %s: %s (not answered: %s)", v.name, problem, pending)
	}
	v.device = v.size
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
func (v *crashVolume) decide(t *testing.T, h *crashHost, s crashStep, view daemon.View, there bool) {
	t.Helper()
	if s.happened != nil {
		if s.happened(t, view, there) {
			s.apply()
		}
		return
	}
	switch s.name {
	case "create", "docker create", "create xfs":
		if there {
			s.apply()
		}
	case "delete", "docker remove", "delete with snapshots":
		if !there {
			s.apply()
		}
	case "resize", "resize mounted", "set":
		if before := *v; there {
			if s.apply(); view.Size != v.size || view.Labels["version"] != v.label {
				v.size, v.device, v.label = before.size, before.device, before.label
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
	deadline := time.Now().Add(crashLimit)
	for view, _ := h.view(t, v.name); view.Mounted; view, _ = h.view(t, v.name) {
		if time.Now().After(deadline) {
			t.Fatalf("volume %s stays mounted: %+v", v.name, view)
		}
	}
}
