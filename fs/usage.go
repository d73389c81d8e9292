package fs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// Usage is how full a filesystem is, as df(1) counts: what is reserved for root is neither used nor free.
type Usage struct {
	Size, Free         int64 // bytes
	Inodes, FreeInodes int64 // XFS makes inodes as it needs them: there they are estimates
}

// UsageAt returns the usage of the filesystem on a device, as st_dev, that is mounted at dir. It fails with
// fault.ErrNotFound if another filesystem is there, as after an unmount. ext4 and XFS answer from memory, also while they
// are frozen or their device does not; a filesystem that was mounted on top may keep the caller waiting.
func UsageAt(dir string, device uint64) (Usage, error) {
	var space unix.Statfs_t
	if err := unix.Statfs(dir, &space); err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", dir, err)
	}
	var now unix.Stat_t // afterwards: it may have been unmounted before the answer
	if err := unix.Stat(dir, &now); err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", dir, err)
	}
	if now.Dev != device {
		return Usage{}, fault.Errorf(fault.ErrNotFound, "usage of %s: another filesystem is mounted there", dir)
	}
	return Usage{
		Size: int64(space.Blocks-space.Bfree+space.Bavail) * space.Frsize, Free: int64(space.Bavail) * space.Frsize,
		Inodes: int64(space.Files), FreeInodes: int64(space.Ffree),
	}, nil
}
