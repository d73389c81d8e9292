package backup

import (
	"bytes"

	"orlop/internal/backup/repo"
)

// A sparse target writes no blocks of zeroes, so that the volume takes no more space than the filesystem in it needs: a
// chunk that is no hole may still have many.
type sparse struct {
	repo.Target

	blank bool // the target reads as zeroes where nothing was written yet: what reads as zeroes already is left alone
}

// sparseBlock is the size of the blocks in bytes: that of the filesystems'.
const sparseBlock = 4096

var zeroes [sparseBlock]byte

// WriteAt writes the runs of blocks that are not zero, and makes holes of the others.
func (s sparse) WriteAt(p []byte, offset int64) (int, error) {
	for begin := 0; begin < len(p); {
		zero := isZero(p[begin:min(begin+sparseBlock, len(p))])
		end := begin
		for end < len(p) && isZero(p[end:min(end+sparseBlock, len(p))]) == zero {
			end = min(end+sparseBlock, len(p))
		}
		if err := s.put(p[begin:end], offset+int64(begin), zero); err != nil {
			return begin, err
		}
		begin = end
	}
	return len(p), nil
}

func (s sparse) put(run []byte, offset int64, zero bool) error {
	if zero {
		return s.Hole(offset, int64(len(run)))
	}
	_, err := s.Target.WriteAt(run, offset)
	return err
}

// Hole makes a part read as zeroes.
func (s sparse) Hole(offset, length int64) error {
	if s.blank {
		return nil
	}
	return s.Target.Hole(offset, length)
}

func isZero(block []byte) bool { return bytes.Equal(block, zeroes[:len(block)]) }
