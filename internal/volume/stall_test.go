//go:build root

package volume

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev/blockdevtest"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// newStallable returns a Manager with one volume that is mounted.
func newStallable(t *testing.T) (m *Manager, v metadata.Volume) {
	t.Helper()
	root := scratchDir(t)
	store, err := metadata.Open(root)
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	m, err = New(Config{
		Root: root, Store: store, Boot: "boot", Log: quiet(),
		Pools: []Pool{{Name: "pool", UUID: "uuid", Pool: blockdevtest.NewMemory(), OnRoot: true}},
	})
	check(t, err)
	v = metadata.Volume{ID: "id", Name: "data", Device: "device", Pool: "pool", PoolUUID: "uuid", Filesystem: "ext4", State: metadata.Ready}
	check(t, store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutVolume(v) }))
	image, dir := filepath.Join(root, "image"), m.Mountpoint(v.Name)
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
	return m, v
}

// frozen tells whether the volume is, and whether that is announced.
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
		announced = len(intents) > 0
		return err
	}))
	return err != nil, announced
}

func wantFrozen(t *testing.T, m *Manager, v metadata.Volume, want bool) {
	t.Helper()
	if is, announced := frozen(t, m, v); is != want || announced != want {
		t.Errorf("frozen %t and announced %t, want %t", is, announced, want)
	}
}

func TestStallBeginsAtTheLastMarkAndEndsWithSpaceOrItsLimit(t *testing.T) {
	m, v := newStallable(t)
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
		{0, time.Hour, true},
		{0, 1, false}, // as long as may be
		{0, time.Hour, false},
		{marks.low - 1, time.Hour, false},
		{marks.low, time.Hour, false},
		{0, time.Hour, true}, // a new shortage
	} {
		m.stalls.atMost = step.limit
		m.stallByMarks(t.Context(), step.free, marks, &w)
		t.Run(fmt.Sprintf("step %d", i), func(t *testing.T) { wantFrozen(t, m, v, step.want) })
	}
	check(t, m.unstall(t.Context(), v.ID))
	wantFrozen(t, m, v, false)
}

func TestRecoveryEndsStallsOfAKilledDaemon(t *testing.T) {
	m, v := newStallable(t)
	m.stallAll(t.Context())
	wantFrozen(t, m, v, true)
	m.stalls = stalls{} // all that a new process does not know
	check(t, m.Recover(t.Context()))
	wantFrozen(t, m, v, false)
}

func TestStallLeavesAnotherOnesFreezeAlone(t *testing.T) {
	m, v := newStallable(t)
	check(t, fs.Freeze(m.Mountpoint(v.Name)))
	m.stallAll(t.Context())
	m.unstallAll()
	if is, announced := frozen(t, m, v); !is || announced {
		t.Errorf("frozen %t and announced %t, want the freeze of somebody else and no announcement", is, announced)
	}
}

func TestWatchEndsItsStallsBeforeItReturns(t *testing.T) {
	m, v := newStallable(t)
	m.stallAll(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check(t, m.WatchSpace(ctx))
	wantFrozen(t, m, v, false)
}
