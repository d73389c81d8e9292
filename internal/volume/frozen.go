package volume

import (
	"fmt"

	"orlop/fs"
	"orlop/metadata"
)

// A Freeze is a freeze of a volume's filesystem that the metadata announces.
type Freeze struct {
	Volume     string // ID
	Mountpoint string // where its filesystem can be thawed; empty if it is mounted nowhere here
	Stalled    bool   // for want of space on the host's disk; it ends by itself
	UnderWay   bool   // an operation works on the volume, and may have made the freeze
}

// Freezes returns the announced freezes. One that is neither Stalled nor UnderWay was left by an operation that could
// not thaw: it keeps its writers, or at least later snapshots, waiting for a person.
func (m *Manager) Freezes() (freezes []Freeze, err error) {
	err = m.locks.hold(func(wanted func(id string) bool) error {
		return m.store.View(func(tx *metadata.Tx) error {
			intents, err := tx.Intents()
			for _, i := range intents {
				if i.Boot != m.boot {
					continue
				}
				f := Freeze{Volume: i.Volume, Stalled: m.stalls.of(i.Volume) != nil, UnderWay: wanted(i.Volume)}
				if f.Mountpoint, err = m.whereMounted(i.Device); err != nil {
					return err
				}
				freezes = append(freezes, f)
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read announced freezes: %w", err)
	}
	return freezes, nil
}

// whereMounted returns where the filesystem on a block device is mounted here, or "".
func (m *Manager) whereMounted(device uint64) (string, error) {
	for _, dir := range []string{m.mounts, m.scratch} {
		table, err := fs.Table(dir)
		if err != nil {
			return "", err
		}
		for _, entry := range table {
			if entry.Device == device {
				return entry.Mountpoint, nil
			}
		}
	}
	return "", nil
}

// hold calls fn while no volume's lock can be taken that was not wanted before. It hands to fn what tells whether
// anybody has a volume's lock or waits for it.
func (l *locks) hold(fn func(wanted func(id string) bool) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fn(func(id string) bool { return l.byID[id] != nil })
}
