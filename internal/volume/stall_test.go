//go:build root

package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev/blockdevtest"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// newStallable returns a Manager with volumes that are mounted. No stall outlives the test.
func newStallable(t *testing.T, names ...string) (m *Manager, volumes []metadata.Volume) {
	t.Helper()
	root := scratchDir(t)
	store, err := metadata.Open(root)
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	m = newStaller(t, root, store)
	for _, name := range names {
		v := metadata.Volume{ID: "id-" + name, Name: name, Device: "device-" + name, Pool: "pool", PoolUUID: "uuid", Filesystem: "ext4", State: metadata.Ready}
		check(t, store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutVolume(v) }))
		volumes = append(volumes, v)
		image, dir := filepath.Join(root, name+".img"), m.Mountpoint(name)
		check(t, fs.MakeMountpoint(dir))
		for _, argv := range [][]string{{"truncate", "-s", "64M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", argv, err, out)
			}
		}
		t.Cleanup(func() {
			check(t, fs.Thaw(dir))
			check(t, unix.Unmount(dir, 0))
			check(t, fs.RemoveMountpoint(dir))
		})
	}
	return m, volumes
}

// newStaller is a daemon's life on a root. Its stalls end before the test does.
func newStaller(t *testing.T, root string, store *metadata.Store) *Manager {
	t.Helper()
	m, err := New(Config{
		Root: root, Store: store, Boot: "boot", Log: quiet(),
		Pools: []Pool{{Name: "pool", UUID: "uuid", Pool: blockdevtest.NewMemory(), OnRoot: true}},
	})
	check(t, err)
	t.Cleanup(func() { // before those of what was made earlier
		m.stalls.end()
		m.stalls.running.Wait()
	})
	return m
}

// limitStalls has the stalls that begin from now on end after a limit.
func (m *Manager) limitStalls(limit time.Duration) {
	m.stalls.mu.Lock()
	defer m.stalls.mu.Unlock()
	m.stalls.atMost = limit
}

// frozen tells whether a volume is frozen, and whether that is announced.
func frozen(t *testing.T, m *Manager, v metadata.Volume) (is, announced bool) {
	t.Helper()
	dir := m.Mountpoint(v.Name)
	err := fs.Freeze(dir)
	if err == nil {
		check(t, fs.Thaw(dir))
	} else if !fault.Is(err, fault.ErrInUse) {
		t.Fatal(err)
	}
	check(t, m.store.View(func(tx *metadata.Tx) error {
		intents, err := tx.Intents()
		announced = slices.ContainsFunc(intents, func(i metadata.Intent) bool { return i.Volume == v.ID })
		return err
	}))
	return err != nil, announced
}

// wantStalled waits until a volume is stalled and its freeze is done, or until no stall is left.
func wantStalled(t *testing.T, m *Manager, v metadata.Volume, want bool) {
	t.Helper()
	if !want {
		if !within(func() bool { return !m.stalls.any() }) {
			t.Fatal("stalls do not end")
		}
		if is, announced := frozen(t, m, v); is || announced {
			t.Errorf("volume %s: frozen %t and announced %t, want neither", v.Name, is, announced)
		}
		return
	}
	if !within(func() bool {
		if m.stalls.of(v.ID) == nil {
			return false
		}
		release, err := m.locks.acquire(t.Context(), v.ID) // the freeze is made under it
		check(t, err)
		release()
		return true
	}) {
		t.Fatalf("volume %s is not stalled", v.Name)
	}
	if is, announced := frozen(t, m, v); !is || !announced {
		t.Errorf("volume %s: frozen %t and announced %t, want both", v.Name, is, announced)
	}
}

func TestStallBeginsAtTheLastMarkAndEndsWithSpaceOrItsLimit(t *testing.T) {
	m, volumes := newStallable(t, "data")
	marks, w := marksOf(100<<30), rootWatch{}
	for i, step := range []struct {
		free  int64
		limit time.Duration
		want  bool
	}{
		{marks.low, time.Hour, false},
		{marks.last, time.Hour, false},
		{marks.last - 1, time.Hour, true},
		{0, time.Hour, true},
		{marks.low - 1, time.Hour, true}, // not before it is clearly over
		{marks.low, time.Hour, false},
		{0, 1, false},         // as long as may be
		{0, time.Hour, false}, // and not again
		{marks.low - 1, time.Hour, false},
		{marks.low, time.Hour, false},
		{0, time.Hour, true}, // a new shortage
	} {
		m.limitStalls(step.limit)
		m.stallByMarks(t.Context(), step.free, marks, &w)
		if step.limit == 1 {
			m.stalls.running.Wait()
		}
		t.Run(fmt.Sprintf("step %d", i), func(t *testing.T) { wantStalled(t, m, volumes[0], step.want) })
	}
	check(t, m.unstall(volumes[0].ID))
	wantStalled(t, m, volumes[0], false)
}

func TestRecoveryEndsStallsOfAKilledDaemon(t *testing.T) {
	m, volumes := newStallable(t, "data")
	m.stallAll(t.Context())
	wantStalled(t, m, volumes[0], true)
	next := newStaller(t, m.root, m.store.(*metadata.Store))
	check(t, next.Recover(t.Context()))
	wantStalled(t, next, volumes[0], false)
	m.stalls.end() // to close what the kernel closes of a killed daemon
	m.stalls.running.Wait()
}

