// Package volume drives the life of volumes: create, mount, settle, grow, change, delete, and recovery after a
// crash. Each operation records what it is about to do, does it, and records that it is done, so that a daemon
// killed on any line finds in the metadata what is to be finished or undone.
//
// Operations name a volume by its ID. Each holds that volume's lock and no other: operations on different volumes
// never wait for each other.
package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// A Pool is a configured pool under its name.
type Pool struct {
	Name string
	UUID string
	blockdev.Pool
	Missing error // why the pool could not be opened; then Pool is nil
	OnRoot  bool  // written volumes take their space from the data root's filesystem
}

// Config is what a Manager needs.
type Config struct {
	Root  string // data root, absolute and without symbolic links
	Store *metadata.Store
	Pools []Pool
	Boot  string // boot ID of the running kernel
	Log   *slog.Logger
}

// A Manager operates on volumes. It is safe for concurrent use.
type Manager struct {
	mounts  string // directory of the mount points
	scratch string // directory of short-lived mount points
	store   records
	pools   map[string]Pool
	boot    string
	log     *slog.Logger
	host    host
	locks   locks

	trimming sync.Mutex           // held while a full pool's volumes are trimmed
	trimmed  map[string]time.Time // when that was done last, by pool
	trims    trims

	later chan string // volumes to be settled soon, by ID

	pins        pins
	freezeLimit time.Duration

	root    string // data root
	space   spaceState
	stalls  stalls
	ballast ballast

	epochMu   sync.Mutex
	epoch     uint64 // number of the present Docker epoch
	epochUsed bool   // a holder was recorded in it
}

// New returns a Manager on c. Recover must have succeeded before anything else is called.
func New(c Config) (*Manager, error) {
	m := &Manager{
		mounts:  filepath.Join(c.Root, "mounts"),
		scratch: filepath.Join(c.Root, "scratch"),
		store:   c.Store,
		pools:   map[string]Pool{},
		boot:    c.Boot,
		log:     c.Log,
		host:    kernel{},
		root:    c.Root,
		ballast: ballastIn(c.Root),
		trimmed: map[string]time.Time{},
		later:   make(chan string, laterQueue),

		freezeLimit: FreezeLimit,
	}
	for _, pool := range c.Pools {
		if pool.Missing == nil {
			pool.Pool = guard{pool.Pool, pool.Name}
		}
		m.pools[pool.Name] = pool
	}
	for _, dir := range []string{m.mounts, m.scratch} {
		if err := fs.MakeDirs(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make directory of mount points: %w", err)
		}
	}
	return m, m.loadEpoch()
}

// Mountpoint is where a volume called name is mounted while it is mounted.
func (m *Manager) Mountpoint(name string) string { return filepath.Join(m.mounts, name) }

// MountedAt returns a volume's mount point, or "" while nothing is mounted there.
func (m *Manager) MountedAt(v metadata.Volume) (string, error) {
	dir := m.Mountpoint(v.Name)
	entry, err := m.mountOf(dir)
	if err != nil || entry == nil {
		return "", err
	}
	return dir, nil
}

// Mounted returns what is mounted at volumes' mount points, by mount point: the kernel's word, not ours.
func (m *Manager) Mounted() (map[string]fs.Entry, error) {
	table, err := fs.Table(m.mounts)
	if err != nil {
		return nil, err
	}
	mounted := make(map[string]fs.Entry, len(table))
	for _, entry := range table {
		mounted[entry.Mountpoint] = entry
	}
	return mounted, nil
}

// Pool returns the configured pool that a volume's record names. It fails with fault.ErrNotFound if the pool is
// missing, and with fault.ErrCorrupt if another one has taken its name.
func (m *Manager) Pool(v metadata.Volume) (blockdev.Pool, error) {
	pool, ok := m.pools[v.Pool]
	switch {
	case !ok:
		return nil, fault.Errorf(fault.ErrNotFound, "volume %q: its pool %q is not configured: start the daemon with --pool %s=…", v.Name, v.Pool, v.Pool)
	case pool.Missing != nil:
		return nil, fault.Errorf(fault.ErrNotFound, "volume %q: its pool %q is missing: %w", v.Name, v.Pool, pool.Missing)
	case pool.UUID != v.PoolUUID:
		return nil, fault.Errorf(fault.ErrCorrupt, "volume %q: pool %q is %s, but the volume is in %s", v.Name, v.Pool, pool.UUID, v.PoolUUID)
	}
	return pool.Pool, nil
}

// acquire takes a volume's lock and reads its record under the lock.
func (m *Manager) acquire(ctx context.Context, id string) (v metadata.Volume, release func(), err error) {
	release, err = m.locks.acquire(ctx, id)
	if err != nil {
		return v, nil, err
	}
	err = m.store.View(func(tx *metadata.Tx) error {
		v, err = tx.Volume(id)
		return err
	})
	if err != nil {
		release()
		return v, nil, err
	}
	return v, release, nil
}

// acquireReady is acquire for a volume that must be ready for use; otherwise it fails with fault.ErrInUse.
func (m *Manager) acquireReady(ctx context.Context, id string) (metadata.Volume, func(), error) {
	v, release, err := m.acquire(ctx, id)
	if err == nil && v.State != metadata.Ready {
		release()
		return v, nil, NotReady(v)
	}
	return v, release, err
}

// NotReady is the error of whoever needs a volume that is ready, and finds this one in another state.
func NotReady(v metadata.Volume) error {
	switch v.State {
	case metadata.Removing:
		return fault.Errorf(fault.ErrInUse, "volume %q: is being deleted", v.Name)
	case metadata.Restoring:
		return fault.Errorf(fault.ErrInUse, "volume %q: is being restored from %s", v.Name, v.Restore.URL)
	case metadata.Failed:
		return fault.Errorf(fault.ErrInUse, "volume %q: its restore from %s failed (%s): restore it again or delete it", v.Name, v.Restore.URL, v.Restore.Error)
	}
	return fault.Errorf(fault.ErrInUse, "volume %q: is %s", v.Name, v.State)
}

// recordFormat is the version of deviceRecord that this program writes, and the newest that it reads.
const recordFormat = 1

// deviceRecord is what a device carries, so that volumes and snapshots survive the loss of the database.
type deviceRecord struct {
	Format   int                `json:"format"`
	Root     string             `json:"root"` // ID of the data root
	Volume   *metadata.Volume   `json:"volume,omitempty"`
	Snapshot *metadata.Snapshot `json:"snapshot,omitempty"` // instead of Volume
}

// Describe returns the record for a volume's device. It carries the state too: what is only being made must not come
// back as a volume.
func (m *Manager) Describe(v metadata.Volume) (blockdev.Record, error) {
	raw, err := json.Marshal(deviceRecord{Format: recordFormat, Root: m.store.RootID(), Volume: &v})
	if err != nil {
		return nil, fmt.Errorf("volume %q: describe device: %w", v.Name, err)
	}
	return raw, nil
}

// DescribeSnapshot is Describe for a snapshot's device.
func (m *Manager) DescribeSnapshot(s metadata.Snapshot) (blockdev.Record, error) {
	raw, err := json.Marshal(deviceRecord{Format: recordFormat, Root: m.store.RootID(), Snapshot: &s})
	if err != nil {
		return nil, fmt.Errorf("snapshot %s@%s: describe device: %w", s.Volume.Name, s.Name, err)
	}
	return raw, nil
}
