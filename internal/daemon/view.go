package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/metadata"
)

// Bytes prints a size for people.
func Bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// A View is what users see of a volume. Its JSON is a contract: names never change.
type View struct {
	Name         string            `json:"name"`
	ID           string            `json:"id"`
	Size         int64             `json:"size"` // bytes
	Used         int64             `json:"used"` // bytes allocated in the pool
	Filesystem   string            `json:"filesystem"`
	Pool         string            `json:"pool"`
	Mountpoint   string            `json:"mountpoint"` // empty while not mounted
	Mounted      bool              `json:"mounted"`
	Holders      []HolderView      `json:"holders"`
	Created      string            `json:"created"` // RFC 3339, UTC
	Labels       map[string]string `json:"labels"`
	MountOptions []string          `json:"mount_options"`
	Protected    bool              `json:"protected"`
	State        string            `json:"state"` // of the metadata, or "degraded"
	Problem      string            `json:"problem,omitempty"`
	Warnings     []string          `json:"warnings,omitempty"` // of the space below it
	Kept         bool              `json:"kept"`               // mounted without a holder because something uses it still
	PreSnapshot  []string          `json:"pre_snapshot,omitempty"`
	PostSnapshot []string          `json:"post_snapshot,omitempty"`
	Snapshots    []SnapshotView    `json:"snapshots"`
	Keep         string            `json:"keep"`      // retention policy of its backups, if it has one of its own
	NoBackup     bool              `json:"no_backup"` // left out when all volumes are backed up
	LastBackup   *BackupRef        `json:"last_backup"`
	Restore      *RestoreView      `json:"restore,omitempty"`     // the backup that it came from, or is being filled from
	ReadOnly     bool              `json:"read_only"`             // mounted, and went read-only after an error
	WantedSize   int64             `json:"wanted_size,omitempty"` // bytes to which it could not be grown; Size is what it has
	*FillView                      // absent while it is not mounted
	DeviceID     string            `json:"device_id"`         // of the pool
	Image        string            `json:"image"`             // file that holds the device; empty if its pool is missing
	Device       string            `json:"device"`            // node while attached, as in /dev/loop7; else empty
	FSUUID       string            `json:"fs_uuid,omitempty"` // from inspect only, if it can be read

	ungrown bool   // Problem tells why it has not its wanted size
	remedy  string // command for the problem
}

// A HolderView is what users see of somebody who holds a volume.
type HolderView struct {
	ID         string `json:"id"`
	Kind       string `json:"kind"` // "docker" or "user"
	Mountpoint string `json:"mountpoint"`
	Since      string `json:"since"`   // RFC 3339, UTC
	Suspect    bool   `json:"suspect"` // dropped as soon as the kernel shows no use of the volume
}

// degraded is the state shown of a volume that cannot be used as it should.
const degraded = "degraded"

// A facts is what one read of the metadata has of a volume.
type facts struct {
	volume    metadata.Volume
	holders   []metadata.Holder
	snapshots []metadata.Snapshot
	growth    *metadata.FailedGrowth
	backups   []metadata.BackupStatus
}

// readFacts reads what there is of a volume besides its record.
func readFacts(tx *metadata.Tx, v metadata.Volume) (f facts, err error) {
	f.volume = v
	if f.holders, err = tx.Holders(v.ID); err != nil {
		return f, err
	}
	if f.growth, err = failedGrowth(tx, v); err != nil {
		return f, err
	}
	if f.snapshots, err = tx.Snapshots(v.ID); err != nil {
		return f, err
	}
	f.backups, err = tx.Backups(v.ID)
	return f, err
}

// failedGrowth returns why a volume has not the size of its record, or nil.
func failedGrowth(tx *metadata.Tx, v metadata.Volume) (*metadata.FailedGrowth, error) {
	device, err := tx.Device(v.Device)
	if fault.Is(err, fault.ErrNotFound) { // its volume's trouble, and told as that
		return nil, nil
	}
	return device.FailedGrowth, err
}

