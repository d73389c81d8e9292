// Package daemon holds each verb of the product once, for every front door: Docker's protocol and the control API
// decode, call one method here, and encode. It checks what users typed, reads what users see from one consistent
// read of the metadata, and leaves the work to internal/volume.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"orlop/blockdev"
	"orlop/internal/backup"
	"orlop/internal/fault"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A Pool is a configured pool and what the daemon shows of it.
type Pool struct {
	volume.Pool
	Kind      string // "loop" or "lvm"
	Spec      string // as configured
	Dir       string // holds the devices' files; empty if the pool is missing or has no files
	BlockSize int    // logical block size of its devices in bytes
	Advice    []Advice

	// Layers returns how full each layer of a pool without files is: first that of the data. nil for pools with files.
	Layers func(context.Context) ([]blockdev.Space, error)
}

// An Advice is something about a pool's configuration that will be trouble one day, and the command that helps.
type Advice struct{ Problem, Command string }

// Config is what a Daemon needs.
type Config struct {
	Version     string
	Root        string // data root
	Store       *metadata.Store
	Volumes     *volume.Manager
	Snapshots   *snapshot.Manager
	Jobs        *job.Manager
	Backups     *backup.Manager
	Pools       []Pool // the first is the default
	DefaultSize int64  // bytes; rounded up to whole blocks
	DefaultFS   string
	PluginName  string
	Log         *slog.Logger
}

// A Daemon is the product behind its front doors. It is safe for concurrent use.
type Daemon struct {
	version     string
	root        string
	store       *metadata.Store
	volumes     *volume.Manager
	snapshots   *snapshot.Manager
	jobs        *job.Manager
	backups     *backup.Manager
	pools       []Pool
	defaultSize int64
	defaultFS   string
	pluginName  string
	started     time.Time
	asking      asking
}

// New returns a Daemon on c. It fails with fault.ErrInvalid if the defaults cannot be used for a volume.
func New(c Config) (*Daemon, error) {
	d := &Daemon{
		version: c.Version, root: c.Root, store: c.Store, volumes: c.Volumes, snapshots: c.Snapshots, jobs: c.Jobs, backups: c.Backups, pools: c.Pools,
		defaultSize: volume.RoundUp(c.DefaultSize), defaultFS: c.DefaultFS, pluginName: c.PluginName, started: time.Now(),
	}
	return d, CheckDefaults(c.DefaultFS, c.DefaultSize)
}

// Create makes a volume and returns what inspect shows. One that is restored from a backup is whole then.
func (d *Daemon) Create(ctx context.Context, name string, options []Option) (View, error) {
	return d.create(ctx, name, options, false)
}

func (d *Daemon) create(ctx context.Context, name string, options []Option, docker bool) (View, error) {
	if err := checkName(name); err != nil {
		return View{}, err
	}
	spec, err := d.parseOptions(name, options)
	if err != nil {
		return View{}, err
	}
	if spec.given["backup"] {
		if err := d.createFromBackup(ctx, spec, docker); err != nil {
			return View{}, err
		}
		return d.Inspect(ctx, name)
	}
	spec, from, err := d.complete(spec)
	if err != nil {
		return View{}, err
	}
	var v metadata.Volume
	switch {
	case from.snapshot != "":
		v, err = d.snapshots.CopySnapshot(ctx, from.snapshot, spec.Spec)
	case from.volume.ID != "":
		v, err = d.snapshots.CopyVolume(ctx, from.volume.ID, spec.Spec)
	default:
		v, err = d.volumes.Create(ctx, spec.Spec)
	}
	if err != nil {
		return View{}, err
	}
	return d.inspectSized(ctx, v.ID)
}

// NewName makes up a name for a volume.
func NewName() string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	return "volume-" + hex.EncodeToString(random[:])
}

// EnsureDocker makes a volume for Docker. One that exists is success and stays as it is, whatever the options;
// one that is just being made is waited for. The name must not be empty.
func (d *Daemon) EnsureDocker(ctx context.Context, name string, options map[string]string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if exists, err := d.exists(name); err != nil || exists {
		return err
	}
	list, err := d.dockerOptions(name, options)
	if err != nil {
		return err
	}
	_, err = d.create(ctx, name, list, true)
	if fault.Is(err, fault.ErrExists) {
		return nil
	}
	return err
}

