package dirstore

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// watched is a kernel whose effects a test sees and can change. Each effect is named by its method and the segment that
// it is on, in the directory's own name: "link d/a", "sync f".
type watched struct {
	kernel kernel
	around func(effect string, do func() error) error

	mu      sync.Mutex
	effects []string
}

func (w *watched) pass(effect string, do func() error) error {
	w.mu.Lock()
	w.effects = append(w.effects, effect)
	w.mu.Unlock()
	if w.around == nil {
		return do()
	}
	return w.around(effect, do)
}

func (w *watched) open(dir *os.File, name string, flags int) (f *os.File, err error) {
	if flags&unix.O_CREAT == 0 {
		return w.kernel.open(dir, name, flags) // no effect
	}
	err = w.pass("create", func() error {
		f, err = w.kernel.open(dir, name, flags)
		return err
	})
	return f, err
}

func (w *watched) read(f *os.File, b []byte, offset int64) error {
	return w.kernel.read(f, b, offset) // no effect
}

func (w *watched) names(dir *os.File) ([]string, error) { return w.kernel.names(dir) }

func (w *watched) links(dir *os.File) (uint32, error) { return w.kernel.links(dir) }

func (w *watched) mkdir(dir *os.File, name string) error {
	return w.pass("mkdir "+name, func() error { return w.kernel.mkdir(dir, name) })
}

func (w *watched) write(f *os.File, b []byte) error {
	return w.pass("write", func() error { return w.kernel.write(f, b) })
}

func (w *watched) sync(f *os.File) error {
	effect := "sync file"
	if info, err := f.Stat(); err == nil && info.IsDir() {
		effect = "sync " + f.Name()
	}
	return w.pass(effect, func() error { return w.kernel.sync(f) })
}

func (w *watched) link(from *os.File, old string, to *os.File, name string) error {
	return w.pass("link "+name, func() error { return w.kernel.link(from, old, to, name) })
}

func (w *watched) rename(from *os.File, old string, to *os.File, name string) error {
	return w.pass("rename "+name, func() error { return w.kernel.rename(from, old, to, name) })
}

func (w *watched) unlink(dir *os.File, name string) error {
	return w.pass("unlink", func() error { return w.kernel.unlink(dir, name) })
}

func (w *watched) rmdir(dir *os.File, name string) error {
	return w.pass("rmdir "+name, func() error { return w.kernel.rmdir(dir, name) })
}

// openWatched opens a directory with effects that a test sees.
func openWatched(t *testing.T, dir string, around func(effect string, do func() error) error) (*Store, *watched) {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	w := &watched{kernel: linux{}, around: around}
	s.kernel = w
	return s, w
}

// temporaries are the names of the temporary files in dir.
func temporaries(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir + "/" + temporaryDir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
