//go:build root

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// wantedSnapshots are the operations on snapshots that a run must have hit.
var wantedSnapshots = []string{
	"snapshot unmounted", "snapshot mounted", "snapshot of a group", "snapshot again: exists", "snapshot delete", "snapshot list", "snapshot inspect", "snapshot diff",
	"restore", "restore and discard", "restore mounted: in use", "copy of a volume", "copy of a mounted volume", "copy of a snapshot",
	"delete with snapshots: protected", "delete with snapshots", "remove by docker with snapshots: refused", "snapshots of shared volumes",
}

// mostSnapshots is how many snapshots of a volume a client keeps.
const mostSnapshots = 4

// pick returns one of a volume's snapshots, or "".
func (c *client) pick(v *owned) string {
	names := slices.Sorted(maps.Keys(v.snapshots))
	if len(names) == 0 {
		return ""
	}
	return names[c.random.IntN(len(names))]
}

// snapshot takes a snapshot of a volume, or of all that the client has, and writes to those that it holds: nothing is
// frozen afterwards.
func (c *client) snapshot(ctx context.Context, name string, v *owned) error {
	if len(v.snapshots) >= mostSnapshots {
		return c.unsnapshot(ctx, name, v)
	}
	c.taken++
	snapshot := fmt.Sprintf("s%d", c.taken)
	request := control.Request{Volumes: []string{name}, Name: snapshot}
	what := "snapshot unmounted"
	if v.held() {
		what = "snapshot mounted"
	}
	if c.random.IntN(3) == 0 && len(c.own) > 1 {
		request.Volumes, what = slices.Sorted(maps.Keys(c.own)), "snapshot of a group"
	}
	if err := c.request(ctx, "/snapshots/create", request); err != nil {
		return err
	}
	for _, volume := range request.Volumes {
		c.own[volume].snapshots[snapshot] = c.own[volume].size
		if err := c.write(volume); err != nil {
			return err
		}
	}
	c.tally.hit(what)
	if c.random.IntN(4) == 0 {
		if err := c.request(ctx, "/snapshots/create", request); !fault.Is(err, fault.ErrExists) {
			return fmt.Errorf("snapshot %s of %s again: %w, want kind exists", snapshot, name, err)
		}
		c.tally.hit("snapshot again: exists")
	}
	return nil
}

// write writes to a volume if the client holds it.
func (c *client) write(name string) error {
	if !c.own[name].held() {
		return nil
	}
	return os.WriteFile(filepath.Join(c.h.root, "mounts", name, "file"), []byte(name), 0o600)
}

func (c *client) unsnapshot(ctx context.Context, name string, v *owned) error {
	snapshot := c.pick(v)
	if snapshot == "" {
		return nil
	}
	if err := c.request(ctx, "/snapshots/delete", control.Request{Name: name + "@" + snapshot}); err != nil {
		return err
	}
	delete(v.snapshots, snapshot)
	c.tally.hit("snapshot delete")
	return nil
}

// restore rolls a volume back, which must be refused while the client holds it.
func (c *client) restore(ctx context.Context, name string, v *owned) error {
	snapshot := c.pick(v)
	if snapshot == "" {
		return nil
	}
	request := control.Request{Name: name + "@" + snapshot, Discard: len(v.snapshots) >= mostSnapshots || c.random.IntN(2) == 0}
	err := c.request(ctx, "/snapshots/restore", request)
	if v.held() {
		if !fault.Is(err, fault.ErrInUse) {
			return fmt.Errorf("restore of %s, which is held: %w, want kind in_use", name, err)
		}
		c.tally.hit("restore mounted: in use")
		return c.write(name)
	}
	if err != nil {
		return err
	}
	if request.Discard {
		c.tally.hit("restore and discard")
		return nil
	}
	c.tally.hit("restore")
	views, err := c.snapshotsOf(ctx, name)
	if err != nil {
		return err
	}
	for _, view := range views {
		if strings.HasPrefix(view.Name, "before-restore-") {
			v.snapshots[view.Name] = view.Size >> 20
		}
	}
	return nil
}

// snapshotsOf lists a volume's snapshots.
func (c *client) snapshotsOf(ctx context.Context, name string) (views []daemon.SnapshotView, err error) {
	status, raw, err := send(ctx, c.h.control, http.MethodGet, control.Prefix+"/snapshots?volume="+name, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, raw)
	}
	if err == nil {
		err = json.Unmarshal(raw, &views)
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", name, err)
	}
	return views, nil
}

