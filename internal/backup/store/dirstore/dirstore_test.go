package dirstore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

func TestOpenMakesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir + "/missing":       "is the disk mounted?",
		dir + "/missing/below": "is the disk mounted?",
		dir + "/file/below":    "is the disk mounted?",
		dir + "/file":          "not a directory, but a file",
	} {
		if _, err := dirstore.Open(path); !fault.Is(err, fault.ErrNotFound) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	open(t, dir)
	if got := tree(t, dir); !slices.Equal(got, []string{"-rw------- file"}) {
		t.Errorf("there is %q", got)
	}
}

func TestMakeMakesOneDirectory(t *testing.T) {
	dir := t.TempDir() + "/backups"
	for range 2 {
		if err := dirstore.Make(dir); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if err := dirstore.Make(dir + "/missing/below"); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("without its parent: %v", err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dirstore.Make(dir + "/file"); err == nil {
		t.Error("a file passes for a directory")
	}
}

func TestFilesAreForTheOwnerAndEmptyDirectoriesGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{"a/b/c", "a/d"} {
		if err := s.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"drwx------ a", "drwx------ a/b", "-rw------- a/b/c", "-rw------- a/d", "drwx------ tmp~"}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("want %q, got %q", want, got)
	}
	for _, step := range []struct {
		name string
		want []string
	}{
		{"a/b/c", []string{"drwx------ a", "-rw------- a/d", "drwx------ tmp~"}},
		{"a/d", []string{"drwx------ tmp~"}},
	} {
		if err := s.Delete(t.Context(), step.name); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, dir); !slices.Equal(got, step.want) {
			t.Errorf("without %s: want %q, got %q", step.name, step.want, got)
		}
	}
}

func TestWhatIsNoObjectIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"lost+found", "Documents", ".snapshot", "empty"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{".nfs0001", "README", "Documents/letter", ".snapshot/old"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	if got := listed(t, s); len(got) > 0 {
		t.Errorf("listed %q", got)
	}
	before := tree(t, dir)
	if err := s.Delete(t.Context(), "readme"); err != nil {
		t.Error(err)
	}
	if got := tree(t, dir); !slices.Equal(got, before) {
		t.Errorf("want %q, got %q", before, got)
	}
}

func TestSymbolicLinksAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.WriteFile(outside+"/file", []byte("secret"), 0o600),
		os.Symlink(outside, dir+"/link"),
		os.Symlink(outside+"/file", dir+"/object"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	if got, err := s.Get(t.Context(), "link/file"); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("get through a directory: %q, %v", got, err)
	}
	if got, err := s.Get(t.Context(), "object"); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("get: %q, %v", got, err)
	}
	if err := s.Put(t.Context(), "link/new", nil); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("put through a directory: %v", err)
	}
	if err := s.Put(t.Context(), "object", nil); !fault.Is(err, fault.ErrExists) {
		t.Errorf("put: %v", err)
	}
	if got := listed(t, s); len(got) > 0 {
		t.Errorf("listed %q", got)
	}
	for _, name := range []string{"link/file", "object", "link"} {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if got := tree(t, outside); !slices.Equal(got, []string{"-rw------- file"}) {
		t.Errorf("outside there is %q", got)
	}
}

// A directory that somebody moved to another disk and left a link to is not an empty one.
func TestWhatIsInTheWayOfObjectsIsNotAnEmptyDirectory(t *testing.T) {
	for what, replace := range map[string]func(path string) error{
		"a symbolic link": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		},
		"a file":       func(path string) error { return errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)) },
		"a named pipe": func(path string) error { return errors.Join(os.RemoveAll(path), unix.Mkfifo(path, 0o600)) },
	} {
		for _, directory := range []string{"a", "a/b"} {
			dir := t.TempDir()
			s := open(t, dir)
			if err := s.Put(t.Context(), "a/b/c", nil); err != nil {
				t.Fatal(err)
			}
			if err := replace(filepath.Join(dir, directory)); err != nil {
				t.Fatal(err)
			}
			_, getErr := s.Get(t.Context(), "a/b/c")
			_, rangeErr := s.GetRange(t.Context(), "a/b/c", 0, 1)
			for method, err := range map[string]error{
				"list":  s.List(t.Context(), "a/b/", func(store.Object) error { return nil }),
				"get":   getErr,
				"range": rangeErr,
			} {
				if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), dir+"/"+directory+": not a directory, but "+what) {
					t.Errorf("%s is %s: %s: %v", directory, what, method, err)
				}
			}
		}
	}
}

func TestTemporaryDirectoryMayNotLeadElsewhere(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, dir+"/tmp~"); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Put(t.Context(), "a", nil); err == nil {
		t.Error("put succeeds")
	}
	if got := tree(t, outside); len(got) > 0 {
		t.Errorf("outside there is %q", got)
	}
}

func TestStrangeFilesAreCorruptAndDoNotBlock(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(
		unix.Mkfifo(dir+"/pipe", 0o600), unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0), os.Symlink("huge", dir+"/link"),
		os.WriteFile(dir+"/huge", nil, 0o600), os.Truncate(dir+"/huge", 1<<40), os.Mkdir(dir+"/directory", 0o700))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	for name, want := range map[string]string{
		"pipe": "a named pipe", "socket": "a socket", "link": "a symbolic link", "huge": "1099511627776 bytes",
	} {
		if _, err := s.Get(t.Context(), name); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Get(t.Context(), "directory"); !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "a directory") {
		t.Errorf("a directory: %v", err)
	}
	if got := listed(t, s); !slices.Equal(got, []string{"huge"}) {
		t.Errorf("listed %q", got)
	}
}

func TestRemovedDirectoryIsNotAnEmptyStore(t *testing.T) {
	dir := t.TempDir() + "/backups"
	if err := dirstore.Make(dir); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	_, getErr := s.Get(t.Context(), "a/b")
	_, shallow := s.Get(t.Context(), "a")
	for what, err := range map[string]error{
		"get":         getErr,
		"shallow get": shallow,
		"list":        s.List(t.Context(), "", func(store.Object) error { return nil }),
		"list below":  s.List(t.Context(), "a/", func(store.Object) error { return nil }),
		"put":         s.Put(t.Context(), "a/b", nil),
	} {
		if !fault.Is(err, fault.ErrUnreachable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func listed(t *testing.T, s store.Store) (names []string) {
	t.Helper()
	err := s.List(t.Context(), "", func(o store.Object) error {
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// tree describes everything below dir, in order.
func tree(t *testing.T, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		lines = append(lines, info.Mode().String()+" "+path[len(dir)+1:])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
