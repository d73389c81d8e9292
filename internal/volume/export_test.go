//go:build root

package volume

import (
	"context"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/metadata"
)

// Most tests of this package drive a snapshot.Manager too. They are outside of it, because package snapshot imports it,
// and reach its inside through what stands here.

type (
	Host    = host
	Records = records
	Kernel  = kernel
)

const (
	UserHolder   = userHolder
	PodmanHolder = podmanHolder
	SuspectAge   = suspectAge
)

var (
	DeviceNumber  = deviceNumber
	Check         = check
	Within        = within
	AttachedBelow = attachedBelow
	ScratchDir    = scratchDir
	Quiet         = quiet
)

// Decorate has m's effects on the records and the host go through r and h.
func (m *Manager) Decorate(r Records, h Host) { m.store, m.host = r, h }

// Carried reads the record of a device in a configured pool: a volume's or a snapshot's.
func (m *Manager) Carried(pool string, info blockdev.Info) (*metadata.Volume, *metadata.Snapshot, error) {
	record, err := decode(m.pools[pool], info)
	return record.Volume, record.Snapshot, err
}

func (m *Manager) Holders(v metadata.Volume) ([]metadata.Holder, error) { return m.holders(v) }

func (m *Manager) DropHolder(ctx context.Context, h metadata.Holder) error {
	return m.dropHolder(ctx, h)
}

func (m *Manager) MountOf(dir string) (*fs.Entry, error) { return m.mountOf(dir) }

func (m *Manager) BeginTrim(ctx context.Context, id string) (string, error) {
	return m.beginTrim(ctx, id)
}

func (m *Manager) EndTrim(ctx context.Context, id string) error { return m.endTrim(ctx, id) }

// TrimOver is EndTrim without settling the volume.
func (m *Manager) TrimOver(id string) { m.trims.end(id) }

// LockWanted tells whether anybody has a volume's lock or waits for it.
func (m *Manager) LockWanted(id string) (is bool) {
	_ = m.locks.hold(func(wanted func(string) bool) error {
		is = wanted(id)
		return nil
	})
	return is
}

// LeftToSettle is how many volumes the background is to settle soon.
func (m *Manager) LeftToSettle() int { return len(m.later) }

func (m *Manager) UsedElsewhere(ctx context.Context, id string) bool { return m.usedElsewhere(ctx, id) }

func (m *Manager) SettleQueued(ctx context.Context) { m.settleQueued(ctx) }