// lookAtSnapshots compares a volume's snapshots with what the client knows.
func (c *client) lookAtSnapshots(ctx context.Context, name string, v *owned) error {
	snapshot := c.pick(v)
	switch c.random.IntN(3) {
	case 0:
		views, err := c.snapshotsOf(ctx, name)
		if err != nil {
			return err
		}
		seen := map[string]int64{}
		for _, view := range views {
			if seen[view.Name] = view.Size >> 20; view.State != "ready" {
				return fmt.Errorf("snapshot %+v: not ready", view)
			}
		}
		if !maps.Equal(seen, v.snapshots) {
			return fmt.Errorf("%s has the snapshots %v, want %v", name, seen, v.snapshots)
		}
		c.tally.hit("snapshot list")
	case 1:
		if snapshot == "" {
			return nil
		}
		query := url.Values{"name": {name + "@" + snapshot}}.Encode()
		status, raw, err := send(ctx, c.h.control, http.MethodGet, control.Prefix+"/snapshots/inspect?"+query, nil)
		if err != nil || status != http.StatusOK || !strings.Contains(string(raw), strconv.Quote(snapshot)) {
			return fmt.Errorf("inspect %s@%s: status %d: %s (%w)", name, snapshot, status, raw, err)
		}
		c.tally.hit("snapshot inspect")
	default:
		if snapshot == "" {
			return nil
		}
		query := url.Values{"name": {name + "@" + snapshot, name + "@" + c.pick(v)}}.Encode()
		status, raw, err := send(ctx, c.h.control, http.MethodGet, control.Prefix+"/snapshots/diff?"+query, nil)
		if err != nil || status != http.StatusOK || strings.Contains(string(raw), `"error"`) || !strings.HasSuffix("\n"+string(raw), "\n\n") {
			return fmt.Errorf("diff %s: status %d: %s (%w)", query, status, raw, err)
		}
		c.tally.hit("snapshot diff")
	}
	return nil
}

// copy makes a volume of another one of the client's, or of a snapshot of that.
func (c *client) copy(ctx context.Context, name, origin string) error {
	v := c.own[origin]
	from, size, what := origin, v.size, "copy of a volume"
	if v.held() {
		what = "copy of a mounted volume"
	}
	if snapshot := c.pick(v); snapshot != "" && c.random.IntN(2) == 0 {
		from, size, what = origin+"@"+snapshot, v.snapshots[snapshot], "copy of a snapshot"
	}
	if err := c.post(ctx, "create", control.Request{Name: name, Options: []control.Setting{{Key: "from", Value: from}}}); err != nil {
		return err
	}
	c.own[name] = newOwned(size)
	c.tally.hit(what)
	return c.write(origin)
}

// removeWithSnapshots deletes a volume that has snapshots, which takes an explicit word.
func (c *client) removeWithSnapshots(ctx context.Context, name string) error {
	if err := c.post(ctx, "delete", control.Request{Name: name}); !fault.Is(err, fault.ErrProtected) {
		return fmt.Errorf("delete of %s, which has snapshots: %w, want kind protected", name, err)
	}
	c.tally.hit("delete with snapshots: protected")
	got, err := c.h.ask(ctx, "Remove", dockerRequest{Name: name})
	if err != nil || got.status != http.StatusInternalServerError || !strings.Contains(got.Err, "snapshot") {
		return fmt.Errorf("remove of %s, which has snapshots: %+v (%w), want a refusal", name, got, err)
	}
	c.tally.hit("remove by docker with snapshots: refused")
	if err := c.post(ctx, "delete", control.Request{Name: name, Snapshots: true}); err != nil {
		return err
	}
	delete(c.own, name)
	c.tally.hit("delete with snapshots")
	return nil
}

// snapshotShared takes a snapshot of two shared volumes, both of which others write to, and deletes it.
func (c *client) snapshotShared(ctx context.Context, held string) error {
	c.taken++
	name := fmt.Sprintf("client-%d-%d", c.number, c.taken)
	other := shared(c.random.IntN(sharedVolumes))
	volumes := slices.Compact([]string{held, other})
	if err := c.request(ctx, "/snapshots/create", control.Request{Volumes: volumes, Name: name}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.h.root, "mounts", held, name), nil, 0o600); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(c.h.root, "mounts", held, name)); err != nil {
		return err
	}
	for _, volume := range volumes {
		if err := c.request(ctx, "/snapshots/delete", control.Request{Name: volume + "@" + name}); err != nil {
			return err
		}
	}
	c.tally.hit("snapshots of shared volumes")
	return nil
}
