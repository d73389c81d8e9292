//go:build root

package volume_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	"orlop/fs"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

var (
	check         = volume.Check
	within        = volume.Within
	scratchDir    = volume.ScratchDir
	quiet         = volume.Quiet
	attachedBelow = volume.AttachedBelow
)

// The volumes of every world.
const (
	witness    = "witness"     // ext4; somebody uses it all the time, and it is none of the operation's business
	subject    = "subject"     // ext4; the operation's
	subjectXFS = "subject-xfs" // xfs; the operation's
	created    = "created"     // there after a create or an adoption only
)

const (
	sizeExt4 = 16 * mebibyte
	sizeXFS  = 300 * mebibyte
	fileName = "content"
)

// A world is a data root and a pool, and a daemon's life on them after another.
type world struct {
	site *site
	root string
	dir  string // of the pool
	user string // a directory of a user's, to mount a volume at
	boot string
	// rebuild asks for lost metadata to be rebuilt when the next life begins.
	rebuild bool

	*cut
	*volume.Manager
	snaps     *snapshot.Manager
	pool      *loop.Pool
	store     *metadata.Store
	content   map[string]string // of the file in each volume, synced, by contentKey
	held      map[string]string // of the file in each snapshot, by snapshotKey
	sums      map[string]string // of the images of snapshots that were acknowledged, by ID
	inUse     *os.File          // open in the witness
	container *container        // that has what was mounted when it began; nil for none
	backup    backedUp          // to restore
	original  map[string]bool   // IDs of the volumes that the template has
}

// A template is a world without life, to be copied.
type template struct {
	root, dir     string
	content, held map[string]string
	ids           map[string]bool
}

// makeTemplate makes volumes with a synced file each.
func (s *site) makeTemplate(t *testing.T, names ...string) *template {
	t.Helper()
	w := s.emptyWorld(t)
	w.begin(t)
	for _, name := range names {
		_, err := w.Create(t.Context(), specOf(name))
		check(t, err)
		w.write(t, name)
	}
	w.die(t)
	made := &template{root: w.root, dir: w.dir, content: w.content, ids: map[string]bool{}}
	w.life(t, func() {
		for _, v := range w.volumes(t) {
			made.ids[v.ID] = true
		}
	})
	return made
}

func specOf(name string) volume.Spec {
	s := volume.Spec{
		Name: name, Pool: "loop", Size: sizeExt4, Filesystem: "ext4", UID: 1000, GID: 1001, Mode: 0o750,
		Labels: map[string]string{"of": name}, BlockSize: loop.BlockSize,
	}
	if strings.HasSuffix(name, "xfs") {
		s.Filesystem, s.Size = "xfs", sizeXFS
	}
	return s
}

func (s *site) emptyWorld(t *testing.T) *world {
	t.Helper()
	number := s.worlds.Add(1)
	w := &world{
		site: s, boot: "boot-1", original: map[string]bool{},
		content: map[string]string{}, held: map[string]string{}, sums: map[string]string{},
		root: filepath.Join(s.dir, fmt.Sprintf("root-%d", number)),
		user: filepath.Join(s.dir, fmt.Sprintf("user-%d", number)),
		dir:  filepath.Join(s.pools, fmt.Sprintf("pool-%d", number)),
	}
	check(t, errors.Join(os.Mkdir(w.root, 0o700), os.Mkdir(w.user, 0o700), os.Mkdir(w.dir, 0o700)))
	t.Cleanup(func() { w.raze(t) })
	return w
}

// newWorld copies one of the site's templates and begins a life in it.
func (s *site) newWorld(t *testing.T, xfs bool) *world {
	t.Helper()
	from := s.plain
	if xfs {
		from = s.withXFS
	}
	w := s.worldOf(t, from)
	w.begin(t)
	return w
}

// worldOf copies a template. The copy of its metadata is not copied: it is made when a life begins.
func (s *site) worldOf(t *testing.T, from *template) *world {
	t.Helper()
	w := s.emptyWorld(t)
	w.content, w.original = maps.Clone(from.content), from.ids
	maps.Copy(w.held, from.held)
	copyFile(t, filepath.Join(from.root, metadata.FileName), w.database())
	cloneDir(t, from.dir, w.dir)
	syncFilesystem(t, w.dir)
	return w
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, raw, 0o600))
}

