package dirstore

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// hurt is a kernel that reads no file.
type hurt struct {
	kernel
	number unix.Errno
}

func (h hurt) read(f *os.File, _ []byte, _ int64) error {
	return &os.PathError{Op: "read", Path: f.Name(), Err: h.number}
}

// An unreadable sector is damage of one object, which verify, repair and restore go on from.
func TestWhatTheMediumCannotGiveBackIsCorrupt(t *testing.T) {
	for _, c := range []struct {
		number unix.Errno
		kind   fault.Kind
	}{
		{unix.EIO, fault.ErrCorrupt}, {unix.EBADMSG, fault.ErrCorrupt}, {unix.EUCLEAN, fault.ErrCorrupt},
		{unix.EILSEQ, fault.ErrCorrupt}, {unix.EREMOTEIO, fault.ErrCorrupt},
		{unix.EACCES, fault.ErrFailed}, {unix.ENOTCONN, fault.ErrUnreachable},
	} {
		s, w := openWatched(t, t.TempDir(), nil)
		must(t, s.Put(t.Context(), "a/b", []byte("x")))
		w.kernel = hurt{linux{}, c.number}
		_, getErr := s.Get(t.Context(), "a/b")
		_, rangeErr := s.GetRange(t.Context(), "a/b", 0, 1)
		for _, err := range []error{getErr, rangeErr} {
			if !fault.Is(err, c.kind) || !errors.Is(err, c.number) || !strings.HasPrefix(err.Error(), "get a/b: ") {
				t.Errorf("%v: %v", c.number, err)
			}
		}
		if err := s.Put(t.Context(), "a/c", nil); err != nil {
			t.Errorf("%v: put: %v", c.number, err)
		}
	}
}

// Of a directory that cannot be read nothing is known about any object.
func TestDirectoryThatTheMediumCannotGiveBackIsNotCorrupt(t *testing.T) {
	s, w := openWatched(t, t.TempDir(), nil)
	must(t, s.Put(t.Context(), "a/b", []byte("x")))
	w.kernel = shut{linux{}, unix.EIO}
	_, getErr := s.Get(t.Context(), "a/b")
	for what, err := range map[string]error{
		"get":  getErr,
		"list": s.List(t.Context(), "", func(store.Object) error { return nil }),
		"put":  s.Put(t.Context(), "a/c", nil),
	} {
		if !fault.Is(err, fault.ErrFailed) || !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// shut is a kernel that does not open what is named a.
type shut struct {
	kernel
	number unix.Errno
}

func (s shut) open(dir *os.File, name string, flags int) (*os.File, error) {
	if name == "a" {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: s.number}
	}
	return s.kernel.open(dir, name, flags)
}
