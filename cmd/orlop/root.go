package main

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// A data root on a disk of its own looks empty while that disk is not mounted. Taken for a first start, it would get
// a new pool, and Docker would get new, empty volumes under the old names. Two things tell the difference: the disk
// stands in /etc/fstab, or this daemon has run on it before and left a note beside the mount point.

// rootMode lets every user reach the volumes that are mounted for them, and list none.
const rootMode = 0o711

// prepareRoot makes the data root and returns its path without symbolic links, as the kernel's mount table shows it.
// It fails with fault.ErrNotFound, making nothing, if the root has no metadata and its disk is not mounted.
func prepareRoot(root string) (string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("data root: %w", err)
	}
	root = resolve(root)
	if err := refuseUnmounted(root); err != nil {
		return "", err
	}
	if err = fs.MakeDirs(root, rootMode); err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return "", fmt.Errorf("data root: %w", err)
	}
	return root, nil
}

// resolve follows the symbolic links in a path, as far as it exists.
func resolve(path string) string {
	for dir, rest := path, ""; dir != "/"; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(resolved, rest)
		}
	}
	return path
}

// note is the file beside a mount point that says that a data root is on what is mounted there.
func note(mountpoint string) string {
	return filepath.Join(filepath.Dir(mountpoint), "."+filepath.Base(mountpoint)+".orlop-root")
}

// refuseUnmounted fails if root has no metadata and a directory on its path should have something mounted on it.
func refuseUnmounted(root string) error {
	if metadata.Exists(root) {
		return nil
	}
	inFstab := fstabMountpoints()
	for dir := root; dir != "/"; dir = filepath.Dir(dir) {
		if mounted, err := fs.IsMountpoint(dir); err != nil || mounted {
			return err
		}
		if slices.Contains(inFstab, dir) {
			return fault.Errorf(fault.ErrNotFound, "data root %s has no metadata, and %s stands in /etc/fstab but is not mounted: mount it first", root, dir)
		}
		if _, err := os.Lstat(note(dir)); err == nil {
			return fault.Errorf(fault.ErrNotFound, "data root %s has no metadata, and %s, on which it was, is not mounted: mount it first, or delete %s to start afresh", root, dir, note(dir))
		}
	}
	return nil
}

// fstabMountpoints returns the mount points that /etc/fstab lists; see fstab(5).
func fstabMountpoints() (dirs []string) {
	text, err := os.ReadFile("/etc/fstab")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && !strings.HasPrefix(fields[0], "#") {
			dirs = append(dirs, filepath.Clean(fields[1]))
		}
	}
	return dirs
}

// leaveNote notes, beside its mount point, that a data root is on a disk of its own. It does nothing for a root on
// the system's own disk, or in memory.
func leaveNote(root string) error {
	dir := root
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if mounted, err := fs.IsMountpoint(dir); err != nil {
			return err
		} else if mounted {
			break
		}
	}
	if dir == "/" {
		return nil
	}
	table, err := fs.Table(dir)
	if err != nil {
		return err
	}
	for _, entry := range table {
		if entry.Mountpoint == dir && slices.Contains([]string{"tmpfs", "ramfs", "overlay"}, entry.Type) {
			return nil
		}
	}
	text := fmt.Sprintf("The data root %s of orlop is on the disk mounted at %s. While that disk is not mounted,\n"+
		"'orlop daemon' refuses to start with an empty root. Delete this file to start afresh.\n", root, dir)
	err = os.WriteFile(note(dir), []byte(text), 0o644)
	if errors.Is(err, iofs.ErrPermission) {
		return nil // a read-only file system, say: /etc/fstab remains
	}
	return err
}
