package snapshot_test

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync"
	"testing"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

const mebibyte = int64(1) << 20

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A world is a Manager on a pool in memory, with volumes that nobody can mount.
type world struct {
	*snapshot.Manager
	volumes *volume.Manager
	store   *watchedStore
	pool    *watchedPool
	memory  *blockdevtest.Memory
	hooks   []string // that have run
}

// A watch counts calls by their names, and can have one of them fail or be followed by something.
type watch struct {
	mu      sync.Mutex
	counts  map[string]int
	instead map[string]error  // that the call returns, without being made
	after   map[string]func() // is called when the call has succeeded, before its caller goes on
}

// call counts a call and makes it, unless it is to fail.
func (w *watch) call(name string, do func() error) error {
	w.mu.Lock()
	w.counts[name]++
	err, after := w.instead[name], w.after[name]
	w.mu.Unlock()
	if err != nil {
		return err
	}
	err = do()
	if err == nil && after != nil {
		after()
	}
	return err
}

// reset forgets the counts.
func (w *watch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.counts)
}

func (w *watch) count() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.counts)
}

// fail has the calls of a name fail from now on, and no others; a nil err ends that.
func (w *watch) fail(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instead = map[string]error{name: err}
}

// then has fn called after each successful call of a name, and of no others; a nil fn ends that.
func (w *watch) then(name string, fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.after = map[string]func(){name: fn}
}

// watchedStore counts transactions.
type watchedStore struct {
	*watch
	store *metadata.Store
}

func (s *watchedStore) View(fn func(*metadata.Tx) error) error {
	return s.call("view", func() error { return s.store.View(fn) })
}

func (s *watchedStore) Update(ctx context.Context, fn func(*metadata.Tx) error) error {
	return s.call("update", func() error { return s.store.Update(ctx, fn) })
}

// watchedPool counts calls.
type watchedPool struct {
	blockdev.Pool
	*watch
	quiesces bool
}

func (p *watchedPool) Prepare(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	return p.call("prepare", func() error { return p.Pool.Prepare(ctx, dst, src, record) })
}

func (p *watchedPool) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	return p.call("clone", func() error { return p.Pool.Clone(ctx, dst, src, record) })
}

func (p *watchedPool) Describe(ctx context.Context, id blockdev.ID, record blockdev.Record) error {
	return p.call("describe", func() error { return p.Pool.Describe(ctx, id, record) })
}

func (p *watchedPool) Sync(ctx context.Context, id blockdev.ID) error {
	return p.call("sync", func() error { return p.Pool.Sync(ctx, id) })
}

func (p *watchedPool) Seal(ctx context.Context, id blockdev.ID) error {
	return p.call("seal", func() error { return p.Pool.Seal(ctx, id) })
}

func (p *watchedPool) Activate(ctx context.Context, id blockdev.ID, mode blockdev.Mode) (path string, err error) {
	err = p.call("activate", func() error {
		path, err = p.Pool.Activate(ctx, id, mode)
		return err
	})
	return path, err
}

func (p *watchedPool) Deactivate(ctx context.Context, id blockdev.ID) error {
	return p.call("deactivate", func() error { return p.Pool.Deactivate(ctx, id) })
}

func (p *watchedPool) Remove(ctx context.Context, id blockdev.ID) error {
	return p.call("remove", func() error { return p.Pool.Remove(ctx, id) })
}

func (p *watchedPool) Stat(ctx context.Context, id blockdev.ID) (info blockdev.Info, err error) {
	err = p.call("stat", func() error {
		info, err = p.Pool.Stat(ctx, id)
		return err
	})
	return info, err
}

func (p *watchedPool) List(ctx context.Context) (list []blockdev.Info, err error) {
	err = p.call("list", func() error {
		list, err = p.Pool.List(ctx)
		return err
	})
	return list, err
}

func (p *watchedPool) Space(ctx context.Context) (space blockdev.Space, err error) {
	err = p.call("space", func() error {
		space, err = p.Pool.Space(ctx)
		return err
	})
	return space, err
}

func (p *watchedPool) Traits() blockdev.Traits {
	traits := p.Pool.Traits()
	traits.Quiesces = p.quiesces
	return traits
}

