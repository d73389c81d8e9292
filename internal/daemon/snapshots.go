package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A SnapshotView is what users see of a snapshot. Its JSON is a contract: names never change.
type SnapshotView struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`
	Volume      string            `json:"volume"` // name
	VolumeID    string            `json:"volume_id"`
	Size        int64             `json:"size"`    // bytes
	Used        int64             `json:"used"`    // bytes allocated in the pool, shared ones included
	Created     string            `json:"created"` // RFC 3339, UTC
	Labels      map[string]string `json:"labels"`
	State       string            `json:"state"` // of the metadata, or "degraded"
	Problem     string            `json:"problem,omitempty"`
	Consistency string            `json:"consistency"`
	Group       string            `json:"group,omitempty"` // shared by snapshots of one point in time
	Managed     bool              `json:"managed"`
	Pins        []string          `json:"pins"` // why it cannot be deleted now
}

// recordedView builds what users see of a snapshot from its record alone.
func (d *Daemon) recordedView(s metadata.Snapshot) SnapshotView {
	view := SnapshotView{
		Name: s.Name, ID: s.ID, Volume: s.Volume.Name, VolumeID: s.Volume.ID, Size: s.Size,
		Created: s.Created.UTC().Format(time.RFC3339Nano), Labels: s.Labels, State: string(s.State),
		Consistency: string(s.Consistency), Group: s.Group, Managed: s.Managed, Pins: d.volumes.Pins(s.ID),
	}
	if view.Labels == nil {
		view.Labels = map[string]string{}
	}
	if view.Pins == nil {
		view.Pins = []string{}
	}
	return view
}

// snapshotView builds what users see of a snapshot. It never fails: trouble shows in Problem.
func (d *Daemon) snapshotView(ctx context.Context, s metadata.Snapshot) SnapshotView {
	view := d.recordedView(s)
	pool, err := d.volumes.Pool(s.Volume)
	var info blockdev.Info
	if err == nil {
		info, err = pool.Stat(ctx, blockdev.ID(s.Device))
	}
	switch view.Used = info.Used; {
	case s.State != metadata.Ready:
	case err != nil:
		view.State, view.Problem = degraded, err.Error()
	case info.Size < s.Size:
		view.State, view.Problem = degraded, fmt.Sprintf("device %s has %d bytes and had %d: it was truncated", s.Device, info.Size, s.Size)
	}
	return view
}

func (d *Daemon) snapshotViews(ctx context.Context, snapshots []metadata.Snapshot) []SnapshotView {
	views := make([]SnapshotView, len(snapshots))
	for i, s := range snapshots {
		views[i] = d.snapshotView(ctx, s)
	}
	return views
}

// most is how many candidates a message lists.
const most = 10

// candidates lists snapshots for a message.
func candidates(snapshots []metadata.Snapshot) string {
	var names []string
	for _, s := range snapshots {
		names = append(names, s.Volume.Name+"@"+s.Name+" ("+s.ID+")")
	}
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// findSnapshot returns the snapshot that ref names: volume@snapshot, each by name, ID or the beginning of its ID; or
// the snapshot's name, ID or the beginning of that alone, where only one has it.
func findSnapshot(tx *metadata.Tx, ref string) (metadata.Snapshot, error) {
	volumeRef, name, both := strings.Cut(ref, "@")
	parts := []string{volumeRef, name}
	if !both {
		name, parts = ref, []string{ref}
	}
	for _, part := range parts {
		if !ValidName(part) {
			return metadata.Snapshot{}, fault.Errorf(fault.ErrInvalid, "snapshot %q: must be volume@snapshot or a snapshot's name or ID: names are %s", ref, nameHelp)
		}
	}
	var owner string
	if both {
		v, err := find(tx, volumeRef)
		if err != nil {
			return metadata.Snapshot{}, err
		}
		owner = v.ID
	}
	all, err := tx.Snapshots(owner)
	if err != nil {
		return metadata.Snapshot{}, err
	}
	matches := slices.DeleteFunc(slices.Clone(all), func(s metadata.Snapshot) bool { return s.Name != name })
	if len(matches) == 0 && len(name) >= minPrefix {
		matches = slices.DeleteFunc(slices.Clone(all), func(s metadata.Snapshot) bool { return !strings.HasPrefix(s.ID, name) })
	}
	if v, err := find(tx, ref); err == nil && !both && len(matches) == 0 {
		return metadata.Snapshot{}, notSaidWhich(tx, ref, v)
	}
	switch {
	case len(matches) == 1:
		return matches[0], nil
	case len(matches) > 1:
		return metadata.Snapshot{}, fault.Errorf(fault.ErrInvalid, "snapshot %q: ambiguous: %s", ref, candidates(matches))
	case len(all) == 0:
		return metadata.Snapshot{}, fault.Errorf(fault.ErrNotFound, "snapshot %q: not found: there is none", ref)
	}
	return metadata.Snapshot{}, fault.Errorf(fault.ErrNotFound, "snapshot %q: not found: there is %s", ref, candidates(all))
}

// notSaidWhich is the error for a volume where one of its snapshots is wanted.
func notSaidWhich(tx *metadata.Tx, ref string, v metadata.Volume) error {
	its, err := tx.Snapshots(v.ID)
	switch {
	case err != nil:
		return err
	case len(its) == 0:
		return fault.Errorf(fault.ErrNotFound, "snapshot %q: not found: volume %q has no snapshots", ref, v.Name)
	}
	return fault.Errorf(fault.ErrNotFound, "snapshot %q: not found: it is a volume: say which snapshot: %s", ref, candidates(its))
}

func (d *Daemon) resolveSnapshot(ref string) (s metadata.Snapshot, err error) {
	err = d.store.View(func(tx *metadata.Tx) error {
		s, err = findSnapshot(tx, ref)
		return err
	})
	return s, err
}

// An origin is what a copy is made of.
type origin struct {
	volume   metadata.Volume // as it is, or was when the snapshot was taken
	size     int64           // bytes of the copied device
	snapshot string          // ID; empty to copy the volume itself
}

// findOrigin returns what ref names: a volume, or a snapshot as volume@snapshot.
func (d *Daemon) findOrigin(ref string) (from origin, err error) {
	if strings.Contains(ref, "@") {
		s, err := d.resolveSnapshot(ref)
		// A device may be larger than its volume, after a growth that failed, or smaller, before one.
		return origin{s.Volume, min(s.Size, volume.RoundUp(s.Volume.Size)), s.ID}, err
	}
	if err := checkName(ref); err != nil {
		return from, err
	}
	err = d.store.View(func(tx *metadata.Tx) error {
		if from.volume, err = find(tx, ref); err != nil {
			return err
		}
		from.size = volume.RoundUp(from.volume.Size)
		growth, err := failedGrowth(tx, from.volume)
		if growth != nil {
			from.size = growth.Size
		}
		return err
	})
	return from, err
}

// CreateSnapshots takes a snapshot of each of the volumes, of one point in time, all or none. Without a name they are
// named after the time.
func (d *Daemon) CreateSnapshots(ctx context.Context, volumes []string, name string, labels []string) ([]SnapshotView, error) {
	spec := snapshot.Spec{Name: name, Labels: map[string]string{}}
	if name != "" && !ValidName(name) {
		return nil, fault.Errorf(fault.ErrInvalid, "snapshot name %q: not allowed: use %s", name, nameHelp)
	}
	for _, label := range labels {
		key, value, err := parseLabel(label)
		if err != nil {
			return nil, err
		}
		if _, twice := spec.Labels[key]; twice || value == "" {
			return nil, fault.Errorf(fault.ErrInvalid, "label %q: given twice, or without a value", key)
		}
		spec.Labels[key] = value
	}
	if err := checkLabelCount(spec.Labels); err != nil {
		return nil, err
	}
	if len(volumes) == 0 {
		return nil, fault.Errorf(fault.ErrInvalid, "no volume given to take a snapshot of")
	}
	var ids []string
	for _, ref := range volumes {
		id, err := d.resolve(ref)
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, id) {
			return nil, fault.Errorf(fault.ErrInvalid, "volume %q: given twice", ref)
		}
		ids = append(ids, id)
	}
	snapshots, err := d.snapshots.Create(ctx, ids, spec)
	if err != nil {
		return nil, err
	}
	return d.snapshotViews(ctx, snapshots), nil
}

// Snapshots returns what users see of a volume's snapshots, or everybody's if ref is empty, by age.
func (d *Daemon) Snapshots(ctx context.Context, ref string) ([]SnapshotView, error) {
	var id string
	if ref != "" {
		var err error
		if id, err = d.resolve(ref); err != nil {
			return nil, err
		}
	}
	var snapshots []metadata.Snapshot
	err := d.store.View(func(tx *metadata.Tx) (err error) {
		snapshots, err = tx.Snapshots(id)
		return err
	})
	return d.snapshotViews(ctx, snapshots), err
}

// InspectSnapshot returns what users see of one snapshot.
func (d *Daemon) InspectSnapshot(ctx context.Context, ref string) (SnapshotView, error) {
	s, err := d.resolveSnapshot(ref)
	if err != nil {
		return SnapshotView{}, err
	}
	return d.snapshotView(ctx, s), nil
}

// DeleteSnapshot deletes a snapshot.
func (d *Daemon) DeleteSnapshot(ctx context.Context, ref string) error {
	s, err := d.resolveSnapshot(ref)
	if err != nil {
		return err
	}
	return d.snapshots.Delete(ctx, s.ID)
}

// RestoreSnapshot rolls a volume back to a snapshot. What that replaces is kept as another snapshot unless discard is
// set.
func (d *Daemon) RestoreSnapshot(ctx context.Context, ref string, discard bool) (View, error) {
	s, err := d.resolveSnapshot(ref)
	if err != nil {
		return View{}, err
	}
	v, err := d.snapshots.Restore(ctx, s.ID, discard)
	if err != nil {
		return View{}, err
	}
	return d.Inspect(ctx, v.ID)
}

// An ExtentView is one line of what "orlop snapshot diff" prints.
type ExtentView struct {
	Offset int64  `json:"offset"` // bytes
	Length int64  `json:"length"` // bytes
	Kind   string `json:"kind"`   // "data" or "hole"
}

var extentKinds = map[blockdev.ExtentKind]string{blockdev.Data: "data", blockdev.Hole: "hole"}

// DiffSnapshots calls fn for each extent that changed from the older to the newer of two snapshots, whichever is named
// first; with one snapshot only, for each that has data.
func (d *Daemon) DiffSnapshots(ctx context.Context, refs []string, fn func(ExtentView) error) error {
	if len(refs) < 1 || len(refs) > 2 {
		return fault.Errorf(fault.ErrInvalid, "%d snapshots given: one or two are wanted", len(refs))
	}
	snapshots := []metadata.Snapshot{{}} // with one only, the older is none
	for _, ref := range refs {
		s, err := d.resolveSnapshot(ref)
		if err != nil {
			return err
		}
		snapshots = append(snapshots, s)
	}
	slices.SortFunc(snapshots, func(a, b metadata.Snapshot) int {
		return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), strings.Compare(a.ID, b.ID))
	})
	older, newer := snapshots[len(snapshots)-2], snapshots[len(snapshots)-1]
	return d.snapshots.Diff(ctx, older.ID, newer.ID, func(e blockdev.Extent) error {
		return fn(ExtentView{e.Offset, e.Length, extentKinds[e.Kind]})
	})
}

// snapshotsByVolume returns everybody's snapshots by the volume's ID.
func snapshotsByVolume(tx *metadata.Tx) (map[string][]metadata.Snapshot, error) {
	all, err := tx.Snapshots("")
	by := map[string][]metadata.Snapshot{}
	for _, s := range all {
		by[s.Volume.ID] = append(by[s.Volume.ID], s)
	}
	return by, err
}