// view builds what users see of a volume from its records and the kernel's mount table. It never fails: trouble shows
// in Problem.
func (d *Daemon) view(ctx context.Context, f facts, mounted map[string]fs.Entry) View {
	v, holders := f.volume, f.holders
	view := View{
		Name: v.Name, ID: v.ID, Size: v.Size, Filesystem: v.Filesystem, Pool: v.Pool,
		Holders: []HolderView{}, Created: v.Created.UTC().Format(time.RFC3339Nano),
		Labels: v.Labels, MountOptions: v.MountOptions, Protected: v.Protected, State: string(v.State),
		PreSnapshot: v.PreSnapshot, PostSnapshot: v.PostSnapshot,
		Snapshots: []SnapshotView{}, Keep: v.Keep, NoBackup: v.NoBackup, LastBackup: lastBackup(f.backups), Restore: d.restoreView(v),
		DeviceID: v.Device, Image: d.image(v),
	}
	if view.Labels == nil {
		view.Labels = map[string]string{}
	}
	if view.MountOptions == nil {
		view.MountOptions = []string{}
	}
	for _, h := range holders {
		kind := "docker"
		if h.User {
			kind = "user"
		}
		view.Holders = append(view.Holders, HolderView{
			ID: h.ID, Kind: kind, Mountpoint: h.Mountpoint, Since: h.Since.UTC().Format(time.RFC3339Nano), Suspect: d.volumes.Suspect(h),
		})
	}
	entry, isMounted := mounted[d.volumes.Mountpoint(v.Name)]
	if isMounted {
		view.Mounted, view.Mountpoint, view.Kept = true, entry.Mountpoint, len(holders) == 0
		view.FillView = d.fill(ctx, entry)
	}
	info, problem, remedy := d.examine(ctx, v)
	view.Used, view.Device, view.Problem, view.remedy = info.Used, info.Path, problem, remedy
	view.Warnings = d.volumes.SpaceWarnings(v.Pool)
	if view.ReadOnly = isMounted && entry.ReadOnly && !hasOption(v, "ro"); view.ReadOnly {
		view.Problem = "its filesystem went read-only after an error: stop its containers; the next mount checks it"
		view.remedy = "docker ps --filter volume=" + v.Name
	}
	if f.growth != nil {
		view.Size, view.WantedSize = f.growth.Size, v.Size
		if view.ungrown = view.Problem == ""; view.ungrown {
			view.Problem = fmt.Sprintf("its filesystem could not be grown to %s and has %s still: %s", Bytes(v.Size), Bytes(f.growth.Size), f.growth.Problem)
		}
	}
	if v.State == metadata.Failed {
		view.Problem = "its restore failed: " + v.Restore.Error
		view.remedy = "orlop delete " + v.Name + ", then restore it again"
	}
	if v.State == metadata.Restoring && v.Restore.Error != "" {
		view.Problem = "its restore waits: " + v.Restore.Error
		view.remedy = "mount the destination: the restore then continues within some minutes; or give it up: " + run.Line("orlop", "delete", v.Name)
	}
	if view.Problem != "" && v.State == metadata.Ready {
		view.State = degraded
	}
	return view
}

func hasOption(v metadata.Volume, option string) bool {
	for _, o := range v.MountOptions {
		if o == option {
			return true
		}
	}
	return false
}

// image returns the path of the file that holds a volume's device, or "" if its pool is missing.
func (d *Daemon) image(v metadata.Volume) string {
	pool, ok := d.poolNamed(v.Pool)
	if !ok || pool.Dir == "" {
		return ""
	}
	return filepath.Join(pool.Dir, "images", v.Device+".img")
}

// restartOnce returns what to do about a pool that is missing.
func (d *Daemon) restartOnce(name string) string {
	if pool, ok := d.poolNamed(name); ok && pool.Kind == "lvm" {
		vg, _, _ := strings.Cut(strings.TrimPrefix(pool.Spec, "lvm:"), "/")
		return "systemctl restart orlop, once '" + run.Line("lvs", "--all", vg) + "' shows its thin pool"
	}
	return "systemctl restart orlop, once the disk of pool " + name + " is mounted"
}

