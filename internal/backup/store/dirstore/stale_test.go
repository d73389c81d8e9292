package dirstore

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// nfs is a kernel of a network filesystem. Of directories that another host has removed, as often as told, every use is
// ESTALE, and of the root, if the server has lost it.
type nfs struct {
	kernel
	removed map[string]int // by the directory's name
	lost    bool
}

func (n nfs) stale(dir *os.File) error {
	name := filepath.Base(dir.Name())
	if n.removed[name] == 0 && !n.lost {
		return nil
	}
	n.removed[name]--
	return &os.PathError{Op: "use", Path: dir.Name(), Err: unix.ESTALE}
}

func (n nfs) open(dir *os.File, name string, flags int) (*os.File, error) {
	if err := n.stale(dir); err != nil {
		return nil, err
	}
	return n.kernel.open(dir, name, flags)
}

func (n nfs) read(f *os.File, b []byte, offset int64) error {
	if err := n.stale(f); err != nil {
		return err
	}
	return n.kernel.read(f, b, offset)
}

func (n nfs) names(dir *os.File) ([]string, error) {
	if err := n.stale(dir); err != nil {
		return nil, err
	}
	return n.kernel.names(dir)
}

func (n nfs) links(dir *os.File) (uint32, error) {
	if n.lost {
		return 0, &os.PathError{Op: "look at", Path: dir.Name(), Err: unix.ESTALE}
	}
	return n.kernel.links(dir)
}

func (n nfs) link(from *os.File, old string, to *os.File, name string) error {
	if err := n.stale(to); err != nil {
		return err
	}
	return n.kernel.link(from, old, to, name)
}

func (n nfs) unlink(dir *os.File, name string) error {
	if err := n.stale(dir); err != nil {
		return err
	}
	return n.kernel.unlink(dir, name)
}

// openNFS opens a directory with the object a/b/c, on a network filesystem.
func openNFS(t *testing.T, n nfs) *Store {
	t.Helper()
	s, w := openWatched(t, t.TempDir(), nil)
	must(t, s.Put(t.Context(), "a/b/c", []byte("x")))
	n.kernel = linux{}
	w.kernel = n
	return s
}

// NFS says ESTALE of a directory that another host's Delete has removed while it was open here.
func TestWhatAnotherHostHasDeletedIsNoError(t *testing.T) {
	for _, dir := range []string{"a", "b"} {
		s := openNFS(t, nfs{removed: map[string]int{dir: 1}})
		must(t, s.List(t.Context(), "", func(o store.Object) error {
			t.Errorf("%s is removed, and %s is listed", dir, o.Name)
			return nil
		}))
		s = openNFS(t, nfs{removed: map[string]int{dir: 1}})
		if got, err := s.Get(t.Context(), "a/b/c"); !fault.Is(err, fault.ErrNotFound) {
			t.Errorf("%s is removed: got %q, %v", dir, got, err)
		}
		s = openNFS(t, nfs{removed: map[string]int{dir: 1}})
		must(t, s.Delete(t.Context(), "a/b/c"))
	}
	s := openNFS(t, nfs{removed: map[string]int{"c": 1}})
	if got, err := s.Get(t.Context(), "a/b/c"); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestPutMakesADirectoryAgainThatAnotherHostHasRemoved(t *testing.T) {
	s := openNFS(t, nfs{removed: map[string]int{"a": 3, "b": 2}})
	must(t, s.Put(t.Context(), "a/b/d", []byte("y")))
	var listed []string
	must(t, s.List(t.Context(), "", func(o store.Object) error {
		listed = append(listed, o.Name)
		return nil
	}))
	if !slices.Equal(listed, []string{"a/b/c", "a/b/d"}) {
		t.Errorf("listed %q", listed)
	}
}

// A name may have been another object's when it was used, and be a directory's when it is looked at.
func TestNameThatBecomesADirectoryMeanwhileIsNoDamage(t *testing.T) {
	s, w := openWatched(t, t.TempDir(), nil)
	must(t, s.Put(t.Context(), "a/b", []byte("x")))
	w.kernel = shut{linux{}, unix.ENOTDIR}
	if got, err := s.Get(t.Context(), "a/b"); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, prefix := range []string{"", "a/"} {
		must(t, s.List(t.Context(), prefix, func(store.Object) error { return nil }))
	}
}

func TestRootThatTheServerHasLostIsUnreachable(t *testing.T) {
	s := openNFS(t, nfs{removed: map[string]int{}, lost: true})
	_, getErr := s.Get(t.Context(), "a/b/c")
	for what, err := range map[string]error{
		"get":        getErr,
		"list":       s.List(t.Context(), "", func(store.Object) error { return nil }),
		"list below": s.List(t.Context(), "a/b/", func(store.Object) error { return nil }),
		"put":        s.Put(t.Context(), "a/b/d", nil),
		"delete":     s.Delete(t.Context(), "a/b/c"),
	} {
		if !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
