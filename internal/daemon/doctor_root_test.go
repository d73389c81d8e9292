//go:build root

package daemon_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/namespacetest"
	"orlop/metadata"
)

func TestMain(m *testing.M) { os.Exit(namespacetest.Run(m.Run)) }

// TestDoctorNamesWhereAFreezeThatWasNotEndedCanBeThawed, in a volume's mount point or where it is mounted aside.
func TestDoctorNamesWhereAFreezeThatWasNotEndedCanBeThawed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems: run it as root (without root: make test-unit)")
	}
	for _, place := range []string{"mounts", "scratch"} {
		h := newHouse(t)
		v := h.put(t, "db")
		dir := filepath.Join(h.root, place, "db")
		check(t, os.Mkdir(dir, 0o700))
		check(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k"))
		t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
		var stat unix.Stat_t
		check(t, unix.Stat(dir, &stat))
		h.update(t, func(tx *metadata.Tx) error {
			return tx.PutIntent(metadata.Intent{Volume: v.ID, Boot: "boot", Device: stat.Dev})
		})
		h.finds(t, "volume db", "was not ended: writes are blocked", "fsfreeze --unfreeze "+dir+"; systemctl restart orlop")
	}
}