// exists reports whether there is a volume of this name that stays: one that is ready, or one that is being restored or whose
// restore failed.
func (d *Daemon) exists(name string) (bool, error) {
	var v metadata.Volume
	err := d.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.VolumeNamed(name)
		return err
	})
	if fault.Is(err, fault.ErrNotFound) {
		return false, nil
	}
	return err == nil && v.State != metadata.Creating && v.State != metadata.Removing, err
}

// resolve returns the ID of the volume that ref names: by its name, its ID, or the beginning of its ID.
func (d *Daemon) resolve(ref string) (id string, err error) {
	if err := checkName(ref); err != nil {
		return "", err
	}
	err = d.store.View(func(tx *metadata.Tx) error {
		v, err := find(tx, ref)
		id = v.ID
		return err
	})
	return id, err
}

// minPrefix is the shortest beginning of an ID that is looked up.
const minPrefix = 4

func find(tx *metadata.Tx, ref string) (metadata.Volume, error) {
	v, err := tx.VolumeNamed(ref)
	if !fault.Is(err, fault.ErrNotFound) || len(ref) < minPrefix {
		return v, err
	}
	found, listErr := tx.VolumesWithID(ref)
	switch {
	case listErr != nil:
		return v, listErr
	case len(found) == 0:
		return v, err
	case len(found) == 1:
		return found[0], nil
	}
	var candidates []string
	for _, candidate := range found {
		candidates = append(candidates, fmt.Sprintf("%s (%s)", candidate.Name, candidate.ID))
	}
	return v, fault.Errorf(fault.ErrInvalid, "volume ID %q: ambiguous: %s", ref, strings.Join(candidates, ", "))
}

// Delete deletes a volume and its data, with withSnapshots its snapshots too.
func (d *Daemon) Delete(ctx context.Context, ref string, withSnapshots bool) error {
	id, err := d.resolve(ref)
	if err != nil {
		return err
	}
	return d.delete(ctx, id, func() error { return d.volumes.Delete(ctx, id, withSnapshots) })
}

// delete deletes a volume by way of remove, and first ends its restore if one runs: that may leave nothing.
func (d *Daemon) delete(ctx context.Context, id string, remove func() error) error {
	if err := d.backups.CancelRestore(ctx, id); err != nil {
		return err
	}
	err := remove()
	if fault.Is(err, fault.ErrNotFound) && d.gone(id) {
		return nil
	}
	return err
}

// gone reports whether no volume has this ID. Of one whose pool is missing something else was not found.
func (d *Daemon) gone(id string) bool {
	err := d.store.View(func(tx *metadata.Tx) error {
		_, err := tx.Volume(id)
		return err
	})
	return fault.Is(err, fault.ErrNotFound)
}

// RemoveDocker deletes the volume of exactly this name for Docker, unless it has snapshots of the user's. One that is
// gone already is success.
func (d *Daemon) RemoveDocker(ctx context.Context, name string) error {
	id, err := d.named(name)
	if err == nil && id != "" {
		err = d.delete(ctx, id, func() error { return d.volumes.Remove(ctx, id) })
	}
	return err
}

// MountDocker mounts the volume of exactly this name for one of Docker's mount IDs and returns its mount point. It
// lets go again if gone says in the end that Docker has given up: it would never send the Unmount.
func (d *Daemon) MountDocker(ctx context.Context, name, holder string, gone func() bool) (string, error) {
	if err := checkHolder(holder); err != nil {
		return "", err
	}
	id, err := d.named(name)
	if err != nil {
		return "", err
	}
	if id == "" {
		return "", fault.Errorf(fault.ErrNotFound, "volume %q: not found", name)
	}
	if err := d.awaitRestore(ctx, id); err != nil {
		return "", err
	}
	return d.volumes.MountFor(ctx, id, holder, gone)
}

// UnmountDocker drops one of Docker's mount IDs. A volume that is gone is success.
func (d *Daemon) UnmountDocker(ctx context.Context, name, holder string) error {
	if err := checkHolder(holder); err != nil {
		return err
	}
	id, err := d.named(name)
	if err == nil && id != "" {
		err = d.volumes.Unmount(ctx, id, holder)
	}
	return err
}

