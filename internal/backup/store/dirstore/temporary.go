package dirstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// temporaryDir holds the files that are being written. It is no segment of an object's name.
const temporaryDir = "tmp~"

// stale is the age from which a temporary file is taken for left behind, whoever wrote it.
const stale = 24 * time.Hour

// A temporary is a file that has all of an object's bytes, but not its name.
type temporary struct {
	dir  *os.File
	name string
	stat unix.Stat_t
}

// isAt tells whether the file also has the name in dir.
func (t temporary) isAt(dir *os.File, name string) bool {
	stat, err := lstat(dir, name)
	return err == nil && stat.Dev == t.stat.Dev && stat.Ino == t.stat.Ino
}

// present fails if the file lost its own name, which Put needs.
func (t temporary) present() error {
	_, err := lstat(t.dir, t.name)
	if isGone(err) {
		return fmt.Errorf("%w: somebody has removed the temporary file", err)
	}
	return err
}

// openTemporary opens the directory of temporary files, which it makes if need be.
func (s *Store) openTemporary() (*os.File, error) {
	tmp, err := s.openMaking(s.root, temporaryDir)
	if isGone(err) {
		err = errors.Join(s.present(), err)
	}
	return tmp, err
}

// owner names this process: the boot of its kernel, its PID namespace and its PID. It is empty if those cannot be told.
func owner() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &namespace); err != nil {
		return ""
	}
	return fmt.Sprintf("%s.%d.%d", strings.TrimSpace(string(boot)), namespace.Ino, os.Getpid())
}

func (s *Store) temporaryName() string { return s.owner + "." + strings.ToLower(rand.Text()) }

// removeStale removes the temporary files that nobody will finish: those of processes of this kernel and PID namespace
// that are no more, and those that are older than fresh, which was just written, by the file server's own clock. No
// mistake in this costs an object: a Put that loses its temporary file fails, and what has its name keeps it.
//
// What cannot be removed is left for the next Store's first Put, which is when this runs.
func (s *Store) removeStale(fresh temporary) {
	names, err := fresh.dir.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		stat, err := lstat(fresh.dir, name)
		if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || name == fresh.name {
			continue
		}
		age := time.Duration(fresh.stat.Mtim.Nano() - stat.Mtim.Nano())
		if age >= stale || s.ended(name) {
			_ = s.kernel.unlink(fresh.dir, name)
		}
	}
}

// ended tells whether the process that wrote a temporary file is known to be no more.
func (s *Store) ended(name string) bool {
	mine := strings.LastIndexByte(s.owner, '.') + 1
	rest, ok := strings.CutPrefix(name, s.owner[:mine])
	if !ok || mine == 0 {
		return false
	}
	pid, _, _ := strings.Cut(rest, ".")
	number, err := strconv.Atoi(pid)
	return err == nil && number > 0 && errors.Is(unix.Kill(number, 0), unix.ESRCH)
}
