package loop

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interface of FS_IOC_FIEMAP, from the kernel's include/uapi/linux/fiemap.h: struct fiemap is 32 bytes of request,
// in which the kernel sets the number of extents, and then struct fiemap_extent of 56 bytes for each.
const (
	fsIocFiemap      = 0xc020660b
	fiemapFlagSync   = 0x1
	fiemapHeader     = 32
	fiemapExtent     = 56
	extentLast       = 0x1
	extentUnwritten  = 0x800
	extentMerged     = 0x1000
	extentShared     = 0x2000
	extentKnownFlags = extentLast | extentUnwritten | extentMerged | extentShared
)

// fiemapBatch is how many extents one call asks for.
const fiemapBatch = 4096

// A mapped is a range of a file in which something is written.
type mapped struct {
	start, end int64  // bytes of the file
	physical   uint64 // where start is in the filesystem's space
	known      bool   // physical can be relied on: what is there in two files is the same
}

// A mapReader tells where the bytes of a file are.
type mapReader interface {
	// read returns what is written from start on, by rising offset and cut to [start, next): as much as one look at
	// the file tells. next is above start, and end where the rest up to end is told. What is missing reads as
	// zeroes. The extents are valid until the next call.
	read(start, end int64) (extents []mapped, next int64, err error)
}

// An extentMap reads a file's map from the kernel.
type extentMap struct {
	f       *os.File
	size    int64 // of the file, behind which there is nothing
	request []byte
	extents []mapped
}

// newExtentMap reads f's map in batches of that many extents.
func newExtentMap(f *os.File, batch int) (*extentMap, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &extentMap{f: f, size: info.Size(), request: make([]byte, fiemapHeader+batch*fiemapExtent)}, nil
}

func (m *extentMap) read(start, end int64) ([]mapped, int64, error) {
	limit := min(end, m.size)
	if start >= limit {
		return nil, end, nil
	}
	clear(m.request[:fiemapHeader])
	binary.NativeEndian.PutUint64(m.request[0:], uint64(start))
	binary.NativeEndian.PutUint64(m.request[8:], uint64(limit-start))
	binary.NativeEndian.PutUint32(m.request[16:], fiemapFlagSync)
	binary.NativeEndian.PutUint32(m.request[24:], uint32((len(m.request)-fiemapHeader)/fiemapExtent))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, m.f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m.request[0]))); errno != 0 {
		return nil, 0, fmt.Errorf("map of %s from %d: %w", m.f.Name(), start, errno)
	}
	extents, next := decodeFiemap(m.request, start, limit, m.extents[:0])
	m.extents = extents
	if next == limit {
		next = end
	}
	return extents, next, nil
}

// decodeFiemap appends to extents what the kernel's answer to a request for [start, end) tells, cut to that range.
// The answer holds up to next, which is above start. Unwritten extents read as zeroes and are left out like holes. An
// answer that contradicts itself counts up to where it does; if that is its beginning, the whole range is written at
// unknown places. The buffer must have room for the header.
func decodeFiemap(buffer []byte, start, end int64, extents []mapped) (_ []mapped, next int64) {
	room := (len(buffer) - fiemapHeader) / fiemapExtent
	asked := min(int(binary.NativeEndian.Uint32(buffer[24:])), room)
	told := min(int(binary.NativeEndian.Uint32(buffer[20:])), asked)
	next = start
	for i := range told {
		raw := buffer[fiemapHeader+i*fiemapExtent:]
		logical, physical := binary.NativeEndian.Uint64(raw), binary.NativeEndian.Uint64(raw[8:])
		length, flags := binary.NativeEndian.Uint64(raw[16:]), binary.NativeEndian.Uint32(raw[40:])
		if i == 0 && logical < uint64(start) && length > uint64(start)-logical { // begins before what was asked for
			cut := uint64(start) - logical
			logical, physical, length = uint64(start), physical+cut, length-cut
		}
		if logical >= uint64(end) {
			return extents, end
		}
		if logical < uint64(next) || length == 0 { // not rising
			if next == start {
				return append(extents, mapped{start: start, end: end}), end
			}
			return extents, next
		}
		next = end
		if length < uint64(end)-logical {
			next = int64(logical + length)
		}
		if flags&^extentKnownFlags != 0 || flags&extentUnwritten == 0 {
			extents = append(extents, mapped{int64(logical), next, physical, flags&^extentKnownFlags == 0})
		}
		if flags&extentLast != 0 {
			return extents, end
		}
	}
	if told < asked || asked == 0 {
		return extents, end
	}
	return extents, next
}