func TestStallLeavesAnotherOnesFreezeAlone(t *testing.T) {
	m, volumes := newStallable(t, "data")
	check(t, fs.Freeze(m.Mountpoint("data")))
	m.stallAll(t.Context())
	m.stalls.running.Wait()
	if is, announced := frozen(t, m, volumes[0]); !is || announced {
		t.Errorf("frozen %t and announced %t, want the freeze of somebody else and no announcement", is, announced)
	}
}

func TestWatchEndsItsStallsBeforeItReturns(t *testing.T) {
	m, volumes := newStallable(t, "data", "more")
	m.stallAll(t.Context())
	for _, v := range volumes {
		wantStalled(t, m, v, true)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.WatchSpace(ctx)
	for _, v := range volumes {
		wantStalled(t, m, v, false)
	}
}

// TestABallastThatCannotBeReleasedIsLoggedAndTriedAgain has a directory in its place, with a file in it at first, and no
// pool that needs a ballast.
func TestABallastThatCannotBeReleasedIsLoggedAndTriedAgain(t *testing.T) {
	m, _ := newStallable(t, "data")
	for name, pool := range m.pools {
		pool.OnRoot = false
		m.pools[name] = pool
	}
	lines := make(chan string, 10)
	m.log = slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	file := filepath.Join(m.ballast.path, "file")
	check(t, os.Mkdir(m.ballast.path, 0o700))
	check(t, os.WriteFile(file, nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.WatchSpace(ctx)
	}()
	if line := <-lines; !strings.Contains(line, "cannot release ballast") || !strings.Contains(line, m.ballast.path) {
		t.Errorf("logged: %s", line)
	}
	check(t, os.Remove(file))
	if !within(func() bool { return errors.Is(unix.Access(m.ballast.path, unix.F_OK), unix.ENOENT) }) {
		t.Error("it is there still")
	}
	cancel()
	<-ended
}

// lineWriter sends each line of a log.
type lineWriter chan string

func (w lineWriter) Write(line []byte) (int, error) {
	w <- string(line)
	return len(line), nil
}

// slowFreezer is a host on which to freeze one mount point takes until it is allowed to end.
type slowFreezer struct {
	host
	slow  string
	allow chan struct{}

	mu    sync.Mutex
	calls []string
	dirs  map[*fs.Held]string
}

func (h *slowFreezer) called(call, dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call+" "+filepath.Base(dir))
}

func (h *slowFreezer) has(call string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.calls, call)
}

func (h *slowFreezer) Freeze(dir string) (*fs.Held, error) {
	h.called("begin", dir)
	if dir == h.slow {
		<-h.allow
	}
	held, err := h.host.Freeze(dir)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dirs[held] = dir
	return held, err
}

func (h *slowFreezer) EndFreeze(held *fs.Held) error {
	err := h.host.EndFreeze(held)
	h.mu.Lock()
	dir := h.dirs[held]
	h.mu.Unlock()
	h.called("thawed", dir)
	return err
}

// A freeze writes its filesystem out first. While that took its time, no stall of another volume came to its end.
func TestASlowFreezeDelaysTheEndOfNoOtherStall(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit time.Duration
		end   func(*Manager)
	}{
		{"over", 1, func(*Manager) {}},
		{"space is back", time.Hour, func(m *Manager) { m.stalls.end() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, volumes := newStallable(t, "slow", "quick")
			h := &slowFreezer{host: m.host, slow: m.Mountpoint("slow"), allow: make(chan struct{}), dirs: map[*fs.Held]string{}}
			m.host = h
			m.limitStalls(test.limit)
			m.stallAll(t.Context()) // returns: the watch is not held up
			wait := func(call string) {
				t.Helper()
				if !within(func() bool { return h.has(call) }) {
					close(h.allow)
					t.Fatalf("not %s: %q", call, h.calls)
				}
			}
			wait("begin slow")
			wait("begin quick")
			test.end(m)
			wait("thawed quick")
			if m.stalls.of(volumes[0].ID) == nil || h.has("thawed slow") {
				t.Errorf("the slow freeze is not under way: %q", h.calls)
			}
			close(h.allow)
			m.stalls.running.Wait()
			for _, v := range volumes {
				wantStalled(t, m, v, false)
			}
		})
	}
}

// The goroutine of a stall may come to its end after the volume was thawed for another reason, and frozen for one.
func TestAStallIsEndedOnce(t *testing.T) {
	m, volumes := newStallable(t, "data")
	m.stallAll(t.Context())
	wantStalled(t, m, volumes[0], true)
	one := m.stalls.of(volumes[0].ID)
	check(t, m.unstall(volumes[0].ID))
	check(t, fs.Freeze(m.Mountpoint("data")))
	check(t, m.endStall(volumes[0].ID, one))
	if is, _ := frozen(t, m, volumes[0]); !is {
		t.Error("a stall that was over has thawed the freeze of somebody else")
	}
}
