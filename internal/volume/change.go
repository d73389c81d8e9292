package volume

import (
	"context"
	"fmt"
	"maps"

	"orlop/blockdev"
	"orlop/internal/undo"
	"orlop/metadata"
)

// A Change says what to change of a volume's record. Nil fields stay as they are; an empty label value removes
// the label.
type Change struct {
	Labels       map[string]string
	Protected    *bool
	PreSnapshot  *[]string
	PostSnapshot *[]string
	Keep         *string // retention policy of its backups; empty for none of its own
	NoBackup     *bool
}

// Set changes what a Change names of a volume, all or nothing.
func (m *Manager) Set(ctx context.Context, id string, c Change) (metadata.Volume, error) {
	v, release, err := m.acquireReady(ctx, id)
	if err != nil {
		return v, err
	}
	defer release()
	changed := v
	changed.Labels = maps.Clone(v.Labels)
	for key, value := range c.Labels {
		if value == "" {
			delete(changed.Labels, key)
			continue
		}
		if changed.Labels == nil {
			changed.Labels = map[string]string{}
		}
		changed.Labels[key] = value
	}
	if c.Protected != nil {
		changed.Protected = *c.Protected
	}
	if c.PreSnapshot != nil {
		changed.PreSnapshot = *c.PreSnapshot
	}
	if c.PostSnapshot != nil {
		changed.PostSnapshot = *c.PostSnapshot
	}
	if c.Keep != nil {
		changed.Keep = *c.Keep
	}
	if c.NoBackup != nil {
		changed.NoBackup = *c.NoBackup
	}
	if err := m.replace(ctx, v, changed); err != nil {
		return v, fmt.Errorf("set volume %q: %w", v.Name, err)
	}
	m.log.Info("volume changed", "volume", v.Name, "labels", changed.Labels, "protected", changed.Protected)
	return changed, nil
}

// replace writes a changed record: to the device first, so that a database that is lost loses no acknowledged
// change, then to the database, which rules as long as it is there.
func (m *Manager) replace(ctx context.Context, old, v metadata.Volume) (err error) {
	pool, err := m.Pool(v)
	if err != nil {
		return err
	}
	record, err := m.Describe(v)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	if err := pool.Describe(ctx, blockdev.ID(v.Device), record); err != nil {
		return err
	}
	u.Push("describe device", func(ctx context.Context) error {
		record, err := m.Describe(old)
		if err != nil {
			return err
		}
		return pool.Describe(ctx, blockdev.ID(old.Device), record)
	})
	return m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutVolume(v) })
}
