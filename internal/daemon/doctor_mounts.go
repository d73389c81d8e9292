package daemon

import (
	"context"
	"fmt"
	"strings"

	"orlop/metadata"
)

// findStaleHolders looks for what Docker holds though no process uses it: it could not deliver an Unmount.
func (d *Daemon) findStaleHolders(ctx context.Context) (found []Finding, _ error) {
	stale, err := d.volumes.StaleHolders(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range stale {
		found = append(found, Finding{
			mild, "volume " + s.Volume, fmt.Sprintf("held by docker mount %s, which no process uses: docker could not report its end", s.Holder.ID),
			"orlop umount --stale " + s.Volume,
		})
	}
	return found, nil
}

// findLingering looks for volumes that something keeps mounted though they have no holder.
func (d *Daemon) findLingering(ctx context.Context) (found []Finding, _ error) {
	mounted, err := d.volumes.Mounted()
	if err != nil {
		return nil, err
	}
	var lingering []metadata.Volume
	err = d.store.View(func(tx *metadata.Tx) error {
		held := map[string]bool{}
		holders, err := tx.Holders("")
		for _, h := range holders {
			held[h.Volume] = true
		}
		if err != nil {
			return err
		}
		volumes, err := tx.Volumes()
		for _, v := range volumes {
			if _, is := mounted[d.volumes.Mountpoint(v.Name)]; is && !held[v.ID] {
				lingering = append(lingering, v)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, v := range lingering {
		if uses := d.volumes.Lingering(ctx, v); len(uses) > 0 {
			found = append(found, Finding{
				mild, "volume " + v.Name, "mounted without a holder: in use by " + strings.Join(uses, ", "),
				"orlop umount " + v.Name + ", once that has ended",
			})
		}
	}
	return found, nil
}
