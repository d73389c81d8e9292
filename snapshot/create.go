package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/undo"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A Spec says what snapshots to take. Its values have been checked.
type Spec struct {
	Name    string // empty: made of the time; of a managed one a number may follow that makes it new
	Labels  map[string]string
	Managed bool // taken by a backup: never in the way of a deletion

	Repository string    // of a managed one: ID of the repository that it is taken for
	Created    time.Time // by the clock of whoever takes it; zero for that of this host
}

// Create takes a snapshot of each of the volumes, all of one point in time, all or none. Writers to mounted volumes wait
// while the devices are cloned, volume.FreezeLimit at most; how long follows from what was written since the call
// began, not from the volumes' sizes. A snapshot survives a power cut once Create has returned.
//
// It fails with fault.ErrExists if a volume has a snapshot of that name, with fault.ErrNoSpace if a pool is nearly full,
// and with fault.ErrInUse if somebody else has frozen a volume. Cut short by an error it leaves nothing; by a crash,
// recovery undoes it.
func (m *Manager) Create(ctx context.Context, volumes []string, spec Spec) (_ []metadata.Snapshot, err error) {
	captures, err := m.plan(ctx, volumes, spec)
	if err != nil {
		return nil, err
	}
	for i := range captures {
		defer m.work(captures[i].snapshot.Device)()
	}
	if err := m.announce(ctx, captures, spec.Name); err != nil {
		return nil, err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	for _, c := range captures {
		u.Push("create snapshot", func(ctx context.Context) error { return m.erase(ctx, c.snapshot) })
	}
	if err := m.capture(ctx, captures); err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	snapshots, err := m.finish(ctx, captures)
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	for _, s := range snapshots {
		m.log.Info("snapshot created", "volume", s.Volume.Name, "snapshot", s.Name, "id", s.ID, "consistency", s.Consistency)
	}
	return snapshots, nil
}

// A capture is the copying of one volume's device.
type capture struct {
	volume   metadata.Volume
	pool     blockdev.Pool
	snapshot metadata.Snapshot // of a snapshot, and not of a copy
	dst      blockdev.ID
	copied   blockdev.Record // of dst, for a copy
}

// record returns what dst carries until it is sealed, made of the volume as it is.
func (c capture) record(m *Manager, v metadata.Volume) (blockdev.Record, error) {
	if c.copied != nil {
		return c.copied, nil
	}
	s := c.snapshot
	s.Volume = v
	return m.volumes.DescribeSnapshot(s)
}

// plan checks what can be checked beforehand and mints the IDs.
func (m *Manager) plan(ctx context.Context, volumes []string, spec Spec) ([]capture, error) {
	now := spec.Created
	if now.IsZero() {
		now = time.Now()
	}
	now = now.UTC().Truncate(time.Millisecond)
	group := ""
	if len(volumes) > 1 {
		group = string(blockdev.NewID())
	}
	captures := make([]capture, len(volumes))
	active := 0
	for i, id := range volumes {
		v, err := m.ready(id)
		if err != nil {
			return nil, err
		}
		pool, err := m.volumes.Pool(v)
		if err != nil {
			return nil, err
		}
		if err := m.checkHooks(v); err != nil {
			return nil, err
		}
		info, err := m.statVolume(ctx, pool, v)
		if err != nil {
			return nil, err
		}
		if pool.Traits().Quiesces && info.Path != "" {
			active++
		}
		m.volumes.MakeRoomFor(ctx, v.ID)
		s := metadata.Snapshot{
			ID: string(blockdev.NewID()), Name: spec.Name, Device: string(blockdev.NewID()), Size: v.Size, Labels: spec.Labels,
			Managed: spec.Managed, Repository: spec.Repository, Group: group, State: metadata.Creating, Created: now, Volume: v,
		}
		captures[i] = capture{volume: v, pool: pool, snapshot: s, dst: blockdev.ID(s.Device)}
	}
	if len(volumes) > 1 && active > 1 {
		return nil, fault.Errorf(fault.ErrUnsupported, "a group of %d mounted volumes: their pool can copy only one mounted volume at a time: take their snapshots one by one, or unmount them", active)
	}
	return captures, nil
}

// announce records snapshots as being taken, under their names.
func (m *Manager) announce(ctx context.Context, captures []capture, name string) error {
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		for i := range captures {
			c := &captures[i]
			v, err := tx.Volume(c.volume.ID)
			if err != nil {
				return err
			}
			if v.State != metadata.Ready || v.Device != c.volume.Device {
				return fault.Errorf(fault.ErrInUse, "volume %q: is being changed", v.Name)
			}
			if name == "" || c.snapshot.Managed {
				if c.snapshot.Name, err = unusedName(tx, v.ID, cmp.Or(name, stamp(c.snapshot.Created))); err != nil {
					return err
				}
			}
			c.volume, c.snapshot.Volume = v, v
			if err := tx.PutSnapshot(c.snapshot); err != nil {
				return err
			}
			device := metadata.Device{ID: c.snapshot.Device, Pool: v.Pool, Parent: v.Device, Kind: metadata.KindSnapshot, Size: c.snapshot.Size}
			if err := tx.PutDevice(device); err != nil {
				return err
			}
		}
		return nil
	})
}

