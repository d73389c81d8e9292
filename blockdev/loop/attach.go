package loop

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/freddierice/go-losetup/v2"
	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// attaching puts attachments of this process in a row: two that ask for a free device at once get the same one.
var attaching sync.Mutex

// attachTries bounds how often a device is asked for when other processes are faster.
const attachTries = 50

// detachWait is how long a detached device may take to be gone: udev and the like hold new devices open briefly.
const detachWait = 5 * time.Second

// file identifies a backing file as the loop driver does.
type file struct{ device, inode uint64 }

func fileAt(path string) (file, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return file{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return file{stat.Dev, stat.Ino}, nil
}

// backs returns the file behind an open loop device; ok is false if it has none.
func backs(device *os.File) (backing file, ok bool) {
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return file{}, false
	}
	return file{info.Device, info.Inode}, true
}

// attached calls fn with each attached loop device, open, whose backing file may be called name; an empty name
// means any. fn takes over the descriptor by returning true, which ends the search.
func attached(name string, fn func(device *os.File, backing file) bool) error {
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return fmt.Errorf("look for loop devices: %w", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		// In some containers the kernel shows "/" or "/ (deleted)" for a file elsewhere.
		shown := strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)")
		if name != "" && shown != "/" && shown != "" && filepath.Base(shown) != name {
			continue
		}
		device, err := openDevice("/dev/" + strings.Split(path, "/")[3])
		if err != nil {
			continue
		}
		if backing, ok := backs(device); ok && fn(device, backing) {
			return nil
		}
		_ = device.Close()
	}
	return nil
}

func openDevice(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) {
		f, err = os.Open(path)
	}
	return f, err
}

// attach returns an open loop device on the file at path: the one that has it already, from an earlier life of
// this daemon say, or a new one. Two devices on one image would be two filesystems blind to each other.
func attach(ctx context.Context, path string, invisible bool, mode blockdev.Mode) (*os.File, error) {
	wanted, err := fileAt(path)
	if err != nil {
		return nil, err
	}
	attaching.Lock()
	defer attaching.Unlock()
	var found *os.File
	err = attached(filepath.Base(path), func(device *os.File, backing file) bool {
		if backing != wanted {
			return false
		}
		found = device
		return true
	})
	if found != nil || err != nil {
		return found, err
	}
	image, err := openImage(path, invisible, mode)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	for range attachTries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("attach %s: %w", path, err)
		}
		device, err := configure(image, mode)
		if err == nil {
			if backing, ok := backs(device); !ok || backing != wanted {
				_ = device.Close()
				return nil, fmt.Errorf("attach %s: %s shows another file", path, device.Name())
			}
			return device, nil
		}
		// Another process took the device first, or removed it.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("attach %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("attach %s: other processes took each free loop device, %d times", path, attachTries)
}

// configure sets a free loop device up in one step, so that nobody ever sees it half made.
func configure(image *os.File, mode blockdev.Mode) (*os.File, error) {
	free, err := losetup.GetFree()
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	device, err := os.OpenFile(free.Path(), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device (is /dev the host's?): %w", err)
	}
	config := unix.LoopConfig{Fd: uint32(image.Fd()), Size: blockSize}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if mode == blockdev.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		_ = device.Close()
		return nil, fmt.Errorf("configure %s: %w", free.Path(), err)
	}
	return device, nil
}

// openImage opens a backing file. On XFS it goes through a handle: then the loop driver's writes leave the
// timestamps alone, and a database's fsync costs one journal commit less.
func openImage(path string, invisible bool, mode blockdev.Mode) (*os.File, error) {
	flags := os.O_RDWR
	if mode == blockdev.ReadOnly {
		flags = os.O_RDONLY
	}
	if invisible {
		if f, err := openByHandle(path, flags); err == nil {
			return f, nil
		}
	}
	return os.OpenFile(path, flags, 0)
}

// handleRequest is struct xfs_fsop_handlereq of fs/xfs/libxfs/xfs_fs.h.
type handleRequest struct {
	fd        uint32
	path      *byte
	flags     uint32
	in        *byte
	inLength  uint32
	out       *byte
	outLength *uint32
}

const (
	xfsPathToHandle = 0xc0385869
	xfsOpenByHandle = 0xc038586b
)

func openByHandle(path string, flags int) (*os.File, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	var handle [64]byte
	length := uint32(len(handle))
	request := handleRequest{path: name, out: &handle[0], outLength: &length}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), xfsPathToHandle, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil, errno
	}
	request = handleRequest{flags: uint32(flags | unix.O_LARGEFILE), in: &handle[0], inLength: length}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), xfsOpenByHandle, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return nil, errno
	}
	unix.CloseOnExec(int(fd))
	return os.NewFile(fd, path), nil
}

// detach frees a loop device that backs wanted, through held, which it closes. It fails with fault.ErrInUse if
// anybody has the device's filesystem mounted, in whatever namespace, or will not let go of the device; the
// device then stays attached and is returned open.
func detach(ctx context.Context, held *os.File, wanted file) (still *os.File, err error) {
	name := held.Name()
	if still, err := free(held, wanted); still != nil || err != nil {
		return still, err
	}
	return awaitDetached(ctx, name, wanted)
}

