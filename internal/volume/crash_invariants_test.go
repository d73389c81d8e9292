//go:build root

package volume_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A picture is what a world shows to its users, without what is minted anew each time.
type picture struct {
	Volumes   map[string]string // records, by name
	Snapshots map[string]string // records, by snapshotKey
	Unknown   int               // devices
	Holders   []string          // volume and ID
	Mounts    []string          // below the root and the user's directory
	Epoch     uint64
}

// lines is the picture, a fact on each line.
func (p picture) lines() (lines []string) {
	for name, record := range p.Volumes {
		lines = append(lines, "volume "+name+": "+record)
	}
	for key, record := range p.Snapshots {
		lines = append(lines, "snapshot "+key+": "+record)
	}
	for _, h := range p.Holders {
		lines = append(lines, "holder "+h)
	}
	for _, dir := range p.Mounts {
		lines = append(lines, "mounted "+dir)
	}
	lines = append(lines, fmt.Sprintf("unknown %d", p.Unknown), fmt.Sprintf("epoch %d", p.Epoch))
	slices.Sort(lines)
	return lines
}

// afterPowerCut is a picture without what a restart of the machine ends.
func (p picture) afterPowerCut() picture {
	p.Holders, p.Mounts = nil, nil
	return p
}

func (w *world) picture(t testing.TB) picture {
	t.Helper()
	p := picture{Volumes: map[string]string{}, Snapshots: map[string]string{}}
	for _, v := range w.volumes(t) {
		p.Volumes[v.Name] = w.normal(t, v)
	}
	for _, s := range w.snapshots(t) {
		p.Snapshots[snapshotKey(s)] = fmt.Sprintf("%s %s %d %v grouped=%t", s.State, s.Consistency, s.Size, s.Labels, s.Group != "")
	}
	unknown, err := w.Unknowns(t.Context())
	check(t, err)
	p.Unknown = len(unknown)
	check(t, w.store.View(func(tx *metadata.Tx) error {
		p.Epoch = tx.Epoch()
		holders, err := tx.Holders("")
		for _, h := range holders {
			v, volumeErr := tx.Volume(h.Volume)
			check(t, volumeErr)
			p.Holders = append(p.Holders, v.Name+" "+strings.ReplaceAll(h.ID, w.user, "USER"))
		}
		return err
	}))
	slices.Sort(p.Holders)
	for _, dir := range w.mounts(t) {
		p.Mounts = append(p.Mounts, strings.NewReplacer(w.root, "ROOT", w.user, "USER").Replace(dir))
	}
	slices.Sort(p.Mounts)
	return p
}

// normal is a volume's record without what is minted, on one line.
func (w *world) normal(t testing.TB, v metadata.Volume) string {
	t.Helper()
	if !w.original[v.ID] {
		v.ID, v.Created = "", time.Time{}
		if !w.original[v.Lineage] {
			v.Lineage = ""
		}
	}
	if !w.original[v.ID] || v.Rollbacks > 0 {
		v.Device = ""
	}
	return fmt.Sprintf("%s %s %d %s %d:%d %o %v protected=%t rollbacks=%d %s %s %s %s", v.State, v.Filesystem, v.Size, v.MountOptions,
		v.UID, v.GID, v.Mode, v.Labels, v.Protected, v.Rollbacks, v.ID, v.Lineage, v.Device, v.Created)
}

