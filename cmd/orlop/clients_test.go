//go:build root

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

const (
	clients       = 64
	sharedVolumes = 4
)

// A tally counts what was done. It is safe for concurrent use.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) hit(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// lacks returns which of these were never done.
func (c *tally) lacks(all []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(all), func(what string) bool { return c.counts[what] > 0 })
}

func (c *tally) String() string {
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(c.counts)) {
		lines = append(lines, fmt.Sprintf("%6d  %s", c.counts[what], what))
	}
	return strings.Join(lines, "\n")
}

// A client does what it likes with names of its own, and what must be refused with the shared ones.
type client struct {
	h      *host
	number int
	random *rand.Rand
	tally  *tally
	own    map[string]*owned
	taken  int // snapshots, for their names
}

// owned is what a client knows of a volume of its own.
type owned struct {
	size      int64 // MiB
	holders   map[string]bool
	user      bool
	snapshots map[string]int64 // their sizes in MiB by name
}

func newOwned(size int64) *owned {
	return &owned{size: size, holders: map[string]bool{}, snapshots: map[string]int64{}}
}

// seed returns ORLOP_SEED, or a new one, and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	value := uint64(time.Now().UnixNano())
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if value, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	t.Logf("ORLOP_SEED=%d", value)
	return value
}

// wanted are the operations that a run must have hit.
var wanted = []string{
	"create by control", "create by docker", "create again by docker", "mount by docker", "mount by control", "unmount by docker", "umount by control",
	"inspect", "list", "get", "path", "docker list", "resize unmounted", "resize mounted", "set", "delete by control", "remove by docker", "remove what is gone",
	"create shared: exists", "create shared by docker: success", "delete shared: in use", "remove shared: in use",
}

