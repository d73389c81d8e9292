//go:build root

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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

// crashSnapshots is how many snapshots a volume has at most.
const crashSnapshots = 3

// A crashSnapshot is what a worker knows of a snapshot.
type crashSnapshot struct {
	name string // empty for the state that a rollback has kept, until it is looked for
	size int64
	crashContent
}

// loadFile is written all the time while a mounted volume is snapshotted.
const loadFile = "load"

// A crashContent is what a volume or a snapshot holds.
type crashContent struct {
	files map[string][sha256.Size]byte // by name, all of them but loadFile
	// loadFile is the from-th version or one of the next, up to the to-th. It is not there, or may not be, if from is zero.
	from, to uint64
}

func noContent() crashContent { return crashContent{files: map[string][sha256.Size]byte{}} }

func (c crashContent) clone() crashContent {
	c.files = maps.Clone(c.files)
	return c
}

// problem compares a directory with what it should hold, and says what differs.
func (c crashContent) problem(dir string) string {
	for name, want := range c.files {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || sha256.Sum256(content) != want {
			return fmt.Sprintf("%s is not what was synced (%d bytes, %v)", name, len(content), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	for _, entry := range entries {
		if _, known := c.files[entry.Name()]; !known && entry.Name() != loadFile && !isPartial(entry.Name()) {
			return "holds " + entry.Name() + ", which was not there"
		}
	}
	content, err := os.ReadFile(filepath.Join(dir, loadFile))
	if errors.Is(err, os.ErrNotExist) && c.from == 0 {
		return ""
	}
	var version uint64
	if err == nil {
		_, err = fmt.Sscanf(string(content), "%d\n", &version)
	}
	if err != nil || version < c.from || version > c.to || string(content) != string(loadVersion(version)) {
		return fmt.Sprintf("%s is version %d with %d bytes, want one from %d to %d: %v", loadFile, version, len(content), c.from, c.to, err)
	}
	return ""
}

// isPartial tells the name of a file that was being written.
func isPartial(name string) bool { return filepath.Ext(name) == ".new" }

// loadVersion is what loadFile holds in a version.
func loadVersion(version uint64) []byte {
	content := fmt.Appendf(nil, "%d\n", version)
	rng := rand.New(rand.NewPCG(version, 0))
	for range 1 + rng.IntN(8<<10) {
		content = append(content, byte(rng.Uint32()))
	}
	return content
}

// A crashWriter writes one version of loadFile after the other. While the volume is frozen it waits, also for the next
// daemon.
type crashWriter struct {
	stop  chan struct{}
	done  chan struct{} // closed when it has ended
	begun uint64        // the version written last
	err   error
}

func (v *crashVolume) startWriter() {
	w := &crashWriter{stop: make(chan struct{}), done: make(chan struct{}), begun: v.to}
	v.writer = w
	path := filepath.Join(v.path, loadFile)
	go func() {
		defer close(w.done)
		for w.err == nil {
			w.begun++
			w.err = writeDurably(path, loadVersion(w.begun))
			select {
			case <-w.stop:
				return
			default:
			}
		}
	}()
}

// endWriter waits for the end of a writer that was told to stop.
func (v *crashVolume) endWriter() error {
	<-v.writer.done
	v.from, v.to = v.writer.begun, v.writer.begun
	err := v.writer.err
	v.writer = nil
	return err
}

// awaitWriter fails unless what the killed daemon may have left frozen is thawed.
func (v *crashVolume) awaitWriter(t *testing.T) {
	t.Helper()
	if v.writer == nil {
		return
	}
	select {
	case <-v.writer.done:
		check(t, v.endWriter())
	case <-time.After(crashLimit):
		t.Fatalf("volume %s: a write waits still: it was left frozen", v.name)
	}
}

// wantThawed fails if a filesystem is frozen.
func wantThawed(t *testing.T, dir string) {
	t.Helper()
	err := fs.Freeze(dir)
	if err == nil {
		err = fs.Thaw(dir)
	}
	if err != nil {
		t.Errorf("left frozen: %v", err)
	}
}

func shows(view daemon.View, snapshot string) bool {
	return slices.ContainsFunc(view.Snapshots, func(s daemon.SnapshotView) bool { return s.Name == snapshot })
}

// taken is a snapshot of the volume as it is from now on, or was when writes began that may be in it.
func (v *crashVolume) taken(name string, begun uint64) *crashSnapshot {
	s := &crashSnapshot{name: name, size: v.device, crashContent: v.clone()}
	s.from = begun
	return s
}

// snapshotSteps lists what may be asked for of the snapshots of a volume, mounted or not.
func (v *crashVolume) snapshotSteps(h *crashHost, w *worker, one string) (steps []crashStep) {
	if len(v.snapshots) < crashSnapshots {
		steps = append(steps, v.takeStep(h, one, v))
		for _, other := range w.volumes {
			if other != v && other.exists && len(other.snapshots) < crashSnapshots {
				steps = append(steps, v.takeStep(h, "snapshot group", v, other))
			}
		}
	}
	if s := w.anySnapshot(v); s != nil {
		steps = append(steps, crashStep{name: "snapshot delete", do: func() error {
			return h.post("/snapshots/delete", control.Request{Name: v.name + "@" + s.name}, nil)
		}, apply: func() {
			v.snapshots = slices.DeleteFunc(v.snapshots, func(other *crashSnapshot) bool { return other == s })
		}, happened: func(_ *testing.T, view daemon.View, _ bool) bool { return !shows(view, s.name) }})
	}
	return steps
}

// takeStep takes a snapshot of each of the volumes, v among them. If v is mounted it is written meanwhile.
func (v *crashVolume) takeStep(h *crashHost, step string, volumes ...*crashVolume) crashStep {
	name, begun := fmt.Sprintf("of-%s-%d", v.name, v.serial), map[*crashVolume]uint64{}
	request := control.Request{Name: name}
	for _, one := range volumes {
		request.Volumes, begun[one] = append(request.Volumes, one.name), one.from
	}
	return crashStep{name: step, do: func() error {
		if v.holder == "" {
			return h.post("/snapshots/create", request, nil)
		}
		v.startWriter()
		err := h.post("/snapshots/create", request, nil)
		close(v.writer.stop)
		if fault.Is(err, fault.ErrUnreachable) {
			return err // and the volume may be frozen until the next daemon begins
		}
		return errors.Join(err, v.endWriter())
	}, apply: func() {
		for _, one := range volumes {
			one.snapshots = append(one.snapshots, one.taken(name, begun[one]))
		}
	}, happened: func(t *testing.T, _ daemon.View, _ bool) bool {
		var there []string
		for _, one := range volumes {
			if view, _ := h.view(t, one.name); shows(view, name) {
				there = append(there, one.name)
			}
		}
		if len(there) > 0 && len(there) < len(volumes) {
			t.Errorf("of the group %s of %q there is only that of %q", name, request.Volumes, there)
		}
		return len(there) > 0
	}}
}

// anySnapshot picks a snapshot of the volume whose name is known, or nil.
func (w *worker) anySnapshot(v *crashVolume) *crashSnapshot {
	named := slices.DeleteFunc(slices.Clone(v.snapshots), func(s *crashSnapshot) bool { return s.name == "" })
	if len(named) == 0 {
		return nil
	}
	return named[w.rng.IntN(len(named))]
}

// restoreSteps lists the rollbacks of a volume that is not mounted.
func (v *crashVolume) restoreSteps(h *crashHost, w *worker) (steps []crashStep) {
	s := w.anySnapshot(v)
	if s == nil {
		return nil
	}
	if len(v.snapshots) <= crashSnapshots {
		steps = append(steps, crashStep{name: "restore", do: func() error {
			return h.post("/snapshots/restore", control.Request{Name: v.name + "@" + s.name}, nil)
		}, apply: func() {
			v.snapshots = append(v.snapshots, v.taken("", v.from))
			v.crashContent, v.device = s.clone(), s.size
		}, happened: func(_ *testing.T, view daemon.View, _ bool) bool {
			return len(view.Snapshots) > len(v.snapshots)
		}})
	}
	return append(steps, crashStep{name: "restore and discard", do: func() error {
		return h.post("/snapshots/restore", control.Request{Name: v.name + "@" + s.name, Discard: true}, nil)
	}, apply: func() {
		v.crashContent, v.device = s.clone(), s.size
	}, happened: func(t *testing.T, _ daemon.View, _ bool) bool {
		return h.look(t, v.name, s.problem) == "" // and if it holds the same as before, it does not matter
	}})
}

func (v *crashVolume) knownNames() (names []string) {
	for _, s := range v.snapshots {
		if s.name != "" {
			names = append(names, s.name)
		}
	}
	return names
}

// copySteps lists what a volume that is not there may be made from.
func (w *worker) copySteps(h *crashHost, v *crashVolume) (steps []crashStep) {
	from := func(step, origin string, size int64, xfs bool, content crashContent) {
		steps = append(steps, crashStep{name: step, do: func() error {
			return h.copyOf(origin, v.name)
		}, apply: v.created(size, xfs, content.clone), happened: func(_ *testing.T, _ daemon.View, there bool) bool { return there }})
	}
	for _, other := range w.volumes {
		if other == v || !other.exists {
			continue
		}
		from("create from volume", other.name, other.size, other.xfs, other.crashContent)
		if s := w.anySnapshot(other); s != nil {
			from("create from snapshot", other.name+"@"+s.name, s.size, other.xfs, s.crashContent)
		}
	}
	return steps
}

// copyOf makes a volume of another one, or of a snapshot.
func (h *crashHost) copyOf(origin, name string) error {
	return h.post("/volumes/create", control.Request{Name: name, Options: []control.Setting{
		{Key: "from", Value: origin}, {Key: "label", Value: "version=0"},
	}}, nil)
}

// look mounts a volume that is not mounted for as long as it takes to find a problem in it.
func (h *crashHost) look(t *testing.T, name string, find func(dir string) string) (problem string) {
	t.Helper()
	var answer dockerAnswer
	check(t, h.docker("Mount", dockerRequest{Name: name, ID: "probe"}, &answer))
	wantThawed(t, answer.Mountpoint)
	problem = find(answer.Mountpoint)
	check(t, h.docker("Unmount", dockerRequest{Name: name, ID: "probe"}, nil))
	return problem
}

// wantSnapshots compares the list of a volume's snapshots with those that were acknowledged, and learns the names of
// those that rollbacks have kept, by their age.
func (v *crashVolume) wantSnapshots(t *testing.T, view daemon.View, pending *crashStep) {
	t.Helper()
	known := v.knownNames()
	var kept []string
	for _, s := range view.Snapshots {
		if s.State != string(metadata.Ready) || s.Problem != "" {
			t.Errorf("snapshot %s@%s: %+v (not answered: %s)", v.name, s.Name, s, pending)
		}
		if !slices.Contains(known, s.Name) && strings.HasPrefix(s.Name, "before-restore-") {
			kept = append(kept, s.Name)
		}
	}
	for _, s := range v.snapshots {
		if s.name == "" && len(kept) > 0 {
			s.name, kept = kept[0], kept[1:]
		}
	}
	var got []string
	for _, s := range view.Snapshots {
		got = append(got, fmt.Sprintf("%s of %d", s.Name, s.Size))
	}
	var want []string
	for _, s := range v.snapshots {
		want = append(want, fmt.Sprintf("%s of %d", s.name, s.size))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("volume %s has the snapshots %q, want %q (not answered: %s)", v.name, got, want, pending)
	}
}

// wantHeld makes the volume called name of a snapshot and looks into it.
func (s *crashSnapshot) wantHeld(t *testing.T, h *crashHost, v *crashVolume, name string) {
	t.Helper()
	check(t, h.copyOf(v.name+"@"+s.name, name))
	if problem := h.look(t, name, s.problem); problem != "" {
		t.Errorf("snapshot %s@%s: %s", v.name, s.name, problem)
	}
}

// wantOneHeld looks into one of the snapshots that there are.
func (l *load) wantOneHeld(t *testing.T) {
	t.Helper()
	volumes := slices.DeleteFunc(l.volumes(), func(v *crashVolume) bool { return len(v.snapshots) == 0 })
	if len(volumes) == 0 {
		return
	}
	v := volumes[l.rng.IntN(len(volumes))]
	v.snapshots[l.rng.IntN(len(v.snapshots))].wantHeld(t, l.host, v, "probe")
	check(t, l.host.post("/volumes/delete", control.Request{Name: "probe"}, nil))
}

// copyEverySnapshot makes a volume of each snapshot, and looks into it. It returns how to delete them.
func (l *load) copyEverySnapshot(t *testing.T) (remove func()) {
	t.Helper()
	var copies []string
	for _, v := range l.volumes() {
		for i, s := range v.snapshots {
			name := fmt.Sprintf("%s-copy-%d", v.name, i)
			s.wantHeld(t, l.host, v, name)
			copies = append(copies, name)
		}
	}
	return func() {
		for _, name := range copies {
			check(t, l.host.post("/volumes/delete", control.Request{Name: name}, nil))
		}
	}
}
