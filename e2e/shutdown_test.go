//go:build root

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestShutdownWithDetachRefusesWhileAContainerUsesAVolume(t *testing.T) {
	h := newHost(t, false)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	device := h.wantInUse(t, "vol", "box")
	if r := h.orlop.run("shutdown", "--detach"); r.code != 4 || !strings.Contains(r.stderr, "vol") {
		t.Errorf("with a volume in use: %s", r)
	}
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.orlop.run("inspect", "vol").must(t) // the daemon goes on
	h.docker.run("rm", "-f", "box").must(t)
	h.wantReleased(t)
	h.orlop.run("shutdown", "--detach").must(t)
	h.wantDetached(t)
}

// Each container that starts or ends on the machine has the pool's mount in its namespace for a moment.
func TestShutdownWithDetachWaitsForANamespaceThatIsJustEnding(t *testing.T) {
	h := newHost(t, false)
	outside := newNamespace(t, filepath.Join(h.orlop.root, "pool"))
	ending := time.AfterFunc(300*time.Millisecond, func() {
		if err := outside.kill(); err != nil {
			t.Error(err)
		}
	})
	defer ending.Stop()
	h.orlop.run("shutdown", "--detach").must(t)
	h.wantDetached(t)
}

// wantDetached fails unless orlop ends and the kernel shows nothing of its root any more.
func (h *host) wantDetached(t *testing.T) {
	t.Helper()
	eventually(t, "orlop ends", func() bool { return !h.orlop.running() })
	if leaked := left(h.orlop.root); len(leaked) > 0 {
		t.Errorf("left after the shutdown: %q", leaked)
	}
}
