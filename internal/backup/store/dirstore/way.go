package dirstore

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// A way is the directories from the root down, open to read. The root is the Store's own.
type way []*os.File

func (w way) last() *os.File { return w[len(w)-1] }

func (w way) close() {
	for _, dir := range w[1:] {
		_ = dir.Close() // opened to read
	}
}

// split cuts a name into its directory, empty for the root, and its last segment.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// segments are the steps from the root to dir.
func segments(dir string) []string {
	if dir == "" {
		return nil
	}
	return strings.Split(dir, "/")
}

const openDirectory = unix.O_RDONLY | unix.O_DIRECTORY

// walk opens the directories down to dir. It fails with fault.ErrNotFound where one is not there, and with
// fault.ErrCorrupt where something else has its name: what is stored below must not pass for deleted.
func (s *Store) walk(dir string) (way, error) {
	w := way{s.root}
	for _, segment := range segments(dir) {
		next, err := s.kernel.open(w.last(), segment, openDirectory)
		switch {
		case isGone(err):
			err = s.notFound()
		case isAny(err, unix.ENOTDIR, unix.ELOOP):
			err = s.notADirectory(w.last(), segment)
		}
		if err != nil {
			w.close()
			return nil, err
		}
		w = append(w, next)
	}
	return w, nil
}

// notADirectory is the error of a name on the way to objects that was seen to be no directory's. If nothing or a
// directory has the name by now, others are deleting and putting there, and nothing was below it.
func (s *Store) notADirectory(parent *os.File, name string) error {
	stat, err := lstat(parent, name)
	switch {
	case isGone(err) || err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return s.notFound()
	case err != nil:
		return err
	}
	return fault.Errorf(fault.ErrCorrupt, "%s/%s: not a directory, but %s", parent.Name(), name, typeOf(stat))
}

// types are the words for what a name may be of.
var types = map[uint32]string{
	unix.S_IFREG: "a file", unix.S_IFDIR: "a directory", unix.S_IFLNK: "a symbolic link", unix.S_IFIFO: "a named pipe",
	unix.S_IFSOCK: "a socket", unix.S_IFCHR: "a device", unix.S_IFBLK: "a device",
}

func typeOf(stat unix.Stat_t) string { return types[stat.Mode&unix.S_IFMT] }

// notFound is the error of an object that is not there.
func (s *Store) notFound() error {
	if err := s.present(); err != nil {
		return err
	}
	return fault.Errorf(fault.ErrNotFound, "not found")
}

// isGone tells whether err is one of what is there no more. NFS says ESTALE of what another host has removed, and of
// everything if the root is: who meets it asks whether that is present.
func isGone(err error) bool { return isAny(err, unix.ENOENT, unix.ESTALE) }

// unlessGone returns err, but nil if that says that something below the root is there no more.
func (s *Store) unlessGone(err error) error {
	if isGone(err) {
		return s.present()
	}
	return err
}

// present fails with fault.ErrUnreachable if somebody has removed the root: it must not pass for an empty store.
func (s *Store) present() error {
	links, err := s.kernel.links(s.root)
	if err != nil {
		return err
	}
	if links == 0 {
		return fault.Errorf(fault.ErrUnreachable, "backup directory %s: somebody has removed it", s.root.Name())
	}
	return nil
}

// walkMaking is walk, but makes the directories that are not there. A directory that is removed meanwhile is ENOENT or
// ESTALE.
func (s *Store) walkMaking(dir string) (way, error) {
	w := way{s.root}
	for _, segment := range segments(dir) {
		next, err := s.openMaking(w.last(), segment)
		if err != nil {
			w.close()
			return nil, err
		}
		w = append(w, next)
	}
	return w, nil
}

func (s *Store) openMaking(parent *os.File, name string) (*os.File, error) {
	dir, err := s.kernel.open(parent, name, openDirectory)
	if isAny(err, unix.ENOENT) {
		if err := s.kernel.mkdir(parent, name); err != nil && !isAny(err, unix.EEXIST) {
			return nil, err
		}
		dir, err = s.kernel.open(parent, name, openDirectory)
	}
	if isAny(err, unix.ENOTDIR, unix.ELOOP) {
		return nil, fault.Errorf(fault.ErrInvalid, "%w: an object or a symbolic link is in the way", err)
	}
	return dir, err
}

// flush makes the names of the way's directories durable, and those in the last. The upper ones too, each time: another
// process may have made one of them and not flushed it yet.
func (s *Store) flush(w way) error {
	for i := len(w) - 1; i >= 0; i-- {
		if err := s.kernel.sync(w[i]); err != nil {
			return err
		}
	}
	// An XFS that shut itself down meanwhile, since its log could not be written, has nothing left to flush of a directory and
	// says that it is flushed. But it tells nothing of it any more: that is EIO.
	var stat unix.Stat_t
	if err := uninterrupted(func() error { return unix.Fstat(int(w.last().Fd()), &stat) }); err != nil {
		return &os.PathError{Op: "flush", Path: w.last().Name(), Err: err}
	}
	return nil
}