// wantSound checks all that must be so whenever a daemon is ready, whatever happened before.
func (w *world) wantSound(t *testing.T) {
	t.Helper()
	mounted := map[string]bool{}
	names := map[string]bool{}
	for _, v := range w.volumes(t) {
		names[v.Name] = true
		if waits := v.State == metadata.Restoring && w.backup.waiting; v.State != metadata.Ready && v.State != metadata.Failed && !waits {
			t.Errorf("volume %s is left %s", v.Name, v.State)
		}
		if restoring(v) {
			w.wantUnusable(t, v)
		}
	}
	w.wantDevices(t)
	w.wantThawed(t)
	for _, dir := range w.mounts(t) {
		switch {
		case dir == w.user:
		case filepath.Dir(dir) == filepath.Join(w.root, "mounts") && names[filepath.Base(dir)]:
			v := w.volume(t, filepath.Base(dir))
			mounted[w.image(v)] = true
			if info := w.info(t, v.Name); info.Path == "" || deviceNumberOf(t, info.Path) != deviceOf(t, dir) {
				t.Errorf("%s does not show the device %q", dir, info.Path)
			}
		default:
			t.Errorf("left mounted: %s", dir)
		}
	}
	var attached map[string]string
	if !within(func() bool {
		attached = attachedBelow(w.dir)
		files := map[string]bool{}
		for _, file := range attached {
			files[file] = true
		}
		return len(attached) == len(files) && reflect.DeepEqual(files, mounted)
	}) {
		t.Errorf("attached: %v\nmounted: %v", attached, mounted)
	}
	w.wantClosedMountpoints(t, names)
}

func deviceNumberOf(t testing.TB, path string) uint64 {
	t.Helper()
	number, err := volume.DeviceNumber(path)
	check(t, err)
	return number
}

// An owner is whose a device is, and the kind and the seal that it must have.
type owner struct {
	id, name, kind string
	half           bool // its restore is not finished: the device may be absent, and carries what it was made with
}

func (w *world) owners(t testing.TB) map[string]owner {
	t.Helper()
	known := map[string]owner{}
	for _, v := range w.volumes(t) {
		known[v.Device] = owner{v.ID, v.Name, metadata.KindVolume, restoring(v)}
	}
	for _, s := range w.snapshots(t) {
		known[s.Device] = owner{s.ID, s.Name, metadata.KindSnapshot, false}
	}
	return known
}

// wantDevices checks that records and images belong together one by one, that snapshots' and no others are sealed, and
// that no other file is in the pool.
func (w *world) wantDevices(t *testing.T) {
	t.Helper()
	known := w.owners(t)
	var devices []metadata.Device
	check(t, w.store.View(func(tx *metadata.Tx) (err error) {
		devices, err = tx.Devices()
		return err
	}))
	recorded := map[string]bool{}
	for _, d := range devices {
		recorded[d.ID] = true
		if whose, ok := known[d.ID]; !ok || whose.kind != d.Kind {
			t.Errorf("device %s of kind %s belongs to %+v", d.ID, d.Kind, whose)
		}
	}
	if len(devices) != len(known) {
		t.Errorf("%d volumes and snapshots have %d devices", len(known), len(devices))
	}
	infos, err := w.pool.List(t.Context())
	check(t, err)
	files := map[string]bool{}
	for _, info := range infos {
		files[string(info.ID)+".img"], files[string(info.ID)+".json"] = true, true
		delete(recorded, string(info.ID))
		if whose, ok := known[string(info.ID)]; ok { // the pictures count what is unknown
			w.wantCarried(t, whose, info)
			w.wantSealed(t, whose, w.imageOf(string(info.ID)))
		}
	}
	maps.DeleteFunc(recorded, func(id string, _ bool) bool { return known[id].half })
	if len(recorded) > 0 {
		t.Errorf("devices without image: %v", slices.Sorted(maps.Keys(recorded)))
	}
	for _, file := range entries(t, filepath.Join(w.dir, "images")) {
		if !files[file] {
			t.Errorf("left in the pool: %s", file)
		}
		delete(files, file)
	}
	if len(files) > 0 {
		t.Errorf("gone from the pool: %v", slices.Sorted(maps.Keys(files)))
	}
}

// wantCarried checks that a device tells whose it is, and that it is ready.
func (w *world) wantCarried(t *testing.T, whose owner, info blockdev.Info) {
	t.Helper()
	v, s, err := w.Carried("loop", info)
	got := owner{}
	var state metadata.State
	switch {
	case s != nil:
		got, state = owner{s.ID, s.Name, metadata.KindSnapshot, false}, s.State
	case v != nil:
		got, state = owner{v.ID, v.Name, metadata.KindVolume, restoring(*v)}, v.State
	}
	if got != whose || state != metadata.Ready && !whose.half {
		t.Errorf("the device of %+v carries the %s record of %+v: %v", whose, state, got, err)
	}
}

