package snapshot

import (
	"context"
	"errors"
	"fmt"

	"orlop/internal/fault"
	"orlop/metadata"
)

// Hooks are commands of the user's that bring an application to a state fit for a snapshot, and back. They run on the
// host as root, so only a daemon that was started to allow them runs them.

// checkHooks fails with fault.ErrUnsupported if a volume has hooks that may not be run: a snapshot without them would
// not be what its owner relies on.
func (m *Manager) checkHooks(v metadata.Volume) error {
	if m.hook != nil || len(v.PreSnapshot) == 0 && len(v.PostSnapshot) == 0 {
		return nil
	}
	return fault.Errorf(fault.ErrUnsupported, "volume %q: has commands to run around snapshots: start the daemon with --allow-hooks, or remove them with 'orlop set %s --pre-snapshot= --post-snapshot='", v.Name, v.Name)
}

// before runs the volumes' commands before a snapshot. The caller must call after, whatever before returns: it runs
// the commands after a snapshot of each volume whose first command was begun.
func (m *Manager) before(ctx context.Context, captures []capture) (after func(ctx context.Context) error, err error) {
	var begun []capture
	after = func(ctx context.Context) error {
		var errs []error
		for _, c := range begun {
			errs = append(errs, m.runHook(ctx, c, "post-snapshot", c.volume.PostSnapshot))
		}
		return errors.Join(errs...)
	}
	for _, c := range captures {
		begun = append(begun, c)
		if err := m.runHook(ctx, c, "pre-snapshot", c.volume.PreSnapshot); err != nil {
			return after, err
		}
	}
	return after, nil
}

func (m *Manager) runHook(ctx context.Context, c capture, kind string, argv []string) error {
	if len(argv) == 0 {
		return nil
	}
	dir, err := m.volumes.MountedAt(c.volume)
	if err != nil {
		return fmt.Errorf("volume %q: its %s command: %w", c.volume.Name, kind, err)
	}
	env := []string{
		"ORLOP_HOOK=" + kind, "ORLOP_VOLUME=" + c.volume.Name, "ORLOP_SNAPSHOT=" + c.snapshot.Name, "ORLOP_MOUNTPOINT=" + dir,
	}
	if err := m.hook(ctx, argv, env); err != nil {
		return fmt.Errorf("volume %q: its %s command: %w", c.volume.Name, kind, err)
	}
	return nil
}
