//go:build root

package volume_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/volume"
	"orlop/snapshot"
)

const tebibyte = int64(1) << 40

// How many volumes are grown in an ordinary run, and in a soak.
const (
	fewGrowths  = 6
	manyGrowths = 150
)

// Volumes of any size and fill are grown by any factor, in all the ways in which that can happen and with steps of it
// failing: each can be mounted afterwards with its data, whatever became of the growth, and its record says how large
// it is.
func TestRandomVolumesKeepTheirDataWhateverGrowthDoes(t *testing.T) {
	s := newSite(t)
	seed, rounds, most := seedOf(t), fewGrowths, 32*gibibyte // larger ones take e2fsck minutes
	if os.Getenv("ORLOP_SOAK") != "" {
		rounds, most = manyGrowths, tebibyte
	}
	for i := range rounds {
		g := &growth{Rand: rand.New(rand.NewPCG(seed, uint64(i))), most: most}
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			g.world = s.emptyWorld(t)
			g.begin(t)
			g.run(t)
		})
	}
}

// A growth is the life of one random volume.
type growth struct {
	*rand.Rand
	*world
	most  int64 // bytes that it has at first
	name  string
	kind  fs.Type
	story string           // for messages
	files map[string]int64 // below the root directory, with their sizes in bytes
}

// between returns a random size in bytes, as often of one magnitude as of another.
func (g *growth) between(low, high int64) int64 {
	exponent := g.Float64() * math.Log(float64(high)/float64(low))
	return min(high, volume.RoundUp(int64(float64(low)*math.Exp(exponent))))
}

func (g *growth) tell(format string, values ...any) { g.story += fmt.Sprintf(format, values...) + "; " }

func (g *growth) run(t *testing.T) {
	defer func() {
		if t.Failed() {
			t.Log(g.story)
		}
	}()
	spec := specOf([]string{created, created + "-xfs"}[g.IntN(2)])
	var err error
	g.name = spec.Name
	g.kind, err = fs.Lookup(spec.Filesystem)
	check(t, err)
	fill := []string{"empty", "files", "inodes"}[g.IntN(3)]
	most := g.most
	if fill != "empty" { // and not in hours
		most = 2 * max(g.kind.MinSize, 64*mebibyte)
	}
	spec.Size = g.between(g.kind.MinSize, most)
	g.tell("%s of %d bytes, %s", spec.Filesystem, spec.Size, fill)
	_, err = g.Create(t.Context(), spec)
	check(t, err)
	g.write(t, g.name)
	g.with(t, g.name, func(dir string) { g.fill(t, dir, fill) })
	for range 1 + g.IntN(3) {
		g.step(t)
		g.wantWhole(t)
	}
	g.wantSound(t)
}

// fill makes files until nothing more fits.
func (g *growth) fill(t *testing.T, dir, with string) {
	t.Helper()
	g.files = map[string]int64{}
	size := map[string]int{"files": int(g.between(4096, 8*mebibyte)), "inodes": 0}[with]
	for i := 0; with != "empty" && i < 100_000; i++ {
		name := strconv.Itoa(i)
		err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600)
		if errors.Is(err, unix.ENOSPC) {
			if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				check(t, err)
			}
			break
		}
		check(t, err)
		g.files[name] = int64(size)
	}
	syncFilesystem(t, dir)
}

// step grows the volume in one of the ways in which that can happen, perhaps with growing being impossible.
func (g *growth) step(t *testing.T) {
	t.Helper()
	v := g.volume(t, g.name)
	target := g.between(v.Size, min(g.kind.MaxSize, v.Size*4096, 4*g.most))
	if g.IntN(4) == 0 {
		defer g.stunt()()
		g.tell("growing is impossible")
	}
	switch way := g.IntN(5); way {
	case 0:
		g.resize(t, target, "unused")
	case 1:
		_, err := g.MountUser(t.Context(), v.ID, "")
		check(t, err)
		g.resize(t, target, "mounted")
		if entry, err := g.MountOf(g.Mountpoint(g.name)); err != nil || entry == nil {
			t.Errorf("not mounted any more: %v", err)
		}
		check(t, unmountUser(t.Context(), g.world, v.ID))
	case 2:
		g.with(t, g.name, func(dir string) {
			open, err := os.Open(filepath.Join(dir, fileName))
			check(t, err)
			g.resize(t, target, "used")
			check(t, open.Close())
		})
	case 3:
		g.tell("recorded as %d bytes", target)
		g.wish(t, g.name, target)
	case 4:
		taken, err := g.snaps.Create(t.Context(), []string{v.ID}, snapshot.Spec{Name: "s"})
		check(t, err)
		g.resize(t, target, "and rolled back")
		_, err = g.snaps.Restore(t.Context(), taken[0].ID, true)
		check(t, err)
		g.content[contentKey(g.volume(t, g.name))] = g.content[contentKey(v)]
		check(t, g.snaps.Delete(t.Context(), taken[0].ID))
	}
}

func (g *growth) resize(t *testing.T, target int64, how string) {
	t.Helper()
	before := g.volume(t, g.name).Size
	err := resize(g.name, target)(t.Context(), g.world)
	g.tell("resized to %d bytes %s: %v", target, how, err)
	if after := g.volume(t, g.name).Size; err == nil && after != target || err != nil && after != before {
		t.Errorf("recorded as %d bytes afterwards, and as %d before", after, before)
	}
}

// wantWhole checks that the volume can be mounted, and has its data and the size that it is said to have.
func (g *growth) wantWhole(t *testing.T) {
	t.Helper()
	v := g.volume(t, g.name)
	g.with(t, g.name, func(dir string) {
		if text, err := os.ReadFile(filepath.Join(dir, fileName)); err != nil || string(text) != g.content[contentKey(v)] {
			t.Errorf("its content is another: %v", err)
		}
		list, err := os.ReadDir(dir)
		check(t, err)
		if len(list) != 1+len(g.files) {
			t.Errorf("%d files, want %d", len(list), 1+len(g.files))
		}
		for _, entry := range list {
			info, err := entry.Info()
			check(t, err)
			if want, ok := g.files[entry.Name()]; entry.Name() != fileName && (!ok || info.Size() != want) {
				t.Errorf("file %q of %d bytes", entry.Name(), info.Size())
			}
		}
	})
	said, failed := v.Size, g.failedGrowth(t, g.name)
	if failed != nil {
		said = failed.Size
	}
	usable, err := g.kind.Usable(g.image(v), said)
	check(t, err)
	if real := g.filesystemSize(t, g.name); real != usable {
		t.Errorf("said to have %d bytes, of which %d can be used: it has %d (%+v)", said, usable, real, failed)
	}
	wantClean(t, g.name, v.Filesystem, g.image(v))
}
