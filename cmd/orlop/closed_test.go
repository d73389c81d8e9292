//go:build root

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDirectoriesAreOpenWhateverTheUmask: other users and userns-remapped containers go through them.
func TestDirectoriesAreOpenWhateverTheUmask(t *testing.T) {
	h := newHost(t)
	h.root = filepath.Join(h.dir, "above", "root")
	h.control = filepath.Join(h.dir, "run", "control.sock")
	h.flags = append(h.flags, "--root", h.root, "--control-socket", h.control)
	_, log := h.startProcess(t, `umask 077; exec "$@"`)
	defer log.Close()
	for dir, want := range map[string]os.FileMode{
		h.root: 0o711, filepath.Dir(h.root): 0o711, filepath.Join(h.root, "mounts"): 0o711, filepath.Join(h.root, "scratch"): 0o711, filepath.Dir(h.control): 0o755,
	} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %o: %v", dir, info.Mode(), want, err)
		}
	}
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("nothing is wrong yet: %+v", found)
	}
	for _, dir := range []string{h.root, filepath.Join(h.root, "mounts")} {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		h.finds(t, "directory "+dir, "mode 0700", "chmod 711 "+dir)
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
}
