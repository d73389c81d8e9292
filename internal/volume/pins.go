package volume

import (
	"context"
	"slices"
	"sync"

	"orlop/internal/fault"
	"orlop/metadata"
)

// pins keep snapshots from being deleted while something reads them. They end with the daemon, as the readers do.
//
// Two locks, because deciding takes a transaction and looking must not wait for one: who looks may be in a transaction
// that the decision waits for.
type pins struct {
	deciding sync.Mutex // held while something is pinned, or a deletion decided on

	mu   sync.Mutex // guards byID; nothing is waited for under it
	byID map[string][]string
}

// Pin keeps a snapshot, given by its ID, from being deleted until release is called; why shows to users. It fails
// with fault.ErrInUse if the snapshot is not ready.
func (m *Manager) Pin(id, why string) (s metadata.Snapshot, release func(), err error) {
	m.pins.deciding.Lock()
	defer m.pins.deciding.Unlock()
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
	m.pins.add(id, why)
	var once sync.Once
	return s, func() { once.Do(func() { m.unpin(id, why) }) }, nil
}

func (p *pins) add(id, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byID == nil {
		p.byID = map[string][]string{}
	}
	p.byID[id] = append(p.byID[id], why)
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
	m.pins.deciding.Lock()
	defer m.pins.deciding.Unlock()
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return fn(tx, m.pinned) })
}

// pinned tells why a snapshot must stay now, or "".
func (m *Manager) pinned(id string) string { return first(m.Pins(id)) }

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