// examine describes a volume's device, and returns its problem, if it has one, with the command that helps.
func (d *Daemon) examine(ctx context.Context, v metadata.Volume) (info blockdev.Info, problem, remedy string) {
	pool, err := d.volumes.Pool(v)
	if err != nil {
		return info, err.Error(), d.restartOnce(v.Pool)
	}
	restore := fmt.Sprintf("restore %s from a copy, or orlop delete %s", run.Line(d.image(v)), v.Name)
	if d.image(v) == "" {
		restore = fmt.Sprintf("orlop delete %s, then orlop backup restore URL %s", v.Name, v.Name)
	}
	info, err = pool.Stat(ctx, blockdev.ID(v.Device))
	switch {
	case v.State != metadata.Ready && fault.Is(err, fault.ErrNotFound):
		return info, "", ""
	case fault.Is(err, fault.ErrNotFound):
		return info, err.Error(), restore
	case err != nil:
		return info, err.Error(), "journalctl -u orlop -g " + v.Device
	}
	if info.Size < v.Size {
		if err := d.volumes.Truncated(v, info.Size); err != nil {
			return info, err.Error(), restore
		}
	}
	return info, "", ""
}

// Get returns what users see of the volume of exactly this name; ok is false only if there is none. It reads one
// consistent state, waits for nobody, and answers for a volume whatever its trouble.
func (d *Daemon) Get(ctx context.Context, name string) (view View, ok bool) {
	var f facts
	err := d.store.View(func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed(name)
		if err == nil {
			f, err = readFacts(tx, v)
		}
		return err
	})
	if fault.Is(err, fault.ErrNotFound) {
		return View{}, false
	}
	if err != nil {
		return View{Name: name, State: degraded, Problem: err.Error()}, true
	}
	mounted, err := d.volumes.Mounted()
	view = d.view(ctx, f, mounted)
	for _, s := range f.snapshots { // without a look at each one's device: there may be thousands
		view.Snapshots = append(view.Snapshots, d.recordedView(s))
	}
	if err != nil {
		view.State, view.Problem = degraded, err.Error()
	}
	return view, true
}

// Inspect returns what users see of one volume, by its name, ID or the beginning of its ID.
func (d *Daemon) Inspect(ctx context.Context, ref string) (View, error) {
	if err := checkName(ref); err != nil {
		return View{}, err
	}
	var f facts
	err := d.store.View(func(tx *metadata.Tx) error {
		v, err := find(tx, ref)
		if err == nil {
			f, err = readFacts(tx, v)
		}
		return err
	})
	if err != nil {
		return View{}, err
	}
	mounted, err := d.volumes.Mounted()
	if err != nil {
		return View{}, err
	}
	view := d.view(ctx, f, mounted)
	view.Snapshots = d.snapshotViews(ctx, f.snapshots)
	if kind, err := fs.Lookup(view.Filesystem); err == nil && view.Image != "" {
		view.FSUUID, _ = kind.UUID(view.Image) // what is wrong with the image stands in Problem
	}
	return view, nil
}

