// Package fs makes, checks, mounts, grows and trims the filesystems of volumes, and reads the kernel's mount
// table. It works on device nodes and directories and knows neither volumes nor pools.
package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
	"orlop/internal/run"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// A Type is a kind of filesystem that a volume may have. This table is all that Orlop knows of each kind:
// what is allowed, how mkfs is called and what mount(2) is told.
type Type struct {
	Name    string
	MinSize int64 // bytes: below it mkfs refuses, or leaves out the journal
	MaxSize int64 // bytes
	mkfs    []string
	data    string // mount options always given

	// size reads the filesystem's own idea of its size from its superblock, in bytes.
	size func(superblock []byte) (int64, bool)
	// mountedSize is size of what is mounted at dir, where the device may show a former one.
	mountedSize func(dir string) (int64, error)
	// usable returns how much of a device of size bytes the filesystem can have: all but a last part too small for it.
	usable func(superblock []byte, size int64) int64
	// limit returns the size in bytes to which the filesystem may be grown, below MaxSize for what was made small.
	limit func(superblock []byte) int64
	// uuid is the offset in bytes of the filesystem's UUID.
	uuid int
	// failed tells whether the superblock records an error.
	failed func(superblock []byte) bool
	// grow extends the mounted filesystem at dir to the device's size in bytes.
	grow func(dir string, size int64) error
	// growNeedsResource tells that grow needs CAP_SYS_RESOURCE; then there is GrowOffline too.
	growNeedsResource bool
	// lostFound tells that mkfs and check make a directory lost+found.
	lostFound bool
	// check repairs what is safe to repair; nil where mounting does all there is to do.
	check []string
}

// types are the filesystems in the order in which messages list them.
//
// ext4: 4 KiB blocks whatever the size, so that images stay alike; tables not written, neither now nor by the kernel
// behind a mount, and no discard, for a sparse image reads as zeroes anyway. 8 MiB is the smallest with a journal. xfs: sectors of 4 KiB, or it
// would not mount on a disk with 4 KiB sectors after a restore; mkfs.xfs refuses less than 300 MiB. nouuid, since
// a clone has its origin's UUID.
var types = []Type{
	{
		Name: "ext4", MinSize: 8 * mib, MaxSize: 16 * tib,
		mkfs: []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"},
		data: "errors=remount-ro,noinit_itable",
		size: ext4Size, usable: ext4Usable, limit: func([]byte) int64 { return 16 * tib }, uuid: ext4Start + 0x68,
		failed: ext4Failed, grow: ext4Grow, growNeedsResource: true,
		check: []string{"e2fsck", "-p"}, lostFound: true,
	},
	{
		Name: "xfs", MinSize: 300 * mib, MaxSize: 64 * tib,
		mkfs: []string{"mkfs.xfs", "-q", "-K", "-s", "size=4096", "-m", "reflink=1"},
		data: "nouuid",
		size: xfsSize, mountedSize: xfsMountedSize, usable: xfsUsable, limit: xfsLimit, uuid: 32,
		failed: func([]byte) bool { return false }, grow: xfsGrow,
	},
}

// Lookup returns the type called name, or fault.ErrInvalid with the names that there are.
func Lookup(name string) (Type, error) {
	for _, t := range types {
		if t.Name == name {
			return t, nil
		}
	}
	return Type{}, fault.Errorf(fault.ErrInvalid, "filesystem %q: not supported: use %s", name, strings.Join(Names(), " or "))
}

// Names lists the supported filesystems.
func Names() []string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.Name
	}
	return names
}

// Params returns the mkfs arguments, for the record.
func (t Type) Params() []string { return slices.Clone(t.mkfs[1:]) }

// Available fails with fault.ErrUnsupported and the package to install if the type's tools are missing.
func (t Type) Available() error {
	_, err := run.Find(t.mkfs[0])
	return err
}

// Make writes a filesystem on device, whose root directory then belongs to uid and gid. It refuses a device that
// is not blank with fault.ErrExists: nothing is ever formatted over. After a crash or an error the device holds
// a part of a filesystem and must be thrown away.
func (t Type) Make(ctx context.Context, r run.Runner, device string, uid, gid int) error {
	if err := blank(device); err != nil {
		return err
	}
	argv := slices.Clone(t.mkfs)
	if t.Name == "ext4" {
		argv[len(argv)-1] += ",root_owner=" + strconv.Itoa(uid) + ":" + strconv.Itoa(gid)
	}
	if _, err := r.Run(ctx, append(argv, device)...); err != nil {
		return fmt.Errorf("make %s on %s: %w", t.Name, device, err)
	}
	return nil
}