// raze ends whatever a failed test left and removes the world.
func (w *world) raze(t *testing.T) {
	t.Helper()
	w.die(t)
	w.unmountAll(t)
	images, err := filepath.Glob(filepath.Join(w.dir, "images", "*"))
	check(t, err)
	for _, path := range images {
		setImmutable(t, path, false)
	}
	if err := os.RemoveAll(w.dir); err != nil {
		t.Error(err)
	}
}

// prepare begins a life up to where lost metadata is rebuilt, as the daemon does.
func (w *world) prepare(ctx context.Context) (lost bool, err error) {
	if w.rebuild {
		w.store, lost, _, err = metadata.Rebuild(w.root)
		w.rebuild = false // a person asks once; what is not finished then goes on at the next start
	} else {
		w.store, err = metadata.Open(w.root)
	}
	if err != nil {
		return lost, err
	}
	lost = lost || w.store.Rebuilding()
	var known metadata.Pool
	err = w.store.View(func(tx *metadata.Tx) (err error) {
		known, _, err = tx.Pool("loop")
		return err
	})
	if err != nil {
		return lost, err
	}
	if w.pool, err = loop.Open(ctx, loop.Config{Root: w.root, Dir: w.dir, UUID: known.UUID, Adopt: lost}); err != nil {
		return lost, err
	}
	record := metadata.Pool{Name: "loop", UUID: w.pool.UUID(), Spec: "loop:" + w.dir, Created: time.Now().UTC()}
	if err := w.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutPool(record) }); err != nil {
		return lost, err
	}
	w.cut = &cut{}
	w.Manager, err = volume.New(volume.Config{
		Root: w.root, Store: w.store, Boot: w.boot, Log: quiet(),
		Pools: []volume.Pool{{Name: "loop", UUID: w.pool.UUID(), Pool: cutPool{w.pool, w.cut}}},
	})
	if err == nil {
		records := cutRecords{w.store, w.cut}
		w.Decorate(records, cutHost{volume.Kernel{}, w.cut})
		w.snaps = snapshot.New(snapshot.Config{Store: records, Volumes: w.Manager, Log: quiet()})
	}
	return lost, err
}

// open begins a life up to where recovery begins, as the daemon does.
func (w *world) open(t testing.TB) {
	t.Helper()
	lost, err := w.prepare(t.Context())
	check(t, err)
	if lost {
		check(t, w.Rebuild(t.Context()))
	}
}

// begin begins a life and does what the daemon does by itself.
func (w *world) begin(t testing.TB) {
	t.Helper()
	w.open(t)
	check(t, w.recoverAll(t.Context()))
	w.tidyAll(t.Context())
	w.resume(t)
}

// recoverAll recovers in the daemon's order.
func (w *world) recoverAll(ctx context.Context) error {
	if err := w.Recover(ctx); err != nil {
		return err
	}
	return w.snaps.Recover(ctx)
}

// tidyAll does once what the background does.
func (w *world) tidyAll(ctx context.Context) {
	w.Tidy(ctx)
	w.snaps.Tidy(ctx)
}

// die ends a life as the kernel ends a process: what it had open is closed.
func (w *world) die(t testing.TB) {
	t.Helper()
	if w.cut != nil {
		w.cut.close()
	}
	if w.pool != nil {
		w.pool.Close()
	}
	if w.store != nil {
		check(t, w.store.Close())
	}
	w.pool, w.store, w.Manager, w.snaps = nil, nil, nil, nil
}

// life begins a life, calls do in it and ends it.
func (w *world) life(t testing.TB, do func()) {
	t.Helper()
	w.begin(t)
	do()
	w.die(t)
}

// powerCut ends a life and everything in memory, and lets the machine start again: w's pools have gone down already.
func (w *world) powerCut(t testing.TB) {
	t.Helper()
	w.die(t)
	w.unmountAll(t)
	w.site.unmount(t)
	w.site.mount(t)
	w.boot += "'"
}