// List returns what users see of every volume that passes all filters, by name. A filter is label=<key>,
// label=<key>=<value>, pool=<name>, state=<state> or mounted[=true|false].
func (d *Daemon) List(ctx context.Context, filters []string) ([]View, error) {
	pass, show, err := parseFilters(filters)
	if err != nil {
		return nil, err
	}
	var all []facts
	err = d.store.View(func(tx *metadata.Tx) error {
		holders := map[string][]metadata.Holder{}
		list, err := tx.Holders("")
		for _, h := range list {
			holders[h.Volume] = append(holders[h.Volume], h)
		}
		if err != nil {
			return err
		}
		snapshots, err := snapshotsByVolume(tx)
		if err != nil {
			return err
		}
		statuses, err := tx.Backups("")
		if err != nil {
			return err
		}
		backups := map[string][]metadata.BackupStatus{}
		for _, s := range statuses {
			backups[s.Volume] = append(backups[s.Volume], s)
		}
		return tx.Names(func(name string) error {
			v, err := tx.VolumeNamed(name)
			if err != nil || !pass(v) {
				return err
			}
			growth, err := failedGrowth(tx, v)
			all = append(all, facts{v, holders[v.ID], snapshots[v.ID], growth, backups[v.ID]})
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	mounted, err := d.volumes.Mounted()
	if err != nil {
		return nil, err
	}
	views := make([]View, len(all))
	for i, f := range all {
		views[i] = d.view(ctx, f, mounted)
		views[i].Snapshots = d.snapshotViews(ctx, f.snapshots)
	}
	return slices.DeleteFunc(views, func(v View) bool { return !show(v) }), nil
}

// Names returns the name of each volume with its mount point, empty while it is not mounted. It reads no records,
// so that it is fast with ten thousand volumes.
func (d *Daemon) Names(context.Context) (names []string, mountpoints map[string]string, err error) {
	mounted, err := d.volumes.Mounted()
	if err != nil {
		return nil, nil, err
	}
	mountpoints = map[string]string{}
	err = d.store.View(func(tx *metadata.Tx) error {
		return tx.Names(func(name string) error {
			names = append(names, name)
			if entry, ok := mounted[d.volumes.Mountpoint(name)]; ok {
				mountpoints[name] = entry.Mountpoint
			}
			return nil
		})
	})
	return names, mountpoints, err
}

// Info is what users see of the daemon.
type Info struct {
	Version     string     `json:"version"`
	PID         int        `json:"pid"`
	Started     string     `json:"started"` // RFC 3339, UTC
	Root        string     `json:"root"`
	RootID      string     `json:"root_id"`
	PluginName  string     `json:"plugin_name"`
	DefaultSize int64      `json:"default_size"` // bytes
	DefaultFS   string     `json:"default_fs"`
	Volumes     int        `json:"volumes"`
	Mounted     int        `json:"mounted"`
	Ballast     int64      `json:"ballast"` // bytes kept allocated in the root, to be given up when its disk is full
	Pools       []PoolView `json:"pools"`
}

// PoolView is what users see of a pool.
type PoolView struct {
	Name        string      `json:"name"`
	Kind        string      `json:"kind"`
	Spec        string      `json:"spec"`
	UUID        string      `json:"uuid"`
	Volumes     int         `json:"volumes"`
	Provisioned int64       `json:"provisioned"`        // bytes: sum of the volumes' sizes
	Layer       string      `json:"layer"`              // the tightest layer
	Size        int64       `json:"size"`               // bytes in that layer
	Free        int64       `json:"free"`               // bytes left in it
	Layers      []LayerView `json:"layers,omitempty"`   // of a thin pool: its data and its metadata
	Warnings    []string    `json:"warnings,omitempty"` // of the space of any layer
	Problem     string      `json:"problem,omitempty"`
}

// LayerView is what users see of a layer of a pool.
type LayerView struct {
	Layer string `json:"layer"`
	Size  int64  `json:"size"` // bytes
	Free  int64  `json:"free"` // bytes

	remedy string
}

// Info describes the daemon and its pools.
func (d *Daemon) Info(ctx context.Context) (Info, error) {
	info := Info{
		Version: d.version, PID: os.Getpid(), Started: d.started.UTC().Format(time.RFC3339), Root: d.root, RootID: d.store.RootID(),
		PluginName: d.pluginName, DefaultSize: d.defaultSize, DefaultFS: d.defaultFS,
	}
	counts, sizes := map[string]int{}, map[string]int64{}
	err := d.store.View(func(tx *metadata.Tx) error {
		volumes, err := tx.Volumes()
		for _, v := range volumes {
			counts[v.Pool]++
			sizes[v.Pool] += v.Size
		}
		info.Volumes = len(volumes)
		return err
	})
	mounted, mountErr := d.volumes.Mounted()
	if err := errors.Join(err, mountErr); err != nil {
		return Info{}, err
	}
	info.Mounted, info.Ballast = len(mounted), d.volumes.Ballast()
	for _, pool := range d.pools {
		view := PoolView{
			Name: pool.Name, Kind: pool.Kind, Spec: pool.Spec, UUID: pool.UUID,
			Volumes: counts[pool.Name], Provisioned: sizes[pool.Name], Warnings: d.volumes.SpaceWarnings(pool.Name),
		}
		space, err := poolSpace(ctx, pool)
		if err != nil {
			view.Problem = err.Error()
		}
		view.Layer, view.Size, view.Free = space.Layer, space.Size, space.Free
		view.Layers = layerViews(ctx, pool)
		info.Pools = append(info.Pools, view)
	}
	return info, nil
}

// layerViews shows the layers of a pool that has several of its own.
func layerViews(ctx context.Context, pool Pool) (views []LayerView) {
	if pool.Missing != nil || pool.Layers == nil {
		return nil
	}
	layers, err := pool.Layers(ctx)
	if err != nil {
		return nil // Space fails likewise, and that is shown
	}
	for _, l := range layers {
		views = append(views, LayerView{Layer: l.Layer, Size: l.Size, Free: l.Free, remedy: l.Remedy})
	}
	return views
}