// named returns the ID of the volume of exactly this name, or "" if there is none. Docker's names are never taken
// for IDs.
func (d *Daemon) named(name string) (id string, err error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	err = d.store.View(func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed(name)
		id = v.ID
		return err
	})
	if fault.Is(err, fault.ErrNotFound) {
		return "", nil
	}
	return id, err
}

// maxHolder bounds a mount ID, which becomes part of a key: Docker's have 64 characters.
const maxHolder = 256

func checkHolder(holder string) error {
	if len(holder) > maxHolder {
		return fault.Errorf(fault.ErrInvalid, "mount ID of %d characters: at most %d are allowed", len(holder), maxHolder)
	}
	return nil
}

// DockerStarted notes that a Docker daemon has started.
func (d *Daemon) DockerStarted(ctx context.Context) error { return d.volumes.NewEpoch(ctx) }

// Mount mounts a volume for a person, at dir or at its own mount point if dir is empty, and returns the path.
func (d *Daemon) Mount(ctx context.Context, ref, dir string) (string, error) {
	id, err := d.resolve(ref)
	if err != nil {
		return "", err
	}
	return d.volumes.MountUser(ctx, id, dir)
}

// Unmount drops what Mount took and, with stale set, what Docker or Podman hold and no process uses. If the volume stays
// mounted because Docker holds it, held says by whom.
func (d *Daemon) Unmount(ctx context.Context, ref string, stale bool) (held string, err error) {
	id, err := d.resolve(ref)
	if err != nil {
		return "", err
	}
	return d.volumes.UnmountUser(ctx, id, stale)
}

// Resize grows a volume to a size as ParseSize reads it, rounded up to whole blocks, or takes back a growth that its
// filesystem has not followed.
func (d *Daemon) Resize(ctx context.Context, ref, size string) (View, error) {
	bytes, err := parseVolumeSize(size)
	if err != nil {
		return View{}, err
	}
	id, err := d.resolve(ref)
	if err != nil {
		return View{}, err
	}
	if _, err := d.volumes.Resize(ctx, id, bytes); fault.Is(err, fault.ErrInvalid) {
		return View{}, fmt.Errorf("size %q: %w", size, err)
	} else if err != nil {
		return View{}, err
	}
	return d.inspectSized(ctx, id)
}

// inspectSized is Inspect with a warning if the volume may become larger than its pool: a mistyped size is taken back
// only while nothing has been written.
func (d *Daemon) inspectSized(ctx context.Context, id string) (View, error) {
	view, err := d.Inspect(ctx, id)
	if err != nil {
		return view, err
	}
	pool, ok := d.poolNamed(view.Pool)
	if !ok {
		return view, nil
	}
	if space, err := dataSpace(ctx, pool); err == nil && view.Size > space.Size {
		view.Warnings = append(slices.Clone(view.Warnings), fmt.Sprintf("volume %q: its size of %s is more than all of the %s of %s", view.Name, Bytes(view.Size), Bytes(space.Size), space.Layer))
	}
	return view, nil
}

// A Change says what to set of a volume. Nil fields stay as they are.
type Change struct {
	Labels       []string // key=value, or key= to remove one
	Protect      *bool
	PreSnapshot  *string // command line; empty to remove it
	PostSnapshot *string
	Keep         *string // retention policy of its backups; empty to have none of its own
	NoBackup     *bool
}

