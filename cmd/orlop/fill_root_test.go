//go:build root

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fillVolume writes a file until the filesystem has no more than free bytes left.
func fillVolume(t *testing.T, dir string, free int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	check(t, err)
	for block := make([]byte, 1<<20); ; {
		var stat unix.Statfs_t
		check(t, unix.Statfs(dir, &stat))
		if int64(stat.Bavail)*stat.Frsize <= free {
			break
		}
		_, err := f.Write(block)
		check(t, errors.Join(err, f.Sync()))
	}
	check(t, f.Close())
}

func TestAFullVolumeShowsEverywhereAndDoctorsCommandHelps(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		h := startHost(t)
		h.must(t, "create", "db", "--size", "300M", "--fs", filesystem)
		if view := h.view(t, "db"); view.FillView != nil {
			t.Errorf("%s: not mounted, and has %+v", filesystem, view.FillView)
		}
		dir := h.must(t, "mount", "db")
		if found := h.findings(t); len(found) > 0 {
			t.Errorf("%s: nothing is full: %+v", filesystem, found)
		}
		fillVolume(t, dir, 20<<20)
		var stat unix.Statfs_t
		check(t, unix.Statfs(dir, &stat))
		view := h.view(t, "db")
		if view.FillView == nil || view.FSFree != int64(stat.Bavail)*stat.Frsize || view.Inodes != int64(stat.Files) || view.InodesFree != int64(stat.Ffree) {
			t.Fatalf("%s: inspect shows %+v, statfs %+v", filesystem, view.FillView, stat)
		}
		var fields []map[string]any
		check(t, json.Unmarshal([]byte(h.must(t, "list", "--json")), &fields))
		for _, name := range []string{"fs_size", "fs_free", "inodes", "inodes_free"} {
			if _, ok := fields[0][name].(float64); !ok {
				t.Errorf("%s: list --json lacks %s: %v", filesystem, name, fields[0])
			}
		}
		status := h.docker(t, "Get", dockerRequest{Name: "db"}).Volume.Status
		for _, name := range []string{"fs_size", "fs_free", "fs_used", "inodes", "inodes_free"} {
			if status[name] == nil {
				t.Errorf("%s: Docker's status lacks %s: %v", filesystem, name, status)
			}
		}
		if table := h.must(t, "list"); !strings.Contains(table, "USE%") || !strings.Contains(table, status["fs_used"].(string)) {
			t.Errorf("%s: the table does not show %v:\n%s", filesystem, status["fs_used"], table)
		}
		h.finds(t, "volume db", "its filesystem is "+status["fs_used"].(string)+" full", "orlop resize db --size 450M")
		h.must(t, "umount", "db")
		h.must(t, "resize", "db", "--size", "450M")
		h.must(t, "mount", "db")
		if found := h.findings(t); len(found) > 0 {
			t.Errorf("%s: grown, and doctor finds %+v", filesystem, found)
		}
	}
}

func TestDoctorWarnsOfAVolumeWithoutInodes(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "mail", "--size", "16M")
	dir := h.must(t, "mount", "mail")
	var stat unix.Statfs_t
	check(t, unix.Statfs(dir, &stat))
	for i := range stat.Files * 96 / 100 {
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
	h.finds(t, "volume mail", "of its inodes are used", "orlop resize mail --size 24M")
	h.must(t, "umount", "mail")
	if found := h.findings(t); len(found) > 0 {
		t.Errorf("not mounted, and doctor finds %+v", found)
	}
}
