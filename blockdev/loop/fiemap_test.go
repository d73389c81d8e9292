package loop

import (
	"encoding/binary"
	"slices"
	"testing"
)

// told is one extent of the kernel's answer.
type told struct {
	logical, physical, length uint64
	flags                     uint32
}

// answer is the kernel's buffer after a call that asked for as many extents.
func answer(asked int, extents ...told) []byte {
	b := make([]byte, fiemapHeader+asked*fiemapExtent)
	binary.NativeEndian.PutUint32(b[20:], uint32(len(extents)))
	binary.NativeEndian.PutUint32(b[24:], uint32(asked))
	for i, e := range extents {
		raw := b[fiemapHeader+i*fiemapExtent:]
		binary.NativeEndian.PutUint64(raw, e.logical)
		binary.NativeEndian.PutUint64(raw[8:], e.physical)
		binary.NativeEndian.PutUint64(raw[16:], e.length)
		binary.NativeEndian.PutUint32(raw[40:], e.flags)
	}
	return b
}

const (
	delalloc = 0x6 // and unknown
	inline   = 0x300
	encoded  = 0x8
	huge     = uint64(1) << 63
)

var answers = []struct {
	name   string
	buffer []byte
	want   []mapped
	next   int64
}{
	{"nothing", answer(4), nil, 1000},
	{"room for nothing", answer(0), nil, 1000},
	{"fewer than asked for", answer(4, told{100, 7, 50, 0}), []mapped{{100, 150, 7, true}}, 1000},
	{"as many as asked for", answer(1, told{100, 7, 50, extentShared}), []mapped{{100, 150, 7, true}}, 150},
	{"the last", answer(1, told{100, 7, 50, extentLast | extentMerged}), []mapped{{100, 150, 7, true}}, 1000},
	{"from before the range to behind it", answer(1, told{50, 7, 2000, 0}), []mapped{{100, 1000, 57, true}}, 1000},
	{"all behind the range", answer(2, told{100, 7, 50, 0}, told{1000, 8, 50, 0}), []mapped{{100, 150, 7, true}}, 1000},
	{"unwritten", answer(2, told{100, 7, 50, extentUnwritten}, told{150, 57, 50, 0}), []mapped{{150, 200, 57, true}}, 200},
	{"no place to rely on", answer(4, told{100, 7, 50, delalloc}, told{150, 0, 50, inline}, told{200, 9, 50, encoded | extentUnwritten}),
		[]mapped{{100, 150, 7, false}, {150, 200, 0, false}, {200, 250, 9, false}}, 1000},
	{"more than there is room for", answer(1, told{100, 7, 50, 0})[:fiemapHeader+fiemapExtent-1], nil, 1000},
	{"no length", answer(2, told{100, 7, 0, 0}), []mapped{{100, 1000, 0, false}}, 1000},
	{"all before the range", answer(2, told{0, 7, 100, 0}), []mapped{{100, 1000, 0, false}}, 1000},
	{"overlapping", answer(2, told{100, 7, 50, 0}, told{149, 90, 50, 0}), []mapped{{100, 150, 7, true}}, 150},
	{"falling", answer(3, told{500, 7, 50, 0}, told{100, 90, 50, 0}, told{600, 7, 50, 0}), []mapped{{500, 550, 7, true}}, 550},
	{"longer than any file", answer(2, told{200, 7, ^uint64(0), 0}), []mapped{{200, 1000, 7, true}}, 1000},
	{"further than any file", answer(2, told{huge, 7, huge, 0}), nil, 1000},
}

func TestKernelsAnswersAreRead(t *testing.T) {
	for _, a := range answers {
		got, next := decodeFiemap(a.buffer, 100, 1000, nil)
		if !slices.Equal(got, a.want) || next != a.next {
			t.Errorf("%s: %v up to %d, want %v up to %d", a.name, got, next, a.want, a.next)
		}
	}
}

func FuzzFiemap(f *testing.F) {
	for _, a := range answers {
		f.Add(a.buffer, int64(100), int64(1000))
	}
	f.Fuzz(func(t *testing.T, buffer []byte, start, end int64) {
		if len(buffer) < fiemapHeader || start < 0 || end <= start {
			return
		}
		extents, next := decodeFiemap(buffer, start, end, nil)
		if next <= start || next > end {
			t.Fatalf("asked for [%d, %d), told up to %d", start, end, next)
		}
		for _, e := range extents {
			if e.start < start || e.end <= e.start || e.end > next {
				t.Fatalf("%v up to %d", extents, next)
			}
			start = e.end
		}
	})
}
