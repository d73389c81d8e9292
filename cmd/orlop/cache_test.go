package main

import (
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

func TestCacheIsInTheHomeOfTheUserDatabaseWhereTheEnvironmentIsBare(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ xdg, home, want string }{
		{"", "", filepath.Join(me.HomeDir, ".cache/orlop/backup")},
		{"", "/home/me", "/home/me/.cache/orlop/backup"},
		{"/var/cache", "", "/var/cache/orlop/backup"},
		{"relative", "/home/me", ""},
	} {
		t.Setenv("XDG_CACHE_HOME", test.xdg)
		t.Setenv("HOME", test.home)
		if test.home == "" { // cron and env -i leave it out altogether
			if err := os.Unsetenv("HOME"); err != nil {
				t.Fatal(err)
			}
		}
		dir, err := cacheDir("backup")
		if dir != test.want || (err == nil) != (test.want != "") {
			t.Errorf("XDG_CACHE_HOME=%s HOME=%s: %q, %v; want %q", test.xdg, test.home, dir, err, test.want)
		}
		if err != nil && !strings.Contains(err.Error(), "relative") {
			t.Errorf("%v", err)
		}
	}
}
