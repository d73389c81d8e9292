package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/undo"
)

const (
	fewExtents = 1000    // of an image that is cloned at once, in some 15 ms
	piece      = 4 << 20 // bytes that are cloned at once while the image is in use: writes to it wait, some 10 ms
	nearby     = 8 << 10 // bytes between two differences that are not worth two calls
	maxPasses  = 8
	shortPass  = 20 * time.Millisecond // what a pass takes when another one would win nothing
)

// Prepare clones an image of many extents ahead, piece by piece, so that writes to src never wait long. As they go
// on, it goes over the copy again as long as that gets shorter: a pass takes what Clone would. Images of few extents
// are left to Clone. In either case the record is there.
func (p *Pool) Prepare(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) (err error) {
	from, _, err := p.openToRead(src)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := p.refuseExisting(dst); err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("remove prepared device", func(context.Context) error { return p.removePrepared(dst) })
	if err := p.writeRecord(dst, record); err != nil {
		return err
	}
	few, err := hasFewExtents(from)
	if err != nil {
		return fmt.Errorf("prepare device %s: %w", dst, err)
	}
	if few {
		return nil
	}
	to, err := p.openPart(dst, from)
	if err != nil {
		return spaceFault(fmt.Errorf("prepare device %s: %w", dst, err))
	}
	c := copying{to: to, from: from, skips: p.xfs}
	err = c.approach(ctx)
	if err = errors.Join(err, to.Close()); err != nil {
		return spaceFault(fmt.Errorf("prepare device %s: %w", dst, err))
	}
	return nil
}

// hasFewExtents looks at no more of a file's map than it takes to tell.
func hasFewExtents(f *os.File) (bool, error) {
	extents, err := newExtentMap(f, fewExtents)
	if err != nil {
		return false, err
	}
	_, told, err := extents.read(0, extents.size)
	return told == extents.size, err
}

// Clone makes dst share all of src's blocks, as they are at one instant unless dst is prepared and the filesystem is
// not XFS. Its time follows the number of src's extents, or of those that changed since dst was prepared; writes to
// src wait for it. The image appears when it is whole.
func (p *Pool) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) (err error) {
	from, _, err := p.openToRead(src)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := p.refuseExisting(dst); err != nil {
		return err
	}
	var u undo.Stack
	defer u.Unwind(ctx, &err)
	u.Push("remove prepared device", func(context.Context) error { return p.removePrepared(dst) })
	if written, err := os.ReadFile(p.record(dst)); err != nil || !bytes.Equal(written, record) {
		if err := p.writeRecord(dst, record); err != nil {
			return err
		}
	}
	to, err := p.openPart(dst, from)
	if err != nil {
		return spaceFault(fmt.Errorf("make device %s: %w", dst, err))
	}
	c := copying{to: to, from: from, skips: p.xfs}
	err = c.finish(ctx)
	if err = errors.Join(err, to.Close()); err == nil {
		err = os.Rename(p.part(dst), p.image(dst))
	}
	if err != nil {
		return spaceFault(fmt.Errorf("make device %s: %w", dst, err))
	}
	return nil
}