func (w *world) wantSealed(t *testing.T, whose owner, image string) {
	t.Helper()
	info, err := os.Stat(image)
	check(t, err)
	writable, fixed, want := info.Mode().Perm()&0o200 != 0, isImmutable(t, image), whose.kind == metadata.KindSnapshot
	if writable == want || fixed != want {
		t.Errorf("the image of %+v: writable %t, immutable %t", whose, writable, fixed)
	}
}

// freezeWait is how long a filesystem may take to be written out; one that takes longer waits for something else.
const freezeWait = 2 * time.Minute

// wantThawed checks that nothing is frozen, and nothing announced to be.
func (w *world) wantThawed(t *testing.T) {
	t.Helper()
	for _, dir := range w.mounts(t) {
		done := make(chan error, 1)
		go func() {
			err := fs.Freeze(dir)
			if err == nil {
				err = fs.Thaw(dir)
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("frozen: %s: %v", dir, err)
			}
		case <-time.After(freezeWait):
			t.Fatalf("%s can be neither frozen nor thawed", dir)
		}
	}
	check(t, w.store.View(func(tx *metadata.Tx) error {
		intents, err := tx.Intents()
		if len(intents) > 0 {
			t.Errorf("announced still: %+v", intents)
		}
		return err
	}))
}

// wantClosedMountpoints checks that a mount point on which nothing is mounted lets nobody in, and that there is none
// without a volume.
func (w *world) wantClosedMountpoints(t *testing.T, names map[string]bool) {
	t.Helper()
	if left := entries(t, filepath.Join(w.root, "scratch")); len(left) > 0 {
		t.Errorf("left in scratch: %v", left)
	}
	for _, name := range entries(t, filepath.Join(w.root, "mounts")) {
		dir := w.Mountpoint(name)
		mounted, err := fs.IsMountpoint(dir)
		check(t, err)
		info, err := os.Lstat(dir)
		check(t, err)
		if !names[name] {
			t.Errorf("left: mount point %s", dir)
		}
		if !mounted && info.Mode().Perm() != 0 {
			t.Errorf("mount point %s has mode %s while nothing is mounted there", dir, info.Mode())
		}
	}
}

