package dirstore

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// attempts is how often Put makes a directory that Deletes keep removing before it can use it.
const attempts = 100

// Put writes a temporary file, flushes it, and gives it the object's name by link(2), which is exclusive on every
// filesystem that has it, NFS included; where there is none, by renameat2(2) with RENAME_NOREPLACE. It returns when the
// directories are flushed too. A crash leaves at most the temporary file and empty directories.
//
// It fails with fault.ErrUnsupported if the filesystem can do neither.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := store.CheckPut(name, len(data)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return judged("put", name, err)
	}
	tmp, err := s.openTemporary()
	if err != nil {
		return judged("put", name, err)
	}
	defer tmp.Close()
	temp, err := s.writeTemporary(ctx, tmp, data)
	if err != nil {
		return judged("put", name, err)
	}
	err = s.publish(temp, name)
	// If this fails the file is swept one day. An object that has its name does not need it.
	_ = s.kernel.unlink(tmp, temp.name)
	return judged("put", name, err)
}

// publish gives a temporary file the object's name, durably.
func (s *Store) publish(temp temporary, name string) error {
	dir, base := split(name)
	for attempt := 1; ; attempt++ {
		err := s.publishIn(dir, base, temp)
		if !isGone(err) || attempt == attempts {
			return err
		}
		// A Delete has removed the directory, or a sweep has removed the temporary file, or somebody the root.
		if err := errors.Join(temp.present(), s.present()); err != nil {
			return err
		}
	}
}

func (s *Store) publishIn(dir, base string, temp temporary) error {
	w, err := s.walkMaking(dir)
	if err != nil {
		return err
	}
	defer w.close()
	err = s.place(temp, w.last(), base)
	if err != nil && !isAny(err, unix.EEXIST) {
		return err
	}
	if err == nil {
		return s.flush(w)
	}
	stat, statErr := lstat(w.last(), base)
	if statErr == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fault.Errorf(fault.ErrInvalid, "%w: it is a directory of objects", err)
	}
	// Who made the object may not have flushed its name yet, and the caller will build on its being there.
	if err := s.flush(w); err != nil {
		return err
	}
	return fault.Errorf(fault.ErrExists, "%w", err)
}

// place gives a temporary file its name, or fails with EEXIST.
func (s *Store) place(temp temporary, dir *os.File, base string) error {
	err := s.kernel.link(temp.dir, temp.name, dir, base)
	if isAny(err, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS) {
		err = s.kernel.rename(temp.dir, temp.name, dir, base)
		if isAny(err, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL) {
			return fault.Errorf(fault.ErrUnsupported, "the filesystem of %s has neither hard links nor a rename that does not replace (%w): use a directory on another filesystem, as ext4, xfs, btrfs or NFS", s.root.Name(), err)
		}
	}
	if isAny(err, unix.EXDEV) {
		return fault.Errorf(fault.ErrUnsupported, "%w: all of %s must be on one filesystem", err, s.root.Name())
	}
	// On a network filesystem the reply to a request that succeeded may be lost, and the request that is sent again
	// fails. The name is looked up, not the file's count of links: that may come from a cache.
	if err != nil && temp.isAt(dir, base) {
		return nil
	}
	return err
}

// writeTemporary writes data to a new file in tmp, flushed. It leaves none if it fails.
func (s *Store) writeTemporary(ctx context.Context, tmp *os.File, data []byte) (temp temporary, err error) {
	temp = temporary{dir: tmp, name: s.temporaryName()}
	f, err := s.kernel.open(tmp, temp.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return temp, err
	}
	for len(data) > 0 && err == nil {
		part := data[:min(block, len(data))]
		if err = ctx.Err(); err == nil {
			err = s.kernel.write(f, part)
		}
		data = data[len(part):]
	}
	if err == nil {
		err = s.kernel.sync(f)
	}
	if err == nil {
		err = failed("look at", tmp, temp.name, unix.Fstat(int(f.Fd()), &temp.stat))
	}
	// Some filesystems tell only now of what they could not keep.
	if err = errors.Join(err, f.Close()); err != nil {
		_ = s.kernel.unlink(tmp, temp.name) // or a sweep will
		return temp, err
	}
	s.sweep.Do(func() { s.removeStale(temp) })
	return temp, nil
}
