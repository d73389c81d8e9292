package fs

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// xfsRetries is for how many seconds a mounted XFS tries again to write what its device refuses with an I/O error. By
// default it does so for ever, and with it whoever freezes it or writes to it, beyond any signal; after this time it
// shuts down, and they get errors.
const xfsRetries = 3

// limitRetries has the XFS on a device, mounted just now, give up on I/O errors after a while. It does nothing where
// /sys cannot be written: the filesystem works all the same.
func limitRetries(device string) {
	setting, err := retriesOf(device)
	if err == nil {
		_ = os.WriteFile(setting, fmt.Appendf(nil, "%d", xfsRetries), 0)
	}
}

// retriesOf returns the kernel's setting of how long a mounted XFS tries again after an I/O error.
func retriesOf(device string) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(device, &stat); err != nil {
		return "", fmt.Errorf("look at %s: %w", device, err)
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev)))
	if err != nil {
		return "", fmt.Errorf("look for %s in /sys: %w", device, err)
	}
	return filepath.Join("/sys/fs/xfs", filepath.Base(link), "error/metadata/EIO/retry_timeout_seconds"), nil
}