// unmountAll ends every mount of the world, and waits until its devices are free.
func (w *world) unmountAll(t testing.TB) {
	t.Helper()
	if w.inUse != nil {
		_ = w.inUse.Close() // nothing was written
		w.inUse = nil
	}
	w.endContainer()
	for _, dir := range w.mounts(t) {
		_ = fs.Thaw(dir) // what is unmounted frozen lives on unseen
	}
	for _, dir := range slices.Backward(w.mounts(t)) {
		if !within(func() bool { return fs.Unmount(dir) == nil }) {
			t.Fatalf("cannot unmount %s", dir)
		}
	}
	if !within(func() bool { return len(attachedBelow(w.dir)) == 0 }) {
		t.Fatalf("attached: %v", attachedBelow(w.dir))
	}
}

// endContainer ends the container, if there is one.
func (w *world) endContainer() {
	if w.container != nil {
		w.container.end()
		w.container = nil
	}
}

// mounts lists the mount points of the world in mount order.
func (w *world) mounts(t testing.TB) (dirs []string) {
	t.Helper()
	for _, below := range []string{w.root, w.user} {
		table, err := fs.Table(below)
		check(t, err)
		for _, entry := range table {
			if entry.Mountpoint == below || strings.HasPrefix(entry.Mountpoint, below+"/") {
				dirs = append(dirs, entry.Mountpoint)
			}
		}
	}
	return dirs
}

func (w *world) volumes(t testing.TB) (volumes []metadata.Volume) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		volumes, err = tx.Volumes()
		return err
	}))
	return volumes
}

// volume returns the volume of this name.
func (w *world) volume(t testing.TB, name string) (v metadata.Volume) {
	t.Helper()
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.VolumeNamed(name)
		return err
	}))
	return v
}

func (w *world) id(t testing.TB, name string) string {
	t.Helper()
	return w.volume(t, name).ID
}

func (w *world) image(v metadata.Volume) string { return w.imageOf(v.Device) }

func (w *world) imageOf(device string) string {
	return filepath.Join(w.dir, "images", device+".img")
}

// contentKey says which content a volume has: a rollback gives it another.
func contentKey(v metadata.Volume) string {
	if v.Rollbacks == 0 {
		return v.Name
	}
	return fmt.Sprintf("%s#%d", v.Name, v.Rollbacks)
}

// info describes a volume's device.
func (w *world) info(t testing.TB, name string) blockdev.Info {
	t.Helper()
	info, err := w.pool.Stat(t.Context(), blockdev.ID(w.volume(t, name).Device))
	check(t, err)
	return info
}

// with mounts a volume for as long as do runs.
func (w *world) with(t testing.TB, name string, do func(dir string)) {
	t.Helper()
	const probe = "probe"
	id := w.id(t, name)
	dir, err := w.Mount(t.Context(), id, probe)
	check(t, err)
	do(dir)
	check(t, w.Unmount(t.Context(), id, probe))
}

// write puts new content into a volume, synced: from here on it may not be lost.
func (w *world) write(t testing.TB, name string) {
	t.Helper()
	key := contentKey(w.volume(t, name))
	w.with(t, name, func(dir string) { w.content[key] = writeSynced(t, dir) })
}

func writeSynced(t testing.TB, dir string) (text string) {
	t.Helper()
	random := make([]byte, 8<<10)
	_, _ = rand.Read(random) // never fails
	text = hex.EncodeToString(random)
	f, err := os.Create(filepath.Join(dir, fileName))
	check(t, err)
	_, err = f.WriteString(text)
	check(t, errors.Join(err, f.Sync(), f.Close()))
	d, err := os.Open(dir)
	check(t, err)
	check(t, errors.Join(d.Sync(), d.Close()))
	return text
}

// useWitness mounts the witness for somebody who writes and syncs, and has a file open in it from here on.
func (w *world) useWitness(t testing.TB) {
	t.Helper()
	dir, err := w.Mount(t.Context(), w.id(t, witness), "container")
	check(t, err)
	w.content[witness] = writeSynced(t, dir)
	w.inUse, err = os.Open(filepath.Join(dir, fileName))
	check(t, err)
}

// deviceOf is the st_dev of what a directory shows.
func deviceOf(t testing.TB, dir string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	check(t, unix.Stat(dir, &stat))
	return stat.Dev
}
