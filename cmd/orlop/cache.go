package main

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
)

// cacheDir returns a directory of the program's in the user's cache, and an empty path with every error. It makes nothing.
//
// Where cron or a service manager sets neither XDG_CACHE_HOME nor HOME, the home directory is that of the user database: what
// the user's commands remembered in a shell is found there too.
func cacheDir(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil && os.Getenv("XDG_CACHE_HOME") == "" { // otherwise it is relative, which is an error
		var home string
		home, err = homeDir()
		cache = filepath.Join(home, ".cache")
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "orlop", name), nil
}

// homeDir returns the home directory that the user database names.
func homeDir() (string, error) {
	u, err := user.Current()
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(u.HomeDir) {
		return "", errors.New("neither $XDG_CACHE_HOME nor $HOME is set, and the user database names no home directory")
	}
	return u.HomeDir, nil
}
