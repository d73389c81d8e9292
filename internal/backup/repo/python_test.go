//go:build root

package repo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// python is Debian's, which has the modules that tools/deps.sh installs.
const python = "/usr/bin/python3"

// read runs the independent reader.
func read(t *testing.T, dir, key string, args ...string) (string, error) {
	t.Helper()
	command := []string{"-B", "testdata/reader.py", dir}
	if key != "" {
		command = append(command, "--key-file", key)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(python, append(command, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !strings.HasPrefix(stderr.String(), "reader.py: ") {
		t.Fatalf("%v: %v\n%s\n(tools/deps.sh test installs what the reader needs)", args, err, stderr.String())
	}
	return stdout.String(), err
}

// The golden repositories, and ones made now, are read by a program that shares nothing with this one but FORMAT.md.
func TestIndependentReaderRestoresEveryBackup(t *testing.T) {
	for _, kind := range goldenKinds {
		wantReadable(t, filepath.Join(goldenDir, kind), goldenKey(kind), goldenSums(t, kind))
	}
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		dir, key := s.inFiles()
		sums := map[string]string{}
		for id, content := range s.contents {
			path := filepath.Join(t.TempDir(), "content")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			sums[id] = fileSum(t, path)
		}
		wantReadable(t, dir, key, sums)
	}
}

func wantReadable(t *testing.T, dir, key string, sums map[string]string) {
	t.Helper()
	listed, err := read(t, dir, key, "list")
	if err != nil || len(strings.Fields(listed)) != len(sums) {
		t.Errorf("%s: %v, %s", dir, err, listed)
	}
	for id, want := range sums {
		image := filepath.Join(t.TempDir(), "image")
		if _, err := read(t, dir, key, "restore", id, image); err != nil {
			t.Errorf("%s: %v", id, err)
		} else if got := fileSum(t, image); got != want {
			t.Errorf("%s: SHA-256 %s, want %s", id, got, want)
		}
	}
}

// inFiles writes the repository to a directory, and its key to a file.
func (s *stock) inFiles() (dir, key string) {
	s.t.Helper()
	dir = s.t.TempDir()
	for _, name := range s.objects.Names() {
		data, err := s.objects.Get(s.t.Context(), name)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if s.key != nil {
		key = filepath.Join(s.t.TempDir(), "key")
		if err := s.key.WriteFile(key); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir, key
}

// The reader is no worse a judge: whatever byte is wrong, it stops. That is the format's merit, not the program's.
func TestIndependentReaderStopsAtDamage(t *testing.T) {
	random := newRandom(t)
	for _, encrypted := range []bool{true, false} {
		s := newStock(t, encrypted)
		id := s.backups[2].ID()
		h, err := s.open().Newest(t.Context(), "lineage-a")
		if err != nil {
			t.Fatal(err)
		}
		names := []string{ConfigName, HeadName("lineage-a", h.Number)}
		for _, p := range h.Live {
			names = append(names, p.Name.String())
		}
		for _, name := range names {
			hurt := s.hurt(name, func(data []byte) []byte {
				data[random.IntN(len(data))] ^= byte(1 + random.IntN(255))
				return data
			})
			dir, key := hurt.inFiles()
			if _, err := read(t, dir, key, "restore", id, filepath.Join(t.TempDir(), "image")); err == nil {
				t.Errorf("%s is damaged, and was read", name)
			}
		}
	}
}
