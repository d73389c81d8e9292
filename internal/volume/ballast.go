package volume

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BallastName is the name of the ballast file in the data root.
const BallastName = "ballast"

const (
	maxBallast = int64(1) << 30
	maxLow     = int64(256) << 20
)

// marks are the figures, in bytes, by which the data root's filesystem is looked after. Each is free space, except
// for ballast, which is the size of the file.
type marks struct {
	ballast int64 // 1 GiB or 1 % of the disk, whichever is less
	low     int64 // below it the ballast is let go
	last    int64 // below it, and without ballast, writers are stalled
	enough  int64 // from here on the ballast is taken: it leaves twice the low mark, so that it never causes what it is for
}

// marksOf returns the marks for a disk of size bytes. On one below 2.5 GiB the low mark is a tenth of it.
func marksOf(size int64) marks {
	ballast, low := min(maxBallast, size/100), min(maxLow, size/10)
	return marks{ballast: ballast, low: low, last: low / 2, enough: ballast + 2*low}
}

// ballast is a file of really allocated blocks in the data root, given up when its filesystem is nearly full, so
// that somebody has time to act.
//
// It is kept only while a pool takes its space from that filesystem as volumes are written. Otherwise there is
// nothing to save: a preallocated pool has its space, another disk's pool is not helped by this one's, and the
// metadata is allocated ahead.
type ballast struct{ path string }

func ballastIn(root string) ballast { return ballast{filepath.Join(root, BallastName)} }

// held returns the bytes that are allocated for the ballast.
func (b ballast) held() int64 {
	var stat unix.Stat_t
	if unix.Lstat(b.path, &stat) != nil {
		return 0
	}
	return stat.Blocks * 512
}

// take allocates the ballast. A part that an earlier try left is completed; a failure leaves nothing.
func (b ballast) take(size int64) error {
	f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("take ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("take ballast of %d bytes: %w", size, err), b.release())
	}
	return nil
}

// release gives the ballast's space back; one that is not there is no error.
func (b ballast) release() error {
	if err := os.Remove(b.path); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("release ballast: %w", err)
	}
	return nil
}
