//go:build root

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// objects counts what is in a vault: all, and the packs of data.
func (v vault) objects(t *testing.T) (all, data int) {
	t.Helper()
	check(t, filepath.WalkDir(v.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if all++; strings.HasSuffix(path, ".data") {
				data++
			}
		}
		return err
	}))
	return all, data
}

// A large volume with little in it, and little of that changed under load: only the change is read and stored, in a few requests.
func TestAnIncrementalBackupOfALargeVolumeReadsAndStoresTheChangeOnly(t *testing.T) {
	aloneInCache(t)
	h := startHost(t, "--pool-size", "32G")
	v := newVault(t, t.TempDir(), true)
	h.must(t, "create", "db", "--size", "20G")
	dir := h.must(t, "mount", "db")
	for i := range 4 {
		fill(t, filepath.Join(dir, fmt.Sprint("file-", i)), uint64(i), 16<<20)
	}
	first := h.backUp(t, v, "db")
	if first.Incremental || first.Read < 64<<20 || first.Read > 256<<20 {
		t.Errorf("full: %+v", first)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { churn(ctx, filepath.Join(dir, "churn"), 7) }) // 1 MiB, again and again
	defer group.Wait()
	defer stop()
	for i := range 3 {
		before, _ := v.objects(t)
		f, err := os.OpenFile(filepath.Join(dir, "file-1"), os.O_WRONLY, 0)
		check(t, err)
		_, err = f.WriteAt(noise(uint64(i+10), 10<<20), 2<<20)
		check(t, err)
		check(t, f.Sync())
		check(t, f.Close())
		made := h.backUp(t, v, "db")
		after, _ := v.objects(t)
		// The change, what churn wrote, the journal, and the chunks that are read again to see whether the map is right.
		if !made.Incremental || made.Read < 10<<20 || made.Read > 40<<20 || made.Stored < 10<<20 || made.Stored > 24<<20 {
			t.Errorf("incremental %d: %+v", i, made)
		}
		if after-before > 16 {
			t.Errorf("incremental %d: %d objects more", i, after-before)
		}
		t.Logf("read %d, stored %d bytes in %d objects", made.Read, made.Stored, after-before)
	}
}

// Of many volumes few have changed: those upload, and the others neither store data nor are read.
func TestARunUploadsOnlyTheVolumesThatChanged(t *testing.T) {
	aloneInCache(t)
	h := startHost(t, "--pool-size", "8G")
	v := newVault(t, t.TempDir(), true)
	count, changed := often(20, 200), often(2, 10)
	for i := range count {
		name := fmt.Sprintf("v%03d", i)
		h.must(t, "create", name, "--size", "16M")
		dir := h.must(t, "mount", name)
		fill(t, filepath.Join(dir, "file"), uint64(i), 1<<20)
		fill(t, filepath.Join(dir, "more"), uint64(i+count), 4<<20)
		h.must(t, "umount", name)
	}
	if report := h.wantRun(t, v, "--all"); len(report.Volumes) != count {
		t.Fatalf("%d volumes", len(report.Volumes))
	}
	for i := range changed {
		h.write(t, fmt.Sprintf("v%03d", i*count/changed), uint64(1000+i))
	}
	_, before := v.objects(t)
	uploads := 0
	for _, each := range h.wantRun(t, v, "--all").Volumes {
		most := int64(1 << 20) // the chunks that are read again to see whether the map is right, and a few that mounts change
		if each.Stored > 512<<10 {
			uploads++
			most = 3 << 20 // 1 MiB was written, and all is more than 5
		} else if each.Stored > 16<<10 {
			t.Errorf("stored: %+v", each)
		}
		if each.Read > most {
			t.Errorf("read more than %d: %+v", most, each)
		}
	}
	_, after := v.objects(t)
	if uploads != changed || after-before != changed {
		t.Errorf("%d volumes uploaded data in %d packs, want %d", uploads, after-before, changed)
	}
	h.wantQuiet(t)
}
