package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// partSuffix ends the name of a file while a backup is restored to it.
const partSuffix = ".orlop-part"

// A FileTarget is a sparse file as a Target. The file must have the backup's size.
type FileTarget struct{ *os.File }

// zeroes is what is written where holes are not supported.
var zeroes = make([]byte, 1<<20)

// Hole punches a hole, or writes zeroes where the filesystem cannot.
func (f FileTarget) Hole(offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, offset, length)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, offset, length)
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return &os.PathError{Op: "punch a hole into", Path: f.Name(), Err: err}
	}
	for err != nil && length > 0 {
		n := min(length, int64(len(zeroes)))
		if _, err := f.WriteAt(zeroes[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

// toFile restores to a new file by run, which gets the file that takes the content until it is whole, and whether that
// may hold something already. See Repository.RestoreFile.
func toFile(path string, size int64, run func(file *os.File, found bool) (Restored, error)) (done Restored, err error) {
	if _, err := os.Lstat(path); err == nil {
		return Restored{}, errFileThere(path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Restored{}, fmt.Errorf("restore to file: %w", err)
	}
	file, err := openPart(path + partSuffix)
	if err != nil {
		return Restored{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return Restored{}, fmt.Errorf("restore to file: %w", err)
	}
	found := info.Size() > 0
	if err := file.Truncate(size); err != nil {
		return Restored{}, fmt.Errorf("restore to file: %w", err)
	}
	done, err = run(file, found)
	switch {
	case err == nil:
		return done, publishFile(file, path)
	case fault.Is(err, fault.ErrNotFound):
		return done, errors.Join(err, os.Remove(file.Name())) // it will never be whole
	}
	what := "run the command again to go on"
	if fault.Is(err, fault.ErrCorrupt) {
		what = "after a repair the same command goes on with that, or restore an older backup"
	}
	return done, fmt.Errorf("%w; what is restored so far is in %s: %s, or delete that", err, file.Name(), what)
}

// openPart opens or creates the file beside the one that is to be, for one process at a time. It fails with
// fault.ErrExists if something else has its name than what an earlier restore of this user's left there: nobody else may
// read what is restored, and nobody's file is written to.
func openPart(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, unix.EEXIST) {
		file, err = openLeftPart(path)
	} else if err != nil {
		err = fmt.Errorf("restore to file: %w", err)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fault.Errorf(fault.ErrInUse, "restore to file: another restore writes %s", path)
	}
	if err == nil {
		err = stillThere(file)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// openLeftPart opens what an earlier restore left.
func openLeftPart(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, errNotOurs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("restore to file: %w", err)
	}
	if err := makeOurs(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// makeOurs makes sure that a file is a regular one with one name, that it belongs to whom files of this user belong to in
// its directory, which a file server may decide, and that nobody else may read it as far as the filesystem knows of that.
func makeOurs(file *os.File) error {
	fresh, err := os.CreateTemp(filepath.Dir(file.Name()), ".orlop-*")
	if err != nil {
		return fmt.Errorf("restore to file: %w", err)
	}
	var ours, its unix.Stat_t
	err = unix.Fstat(int(fresh.Fd()), &ours)
	err = errors.Join(err, fresh.Close(), os.Remove(fresh.Name()), unix.Fstat(int(file.Fd()), &its))
	if err != nil {
		return fmt.Errorf("restore to file: %w", err)
	}
	if its.Mode&unix.S_IFMT != unix.S_IFREG || its.Uid != ours.Uid || its.Nlink > 1 {
		return errNotOurs(file.Name())
	}
	if its.Mode != ours.Mode {
		if err := file.Chmod(0o600); err != nil {
			return fmt.Errorf("restore to file: %w", err)
		}
	}
	return nil
}

// stillThere makes sure that the file was not renamed by another restore between its opening and its locking.
func stillThere(file *os.File) error {
	opened, err := file.Stat()
	if err != nil {
		return fmt.Errorf("restore to file: %w", err)
	}
	if named, err := os.Lstat(file.Name()); err != nil || !os.SameFile(opened, named) {
		return fault.Errorf(fault.ErrInUse, "restore to file: another restore has just finished %s", file.Name())
	}
	return nil
}

// publishFile gives the file its name, durably and whole. It never replaces another.
func publishFile(file *os.File, path string) error {
	if err := file.Sync(); err != nil {
		// The kernel forgets which of the pages it could not write, and shows all of them as they should be.
		return errors.Join(fmt.Errorf("restore to file: %w; nothing of it can be trusted to be on the disk: run the command again", err), os.Remove(file.Name()))
	}
	err := unix.Renameat2(unix.AT_FDCWD, file.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a filesystem that cannot
		if _, there := os.Lstat(path); there == nil {
			err = unix.EEXIST
		} else {
			err = os.Rename(file.Name(), path)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return errFileThere(path)
	}
	if err != nil {
		return fmt.Errorf("restore to file: name it %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func errFileThere(path string) error {
	return fault.Errorf(fault.ErrExists, "restore to file: %s already exists and will not be overwritten", path)
}

func errNotOurs(path string) error {
	return fault.Errorf(fault.ErrExists, "restore to file: %s is in the way, and is not what an earlier restore left there: move it elsewhere", path)
}

// restoreFile is Restore with a file as its target.
func (o Restore) restoreFile(ctx context.Context, records *reading, path string) (Restored, error) {
	return toFile(path, o.Backup.Size, func(file *os.File, found bool) (Restored, error) {
		o.Target, o.Base = FileTarget{file}, nil
		if found {
			o.Found = file
		}
		return o.restore(ctx, records)
	})
}