// free is detach without waiting for the device to be gone.
func free(held *os.File, wanted file) (still *os.File, err error) {
	if backing, ok := backs(held); !ok || backing != wanted {
		return nil, held.Close() // freed, and perhaps somebody else's by now
	}
	// A command that is just being started has a copy of every descriptor for a moment; not of this one, whose claim
	// would outlive it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	exclusive, err := os.OpenFile(held.Name(), os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return held, fault.Errorf(fault.ErrInUse, "%s: its filesystem is mounted somewhere", held.Name())
	}
	if err != nil {
		return held, fmt.Errorf("detach %s: %w", held.Name(), err)
	}
	if backing, ok := backs(exclusive); !ok || backing != wanted {
		return nil, errors.Join(exclusive.Close(), held.Close())
	}
	if err := unix.IoctlSetInt(int(exclusive.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		_ = exclusive.Close()
		return held, fmt.Errorf("detach %s: %w", held.Name(), err)
	}
	if err := errors.Join(exclusive.Close(), held.Close()); err != nil {
		return nil, fmt.Errorf("detach %s: %w", held.Name(), err)
	}
	return nil, nil
}

// awaitDetached waits until the device no longer shows the file: the kernel frees it with its last opener.
func awaitDetached(ctx context.Context, name string, wanted file) (still *os.File, err error) {
	deadline := time.NewTimer(detachWait)
	defer deadline.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if _, err := os.Stat("/sys/block/" + filepath.Base(name) + "/loop/backing_file"); errors.Is(err, iofs.ErrNotExist) {
			return nil, nil
		}
		device, err := openDevice(name)
		if err != nil {
			return nil, nil //nolint:nilerr // the device is gone altogether
		}
		if backing, ok := backs(device); !ok || backing != wanted {
			return nil, device.Close()
		}
		select {
		case <-deadline.C:
			return device, fault.Errorf(fault.ErrInUse, "%s: another process holds the device open", name)
		case <-ctx.Done():
			return device, fmt.Errorf("detach %s: %w", name, ctx.Err())
		case <-time.After(pause):
			_ = device.Close()
		}
	}
}

// Activate attaches the image to a loop device, which stays open until Deactivate.
func (p *Pool) Activate(ctx context.Context, id blockdev.ID, mode blockdev.Mode) (string, error) {
	stat, err := p.stat(id)
	if err != nil {
		return "", err
	}
	if mode == blockdev.ReadWrite && isSealed(stat) {
		return "", fault.Errorf(fault.ErrProtected, "activate device %s: it is sealed", id)
	}
	wanted := file{stat.Dev, stat.Ino}
	p.mu.Lock()
	held := p.active[id]
	p.mu.Unlock()
	if held != nil {
		if backing, ok := backs(held); ok && backing == wanted {
			return held.Name(), nil
		}
		p.hold(id, nil)
	}
	device, err := attach(ctx, p.image(id), p.xfs, mode)
	if err != nil {
		return "", fmt.Errorf("activate device %s: %w", id, err)
	}
	p.hold(id, device)
	return device.Name(), nil
}

// hold makes device the one that is kept open for id; nil lets go.
func (p *Pool) hold(id blockdev.ID, device *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.active[id]; old != nil && old != device {
		_ = old.Close()
	}
	delete(p.active, id)
	if device != nil {
		p.active[id] = device
	}
}

// Deactivate frees the image's loop device.
func (p *Pool) Deactivate(ctx context.Context, id blockdev.ID) error {
	p.mu.Lock()
	held := p.active[id]
	delete(p.active, id)
	p.mu.Unlock()
	if held == nil {
		return nil
	}
	wanted, err := fileAt(p.image(id))
	if errors.Is(err, iofs.ErrNotExist) {
		// The image was deleted below us. The device still shows the file that it had when it was opened.
		wanted, _ = backs(held)
	} else if err != nil {
		p.hold(id, held)
		return fmt.Errorf("deactivate device %s: %w", id, err)
	}
	still, err := detach(ctx, held, wanted)
	p.hold(id, still)
	if err != nil {
		return fmt.Errorf("deactivate device %s: %w", id, err)
	}
	return nil
}

// find returns the path of the loop device that backs an image, by whomever attached, or "".
func (p *Pool) find(id blockdev.ID) (path string, err error) {
	p.mu.Lock()
	held := p.active[id]
	p.mu.Unlock()
	if held != nil {
		return held.Name(), nil
	}
	wanted, err := fileAt(p.image(id))
	if errors.Is(err, iofs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("device %s: %w", id, err)
	}
	err = attached(string(id)+imageExt, func(device *os.File, backing file) bool {
		if backing == wanted {
			path = device.Name()
		}
		return false
	})
	return path, err
}

// reopen takes hold of the loop devices that an earlier life of this daemon attached and that are still in use.
func (p *Pool) reopen() error {
	entries, err := os.ReadDir(p.images)
	if err != nil {
		return fmt.Errorf("open pool %s: %w", p.dir, err)
	}
	images := map[file]blockdev.ID{}
	for _, entry := range entries {
		id, err := blockdev.ParseID(strings.TrimSuffix(entry.Name(), imageExt))
		if err != nil || !strings.HasSuffix(entry.Name(), imageExt) {
			continue
		}
		info, err := fileAt(p.image(id))
		if err != nil {
			return fmt.Errorf("open pool %s: %w", p.dir, err)
		}
		images[info] = id
	}
	return attached("", func(device *os.File, backing file) bool {
		id, ours := images[backing]
		if !ours {
			return false
		}
		if held, err := openDevice(device.Name()); err == nil {
			p.hold(id, held)
		}
		return false
	})
}
