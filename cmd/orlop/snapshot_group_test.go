//go:build root

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"orlop/internal/daemon"
)

// A pair of files in two volumes is written in turn: the next number to the first, synced, and only then to the second.
type pair struct {
	first, second string
}

// count writes numbers until stop is closed.
func (p pair) count(stop <-chan struct{}) error {
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		for _, path := range []string{p.first, p.second} {
			if err := writeNumber(path, n); err != nil {
				return err
			}
		}
	}
}

func writeNumber(path string, n uint64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, n), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// readNumber returns what writeNumber wrote, and 0 before it was written first.
func readNumber(t *testing.T, path string) uint64 {
	t.Helper()
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(raw) == 0 {
		return 0
	}
	check(t, err)
	return binary.LittleEndian.Uint64(raw)
}

// TestSnapshotsOfAGroupAreOfOnePointInTime: whoever has seen the second file of a pair at n must see the first one at n
// too, and it can be ahead by one only.
func TestSnapshotsOfAGroupAreOfOnePointInTime(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "a", "--size", "64M")
	h.must(t, "create", "b", "--size", "300M", "--fs", "xfs")
	dirs := map[string]string{"a": h.must(t, "mount", "a"), "b": h.must(t, "mount", "b")}
	// One pair each way: neither volume may be ahead of the other.
	pairs := map[string][2]string{"forth": {"a", "b"}, "back": {"b", "a"}}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); writers.Wait() })
	t.Cleanup(end)
	for file, order := range pairs {
		p := pair{filepath.Join(dirs[order[0]], file), filepath.Join(dirs[order[1]], file)}
		writers.Go(func() {
			if err := p.count(stop); err != nil {
				t.Error(err)
			}
		})
	}
	last := map[string]uint64{}
	for range often(6, 100) {
		var group []daemon.SnapshotView
		check(t, json.Unmarshal([]byte(h.must(t, "--json", "snapshot", "create", "a", "b")), &group))
		if len(group) != 2 || group[0].Group == "" || group[0].Group != group[1].Group || group[0].Created != group[1].Created || group[0].Name != group[1].Name {
			t.Fatalf("%+v", group)
		}
		seen := map[string]map[string]uint64{}
		for _, s := range group {
			seen[s.Volume] = map[string]uint64{}
			h.onClone(t, s.Volume+"@"+s.Name, func(dir string) {
				for file := range pairs {
					seen[s.Volume][file] = readNumber(t, filepath.Join(dir, file))
				}
			})
		}
		for file, order := range pairs {
			first, second := seen[order[0]][file], seen[order[1]][file]
			if second > first || first > second+1 {
				t.Errorf("pair %s: the first file is at %d and the second at %d", file, first, second)
			}
			if first < last[file] {
				t.Errorf("pair %s: at %d, and an earlier snapshot at %d", file, first, last[file])
			}
			last[file] = readNumber(t, filepath.Join(dirs[order[1]], file))
		}
	}
	end()
	if last["forth"] == 0 || last["back"] == 0 {
		t.Error("nothing was written")
	}
	t.Logf("pairs at %v", last)
}

// TestASnapshotOfAGroupIsAllOrNone has one volume of three that cannot be copied.
func TestASnapshotOfAGroupIsAllOrNone(t *testing.T) {
	h := startHost(t)
	for _, name := range []string{"a", "b", "c"} {
		h.must(t, "create", name, "--size", "16M")
		h.must(t, "mount", name)
	}
	h.must(t, "snapshot", "create", "c", "--name", "taken")
	for _, refused := range [][]string{
		{"a", "b", "c", "--name", "taken"}, {"a", "b", "missing", "--name", "s"}, {"a", "b", "a", "--name", "s"},
	} {
		want := map[string]int{"c": 4, "missing": 3, "a": 2}[refused[2]]
		if got := h.orlop(append([]string{"snapshot", "create"}, refused...)...); got.code != want {
			t.Errorf("snapshot create %q: %s, want exit code %d", refused, got, want)
		}
	}
	h.freeze(t, "b")
	if got := h.orlop("snapshot", "create", "a", "b", "c", "--name", "s"); got.code != 4 {
		t.Errorf("%s", got)
	}
	h.wantWritable(t, "a")
	h.wantWritable(t, "c")
	h.thaw(t, "b")
	if all := h.snapshots(t); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	if images := h.images(t); len(images) != 2*(3+1) {
		t.Errorf("images %q, want those of three volumes and a snapshot", images)
	}
	h.must(t, "snapshot", "create", "a", "b", "c", "--name", "s")
	for _, name := range []string{"a", "b", "c"} {
		h.wantWritable(t, name)
	}
}