// Set changes what a Change names of a volume, all or nothing.
func (d *Daemon) Set(ctx context.Context, ref string, c Change) (View, error) {
	change := volume.Change{Labels: map[string]string{}, Protected: c.Protect, NoBackup: c.NoBackup}
	for _, label := range c.Labels {
		key, value, err := parseLabel(label)
		if err != nil {
			return View{}, err
		}
		if _, twice := change.Labels[key]; twice {
			return View{}, fault.Errorf(fault.ErrInvalid, "label %q: given twice", key)
		}
		change.Labels[key] = value
	}
	var err error
	if change.PreSnapshot, err = d.parseHook("pre-snapshot", c.PreSnapshot); err != nil {
		return View{}, err
	}
	if change.PostSnapshot, err = d.parseHook("post-snapshot", c.PostSnapshot); err != nil {
		return View{}, err
	}
	if c.Keep != nil {
		keep, err := parseKeep(*c.Keep)
		if err != nil {
			return View{}, err
		}
		change.Keep = &keep
	}
	if len(c.Labels) == 0 && c.Protect == nil && c.PreSnapshot == nil && c.PostSnapshot == nil && c.Keep == nil && c.NoBackup == nil {
		return View{}, fault.Errorf(fault.ErrInvalid, "volume %q: nothing to set", ref)
	}
	id, err := d.resolve(ref)
	if err != nil {
		return View{}, err
	}
	if _, err := d.volumes.Set(ctx, id, change); err != nil {
		return View{}, err
	}
	return d.Inspect(ctx, id)
}

// parseHook reads the command line of a hook; nil stays nil, and an empty one removes the hook.
func (d *Daemon) parseHook(key string, line *string) (*[]string, error) {
	if line == nil || *line == "" {
		if line == nil {
			return nil, nil
		}
		return &[]string{}, nil
	}
	argv, err := parseCommand(key, *line)
	if err != nil {
		return nil, err
	}
	return &argv, d.checkHooks(argv)
}

// checkHooks fails with fault.ErrUnsupported if there is a hook and the daemon's owner does not allow any.
func (d *Daemon) checkHooks(hooks ...[]string) error {
	for _, argv := range hooks {
		if len(argv) > 0 && !d.snapshots.HooksAllowed() {
			return fault.Errorf(fault.ErrUnsupported, "command %q: snapshot hooks run as root and are not allowed: start the daemon with --allow-hooks", argv[0])
		}
	}
	return nil
}

// Trim gives back the space that a volume's filesystem does not use, and returns how many bytes the pool got.
func (d *Daemon) Trim(ctx context.Context, ref string) (int64, error) {
	id, err := d.resolve(ref)
	if err != nil {
		return 0, err
	}
	return d.volumes.Trim(ctx, id)
}

// Adopt makes an unknown device, by its ID or the beginning of it, the volume called name.
func (d *Daemon) Adopt(ctx context.Context, device, name string) (View, error) {
	if err := errors.Join(checkDevice(device), checkName(name)); err != nil {
		return View{}, err
	}
	v, err := d.volumes.Adopt(ctx, device, name)
	if err != nil {
		return View{}, err
	}
	return d.Inspect(ctx, v.ID)
}

// DeleteDevice deletes an unknown device, by its ID or the beginning of it, and its data.
func (d *Daemon) DeleteDevice(ctx context.Context, device string) error {
	if err := checkDevice(device); err != nil {
		return err
	}
	return d.volumes.DeleteUnknown(ctx, device)
}

func checkDevice(ref string) error {
	if len(ref) < minPrefix || !nameRule.MatchString(ref) {
		return fault.Errorf(fault.ErrInvalid, "device %q: must be a device's ID, or at least its first %d characters", ref, minPrefix)
	}
	return nil
}

// Mountpoint returns where the volume of exactly this name is mounted, or "" while it is not.
func (d *Daemon) Mountpoint(ctx context.Context, name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	view, ok := d.Get(ctx, name)
	if !ok {
		return "", fault.Errorf(fault.ErrNotFound, "volume %q: not found", name)
	}
	return view.Mountpoint, nil
}

// poolSpace returns a configured pool's space.
func poolSpace(ctx context.Context, p Pool) (blockdev.Space, error) {
	if p.Missing != nil {
		return blockdev.Space{}, p.Missing
	}
	return p.Pool.Pool.Space(ctx)
}

// dataSpace returns the space that a configured pool has for what volumes hold, whichever layer is tightest.
func dataSpace(ctx context.Context, p Pool) (blockdev.Space, error) {
	if p.Missing != nil || p.Layers == nil {
		return poolSpace(ctx, p)
	}
	layers, err := p.Layers(ctx)
	if err != nil {
		return blockdev.Space{}, err
	}
	return layers[0], nil
}
