package fs

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// Requests that golang.org/x/sys does not name, from the kernel's include/uapi/linux/fs.h, fs/ext4/ext4.h and
// fs/xfs/libxfs/xfs_fs.h.
const (
	fitrim        = 0xc0185879
	fifreeze      = 0xc0045877
	fithaw        = 0xc0045878
	ext4ResizeFS  = 0x40086610
	xfsGeometryV1 = 0x80705864
	xfsGrowData   = 0x4010586e
)

// ioctl calls request on the file or directory at path.
func ioctl(path string, request uint, arg unsafe.Pointer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return ioctlFile(f, request, arg)
}

func ioctlFile(f *os.File, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Trim tells the device below the filesystem mounted at dir which blocks are free, and returns their bytes. It
// fails with fault.ErrUnsupported if the device takes no discards. It writes the filesystem out first: what was
// deleted is not free before its transaction is committed.
func Trim(dir string) (int64, error) {
	if err := Sync(dir); err != nil {
		return 0, fmt.Errorf("trim: %w", err)
	}
	arg := struct{ start, length, minimum uint64 }{0, math.MaxUint64, 0}
	err := ioctl(dir, fitrim, unsafe.Pointer(&arg))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, fault.Errorf(fault.ErrUnsupported, "trim %s: the device takes no discards", dir)
	case err != nil:
		return 0, fmt.Errorf("trim %s: %w", dir, err)
	}
	return int64(arg.length), nil
}

// Sync writes out what the filesystem mounted at dir has in memory.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Close()); err != nil {
		return fmt.Errorf("write out %s: %w", dir, err)
	}
	return nil
}

// Freeze writes out what the filesystem mounted at dir has in memory and stalls everyone who writes to it until
// Thaw. It fails with fault.ErrInUse if it is frozen already: that is somebody else's freeze.
func Freeze(dir string) error {
	f, err := FreezeHeld(dir)
	if err != nil {
		return err
	}
	return f.Close()
}

// A Held freeze keeps a directory of the frozen filesystem open to thaw it by: one that shut down because its disk
// failed lets nobody open anything, and would stay frozen, and its writers waiting.
type Held struct {
	dir *os.File
}

// FreezeHeld is Freeze, to be ended by Thaw and Close of what it returns. Until Close the filesystem cannot be unmounted.
func FreezeHeld(dir string) (*Held, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", dir, err)
	}
	var arg uint32
	err = ioctlFile(f, fifreeze, unsafe.Pointer(&arg))
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fault.Errorf(fault.ErrInUse, "freeze %s: it is frozen already", dir)
	case err != nil:
		err = fmt.Errorf("freeze %s: %w", dir, err)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return &Held{f}, nil
}

// Thaw ends the freeze; if it has ended already that is no error.
func (h *Held) Thaw() error { return thaw(h.dir) }

// Close lets go of the filesystem, frozen or not.
func (h *Held) Close() error { return h.dir.Close() }

// Space returns how many bytes the filesystem that holds dir has, and how many are left, as df(1) counts: what is
// kept for root is neither used nor free.
func Space(dir string) (size, free int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(stat.Blocks-stat.Bfree+stat.Bavail) * stat.Frsize, int64(stat.Bavail) * stat.Frsize, nil
}

// Thaw ends a freeze of the filesystem mounted at dir; one that is not frozen is no error.
func Thaw(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("thaw %s: %w", dir, err)
	}
	return errors.Join(thaw(f), f.Close())
}

func thaw(dir *os.File) error {
	var arg uint32
	if err := ioctlFile(dir, fithaw, unsafe.Pointer(&arg)); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", dir.Name(), err)
	}
	return nil
}

// refusedOnRemount is for each type an option that no writable mount can be changed to.
var refusedOnRemount = map[string][2]string{"ext4": {"data", "journal"}, "xfs": {"norecovery"}}

