//go:build root

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A podman is the real one, with an image and a store of its own below dir. It has no daemon.
type podman struct{ dir string }

// podman makes orlop known to Podman, under the name that Docker knows it by.
func (h *host) podman(t *testing.T) podman {
	t.Helper()
	p := podman{filepath.Join(h.dir, "podman")}
	check(t, os.Mkdir(p.dir, 0o711))
	// A container of a container may not raise its limits, which are then Podman's default.
	config := fmt.Sprintf("[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n"+
		"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n[engine.volume_plugins]\n%s = %q\n", h.plugin, h.orlop.socket)
	check(t, os.WriteFile(filepath.Join(p.dir, "containers.conf"), []byte(config), 0o600))
	archives, err := imageArchives()
	check(t, err)
	image := filepath.Join(p.dir, "plain.tar")
	check(t, os.WriteFile(image, archives[plainImage], 0o600))
	p.run("import", image, plainImage).must(t)
	t.Cleanup(func() { p.run("rm", "--force", "--time", "0", "--all") })
	return p
}

func (p podman) run(args ...string) result {
	return run([]string{"CONTAINERS_CONF=" + filepath.Join(p.dir, "containers.conf")}, "podman", append([]string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--tmpdir", filepath.Join(p.dir, "tmp"),
		"--storage-driver", "vfs"}, args...)...)
}

// wantNote fails unless a new container finds the note on the volume, and can write beside it.
func (p podman) wantNote(t *testing.T, volume string) {
	t.Helper()
	script := "cat /x/note; touch /x/another"
	if got := p.run("run", "--rm", "--network", "none", "-v", volume+":/x", plainImage, "sh", "-ec", script).must(t); got != "note" {
		t.Errorf("the container reads %q", got)
	}
}

// idle lets time pass, with a podman command now and then: each of them activates the plugin.
func (h *host) idle(t *testing.T, p podman) {
	t.Helper()
	for range 2 {
		p.run("volume", "ls").must(t)
		check(t, h.orlop.later(stale))
		p.run("volume", "ls").must(t)
		h.wantInUse(t, "db")
	}
}

// A7: Podman mounts a volume when its own count of the users rises from zero, and never again to confirm.
func TestPodmansVolumeStaysMountedAsLongAsPodmanCountsAUser(t *testing.T) {
	h := newHost(t, false)
	p := h.podman(t)
	p.run("volume", "create", "--driver", h.plugin, "--opt", "size=64M", "db").must(t)
	p.run("volume", "mount", "db").must(t) // prints no path for a plugin's volume
	check(t, os.WriteFile(filepath.Join(h.mountpoint("db"), "note"), []byte("note"), 0o644))
	h.idle(t, p)
	p.wantNote(t, "db")
	if r := h.orlop.run("delete", "db"); r.code != 4 {
		t.Errorf("delete of a volume that podman counts as used: %s", r)
	}
	p.run("volume", "unmount", "db").must(t)
	h.wantReleased(t)
	p.wantNote(t, "db")
	h.wantReleased(t)
	p.run("volume", "rm", "db").must(t)
	h.wantNothingStored(t)
}

// Podman gives up on an Unmount after 5 s and still counts its user.
func TestPodmansVolumeStaysMountedAfterAnUnmountThatPodmanCouldNotSend(t *testing.T) {
	h := newHost(t, false)
	p := h.podman(t)
	p.run("volume", "create", "--driver", h.plugin, "--opt", "size=64M", "db").must(t)
	p.run("run", "--detach", "--name", "box", "--network", "none", "-v", "db:/x", plainImage, "sh", "-ec", "echo note > /x/note; sleep 3600").must(t)
	eventually(t, "the note is written", func() bool {
		text, err := os.ReadFile(filepath.Join(h.mountpoint("db"), "note"))
		return err == nil && string(text) == "note\n"
	})
	check(t, h.orlop.suspend())
	gone := p.run("rm", "--force", "--time", "0", "box")
	check(t, h.orlop.cmd.Process.Signal(syscall.SIGCONT))
	t.Logf("removal while the daemon hung: %s", gone)
	p.run("rm", "--force", "--ignore", "box").must(t)
	h.idle(t, p)
	p.wantNote(t, "db")
	p.run("volume", "unmount", "db").must(t)
	h.wantReleased(t)
	p.run("volume", "rm", "db").must(t)
	h.wantNothingStored(t)
}