// openPart opens, or makes, what becomes the image of a copy of from.
func (p *Pool) openPart(dst blockdev.ID, from *os.File) (*os.File, error) {
	to, err := os.OpenFile(p.part(dst), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := copyNoCow(to, from); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

// noCow is FS_NOCOW_FL of the kernel's include/uapi/linux/fs.h: btrfs writes the file's blocks in place.
const noCow = 0x00800000

// copyNoCow gives a new file the copy-on-write flag of from. It has that of its directory, which may have changed since from
// was made, and btrfs shares no blocks between files that differ in it.
func copyNoCow(to, from *os.File) error {
	wanted, err := unix.IoctlGetUint32(int(from.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return nil //nolint:nilerr // a filesystem without flags
	}
	flags, err := unix.IoctlGetUint32(int(to.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&noCow == wanted&noCow {
		return err
	}
	if err := unix.IoctlSetPointerInt(int(to.Fd()), unix.FS_IOC_SETFLAGS, int(flags^noCow)); err != nil {
		return fmt.Errorf("give %s the copy-on-write flag of %s: %w", to.Name(), from.Name(), err)
	}
	return nil
}

// cloneFault names the causes of a refusal that btrfs keeps to itself.
func cloneFault(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the filesystem cannot share blocks between the two images: they may differ in copy-on-write or checksums (chattr +C; mount options nodatacow, nodatasum): %w", err)
	}
	return err
}

// refuseExisting fails with fault.ErrExists if there is a device.
func (p *Pool) refuseExisting(id blockdev.ID) error {
	_, err := p.stat(id)
	switch {
	case err == nil:
		return fault.Errorf(fault.ErrExists, "device %s: already exists", id)
	case fault.Is(err, fault.ErrNotFound):
		return nil
	}
	return err
}

// removePrepared removes what there is of a device whose image has not appeared.
func (p *Pool) removePrepared(id blockdev.ID) error {
	return errors.Join(removeFile(p.part(id)), removeFile(p.record(id)))
}

// A copying makes a file share the blocks of another one.
type copying struct {
	to, from *os.File
	skips    bool // cloning what is shared already costs next to nothing: XFS skips it, 30 times as fast
}

// approach brings to near to from, which may be written meanwhile.
func (c *copying) approach(ctx context.Context) error {
	last := time.Duration(0)
	for pass := range maxPasses {
		began := time.Now()
		if err := c.pass(ctx); err != nil {
			return err
		}
		took := time.Since(began)
		if took <= shortPass || pass > 0 && took > last/2 {
			return nil
		}
		last = took
	}
	return nil
}

// pass clones what differs, or everything where that is cheap, in pieces.
func (c *copying) pass(ctx context.Context) error {
	size, err := c.resize()
	if err != nil {
		return err
	}
	if !c.skips {
		return c.cloneDifferences(ctx)
	}
	for start := int64(0); start < size; start += piece {
		if start = min(nextData(c.from, start), nextData(c.to, start)); start >= size {
			return nil
		}
		start = start / piece * piece
		if err := c.clone(ctx, start, min(start+piece, size)); err != nil {
			return err
		}
	}
	return nil
}

// finish makes to what from is. With skips or into an empty file that is one instant of it.
func (c *copying) finish(ctx context.Context) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(c.to.Fd()), &stat); err != nil {
		return err
	}
	if _, err := c.resize(); err != nil {
		return err
	}
	if c.skips || stat.Blocks == 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		return cloneFault(unix.IoctlFileClone(int(c.to.Fd()), int(c.from.Fd())))
	}
	return c.cloneDifferences(ctx)
}

// resize gives to the size of from.
func (c *copying) resize() (int64, error) {
	info, err := c.from.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), c.to.Truncate(info.Size())
}

// cloneDifferences clones what the maps tell to differ.
func (c *copying) cloneDifferences(ctx context.Context) error {
	start, end := int64(0), int64(0) // what is to be cloned next
	err := diffFiles(ctx, c.to, c.from, func(e blockdev.Extent) error {
		if end > start && e.Offset-end > nearby {
			if err := c.cloneRange(ctx, start, end); err != nil {
				return err
			}
			start = e.Offset
		} else if end == start {
			start = e.Offset
		}
		end = e.End()
		return nil
	})
	if err != nil {
		return err
	}
	return c.cloneRange(ctx, start, end)
}

// cloneRange clones [start, end) in pieces.
func (c *copying) cloneRange(ctx context.Context, start, end int64) error {
	for ; start < end; start += piece {
		if err := c.clone(ctx, start, min(start+piece, end)); err != nil {
			return err
		}
	}
	return nil
}

// clone makes to share [start, end) of from. What is a hole there becomes one.
func (c *copying) clone(ctx context.Context, start, end int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return cloneFault(unix.IoctlFileCloneRange(int(c.to.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.from.Fd()), Src_offset: uint64(start), Src_length: uint64(end - start), Dest_offset: uint64(start),
	}))
}

// nextData is the first offset from offset on where f has data; if it cannot be told, the largest one.
func nextData(f *os.File, offset int64) int64 {
	next, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if err != nil {
		return 1<<63 - 1 // ENXIO: only a hole is left
	}
	return next
}
