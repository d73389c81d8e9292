package loop

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
)

const (
	immutable = 0x10  // FS_IMMUTABLE_FL, which chattr(1) calls i
	writable  = 0o200 // the permission that the image of a sealed device lacks: the mark that Activate and Grow go by
)

func isSealed(stat unix.Stat_t) bool { return stat.Mode&writable == 0 }

// Seal takes the image's write permission, as the mark of a sealed device, and makes it immutable where the filesystem
// and the daemon's privileges allow: then defragmenters, deduplicators and root's mistakes leave it alone, too.
func (p *Pool) Seal(_ context.Context, id blockdev.ID) error {
	stat, err := p.stat(id)
	if err != nil {
		return err
	}
	device, err := p.find(id)
	if err != nil {
		return err
	}
	if device != "" && !readOnly(device) {
		return fault.Errorf(fault.ErrInUse, "seal device %s: %s can be written", id, device)
	}
	f, err := os.Open(p.image(id))
	if err != nil {
		return p.notFound(id, err)
	}
	if !isSealed(stat) {
		err = errors.Join(setImmutable(f, false), f.Chmod(0o400)) // a person may have set the flag: it would stop chmod
	}
	if err == nil {
		_ = setImmutable(f, true) // a second fence behind the mode
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return spaceFault(fmt.Errorf("seal device %s: %w", id, err))
	}
	return nil
}

// unseal makes an image removable again. It is no failure if there is none.
func unseal(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return setImmutable(f, false)
}

// setImmutable sets or clears the immutable flag; a filesystem without flags has nothing to clear.
func setImmutable(f *os.File, on bool) error {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		if on {
			return err
		}
		return nil
	}
	wanted := flags &^ immutable
	if on {
		wanted |= immutable
	}
	if wanted == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(wanted)); err != nil {
		return fmt.Errorf("change the immutable flag of %s: %w", f.Name(), err)
	}
	return nil
}

// readOnly tells whether nobody can write to a loop device.
func readOnly(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	return err == nil && info.Flags&unix.LO_FLAGS_READ_ONLY != 0
}
