package loop

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"orlop/blockdev"
)

// A disk is a filesystem of two files that nobody writes, and whose blocks it moves about. A byte of a file stands for
// a block.
type disk struct {
	rng     *rand.Rand
	content []int     // of each place; 0 reads as zeroes
	files   [2][]int  // the place of each byte; hole if it has none
	known   [2][]bool // whether the place is told
	been    map[[3]int]bool
	looks   int
}

const (
	hole     = -1
	diskSize = 120
	fileSize = 24
)

// newDisk makes two files that share some of their blocks.
func newDisk(rng *rand.Rand) *disk {
	d := &disk{rng: rng, content: make([]int, diskSize), been: map[[3]int]bool{}}
	for i := range d.files {
		d.files[i], d.known[i] = make([]int, fileSize-rng.IntN(8)), make([]bool, fileSize)
		for offset := range d.files[i] {
			d.known[i][offset] = rng.IntN(10) > 0
			switch kind := rng.IntN(4); {
			case kind == 0:
				d.files[i][offset] = hole
			case kind > 1 && i == 1 && offset < len(d.files[0]):
				d.files[i][offset] = d.files[0][offset]
			default:
				d.files[i][offset] = i*fileSize + offset // in a row, so that extents are long
				d.content[i*fileSize+offset] = rng.IntN(3)
			}
		}
	}
	return d
}

func (d *disk) byteAt(file, offset int) int {
	if offset >= len(d.files[file]) || d.files[file][offset] == hole {
		return 0
	}
	return d.content[d.files[file][offset]]
}

// move gives some blocks new places, those that others have just left among them, but never one where that byte was.
func (d *disk) move() {
	for range 20 {
		file := d.rng.IntN(2)
		offset, to := d.rng.IntN(len(d.files[file])), d.rng.IntN(diskSize)
		from := d.files[file][offset]
		if from == hole || d.been[[3]int{file, offset, to}] || slices.Contains(d.files[0], to) || slices.Contains(d.files[1], to) {
			continue
		}
		d.content[to] = d.content[from]
		d.files[file][offset] = to
		d.been[[3]int{file, offset, from}] = true
	}
}

// A diskMap reads the map of a file on a disk, three extents at a time; the disk moves blocks after each look.
type diskMap struct {
	*disk
	file  int
	moves bool
}

func (m diskMap) read(start, end int64) (extents []mapped, next int64, err error) {
	m.looks++
	limit := min(end, int64(len(m.files[m.file])))
	for offset := start; offset < limit; offset++ {
		place, known := m.files[m.file][offset], m.known[m.file][offset]
		if place == hole {
			continue
		}
		if last := len(extents) - 1; last >= 0 && extents[last].end == offset && extents[last].known == known &&
			extents[last].place(offset) == uint64(place) {
			extents[last].end++
			continue
		}
		if len(extents) == 3 {
			end = extents[2].end
			break
		}
		extents = append(extents, mapped{offset, offset + 1, uint64(place), known})
	}
	if m.moves {
		m.move()
	}
	return extents, end, nil
}

// check fails unless the extents cover all that differs, and no more than they must if nothing moved.
func (d *disk) check(t *testing.T, extents []blockdev.Extent, exact bool) {
	t.Helper()
	covered := map[int]blockdev.ExtentKind{}
	end := int64(0)
	for _, e := range extents {
		if e.Offset < end || e.Length <= 0 || e.End() > int64(len(d.files[1])) {
			t.Fatalf("out of order: %v", extents)
		}
		end = e.End()
		for offset := e.Offset; offset < end; offset++ {
			covered[int(offset)] = e.Kind
		}
	}
	for offset, place := range d.files[1] {
		kind, told := covered[offset]
		switch was, is := d.byteAt(0, offset), d.byteAt(1, offset); {
		case was != is && !told:
			t.Fatalf("byte %d: %d became %d, told %v", offset, was, is, extents)
		case told && (kind == blockdev.Hole) != (place == hole):
			t.Fatalf("byte %d is at %d, told %v", offset, place, extents)
		case told && exact && d.same(offset):
			t.Fatalf("byte %d is shared, told %v", offset, extents)
		}
	}
}

// same tells whether both maps show the same at an offset.
func (d *disk) same(offset int) bool {
	was := hole
	if offset < len(d.files[0]) {
		was = d.files[0][offset]
	}
	return was == d.files[1][offset] && (was == hole || d.known[0][offset] && d.known[1][offset])
}

func TestDiffOmitsNoDifferenceWhileExtentsMove(t *testing.T) {
	seed, rounds := rand.Uint64(), 20_000
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ORLOP_SEED: %v", err)
		}
	}
	if os.Getenv("ORLOP_SOAK") != "" {
		rounds *= 100
	}
	t.Logf("ORLOP_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		d, moves := newDisk(rng), round%2 == 1
		c := comparison{from: diskMap{d, 0, moves}, to: diskMap{d, 1, moves}, again: diskMap{d, 0, moves}, size: int64(len(d.files[1]))}
		var extents []blockdev.Extent
		if err := c.run(t.Context(), func(e blockdev.Extent) error { extents = append(extents, e); return nil }); err != nil {
			t.Fatal(err)
		}
		if d.looks > 3*2*fileSize {
			t.Fatalf("%d looks at the maps of two files of %d extents", d.looks, fileSize)
		}
		d.check(t, extents, !moves)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// broken is a map that cannot be read.
type broken struct{}

func (broken) read(int64, int64) ([]mapped, int64, error) {
	return nil, 0, errors.New("input/output error")
}

func TestDiffFailsIfAMapCannotBeRead(t *testing.T) {
	sound := nothing{}
	for i, c := range []comparison{{broken{}, sound, sound, 1}, {sound, broken{}, sound, 1}, {sound, sound, broken{}, 1}} {
		if err := c.run(context.Background(), func(blockdev.Extent) error { return nil }); err == nil {
			t.Errorf("map %d is broken: no error", i)
		}
	}
}