func newWatch() *watch { return &watch{counts: map[string]int{}} }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newWorld makes a world with volumes of 1 MiB, each with its name written at its beginning.
func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	root := t.TempDir()
	store, err := metadata.Open(root)
	check(t, err)
	memory := blockdevtest.NewMemory()
	t.Cleanup(func() { memory.Close(); check(t, store.Close()) })
	w := &world{memory: memory, store: &watchedStore{newWatch(), store}, pool: &watchedPool{Pool: memory, watch: newWatch()}}
	w.volumes, err = volume.New(volume.Config{
		Root: root, Store: store, Boot: "boot", Log: quiet(), Pools: []volume.Pool{{Name: "pool", UUID: "uuid", Pool: w.pool}},
	})
	check(t, err)
	w.Manager = snapshot.New(snapshot.Config{Store: w.store, Volumes: w.volumes, Log: quiet(), RunHook: w.runHook})
	check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.PutPool(metadata.Pool{Name: "pool", UUID: "uuid"})
	}))
	for _, name := range names {
		w.addVolume(t, name)
	}
	return w
}

func (w *world) runHook(_ context.Context, argv, _ []string) error {
	w.hooks = append(w.hooks, argv...)
	return nil
}

func (w *world) addVolume(t *testing.T, name string) {
	t.Helper()
	v := metadata.Volume{
		ID: "id-of-" + name, Name: name, Lineage: "id-of-" + name, Device: string(blockdev.NewID()), Pool: "pool", PoolUUID: "uuid",
		Size: mebibyte, Filesystem: "ext4", PreSnapshot: []string{"before " + name}, PostSnapshot: []string{"after " + name}, State: metadata.Ready,
	}
	check(t, w.pool.Create(t.Context(), blockdev.ID(v.Device), v.Size, nil))
	check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error {
		if err := tx.PutDevice(metadata.Device{ID: v.Device, Pool: "pool", Kind: metadata.KindVolume, Size: v.Size}); err != nil {
			return err
		}
		return tx.PutVolume(v)
	}))
	w.write(t, name, name)
}

// take takes a snapshot and returns its record.
func (w *world) take(t *testing.T, volume, name string) metadata.Snapshot {
	t.Helper()
	taken, err := w.Create(t.Context(), []string{"id-of-" + volume}, snapshot.Spec{Name: name})
	check(t, err)
	return taken[0]
}

func (w *world) volume(t *testing.T, name string) (v metadata.Volume) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.VolumeNamed(name)
		return err
	}))
	return v
}

func (w *world) snapshots(t *testing.T) (all []metadata.Snapshot) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		all, err = tx.Snapshots("")
		return err
	}))
	return all
}

// devices returns how many devices the pool has, and fails unless the metadata knows just these.
func (w *world) devices(t *testing.T) int {
	t.Helper()
	there, err := w.memory.List(t.Context())
	check(t, err)
	known := map[string]bool{}
	check(t, w.store.View(func(tx *metadata.Tx) error {
		records, err := tx.Devices()
		for _, r := range records {
			known[r.ID] = true
		}
		return err
	}))
	for _, info := range there {
		if !known[string(info.ID)] {
			t.Errorf("device %s is in the pool and nowhere else", info.ID)
		}
	}
	if len(known) != len(there) {
		t.Errorf("the metadata knows %d devices, and the pool has %d", len(known), len(there))
	}
	return len(there)
}

// write replaces what a volume's device begins with.
func (w *world) write(t *testing.T, volume, text string) {
	t.Helper()
	w.open(t, w.volume(t, volume).Device, blockdev.ReadWrite, func(f *os.File) {
		_, err := f.WriteAt([]byte(text+"\n"), 0)
		check(t, err)
	})
}

// read returns what write wrote to a device.
func (w *world) read(t *testing.T, device string) (text string) {
	t.Helper()
	w.open(t, device, blockdev.ReadOnly, func(f *os.File) {
		raw := make([]byte, 64)
		_, err := f.ReadAt(raw, 0)
		check(t, err)
		for i, c := range raw {
			if c == '\n' {
				text = string(raw[:i])
				return
			}
		}
	})
	return text
}

func (w *world) open(t *testing.T, device string, mode blockdev.Mode, fn func(*os.File)) {
	t.Helper()
	path, err := w.memory.Activate(t.Context(), blockdev.ID(device), mode)
	check(t, err)
	flags := os.O_RDONLY
	if mode == blockdev.ReadWrite {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0)
	check(t, err)
	fn(f)
	check(t, f.Close())
	check(t, w.memory.Deactivate(t.Context(), blockdev.ID(device)))
}