func entries(t testing.TB, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	check(t, err)
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

// wantWitness checks that whoever used the witness all the time has noticed nothing.
func (w *world) wantWitness(t *testing.T) {
	t.Helper()
	if w.inUse == nil {
		return
	}
	text := make([]byte, len(w.content[witness]))
	if _, err := w.inUse.ReadAt(text, 0); err != nil || string(text) != w.content[witness] {
		t.Errorf("the witness's open file: %v", err)
	}
	var open unix.Stat_t
	check(t, unix.Fstat(int(w.inUse.Fd()), &open))
	if deviceOf(t, w.Mountpoint(witness)) != open.Dev {
		t.Error("the witness's mount point shows another filesystem than before")
	}
}

// wantContent mounts each volume and checks its files and its root directory, and those of the snapshots.
func (w *world) wantContent(t *testing.T) {
	t.Helper()
	for _, v := range w.whole(t) {
		w.with(t, v.Name, func(dir string) {
			w.wantFiles(t, v, dir)
		})
	}
	w.wantSnapshots(t)
}

func (w *world) wantFiles(t *testing.T, v metadata.Volume, dir string) {
	t.Helper()
	want, isOld := w.content[contentKey(v)]
	if isOld {
		if text, err := os.ReadFile(filepath.Join(dir, fileName)); err != nil || string(text) != want {
			t.Errorf("volume %s: file of %d bytes, want %d: %v", v.Name, len(text), len(want), err)
		}
	}
	if files := entries(t, dir); isOld != (len(files) == 1) || len(files) > 1 {
		t.Errorf("in volume %s: %v", v.Name, files)
	}
	var stat unix.Stat_t
	check(t, unix.Stat(dir, &stat))
	if int(stat.Uid) != v.UID || int(stat.Gid) != v.GID || stat.Mode&0o7777 != v.Mode {
		t.Errorf("volume %s: root directory of %d:%d, mode %o", v.Name, stat.Uid, stat.Gid, stat.Mode)
	}
}

// wantRelease lets everybody go, and checks that nothing is held then, and that the filesystems are clean and have the
// size that the records promise.
func (w *world) wantRelease(t *testing.T) {
	t.Helper()
	if w.inUse != nil {
		check(t, w.inUse.Close())
		w.inUse = nil
	}
	w.endContainer()
	ctx := t.Context()
	for _, v := range w.whole(t) {
		holders, err := w.Holders(v)
		check(t, err)
		check(t, unmountUser(ctx, w, v.ID))
		for _, h := range holders {
			check(t, w.Unmount(ctx, v.ID, h.ID))
		}
	}
	w.tidyAll(ctx)
	w.wantSound(t)
	if mounts := w.mounts(t); len(mounts) > 0 {
		t.Errorf("mounted after everybody has let go: %v", mounts)
	}
	for _, v := range w.whole(t) {
		w.wantSize(t, v)
		wantClean(t, v.Name, v.Filesystem, w.image(v))
	}
}

// whole are the volumes that are not being restored.
func (w *world) whole(t testing.TB) []metadata.Volume {
	t.Helper()
	return slices.DeleteFunc(w.volumes(t), restoring)
}

// wantSizes checks that the filesystems, mounted or not, have the size that the records promise, without a resize that
// would make it so.
func (w *world) wantSizes(t testing.TB) {
	t.Helper()
	for _, v := range w.whole(t) {
		kind, err := fs.Lookup(v.Filesystem)
		check(t, err)
		path, size := w.image(v), kind.Size
		if entry, err := w.MountOf(w.Mountpoint(v.Name)); err != nil || entry != nil {
			check(t, err)
			path = w.info(t, v.Name).Path
			size = func(path string) (int64, error) { return kind.MountedSize(path, entry.Mountpoint) }
		}
		if now, err := size(path); err != nil || now != v.Size {
			t.Errorf("volume %s of %d bytes: its filesystem has %d: %v", v.Name, v.Size, now, err)
		}
	}
}

func (w *world) wantSize(t testing.TB, v metadata.Volume) {
	t.Helper()
	kind, err := fs.Lookup(v.Filesystem)
	check(t, err)
	info := w.info(t, v.Name)
	size, err := kind.Size(w.image(v))
	if err != nil || size != v.Size || info.Size != v.Size {
		t.Errorf("volume %s of %d bytes: its image has %d, its filesystem %d: %v", v.Name, v.Size, info.Size, size, err)
	}
}

// wantClean checks the filesystem in an image that nobody uses.
func wantClean(t testing.TB, name, filesystem, image string) {
	t.Helper()
	argv := map[string][]string{"ext4": {"e2fsck", "-f", "-n"}, "xfs": {"xfs_repair", "-n"}}[filesystem]
	out, err := exec.CommandContext(context.Background(), argv[0], append(argv[1:], image)...).CombinedOutput()
	if err != nil {
		t.Errorf("volume %s: %v: %v\n%s", name, argv, err, out)
	}
}

// wantOneOf checks that a picture is one of those that may be.
func wantOneOf(t *testing.T, got picture, allowed ...picture) {
	t.Helper()
	var text strings.Builder
	for i, p := range allowed {
		want, is := p.lines(), got.lines()
		if slices.Equal(want, is) {
			return
		}
		fmt.Fprintf(&text, "\nunlike allowed state %d:", i+1)
		for _, line := range want {
			if !slices.Contains(is, line) {
				text.WriteString("\n\twithout " + line)
			}
		}
		for _, line := range is {
			if !slices.Contains(want, line) {
				text.WriteString("\n\twith    " + line)
			}
		}
	}
	t.Errorf("neither as before nor as after:%s", &text)
}
