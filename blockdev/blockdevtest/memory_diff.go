package blockdevtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
)

// grain is what Diff compares at once, in bytes: a page of the memory files.
const grain = 4096

// Differ compares devices byte by byte.
func (m *Memory) Differ() (blockdev.Differ, bool) { return memoryDiffer{m}, true }

type memoryDiffer struct{ pool *Memory }

// open opens the device's memory once more, to be read.
func (d memoryDiffer) open(id blockdev.ID) (*memoryReader, error) {
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	device, err := d.pool.device(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", device.data.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open device %s: %w", id, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open device %s: %w", id, err), f.Close())
	}
	return &memoryReader{File: f, size: info.Size()}, nil
}

// Open opens a device to be read.
func (d memoryDiffer) Open(_ context.Context, id blockdev.ID) (blockdev.Reader, error) {
	return d.open(id)
}

// Diff reports exactly the pages that differ.
func (d memoryDiffer) Diff(ctx context.Context, from, to blockdev.ID, fn func(blockdev.Extent) error) error {
	target, err := d.open(to)
	if err != nil {
		return err
	}
	defer target.Close()
	base := &memoryReader{} // empty
	if from != "" {
		if base, err = d.open(from); err != nil {
			return err
		}
		defer base.Close()
	}
	var pending blockdev.Extent
	for offset := int64(0); ; offset += grain {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("compare device %s with %q: %w", to, from, err)
		}
		if offset = min(base.nextData(offset), target.nextData(offset)); offset >= target.size {
			break
		}
		page := blockdev.Extent{Offset: offset, Length: min(grain, target.size-offset), Kind: blockdev.Data}
		if target.nextData(offset) > offset {
			page.Kind = blockdev.Hole
		}
		same, err := base.same(target, page)
		if err != nil {
			return fmt.Errorf("compare device %s with %q: %w", to, from, err)
		}
		switch {
		case same:
		case pending.End() == page.Offset && pending.Kind == page.Kind:
			pending.Length += page.Length
		default:
			if err := tell(pending, fn); err != nil {
				return err
			}
			pending = page
		}
	}
	return tell(pending, fn)
}

func tell(e blockdev.Extent, fn func(blockdev.Extent) error) error {
	if e.Length == 0 {
		return nil
	}
	return fn(e)
}

type memoryReader struct {
	*os.File
	size int64
}

func (r *memoryReader) Size() int64 { return r.size }

// nextData is the first offset from offset on where the file has data, in whole pages, or the largest one.
func (r *memoryReader) nextData(offset int64) int64 {
	const none = int64(1) << 62
	if offset >= r.size {
		return none
	}
	next, err := unix.Seek(int(r.Fd()), offset, unix.SEEK_DATA)
	if err != nil {
		return none // ENXIO: only a hole is left
	}
	return next / grain * grain
}

// same tells whether both files hold the same in a page. Behind the end of r only holes do.
func (r *memoryReader) same(other *memoryReader, page blockdev.Extent) (bool, error) {
	if page.Offset >= r.size {
		return page.Kind == blockdev.Hole, nil
	}
	var pages [2][grain]byte
	for i, f := range []*memoryReader{r, other} {
		if _, err := f.ReadAt(pages[i][:page.Length], page.Offset); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
	}
	return bytes.Equal(pages[0][:], pages[1][:]), nil
}