// Frozen tells whether the filesystem of this type mounted at dir, writable, is frozen, by whomever. It fails with
// fault.ErrUnsupported where the kernel cannot tell.
//
// No request asks for it. But the kernel refuses to change a frozen filesystem's options with EBUSY before it looks at
// them, so Frozen asks for a change that is refused in any case. That neither thaws nor changes anything, and does not wait
// for a thaw; it does wait while the filesystem is just being written out. A filesystem that is not frozen drops its
// unused directory entries from memory, and the kernel's log gets a line.
func (t Type) Frozen(dir string) (bool, error) {
	option, known := refusedOnRemount[t.Name]
	if !known {
		return false, fault.Errorf(fault.ErrUnsupported, "is %s frozen: no way to tell for %s", dir, t.Name)
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return false, fault.Errorf(fault.ErrUnsupported, "is %s frozen: %w", dir, err)
	}
	if err != nil {
		return false, fmt.Errorf("is %s frozen: %w", dir, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	if option[1] == "" {
		err = unix.FsconfigSetFlag(fd, option[0])
	} else {
		err = unix.FsconfigSetString(fd, option[0], option[1])
	}
	if err != nil {
		return false, fmt.Errorf("is %s frozen: %w", dir, err)
	}
	return errors.Is(unix.FsconfigReconfigure(fd), unix.EBUSY), nil
}

// Grow extends the filesystem on device, mounted writable at dir, to size bytes while it is in use. It survives a crash
// at any moment with the old size, the new one or one between; calling it again finishes it.
func (t Type) Grow(device, dir string, size int64) error {
	usable, err := t.Usable(device, size)
	if err == nil {
		err = t.grow(dir, usable)
	}
	if err != nil {
		return fmt.Errorf("grow %s at %s to %d bytes: %w", t.Name, dir, size, err)
	}
	return nil
}

// GrowsMounted tells whether this process can grow a mounted filesystem of this type: for ext4 the kernel wants
// CAP_SYS_RESOURCE, which some containers and sandboxes withhold from root.
func (t Type) GrowsMounted() bool {
	if !t.growNeedsResource {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false
	}
	return sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func ext4Grow(dir string, size int64) error {
	blocks := uint64(size / ext4Block)
	return ioctl(dir, ext4ResizeFS, unsafe.Pointer(&blocks))
}

// An xfsGeometry is struct xfs_fsop_geom_v1.
type xfsGeometry struct {
	blockSize, rtExtentSize, agBlocks, agCount, logBlocks, sectorSize, inodeSize, imaxPercent uint32
	dataBlocks                                                                                uint64
	_                                                                                         [72]byte
}

func xfsMountedSize(dir string) (int64, error) {
	var geometry xfsGeometry
	if err := ioctl(dir, xfsGeometryV1, unsafe.Pointer(&geometry)); err != nil {
		return 0, fmt.Errorf("size of xfs at %s: %w", dir, err)
	}
	return int64(geometry.dataBlocks) * int64(geometry.blockSize), nil
}

// xfsGrow keeps the share of space that inodes may take.
func xfsGrow(dir string, size int64) error {
	var geometry xfsGeometry
	if err := ioctl(dir, xfsGeometryV1, unsafe.Pointer(&geometry)); err != nil {
		return err
	}
	grow := struct {
		blocks      uint64
		imaxPercent uint32
		_           uint32
	}{uint64(size) / uint64(geometry.blockSize), geometry.imaxPercent, 0}
	if grow.blocks <= geometry.dataBlocks {
		return nil
	}
	return ioctl(dir, xfsGrowData, unsafe.Pointer(&grow))
}

func chmod(path string, mode uint32) error { return unix.Chmod(path, mode) }

func isNotEmpty(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR)
}

// setImmutable sets or clears the immutable flag of a directory, where its filesystem has one.
func setImmutable(dir string, on bool) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return nil // no flags here, tmpfs say: mode 0000 has to do
	}
	const immutable = 0x10
	wanted := flags &^ immutable
	if on {
		wanted |= immutable
	}
	if wanted == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(wanted)); err != nil && on {
		return nil //nolint:nilerr // the flag is a second fence behind mode 0000
	} else if err != nil {
		return fmt.Errorf("clear immutable flag: %w", err)
	}
	return nil
}

// MakeMountpoint makes dir, a directory that nobody can write into while nothing is mounted on it. One that is
// there already is made safe again, and left alone if something is mounted on it.
func MakeMountpoint(dir string) error {
	if mounted, err := IsMountpoint(dir); mounted || err != nil {
		return err
	}
	err := os.Mkdir(dir, 0)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fault.Errorf(fault.ErrNoSpace, "make mount point: %w", err)
	case err != nil && !errors.Is(err, os.ErrExist):
		return fmt.Errorf("make mount point: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("make mount point %s: something else is there", dir)
	}
	if info.Mode().Perm() != 0 {
		if err := errors.Join(setImmutable(dir, false), os.Chmod(dir, 0)); err != nil {
			return fmt.Errorf("close mount point %s: %w", dir, err)
		}
	}
	if err := setImmutable(dir, true); err != nil {
		return fmt.Errorf("close mount point %s: %w", dir, err)
	}
	return nil
}

// RemoveMountpoint removes a directory made by MakeMountpoint; one that is gone is no error. It refuses one
// that something is mounted on, or that is not empty.
func RemoveMountpoint(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if mounted, err := IsMountpoint(dir); err != nil {
		return err
	} else if mounted {
		return fault.Errorf(fault.ErrInUse, "remove mount point %s: something is mounted there", dir)
	}
	if err := setImmutable(dir, false); err != nil {
		return fmt.Errorf("remove mount point %s: %w", dir, err)
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove mount point %s: %w", dir, err)
	}
	return nil
}
