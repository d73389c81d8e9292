package fs

import (
	"encoding/binary"

	"orlop/internal/fault"
)

// Usable returns how many of size bytes the filesystem on device can have. mkfs, resize2fs and the kernel leave out a
// last part that is too small for an allocation group.
func (t Type) Usable(device string, size int64) (int64, error) {
	block, err := superblock(device)
	if err != nil {
		return 0, err
	}
	if _, ok := t.size(block); !ok {
		return 0, fault.Errorf(fault.ErrCorrupt, "%s: no %s filesystem found", device, t.Name)
	}
	return t.usable(block, size), nil
}

// MountedSize is Size of the filesystem on device while it is mounted at dir: the newest superblock may stand in the
// journal only.
func (t Type) MountedSize(device, dir string) (int64, error) {
	if t.mountedSize != nil {
		return t.mountedSize(dir)
	}
	return t.Size(device)
}

// Limit returns the largest size in bytes to which the filesystem on device may be grown.
func (t Type) Limit(device string) (int64, error) {
	block, err := superblock(device)
	if err != nil {
		return 0, err
	}
	if _, ok := t.size(block); !ok {
		return 0, fault.Errorf(fault.ErrCorrupt, "%s: no %s filesystem found", device, t.Name)
	}
	return t.limit(block), nil
}

const (
	ext4Start = 1024 // offset of the superblock
	ext4Magic = 0xef53
	ext4Block = 4096 // bytes, of every ext4 that Orlop makes
)

// ext4Size follows the kernel's Documentation/filesystems/ext4/super.rst.
func ext4Size(block []byte) (int64, bool) {
	if len(block) < ext4Start+0x400 {
		return 0, false
	}
	sb := block[ext4Start:]
	logBlockSize := binary.LittleEndian.Uint32(sb[0x18:])
	if binary.LittleEndian.Uint16(sb[0x38:]) != ext4Magic || logBlockSize > 6 {
		return 0, false
	}
	blocks := uint64(binary.LittleEndian.Uint32(sb[0x04:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&0x80 != 0 { // INCOMPAT_64BIT
		blocks |= uint64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	shift := 10 + logBlockSize
	if blocks > uint64(1<<62)>>shift {
		return 0, false
	}
	return int64(blocks << shift), true
}

// ext4Failed reads s_state and s_error_count of the same document.
func ext4Failed(block []byte) bool {
	if _, ok := ext4Size(block); !ok {
		return false
	}
	sb := block[ext4Start:]
	return binary.LittleEndian.Uint16(sb[0x3a:])&2 != 0 || binary.LittleEndian.Uint32(sb[0x194:]) != 0
}

// xfsSize follows the XFS Algorithms & Data Structures document: magic, block size, blocks, big endian.
func xfsSize(block []byte) (int64, bool) {
	if len(block) < 16 || string(block[:4]) != "XFSB" {
		return 0, false
	}
	blockSize, blocks := uint64(binary.BigEndian.Uint32(block[4:])), binary.BigEndian.Uint64(block[8:])
	if blockSize == 0 || blockSize > 1<<16 || blocks > uint64(1<<62)/blockSize {
		return 0, false
	}
	return int64(blockSize * blocks), true
}

// ext4Usable follows adjust_fs_info of resize2fs, which ext2fs_initialize of mke2fs agrees with: a last group must
// have room for its tables and 50 blocks.
func ext4Usable(block []byte, size int64) int64 {
	sb := block[ext4Start:]
	number := func(offset int) int64 { return int64(binary.LittleEndian.Uint32(sb[offset:])) }
	short := func(offset int) int64 { return int64(binary.LittleEndian.Uint16(sb[offset:])) }
	perGroup, inodes, inodeSize := number(0x20), number(0x28), short(0x58)
	descriptor := int64(32)
	if number(0x60)&0x80 != 0 { // INCOMPAT_64BIT
		descriptor = max(descriptor, short(0xfe))
	}
	blocks := size / ext4Block
	if perGroup == 0 || blocks <= perGroup {
		return blocks * ext4Block
	}
	group, rest := blocks/perGroup, blocks%perGroup
	overhead := 2 + (inodes*inodeSize+ext4Block-1)/ext4Block
	if hasSuper(group) {
		overhead += 1 + ((group+1)*descriptor+ext4Block-1)/ext4Block + short(0xce)
	}
	if rest < overhead+50 {
		blocks -= rest
	}
	return blocks * ext4Block
}

// hasSuper reports whether an ext4 group has a copy of the superblock: groups 0 and 1, and powers of 3, 5 and 7.
func hasSuper(group int64) bool {
	for _, base := range []int64{3, 5, 7} {
		power := int64(1)
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return group == 0
}

const (
	xfsMinGroup = 64 // blocks of the smallest allocation group to which the kernel grows
	xfsGroups   = 4  // that mkfs.xfs makes at first
)

// GrowthFactor is how many times its first size an XFS may be grown to. Its allocation groups keep the size that mkfs
// gives them: with too many of them it is slow, and each takes memory.
const GrowthFactor = 100

func xfsUsable(block []byte, size int64) int64 {
	blockSize, perGroup := xfsGroup(block)
	if blockSize == 0 || perGroup == 0 {
		return size
	}
	blocks := size / blockSize
	if rest := blocks % perGroup; rest < xfsMinGroup {
		blocks -= rest
	}
	return blocks * blockSize
}

func xfsLimit(block []byte) int64 {
	blockSize, perGroup := xfsGroup(block)
	return min(64*tib, GrowthFactor*xfsGroups*blockSize*perGroup)
}

// xfsGroup returns the block size in bytes and the blocks of an allocation group.
func xfsGroup(block []byte) (blockSize, blocks int64) {
	return int64(binary.BigEndian.Uint32(block[4:])), int64(binary.BigEndian.Uint32(block[84:]))
}
