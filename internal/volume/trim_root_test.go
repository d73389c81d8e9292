//go:build root

package volume_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestTrimReturnsWhatThePoolGotBack(t *testing.T) {
	s := newSite(t)
	w := s.newWorld(t, true)
	const written = 8 * mebibyte
	for _, name := range []string{subject, subjectXFS} {
		bytes, err := w.Trim(t.Context(), w.id(t, name))
		check(t, err)
		if bytes >= mebibyte {
			t.Errorf("of the %s, in which nothing was deleted, %d bytes were given back", name, bytes)
		}
		v := w.volume(t, name)
		v.MountOptions = []string{"nodiscard"}
		w.put(t, v)
		w.with(t, name, func(dir string) {
			path := filepath.Join(dir, "big")
			check(t, os.WriteFile(path, make([]byte, written), 0o600))
			syncFilesystem(t, dir)
			check(t, errors.Join(os.Truncate(path, 0), os.Remove(path)))
			before := w.info(t, name).Used
			bytes, err := w.Trim(t.Context(), v.ID)
			check(t, err)
			if gone := before - w.info(t, name).Used; bytes < written || bytes > gone+mebibyte {
				t.Errorf("%s: %d bytes given back, and its image lost %d", name, bytes, gone)
			}
		})
	}
}
