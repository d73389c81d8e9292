//go:build root

package fs

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where / is bound to another place in a shared peer group, each volume shows there too, and goes when it is unmounted.
func TestOtherMountsPassesOverPropagatedCopies(t *testing.T) {
	base, copied, kept := t.TempDir(), t.TempDir(), t.TempDir()
	for _, err := range []error{
		unix.Mount("tmpfs", base, "tmpfs", 0, ""), unix.Mount("", base, "", unix.MS_SHARED, ""), os.Mkdir(base+"/volume", 0o700),
		unix.Mount(base, copied, "", unix.MS_BIND, ""), // of the same peer group
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, dir := range []string{kept, copied, base} {
			if err := Unmount(dir); err != nil {
				t.Error(err)
			}
		}
	})
	dir := base + "/volume"
	device, _, _ := newFilesystem(t, types[0], 64*mib)
	mounted(t, types[0], device, dir)
	number := stat(t, dir).Dev
	if stat(t, copied+"/volume").Dev != number {
		t.Fatal("not propagated: this test proves nothing")
	}
	if uses, err := OtherMounts(number, dir); err != nil || len(uses) > 0 {
		t.Errorf("a copy of the mount counts: %v, %v", uses, err)
	}
	if err := unix.Mount(dir, kept, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if uses, err := OtherMounts(number, dir); err != nil || len(uses) != 1 || uses[0].Mountpoint != kept {
		t.Errorf("with a bind mount at %s: %v, %v", kept, uses, err)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if now := stat(t, copied+"/volume").Dev; now == number {
		t.Error("the copy is still mounted")
	}
}

func TestUsersNamesFewOfManyProcesses(t *testing.T) {
	device, _, dir := newFilesystem(t, types[0], 64*mib)
	mounted(t, types[0], device, dir)
	number := stat(t, dir).Dev
	for range 2 * mostUsers {
		cmd := exec.Command("sh", "-c", "echo ready; read end || exit 0")
		cmd.Dir = dir
		start(t, cmd)
	}
	uses, err := Users(t.Context(), number, dir)
	if err != nil || len(uses) != mostUsers || !strings.Contains(uses[0].String(), "with its directory "+dir) {
		t.Errorf("%v, %v", uses, err)
	}
}
