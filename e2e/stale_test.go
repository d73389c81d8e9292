//go:build root

package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// stale is longer than a holder's word counts against the kernel's.
const stale = 4 * time.Minute

// Docker repeats an Unmount that it could not send for 15 s, or waits 60 s for a plugin that hangs, and never sends it
// again. Each of these volumes could be neither removed nor rolled back until Docker started again.
func TestVolumeWhoseContainerWentUnseenCanBeRolledBackAndRemoved(t *testing.T) {
	for name, trouble := range map[string]struct{ begin, end func(*orlop) error }{
		"while the daemon was down": {(*orlop).kill, (*orlop).start},
		"while the daemon hung":     {(*orlop).suspend, func(o *orlop) error { return o.cmd.Process.Signal(syscall.SIGCONT) }},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, false)
			h.create(t, "vol", "size=64M")
			h.orlop.run("snapshot", "create", "vol", "--name", "s").must(t)
			h.loseContainer(t, trouble.begin, trouble.end)
			if r := h.orlop.run("snapshot", "restore", "vol@s"); r.code != 4 || !strings.Contains(r.stderr, "no process uses it") {
				t.Errorf("rolled back while a container might be starting: %s", r)
			}
			check(t, h.orlop.later(stale))
			if r := h.orlop.run("doctor"); r.code != 1 || !strings.Contains(r.stdout, "orlop umount --stale vol") {
				t.Errorf("doctor does not name the holder: %s", r)
			}
			h.orlop.run("snapshot", "restore", "vol@s", "--discard-current").must(t)
			if got := h.once(t, "ls /data", "-v", "vol:/data"); got != "" {
				t.Errorf("after the rollback the volume has %q", got)
			}
			h.orlop.run("snapshot", "delete", "vol@s").must(t)
			h.loseContainer(t, (*orlop).kill, (*orlop).start)
			check(t, h.orlop.later(stale))
			h.docker.run("volume", "rm", "vol").must(t)
			h.wantReleased(t)
			h.wantNothingStored(t)
		})
	}
}

// loseContainer writes to the volume in a container and ends that while the daemon is in trouble.
func (h *host) loseContainer(t *testing.T, begin, end func(*orlop) error) {
	t.Helper()
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "written")
	check(t, begin(h.orlop))
	h.docker.run("rm", "-f", "box").must(t)
	check(t, end(h.orlop))
}
