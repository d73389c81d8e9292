// Package dirstore keeps backup objects as files in a directory: object a/b is the file a/b below it. The
// directory may be on a network filesystem and in use by many hosts.
package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A Store is a directory of objects. Files whose names store.CheckName refuses are none of its objects, and neither is
// anything behind a symbolic link below the directory. It is safe for concurrent use, and for use by many processes
// and hosts at once.
type Store struct {
	root   *os.File
	kernel kernel
	owner  string // begins the names of this process's temporary files
	sweep  sync.Once
}

var _ store.Store = (*Store)(nil)

// block is how many bytes are read or written between two looks at the context.
const block = 4 << 20

// Make makes the directory, durably; its parent must be there. It succeeds if the directory is there already.
func Make(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.Errorf(fault.ErrNotFound, "make backup directory %s: %s is not there; is the disk mounted?", dir, filepath.Dir(dir))
	case err != nil && !errors.Is(err, os.ErrExist):
		return judged("make backup directory", dir, err)
	}
	s, err := Open(dir) // refuses what is not a directory
	if err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(filepath.Clean(dir)))
	if err == nil {
		err = errors.Join(s.kernel.sync(parent), parent.Close())
	}
	return judged("make backup directory", dir, errors.Join(err, s.Close()))
}

// Open opens a directory, and makes nothing: where there is none it fails with fault.ErrNotFound, since a disk may not
// be mounted. The filesystem cannot be unmounted until Close.
func Open(dir string) (*Store, error) {
	fd := -1
	err := uninterrupted(func() (err error) {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	var stat unix.Stat_t
	switch {
	case isAny(err, unix.ENOTDIR) && unix.Stat(dir, &stat) == nil:
		return nil, fault.Errorf(fault.ErrNotFound, "backup directory %s: not a directory, but %s", dir, typeOf(stat))
	case isAny(err, unix.ENOENT, unix.ENOTDIR):
		return nil, fault.Errorf(fault.ErrNotFound, "backup directory %s: no such directory; is the disk mounted?", dir)
	case err != nil:
		return nil, judged("open backup directory", dir, err)
	}
	return &Store{root: os.NewFile(uintptr(fd), filepath.Clean(dir)), kernel: linux{}, owner: owner()}, nil
}

// Close lets go of the directory. No other method may be called any more.
func (s *Store) Close() error { return s.root.Close() }

// Get reads the file.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	data, err := s.read(ctx, name, func(size int64) (int64, int64, error) {
		if size > store.MaxSize {
			return 0, 0, fault.Errorf(fault.ErrCorrupt, "not an object: %d bytes are more than the %d allowed", size, store.MaxSize)
		}
		return 0, size, nil
	})
	return data, judged("get", name, err)
}

// GetRange reads a part of the file.
func (s *Store) GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := store.CheckRange(name, offset, length); err != nil {
		return nil, err
	}
	data, err := s.read(ctx, name, func(size int64) (int64, int64, error) {
		if offset+length > size {
			return 0, 0, store.Truncated(size, offset, length)
		}
		return offset, length, nil
	})
	return data, judged("get", name, err)
}

// read reads the part of an object's file that which names, given its size.
func (s *Store) read(ctx context.Context, name string, which func(size int64) (offset, length int64, err error)) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, size, err := s.openObject(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	offset, length, err := which(size)
	if err != nil {
		return nil, err
	}
	data := make([]byte, length)
	for done := int64(0); done < length; done += block {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		part := data[done:min(done+block, length)]
		err := s.kernel.read(f, part, offset+done)
		if errors.Is(err, io.EOF) { // somebody has cut the file since
			return nil, store.Truncated(size, offset, length)
		}
		if isGone(err) { // another host has deleted it
			return nil, s.notFound()
		}
		if err != nil {
			return nil, unreadable(err)
		}
	}
	return data, nil
}

// badMedium are the errors of reading what a medium cannot give back.
var badMedium = []unix.Errno{unix.EIO, unix.EBADMSG, unix.EUCLEAN, unix.EILSEQ, unix.EREMOTEIO}

// unreadable makes an error of reading a file's content fault.ErrCorrupt if it is the medium's: other objects may be
// good. Of a directory, and of writing, the same numbers tell nothing of any object.
func unreadable(err error) error {
	for _, number := range badMedium {
		if errors.Is(err, number) {
			return fault.Errorf(fault.ErrCorrupt, "cannot be read: %w", number)
		}
	}
	return err
}

// openObject opens an object's file and tells its size.
func (s *Store) openObject(name string) (f *os.File, size int64, err error) {
	dir, base := split(name)
	w, err := s.walk(dir)
	if err != nil {
		return nil, 0, err
	}
	defer w.close()
	// A named pipe in the place of an object must not hold up the open.
	f, err = s.kernel.open(w.last(), base, unix.O_RDONLY|unix.O_NONBLOCK)
	switch {
	case isGone(err):
		return nil, 0, s.notFound()
	case isAny(err, unix.ELOOP, unix.ENXIO): // a symbolic link, or a socket
		stat, err := lstat(w.last(), base)
		return nil, 0, s.notAFile(stat, err)
	case err != nil:
		return nil, 0, err
	}
	var stat unix.Stat_t
	err = failed("look at", w.last(), base, unix.Fstat(int(f.Fd()), &stat))
	if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFREG {
		return f, stat.Size, nil
	}
	return nil, 0, errors.Join(s.notAFile(stat, err), f.Close())
}

// notAFile is the error of an object whose name is something else's, given what was seen of that.
func (s *Store) notAFile(stat unix.Stat_t, err error) error {
	switch {
	case isGone(err):
		return s.notFound()
	case err != nil:
		return err
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fault.Errorf(fault.ErrNotFound, "not found: its name is that of %s", typeOf(stat))
	}
	return fault.Errorf(fault.ErrCorrupt, "not an object, but %s: only a file is taken for one", typeOf(stat))
}

// Delete removes the file, and the directories that become empty by it. Those cannot be removed under a Put that is
// about to use one: rmdir(2) fails if the Put has linked its file, and else the Put finds the directory gone and makes
// it again.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return judged("delete", name, err)
	}
	dir, base := split(name)
	w, err := s.walk(dir)
	if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrCorrupt) { // below what is no directory is no object
		return nil
	}
	if err != nil {
		return judged("delete", name, err)
	}
	defer w.close()
	if err := s.kernel.unlink(w.last(), base); err != nil && !isAny(err, unix.EISDIR) {
		if err := s.unlessGone(err); err != nil {
			return judged("delete", name, err)
		}
	}
	for i := len(w) - 1; i > 0; i-- {
		if s.kernel.rmdir(w[i-1], filepath.Base(w[i].Name())) != nil {
			break // not empty, most likely; an empty directory harms nobody
		}
	}
	return nil
}

// unreachable are the errors of a filesystem whose server or disk is gone.
var unreachable = []unix.Errno{
	unix.ESTALE, unix.ENOTCONN, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ESHUTDOWN, unix.ENODEV,
}

// judged says what was attempted, and gives an error that has no kind its kind.
func judged(verb, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case fault.Is(err, fault.ErrFailed) && isAny(err, unreachable...):
		return fault.Errorf(fault.ErrUnreachable, "%s %s: %w", verb, name, err)
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}