// blank fails with fault.ErrExists unless the first MiB and the last 64 KiB of the device, where every
// filesystem, partition table and volume manager keeps its signature, are zero.
func blank(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("look for a signature: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("look for a signature on %s: %w", device, err)
	}
	for _, part := range []struct{ offset, length int64 }{{0, min(mib, size)}, {max(0, size-64*kib), min(64*kib, size)}} {
		buf := make([]byte, part.length)
		if _, err := f.ReadAt(buf, part.offset); err != nil {
			return fmt.Errorf("look for a signature on %s: %w", device, err)
		}
		if len(bytes.Trim(buf, "\x00")) > 0 {
			return fault.Errorf(fault.ErrExists, "%s holds data already: refusing to format it", device)
		}
	}
	return nil
}

// FinishRoot gives the root directory of the new filesystem mounted at dir its owner and mode.
func FinishRoot(dir string, uid, gid int, mode uint32) error {
	if err := os.Chown(dir, uid, gid); err != nil {
		return fmt.Errorf("set owner of root directory: %w", err)
	}
	// Chmod after Chown, which clears set-id bits. os.Chmod would map the bits 07000.
	if err := chmod(dir, mode); err != nil {
		return fmt.Errorf("set mode of root directory: %w", err)
	}
	return nil
}

// RemoveLostFound removes the lost+found that mkfs or e2fsck has just made in the filesystem mounted at dir: Docker
// copies an image's content only into a directory with nothing in it. It removes only what those tools make, an empty
// directory of root's with mode 0700, and nothing where the type's tools make none. The caller must know that one of
// them made it: a user may have an equal one. It writes nothing, and so waits for no thaw, where there is none.
func (t Type) RemoveLostFound(dir string) error {
	if !t.lostFound {
		return nil
	}
	path := dir + "/lost+found"
	var stat unix.Stat_t
	err := unix.Lstat(path, &stat)
	if err == nil && stat.Mode == unix.S_IFDIR|0o700 && stat.Uid == 0 && stat.Gid == 0 {
		err = unix.Rmdir(path)
	}
	if err == nil || errors.Is(err, os.ErrNotExist) || isNotEmpty(err) {
		return nil
	}
	return fmt.Errorf("remove lost+found: %w", err)
}

// superblock reads the start of a device, which holds the superblock of every type.
func superblock(device string) ([]byte, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	if _, err := io.ReadFull(f, buf); err != nil {
		return nil, fmt.Errorf("read superblock of %s: %w", device, err)
	}
	return buf, nil
}

// Size returns the size in bytes that the filesystem on device believes it has. It fails with fault.ErrCorrupt
// if there is no filesystem of this type.
func (t Type) Size(device string) (int64, error) {
	block, err := superblock(device)
	if err != nil {
		return 0, err
	}
	size, ok := t.size(block)
	if !ok {
		return 0, fault.Errorf(fault.ErrCorrupt, "%s: no %s filesystem found", device, t.Name)
	}
	return size, nil
}

// UUID returns the UUID of the filesystem on device, as blkid(8) prints it. It fails as Size does.
func (t Type) UUID(device string) (string, error) {
	block, err := superblock(device)
	if err != nil {
		return "", err
	}
	if _, ok := t.size(block); !ok {
		return "", fault.Errorf(fault.ErrCorrupt, "%s: no %s filesystem found", device, t.Name)
	}
	id := block[t.uuid : t.uuid+16]
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), nil
}

// lasting returns a path of a device that stays after it is detached: a loop device's image. Others keep their own.
func lasting(device string) string {
	image, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if err != nil {
		return device
	}
	return strings.TrimSuffix(string(image), "\n")
}

// Failed tells whether the superblock of the filesystem on device records an error: then Repair has something to do.
func (t Type) Failed(device string) (bool, error) {
	block, err := superblock(device)
	if err != nil {
		return false, err
	}
	return t.check != nil && t.failed(block), nil
}