// capture copies the volumes' devices as they are at one instant. Only the instant itself holds the volumes' locks.
func (m *Manager) capture(ctx context.Context, captures []capture) (err error) {
	for _, c := range captures {
		record, err := c.record(m, c.volume)
		if err != nil {
			return err
		}
		if err := m.volumes.SyncMounted(c.volume); err != nil {
			return err
		}
		if err := c.pool.Prepare(ctx, c.dst, blockdev.ID(c.volume.Device), record); err != nil {
			return err
		}
	}
	after, err := m.before(ctx, captures)
	defer func() { err = errors.Join(err, after(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	ids := make([]string, len(captures))
	for i, c := range captures {
		ids[i] = c.volume.ID
		if err := m.volumes.SyncMounted(c.volume); err != nil { // what was written since, so that the freeze is short
			return err
		}
	}
	volumes, release, err := m.volumes.Lock(ctx, ids...)
	if err != nil {
		return err
	}
	defer release()
	how, err := m.volumes.Quiesce(ctx, volumes, func(ctx context.Context) error { return m.clone(ctx, captures, volumes) })
	if err != nil {
		return err
	}
	for i := range captures {
		captures[i].snapshot.Volume, captures[i].snapshot.Consistency = volumes[i], how[i]
	}
	return nil
}

// clone copies the devices of volumes, which change no more.
func (m *Manager) clone(ctx context.Context, captures []capture, volumes []metadata.Volume) error {
	for i, c := range captures {
		if volumes[i].Device != c.volume.Device {
			return fault.Errorf(fault.ErrInUse, "volume %q: was rolled back meanwhile", volumes[i].Name)
		}
		record, err := c.record(m, volumes[i])
		if err != nil {
			return err
		}
		if err := c.pool.Clone(ctx, c.dst, blockdev.ID(volumes[i].Device), record); err != nil {
			return fmt.Errorf("volume %q: %w", volumes[i].Name, err)
		}
	}
	return nil
}

// finish makes the copies durable and for ever read-only, and says that the snapshots are ready.
func (m *Manager) finish(ctx context.Context, captures []capture) ([]metadata.Snapshot, error) {
	snapshots := make([]metadata.Snapshot, len(captures))
	for i, c := range captures {
		s := c.snapshot
		if err := c.pool.Sync(ctx, c.dst); err != nil {
			return nil, err
		}
		info, err := c.pool.Stat(ctx, c.dst)
		if err != nil {
			return nil, err
		}
		s.Size = info.Size
		if snapshots[i], err = m.seal(ctx, c.pool, s); err != nil {
			return nil, err
		}
	}
	err := m.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, s := range snapshots {
			if err := putReady(tx, s); err != nil {
				return err
			}
		}
		return nil
	})
	return snapshots, err
}

// seal makes a snapshot's device read-only and has it carry the snapshot's record in state ready.
func (m *Manager) seal(ctx context.Context, pool blockdev.Pool, s metadata.Snapshot) (metadata.Snapshot, error) {
	if err := pool.Seal(ctx, blockdev.ID(s.Device)); err != nil {
		return s, err
	}
	s.State = metadata.Ready
	record, err := m.volumes.DescribeSnapshot(s)
	if err != nil {
		return s, err
	}
	return s, pool.Describe(ctx, blockdev.ID(s.Device), record)
}

// putReady records a snapshot that is ready, and its device.
func putReady(tx *metadata.Tx, s metadata.Snapshot) error {
	device, err := tx.Device(s.Device)
	if err != nil {
		return err
	}
	device.Kind, device.Size = metadata.KindSnapshot, s.Size
	if err := tx.PutDevice(device); err != nil {
		return err
	}
	return tx.PutSnapshot(s)
}

// CopySnapshot makes a volume that begins as a snapshot is. The copy is independent of it.
func (m *Manager) CopySnapshot(ctx context.Context, id string, spec volume.Spec) (metadata.Volume, error) {
	s, unpin, err := m.volumes.Pin(id, "a copy")
	if err != nil {
		return metadata.Volume{}, err
	}
	defer unpin()
	pool, err := m.volumes.Pool(s.Volume)
	if err != nil {
		return metadata.Volume{}, err
	}
	if err := refuseTruncated(ctx, pool, s); err != nil {
		return metadata.Volume{}, err
	}
	spec.Copy.Of = s.Volume
	spec.Copy.Of.Size = s.Size
	spec.Copy.Fill = func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
		return cloneSealed(ctx, pool, dst, blockdev.ID(s.Device), record)
	}
	return m.volumes.Create(ctx, spec)
}

// cloneSealed copies a device that nobody writes, without holding the filesystem of the pool for long at a time.
func cloneSealed(ctx context.Context, pool blockdev.Pool, dst, src blockdev.ID, record blockdev.Record) error {
	if err := pool.Prepare(ctx, dst, src, record); err != nil {
		return err
	}
	return pool.Clone(ctx, dst, src, record)
}

// CopyVolume makes a volume that begins as another one, mounted or not, is now; there as for a snapshot, writers wait
// for a moment.
func (m *Manager) CopyVolume(ctx context.Context, id string, spec volume.Spec) (metadata.Volume, error) {
	v, err := m.ready(id)
	if err != nil {
		return metadata.Volume{}, err
	}
	pool, err := m.volumes.Pool(v)
	if err != nil {
		return v, err
	}
	if err := m.checkHooks(v); err != nil {
		return v, err
	}
	info, err := m.statVolume(ctx, pool, v)
	if err != nil {
		return v, err
	}
	spec.Copy.Of = v
	spec.Copy.Of.Size = info.Size // less than the volume's while a growth waits for the next mount
	spec.Copy.Fill = func(ctx context.Context, dst blockdev.ID, record blockdev.Record) error {
		return m.capture(ctx, []capture{{volume: v, pool: pool, dst: dst, copied: record}})
	}
	return m.volumes.Create(ctx, spec)
}