// TestParallelClients goes on until each operation was hit, on a machine that is busy otherwise.
func TestParallelClients(t *testing.T) {
	length, longest := 10*time.Second, 10*time.Minute
	if os.Getenv("ORLOP_SOAK") != "" {
		length = time.Minute
	}
	wanted := slices.Concat(wanted, wantedSnapshots)
	h := startHost(t, "--pool-size", "8G")
	for i := range sharedVolumes {
		h.must(t, "create", shared(i), "--size", "16M")
	}
	seed, count := seed(t), &tally{counts: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	limit, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	group, failed := errgroup.WithContext(t.Context())
	for i := range clients {
		c := &client{h: h, number: i, random: rand.New(rand.NewPCG(seed, uint64(i))), tally: count, own: map[string]*owned{}}
		group.Go(func() error {
			for failed.Err() == nil && (ctx.Err() == nil || limit.Err() == nil && len(count.lacks(wanted)) > 0) {
				if err := c.step(t.Context()); err != nil {
					return fmt.Errorf("client %d: %w", c.number, err)
				}
			}
			if err := c.leave(t.Context()); err != nil {
				return fmt.Errorf("client %d leaves: %w", c.number, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("operations:\n%s", count)
	for _, what := range count.lacks(wanted) {
		t.Errorf("never hit: %s", what)
	}
	expectNothingButShared(t, h)
}

func shared(i int) string { return fmt.Sprintf("shared-%d", i) }

func expectNothingButShared(t *testing.T, h *host) {
	t.Helper()
	var views []daemon.View
	if err := json.Unmarshal([]byte(h.must(t, "list", "--json")), &views); err != nil {
		t.Fatal(err)
	}
	for _, view := range views {
		if len(view.Snapshots) > 0 || !strings.HasPrefix(view.Name, "shared-") || view.Mounted || len(view.Holders) > 0 || view.State != "ready" {
			t.Errorf("left: %+v", view)
		}
	}
	for i := range sharedVolumes {
		h.must(t, "delete", shared(i))
	}
	if images, points, scratch := h.images(t), names(t, filepath.Join(h.root, "mounts")), names(t, filepath.Join(h.root, "scratch")); len(images)+len(points)+len(scratch) > 0 {
		t.Errorf("left: images %q, mount points %q, scratch %q", images, points, scratch)
	}
	if mounts := slices.DeleteFunc(h.mounts(t), func(dir string) bool { return dir == filepath.Join(h.root, "pool") }); len(mounts) > 0 {
		t.Errorf("left: mounts %q", mounts)
	}
	if devices := h.devices(t); len(devices) > 1 {
		t.Errorf("left: loop devices %q, one of them the pool's", devices)
	}
}

// post makes a request about volumes of the control API that must succeed.
func (c *client) post(ctx context.Context, verb string, request control.Request) error {
	return c.request(ctx, "/volumes/"+verb, request)
}

// request makes a request of the control API that must succeed.
func (c *client) request(ctx context.Context, path string, request control.Request) error {
	raw, err := json.Marshal(request)
	if err != nil {
		return err
	}
	status, failure, err := c.h.api(ctx, http.MethodPost, path, string(raw))
	if err == nil && status != http.StatusOK {
		err = fault.Errorf(failure.Error.Kind, "%s", failure.Error.Message)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", path, raw, err)
	}
	return nil
}

// docker makes a call of Docker's protocol that must succeed.
func (c *client) docker(ctx context.Context, call string, request dockerRequest) (dockerAnswer, error) {
	got, err := c.h.ask(ctx, call, request)
	if err == nil && got.status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", got.status, got.Err)
	}
	if err != nil {
		return got, fmt.Errorf("%s %+v: %w", call, request, err)
	}
	return got, nil
}

// step does one thing, and counts it.
func (c *client) step(ctx context.Context) error {
	if c.random.IntN(8) == 0 {
		return c.tryShared(ctx, shared(c.random.IntN(sharedVolumes)))
	}
	first := c.random.IntN(2)
	name, other := fmt.Sprintf("own-%d-%d", c.number, first), fmt.Sprintf("own-%d-%d", c.number, 1-first)
	v := c.own[name]
	switch {
	case v == nil && c.own[other] != nil && c.random.IntN(3) > 0:
		return c.copy(ctx, name, other)
	case v == nil:
		return c.make(ctx, name)
	}
	type action struct {
		weight int
		do     func(context.Context, string, *owned) error
	}
	actions := []action{{4, c.mount}, {4, c.unmount}, {4, c.look}, {2, c.resize}, {1, c.set}, {2, c.remove}, {4, c.snapshot}, {1, c.unsnapshot}, {4, c.restore}, {3, c.lookAtSnapshots}}
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	pick := c.random.IntN(total)
	for _, a := range actions {
		if pick -= a.weight; pick < 0 {
			return a.do(ctx, name, v)
		}
	}
	return nil
}

func (c *client) make(ctx context.Context, name string) error {
	what := "create by control"
	var err error
	switch c.random.IntN(5) {
	case 0, 1:
		err = c.post(ctx, "create", control.Request{Name: name, Options: []control.Setting{{Key: "size", Value: "16M"}}})
	case 2, 3:
		what = "create by docker"
		_, err = c.docker(ctx, "Create", dockerRequest{Name: name, Opts: map[string]string{"size": "16M"}})
	default:
		what = "remove what is gone"
		if _, err = c.docker(ctx, "Remove", dockerRequest{Name: name}); err == nil {
			c.tally.hit(what)
		}
		return err
	}
	if err == nil {
		c.own[name] = newOwned(16)
		c.tally.hit(what)
	}
	return err
}

func (c *client) mount(ctx context.Context, name string, v *owned) error {
	if c.random.IntN(3) == 0 {
		if err := c.post(ctx, "mount", control.Request{Name: name}); err != nil {
			return err
		}
		v.user = true
		c.tally.hit("mount by control")
	} else {
		holder := strconv.Itoa(c.random.IntN(3))
		got, err := c.docker(ctx, "Mount", dockerRequest{Name: name, ID: holder})
		if err != nil {
			return err
		}
		if want := filepath.Join(c.h.root, "mounts", name); got.Mountpoint != want {
			return fmt.Errorf("mount %s: answered %q, want %q", name, got.Mountpoint, want)
		}
		v.holders[holder] = true
		c.tally.hit("mount by docker")
	}
	return os.WriteFile(filepath.Join(c.h.root, "mounts", name, "file"), []byte(name), 0o600)
}

func (c *client) unmount(ctx context.Context, name string, v *owned) error {
	if c.random.IntN(3) == 0 {
		v.user = false
		c.tally.hit("umount by control")
		return c.post(ctx, "umount", control.Request{Name: name})
	}
	holder := strconv.Itoa(c.random.IntN(3))
	delete(v.holders, holder)
	_, err := c.docker(ctx, "Unmount", dockerRequest{Name: name, ID: holder})
	c.tally.hit("unmount by docker")
	return err
}

// held tells whether the client has not let go of a volume.
func (v *owned) held() bool { return v.user || len(v.holders) > 0 }

// look reads a volume at one of five places, and compares what it sees with what it knows.
func (c *client) look(ctx context.Context, name string, v *owned) error {
	mountpoint := ""
	if v.held() {
		mountpoint = filepath.Join(c.h.root, "mounts", name)
	}
	seen := mountpoint
	switch c.random.IntN(5) {
	case 0:
		c.tally.hit("inspect")
		status, raw, err := send(ctx, c.h.control, http.MethodGet, control.Prefix+"/volumes/inspect?name="+name, nil)
		var view daemon.View
		if err == nil {
			err = json.Unmarshal(raw, &view)
		}
		if err != nil || status != http.StatusOK || view.State != "ready" || view.Size != v.size<<20 {
			return fmt.Errorf("inspect %s: status %d: %s (%w)", name, status, raw, err)
		}
		seen = view.Mountpoint
	case 1:
		c.tally.hit("list")
		status, raw, err := send(ctx, c.h.control, http.MethodGet, control.Prefix+"/volumes", nil)
		if err != nil || status != http.StatusOK || !strings.Contains(string(raw), strconv.Quote(name)) {
			return fmt.Errorf("list: status %d (%w), and no %s", status, err, name)
		}
	case 2:
		c.tally.hit("get")
		got, err := c.docker(ctx, "Get", dockerRequest{Name: name})
		if err != nil || got.Volume.Status["state"] != "ready" {
			return fmt.Errorf("get %s: %+v (%w)", name, got.Volume, err)
		}
		seen = got.Volume.Mountpoint
	case 3:
		c.tally.hit("path")
		got, err := c.docker(ctx, "Path", dockerRequest{Name: name})
		if err != nil {
			return err
		}
		seen = got.Mountpoint
	default:
		c.tally.hit("docker list")
		got, err := c.docker(ctx, "List", dockerRequest{})
		if err != nil || !slices.ContainsFunc(got.Volumes, func(v struct{ Name, Mountpoint string }) bool { return v.Name == name }) {
			return fmt.Errorf("docker list: no %s (%w)", name, err)
		}
	}
	if seen != mountpoint {
		return fmt.Errorf("%s shows at %q, want %q", name, seen, mountpoint)
	}
	return nil
}

func (c *client) resize(ctx context.Context, name string, v *owned) error {
	what := "resize unmounted"
	if v.held() {
		what = "resize mounted"
	}
	if v.size >= 48 {
		return nil
	}
	err := c.post(ctx, "resize", control.Request{Name: name, Size: fmt.Sprintf("%dM", v.size+8)})
	switch {
	case err == nil:
		v.size += 8
	case fault.Is(err, fault.ErrUnsupported) && len(v.holders) > 0:
		// Without CAP_SYS_RESOURCE it would be unmounted for a moment, and a container may be starting.
		c.tally.hit("resize mounted by docker: refused")
	default:
		return err
	}
	c.tally.hit(what)
	return nil
}

func (c *client) set(ctx context.Context, name string, _ *owned) error {
	c.tally.hit("set")
	return c.post(ctx, "set", control.Request{Name: name, Labels: []string{"step=" + strconv.Itoa(c.random.IntN(1000))}})
}

// remove deletes a volume that the client has let go of; of one that it holds it makes sure that Create does nothing.
func (c *client) remove(ctx context.Context, name string, v *owned) (err error) {
	if v.held() {
		c.tally.hit("create again by docker")
		_, err = c.docker(ctx, "Create", dockerRequest{Name: name, Opts: map[string]string{"size": "4G"}})
		return err
	}
	if len(v.snapshots) > 0 {
		return c.removeWithSnapshots(ctx, name)
	}
	what := "delete by control"
	if c.random.IntN(2) == 0 {
		err = c.post(ctx, "delete", control.Request{Name: name})
	} else {
		what = "remove by docker"
		_, err = c.docker(ctx, "Remove", dockerRequest{Name: name})
	}
	if err == nil {
		delete(c.own, name)
		c.tally.hit(what)
	}
	return err
}

// tryShared holds a shared volume and tries to create and delete it meanwhile.
func (c *client) tryShared(ctx context.Context, name string) (err error) {
	holder := fmt.Sprintf("client-%d", c.number)
	if _, err := c.docker(ctx, "Mount", dockerRequest{Name: name, ID: holder}); err != nil {
		return err
	}
	if err := c.post(ctx, "create", control.Request{Name: name}); !fault.Is(err, fault.ErrExists) {
		return fmt.Errorf("create of the shared %s: %w, want kind exists", name, err)
	}
	c.tally.hit("create shared: exists")
	if _, err := c.docker(ctx, "Create", dockerRequest{Name: name, Opts: map[string]string{"size": "1G"}}); err != nil {
		return err
	}
	c.tally.hit("create shared by docker: success")
	switch err := c.post(ctx, "delete", control.Request{Name: name}); {
	case fault.Is(err, fault.ErrInUse):
		c.tally.hit("delete shared: in use")
	case fault.Is(err, fault.ErrProtected):
		c.tally.hit("delete shared: has a snapshot of another client's")
	default:
		return fmt.Errorf("delete of the shared %s: %w, want kind in_use or protected", name, err)
	}
	got, err := c.h.ask(ctx, "Remove", dockerRequest{Name: name})
	switch {
	case err == nil && got.status == http.StatusInternalServerError && strings.Contains(got.Err, "in use"):
		c.tally.hit("remove shared: in use")
	case err == nil && got.status == http.StatusInternalServerError && strings.Contains(got.Err, "snapshot"):
		c.tally.hit("remove shared: has a snapshot of another client's")
	default:
		return fmt.Errorf("remove of the shared %s: %+v (%w), want a refusal", name, got, err)
	}
	if c.random.IntN(6) == 0 { // the others wait for it
		if err := c.snapshotShared(ctx, name); err != nil {
			return err
		}
	}
	_, err = c.docker(ctx, "Unmount", dockerRequest{Name: name, ID: holder})
	return err
}

// leave lets go of all that the client has, and deletes it.
func (c *client) leave(ctx context.Context) error {
	for name, v := range c.own {
		if v.user {
			if err := c.post(ctx, "umount", control.Request{Name: name}); err != nil {
				return err
			}
		}
		for holder := range v.holders {
			if _, err := c.docker(ctx, "Unmount", dockerRequest{Name: name, ID: holder}); err != nil {
				return err
			}
		}
		if err := c.post(ctx, "delete", control.Request{Name: name, Snapshots: true}); err != nil {
			return err
		}
	}
	return nil
}
