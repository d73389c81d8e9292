package volume

import (
	"context"
	"slices"
	"sync"

	"orlop/internal/fault"
	"orlop/metadata"
)

// pins keep snapshots from being deleted while something reads them. They end with the daemon, as the readers do.
type pins struct {
	mu   sync.Mutex // held also while a deletion is decided on
	byID map[string][]string
}

// Pin keeps a snapshot, given by its ID, from being deleted until release is called; why shows to users. It fails
// with fault.ErrInUse if the snapshot is not ready.
func (m *Manager) Pin(id, why string) (s metadata.Snapshot, release func(), err error) {
	m.pins.mu.Lock()
	defer m.pins.mu.Unlock()
	err = m.store.View(func(tx *metadata.Tx) error {
		s, err = tx.Snapshot(id)
		return err
	})
	if err != nil {
		return s, nil, err
	}
	switch s.State {
	case metadata.Ready:
	case metadata.Removing:
		return s, nil, fault.Errorf(fault.ErrInUse, "snapshot %s@%s: is being deleted", s.Volume.Name, s.Name)
	default:
		return s, nil, fault.Errorf(fault.ErrInUse, "snapshot %s@%s: is being taken", s.Volume.Name, s.Name)
	}
	if m.pins.byID == nil {
		m.pins.byID = map[string][]string{}
	}
	m.pins.byID[id] = append(m.pins.byID[id], why)
	var once sync.Once
	return s, func() { once.Do(func() { m.unpin(id, why) }) }, nil
}

func (m *Manager) unpin(id, why string) {
	m.pins.mu.Lock()
	defer m.pins.mu.Unlock()
	list := m.pins.byID[id]
	i := slices.Index(list, why)
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(m.pins.byID, id)
		return
	}
	m.pins.byID[id] = list
}

// Pins returns why a snapshot, given by its ID, cannot be deleted now.
func (m *Manager) Pins(id string) []string {
	m.pins.mu.Lock()
	defer m.pins.mu.Unlock()
	return slices.Clone(m.pins.byID[id])
}

// UpdateUnpinned is an update of the metadata that removes snapshots: while it runs nothing is pinned. It hands to fn
// what tells why a snapshot must stay, or "".
func (m *Manager) UpdateUnpinned(ctx context.Context, fn func(tx *metadata.Tx, pinned func(id string) string) error) error {
	m.pins.mu.Lock()
	defer m.pins.mu.Unlock()
	return m.store.Update(ctx, func(tx *metadata.Tx) error {
		return fn(tx, func(id string) string {
			return first(m.pins.byID[id])
		})
	})
}

// pinned tells why a snapshot must stay now, or "".
func (m *Manager) pinned(id string) string { return first(m.Pins(id)) }

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
