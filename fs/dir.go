package fs

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
)

// MakeDirs makes a directory, and those above it that do not exist. Each that it makes has exactly this mode, whatever the
// umask; those that exist stay as they are. A crash may leave the last one with less.
func MakeDirs(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, iofs.ErrNotExist) {
		if err := MakeDirs(filepath.Dir(path), mode); err != nil {
			return err
		}
		err = os.Mkdir(path, mode)
	}
	switch {
	case err == nil:
		err = os.Chmod(path, mode)
	case errors.Is(err, iofs.ErrExist):
		info, statErr := os.Stat(path)
		if statErr == nil && info.IsDir() {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}
