package backup

import (
	"bytes"

	"orlop/internal/backup/repo"
)

// sparse is a target that reads as zeroes: it leaves out blocks of zeroes, so that the volume takes no more space than the
// filesystem in it needs. A chunk that is no hole may still have many.
type sparse struct{ repo.Target }

// sparseBlock is the size of the blocks in bytes: that of the filesystems'.
const sparseBlock = 4096

var zeroes [sparseBlock]byte

// WriteAt writes the runs of blocks that are not zero.
func (s sparse) WriteAt(p []byte, offset int64) (int, error) {
	for begin := 0; begin < len(p); {
		end := begin
		for end < len(p) && !isZero(p[end:min(end+sparseBlock, len(p))]) {
			end = min(end+sparseBlock, len(p))
		}
		if end == begin {
			begin = min(begin+sparseBlock, len(p))
			continue
		}
		if n, err := s.Target.WriteAt(p[begin:end], offset+int64(begin)); err != nil {
			return begin + n, err
		}
		begin = end
	}
	return len(p), nil
}

// Hole does nothing: the target reads as zeroes already.
func (sparse) Hole(int64, int64) error { return nil }

func isZero(block []byte) bool { return bytes.Equal(block, zeroes[:len(block)]) }
