package dirstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// kernel is every effect that a Store has on its directory, so that tests can cut one short, fail one, or look at their
// order, and what it reads. Names are single segments in dir, and symbolic links are never followed.
type kernel interface {
	open(dir *os.File, name string, flags int) (*os.File, error)
	read(f *os.File, b []byte, offset int64) error // io.EOF if the file ends before b is full
	names(dir *os.File) ([]string, error)          // what is in dir, which nobody has read yet
	links(dir *os.File) (uint32, error)            // how many names dir has, as the file server says now
	mkdir(dir *os.File, name string) error
	write(f *os.File, b []byte) error
	sync(f *os.File) error
	link(from *os.File, old string, to *os.File, name string) error
	rename(from *os.File, old string, to *os.File, name string) error // EEXIST instead of replacing
	unlink(dir *os.File, name string) error
	rmdir(dir *os.File, name string) error
}

// linux is the real kernel. What others could read or change is made for the owner alone.
type linux struct{}

func (linux) open(dir *os.File, name string, flags int) (*os.File, error) {
	path := dir.Name() + "/" + name
	fd := -1
	err := uninterrupted(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (linux) read(f *os.File, b []byte, offset int64) error {
	_, err := f.ReadAt(b, offset)
	return err
}

func (linux) names(dir *os.File) ([]string, error) { return dir.Readdirnames(-1) }

func (linux) links(dir *os.File) (uint32, error) {
	const ask = unix.AT_EMPTY_PATH | unix.AT_STATX_FORCE_SYNC // a network filesystem remembers for a while
	var stat unix.Statx_t
	err := uninterrupted(func() error { return unix.Statx(int(dir.Fd()), "", ask, unix.STATX_NLINK, &stat) })
	if err != nil {
		return 0, &os.PathError{Op: "look at", Path: dir.Name(), Err: err}
	}
	return stat.Nlink, nil
}

func (linux) mkdir(dir *os.File, name string) error {
	return failed("make directory", dir, name, uninterrupted(func() error { return unix.Mkdirat(int(dir.Fd()), name, 0o700) }))
}

func (linux) write(f *os.File, b []byte) error {
	_, err := f.Write(b)
	return err
}

// sync flushes a file or directory. Filesystems that cannot flush a directory say EINVAL: with them a name lasts as well
// as they make it last.
func (linux) sync(f *os.File) error {
	err := f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		if info, statErr := f.Stat(); statErr == nil && info.IsDir() {
			return nil
		}
	}
	return err
}

func (linux) link(from *os.File, old string, to *os.File, name string) error {
	return failed("link", to, name, uninterrupted(func() error {
		return unix.Linkat(int(from.Fd()), old, int(to.Fd()), name, 0)
	}))
}

func (linux) rename(from *os.File, old string, to *os.File, name string) error {
	return failed("rename to", to, name, uninterrupted(func() error {
		return unix.Renameat2(int(from.Fd()), old, int(to.Fd()), name, unix.RENAME_NOREPLACE)
	}))
}

func (linux) unlink(dir *os.File, name string) error {
	return failed("remove", dir, name, uninterrupted(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) }))
}

func (linux) rmdir(dir *os.File, name string) error {
	return failed("remove directory", dir, name, uninterrupted(func() error {
		return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}))
}

// lstat describes what is under a name, the link itself if it is a symbolic one.
func lstat(dir *os.File, name string) (stat unix.Stat_t, err error) {
	err = uninterrupted(func() error { return unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW) })
	return stat, failed("look at", dir, name, err)
}

func failed(op string, dir *os.File, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: dir.Name() + "/" + name, Err: err}
}

// uninterrupted repeats a system call that a signal has interrupted, as network filesystems let happen.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isAny tells whether err is one of the numbers.
func isAny(err error, numbers ...unix.Errno) bool {
	for _, number := range numbers {
		if errors.Is(err, number) {
			return true
		}
	}
	return false
}
