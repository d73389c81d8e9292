//go:build root

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orlop/internal/daemon"
	"orlop/metadata"
)

// transactions returns how many write transactions the metadata has had, as bbolt counts them: it notes the number of
// each in one of the two pages at the beginning of its file.
func (h *host) transactions(t *testing.T) uint64 {
	t.Helper()
	f, err := os.Open(filepath.Join(h.root, metadata.FileName))
	check(t, err)
	defer f.Close()
	const number = 16 + 48 // of the transaction: behind the page's head and the other fields
	pageSize := int64(os.Getpagesize())
	var last uint64
	for page := range int64(2) {
		var raw [8]byte
		_, err := f.ReadAt(raw[:], page*pageSize+number)
		check(t, err)
		last = max(last, binary.LittleEndian.Uint64(raw[:]))
	}
	return last
}

// TestManySnapshotsOfOneVolumeCostNoMoreThanFew takes them of a volume that is written, lists them, and deletes them
// with it.
func TestManySnapshotsOfOneVolumeCostNoMoreThanFew(t *testing.T) {
	many := often(150, 1000)
	h := startHost(t, "--pool-size", "8G")
	h.must(t, "create", "data", "--size", "64M")
	h.must(t, "create", "other", "--size", "16M")
	dir := h.must(t, "mount", "data")
	costs := make([]uint64, many)
	for i := range many {
		check(t, writeDurably(filepath.Join(dir, "file"), fmt.Appendf(nil, "content %d", i)))
		before := h.transactions(t)
		h.must(t, "snapshot", "create", "data", "--name", fmt.Sprintf("s%d", i))
		costs[i] = h.transactions(t) - before
	}
	if first, last := costs[1], costs[many-1]; first != last || first == 0 {
		t.Errorf("the second snapshot took %d transactions of the metadata and the last %d", first, last)
	}
	t.Logf("%d transactions of the metadata for each snapshot of a mounted volume", costs[1])

	all := h.snapshots(t, "data")
	if len(all) != many || all[0].Name != "s0" || all[many-1].Name != fmt.Sprintf("s%d", many-1) {
		t.Fatalf("%d snapshots are listed, want %d by their age", len(all), many)
	}
	if view := h.view(t, "data"); len(view.Snapshots) != many {
		t.Errorf("inspect shows %d snapshots", len(view.Snapshots))
	}
	var volumes []daemon.View
	check(t, json.Unmarshal([]byte(h.must(t, "--json", "list")), &volumes))
	if len(volumes) != 2 || len(volumes[0].Snapshots) != many || len(volumes[1].Snapshots) != 0 {
		t.Errorf("list shows %d volumes", len(volumes))
	}
	if got := h.docker(t, "Get", dockerRequest{Name: "data"}); got.Volume == nil || got.Volume.Status["snapshots"] == nil {
		t.Errorf("Docker sees %+v", got.Volume)
	}
	middle := fmt.Sprintf("data@s%d", many/2)
	h.onClone(t, middle, func(dir string) {
		want := fmt.Sprintf("content %d", many/2)
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v, want %q", middle, got, err, want)
		}
	})
	h.deleteAll(t, many)
}

// deleteAll deletes the volume with its many snapshots, and nothing else.
func (h *host) deleteAll(t *testing.T, many int) {
	t.Helper()
	h.must(t, "umount", "data")
	if got := h.orlop("delete", "data"); got.code != 4 || !strings.Contains(got.stderr, fmt.Sprintf("%d snapshots", many)) || len(got.stderr) > 500 {
		t.Errorf("deleted with its snapshots, or a message of %d bytes: %s", len(got.stderr), got)
	}
	h.must(t, "delete", "--snapshots", "data")
	if left := h.snapshots(t); len(left) > 0 {
		t.Errorf("%d snapshots are left", len(left))
	}
	if left := h.images(t); len(left) != 2 {
		t.Errorf("left in the pool: %q", left)
	}
	if got := h.orlop("doctor"); got.code != 0 {
		t.Errorf("doctor: %s", got)
	}
}

// TestTheKernelIsAskedNoMoreForTheLastOfManySnapshots counts the ioctls of a daemon. A trim, which is one of them, stands
// between two snapshots that are looked at.
func TestTheKernelIsAskedNoMoreForTheLastOfManySnapshots(t *testing.T) {
	many, sample := often(50, 1000), 5
	d := startSpaceDaemon(t, filepath.Join(onExt4(t).dir, "traced"), "--pool-size", "4G")
	d.must("create", "data", "--size", "64M")
	dir := d.must("mount", "data")
	d.must("snapshot", "create", "data") // the first one may differ
	stop := d.trace()
	for i := range many {
		check(t, writeDurably(filepath.Join(dir, "file"), fmt.Appendf(nil, "content %d", i)))
		if i <= sample || i >= many-sample {
			d.must("trim", "data")
		}
		d.must("snapshot", "create", "data", "--name", fmt.Sprintf("s%d", i))
	}
	d.must("trim", "data")
	var counts []int
	for i, part := range strings.Split(stop(), "FITRIM")[1:] {
		if i != sample { // that one has all between the samples
			counts = append(counts, strings.Count(part, "ioctl("))
		}
	}
	if len(counts) != 2*sample+1 {
		t.Fatalf("%d parts of the trace, want %d", len(counts), 2*sample+1)
	}
	// What the daemon does besides may add to one or the other.
	first, last := slices.Min(counts[:sample]), slices.Min(counts[sample:2*sample])
	if first != last || first < 3 {
		t.Errorf("the first snapshots took %d ioctls each and the last ones %d: %d", first, last, counts)
	}
	t.Logf("%d ioctls for each of %d snapshots", first, many)
	d.must("umount", "data")
	d.must("delete", "--snapshots", "data")
}

// trace records the daemon's ioctls until stop is called, which returns them a line each.
func (d *spaceDaemon) trace() (stop func() string) {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-e", "trace=ioctl", "-o", path, "-p", strconv.Itoa(d.cmd.Process.Pid))
	var said lockedBuffer
	cmd.Stderr = &said
	check(d.t, cmd.Start())
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // it detaches
		_ = cmd.Wait()
	})
	d.t.Cleanup(end)
	awaitHolds(d.t, "strace traces the daemon", func() bool { return strings.Contains(said.String(), "attached") })
	return func() string {
		end()
		text, err := os.ReadFile(path)
		check(d.t, err)
		return string(text)
	}
}
