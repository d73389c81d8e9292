//go:build root

package main

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/repo"
)

// tmpfs mounts a filesystem in memory for the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func remount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
}

func TestRestoreOntoAFullDiskGoesOnOnceThereIsRoom(t *testing.T) {
	p := newBackupPlace(t)
	data := make([]byte, 40*repo.MinChunk)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	url := p.back("db", "id-1", backupTime, data)
	dir := tmpfs(t, "size=1M")
	image := filepath.Join(dir, "image")
	got := invoke("backup", "restore", url, "--to-file", image, "--key-file", p.key)
	if got.code != 5 || !strings.Contains(got.stderr, image+".orlop-part") {
		t.Errorf("%s", got)
	}
	if _, err := os.Stat(image); !os.IsNotExist(err) {
		t.Errorf("the image: %v", err)
	}
	remount(t, dir, 0, "size=8M")
	p.must("backup", "restore", url, "--to-file", image, "--key-file", p.key)
	if restored, err := os.ReadFile(image); err != nil || !bytes.Equal(restored, data) {
		t.Errorf("%v, right: %t", err, bytes.Equal(restored, data))
	}
}

// What was committed stays, whatever the place of the repository refuses, and the next run succeeds.
func TestDestinationsThatAreFullOrReadOnlyLoseNothing(t *testing.T) {
	p := newBackupPlace(t)
	first := p.back("db", "id-1", backupTime, contents(1))
	second := p.back("db", "id-1", backupTime.Add(time.Hour), contents(2))
	third := p.back("db", "id-1", backupTime.Add(2*time.Hour), contents(3))
	dir := tmpfs(t, "size=8M")
	place := filepath.Join(dir, "place")
	if err := os.CopyFS(place, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	moved := func(url string) string { return strings.Replace(url, p.url(), "file://"+place, 1) }
	before := files(t, place)
	remount(t, dir, unix.MS_RDONLY, "")
	for _, args := range [][]string{{"delete", moved(first)}, {"prune", place, "--keep-last", "1"}, {"init", filepath.Join(dir, "new")}} {
		if got := invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...); got.code != 1 || !strings.Contains(got.stderr, "read-only") {
			t.Errorf("read-only: %v: %s", args, got)
		}
	}
	p.must("backup", "verify", place, "--data", "--key-file", p.key)
	remount(t, dir, 0, "size=8M")
	filler := filepath.Join(dir, "filler")
	fill, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	if err := fill.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"delete", moved(first)}, {"prune", place, "--keep-last", "1"}, {"init", filepath.Join(dir, "new")}} {
		if got := invoke(append(append([]string{"backup"}, args...), "--key-file", p.key)...); got.code != 5 {
			t.Errorf("full: %v: %s", args, got)
		}
	}
	p.must("backup", "verify", place, "--data", "--key-file", p.key)
	wipe(t, filler)
	wipe(t, filepath.Join(dir, "new"))
	if after := files(t, place); !maps.EqualFunc(before, after, bytes.Equal) {
		t.Error("the repository changed")
	}
	p.must("backup", "delete", moved(first), "--key-file", p.key)
	p.must("backup", "prune", place, "--keep-last", "1", "--key-file", p.key)
	p.made[moved(third)] = p.made[third]
	p.restores(moved(third))
	if got := invoke("backup", "inspect", moved(second), "--key-file", p.key); got.code != 3 {
		t.Errorf("%s", got)
	}
}

// A quarter of what is stored is needed by nobody, and there is no room to write the rest anew.
func TestPruneWithoutRoomToCompactLeavesWhatIsNeeded(t *testing.T) {
	p := newBackupPlace(t)
	data := make([]byte, 40*repo.MinChunk)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(data)
	p.back("db", "id-1", backupTime, data)
	_, _ = source.Read(data[:20*repo.MinChunk])
	url := p.back("db", "id-1", backupTime.Add(time.Hour), data)
	dir := tmpfs(t, "size=4900K")
	place := filepath.Join(dir, "place")
	if err := os.CopyFS(place, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	free := func() uint64 {
		var stat unix.Statfs_t
		if err := unix.Statfs(dir, &stat); err != nil {
			t.Fatal(err)
		}
		return stat.Bfree * uint64(stat.Bsize)
	}
	before := free()
	got := invoke("backup", "prune", place, "--keep-last", "1", "--key-file", p.key)
	if got.code != 0 || !strings.Contains(got.stderr, "no room") || free() < before-64<<10 {
		t.Errorf("%d bytes were free, %d are: %s", before, free(), got)
	}
	moved := strings.Replace(url, p.url(), "file://"+place, 1)
	p.made[moved] = p.made[url]
	p.restores(moved)
	remount(t, dir, 0, "size=16M")
	if got := p.must("backup", "prune", place, "--key-file", p.key); strings.Contains(got, "freed 0 B") || free() < before+8<<20 {
		t.Errorf("with room: %s", got)
	}
	p.restores(moved)
}
