package blockdevtest

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rounds is how often a random test goes round: full times if ORLOP_SOAK is set.
func rounds(quick, full int) int {
	if os.Getenv("ORLOP_SOAK") != "" {
		return full
	}
	return quick
}

// random is seeded with ORLOP_SEED, or anew, and tells its seed.
func (s *suite) random() *rand.Rand {
	s.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("ORLOP_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		s.ok(err)
	}
	s.Logf("ORLOP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// changes are random writes and discards of whole blocks.
type changes struct {
	rng     *rand.Rand
	size    int64 // of the device
	touched map[int64]bool
}

func newChanges(seed uint64, size int64) *changes {
	return &changes{rng: rand.New(rand.NewPCG(seed, 1)), size: size, touched: map[int64]bool{}}
}

// apply makes count changes to the device at path, notes which blocks they touch, and flushes.
func (c *changes) apply(path string, count int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for range count {
		blocks := 1 + c.rng.Int64N(4)
		if c.rng.IntN(8) == 0 {
			blocks = 1 + c.rng.Int64N(128)
		}
		first := c.rng.Int64N(c.size/blockLength - blocks + 1)
		for block := first; block < first+blocks; block++ {
			c.touched[block] = true
		}
		if c.rng.IntN(4) == 0 {
			err = discard(f, first*blockLength, blocks*blockLength)
		} else {
			_, err = f.WriteAt(c.bytes(blocks*blockLength), first*blockLength)
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func (c *changes) bytes(length int64) []byte {
	b := make([]byte, length)
	value := byte(c.rng.Uint32()) // zero at times: written zeroes
	for i := range b {
		b[i] = value
	}
	return b
}

// discard makes a hole, in a block device or in a file. A device that cannot write zeroes, such as a thin volume, is told
// that its content is not needed: what it shows then is its own affair.
func discard(f *os.File, offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	span := [2]uint64{uint64(offset), uint64(length)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return errno
	}
	return nil
}
