//go:build root

package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/namespacetest"
)

func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

// smallDisk mounts an ext4 of 32 MiB until the test's end.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems: run it as root (without root: make test-unit)")
	}
	home := t.TempDir()
	image, dir := filepath.Join(home, "disk"), filepath.Join(home, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"truncate", "-s", "32M", image}, {"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no block free.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func putHolders(s *Store, from, to int) error {
	for i := from; i < to; i++ {
		h := Holder{Volume: "volume", ID: fmt.Sprintf("holder-%08d", i), Boot: "boot"}
		if err := s.Update(context.Background(), func(tx *Tx) error { return tx.PutHolder(h) }); err != nil {
			return fmt.Errorf("holder %d: %w", i, err)
		}
	}
	return nil
}

// TestFullDiskStopsNoUpdate has no block left on the disk, for a database of each size.
func TestFullDiskStopsNoUpdate(t *testing.T) {
	for _, before := range []int{0, 3000} {
		t.Run(fmt.Sprintf("with %d records", before), func(t *testing.T) {
			dir := smallDisk(t)
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := putHolders(s, 0, before); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			if err := putHolders(s, before, before+300); err != nil {
				t.Error(err)
			}
			for i := range before + 200 {
				if err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteHolder("volume", fmt.Sprintf("holder-%08d", i)) }); err != nil {
					t.Fatalf("delete holder %d: %v", i, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(dir); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.CopyError() == nil {
				t.Error("the copy was made on a full disk, or nobody was told that it was not")
			}
			if _, err := os.Stat(filepath.Join(dir, CopyName+".tmp")); !os.IsNotExist(err) {
				t.Errorf("a part of a copy is left: %v", err)
			}
			if err := s.View(func(tx *Tx) error {
				holders, err := tx.Holders("")
				if len(holders) != 100 {
					t.Errorf("%d holders, want 100", len(holders))
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
