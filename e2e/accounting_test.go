//go:build root

package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// The tests of this file provoke, with a real Docker daemon, each event after which Docker's Mount and Unmount calls
// do not tell who uses a volume (A0 to A6 of the table). Each claims that the calls really came as the event is
// known for, that nothing was unmounted under a living container, and that nothing stays once all are gone.

// A0: content of the image is copied, and two mount points of one volume have an ID each.
func TestImageCopyAndTwoMountPointsOfOneVolumeEndWithTheContainer(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	h.docker.run(append(h.runArgs("-d", "--name", "box", "-v", "vol:/data", "-v", "vol:/again"), seedImage, "sleep", "3600")...).must(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a Unmount:a Mount:b Mount:c")
	h.wantInUse(t, "vol", "box")
	h.sh(t, "box", "test -f /data/seed; echo both > /data/file")
	if got := h.sh(t, "box", "cat /again/file"); got != "both" {
		t.Errorf("the other mount point has %q", got)
	}
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
	wantCalls(t, h.relay.take("vol"), "Unmount:a Unmount:b")
}

// A failed start comes as Mount and Unmount.
func TestContainerThatFailsToStartLeavesNothingMounted(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	r := h.docker.run(append(h.runArgs("--name", "box", "-v", "vol:/data"), plainImage, "/no/such/program")...)
	if r.code == 0 {
		t.Fatal(r)
	}
	wantCalls(t, h.relay.take("vol"), "Mount:a Unmount:a")
	h.wantReleased(t)
}

// A1: Mount comes again with the ID of the running container, then Unmount with it.
func TestDockerCopyUnmountsNothingUnderARunningContainer(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "before")
	device := h.wantInUse(t, "vol", "box")
	for range 2 {
		h.docker.run("cp", h.docker.path("daemon.json"), "box:/data/copied").must(t)
		if now := h.wantInUse(t, "vol", "box"); now != device {
			t.Fatalf("the device was %s and is %s", device, now)
		}
	}
	h.docker.run("cp", "box:/data/note", h.docker.path("note")).must(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a( Mount:a Unmount:a){3,}")
	h.wantFile(t, "box", "copied", "{}")
	h.wantFile(t, "box", "note", "before")
	h.container(t, "other", "vol") // on what the copies left
	h.write(t, "other", "note", "after")
	h.wantFile(t, "box", "note", "after")
	h.wantInUse(t, "vol", "box", "other")
	h.docker.run("rm", "-f", "other").must(t)
	h.wantInUse(t, "vol", "box")
	h.docker.run("stop", "box").must(t) // Unmount with an ID that the copies' Unmount has used up
	h.wantReleased(t)
}

// A2: no Unmount; Mount with the old ID; one Unmount.
func TestVolumeSurvivesDockerKilledAndIsReleasedAfterTheNextStop(t *testing.T) {
	for _, restart := range []string{"no", "always"} {
		t.Run("restart="+restart, func(t *testing.T) {
			h := newHost(t, true)
			h.create(t, "vol")
			h.container(t, "box", "vol", "--restart", restart)
			h.write(t, "box", "note", "before the crash")
			device := h.wantInUse(t, "vol", "box")
			pid := h.docker.run("inspect", "--format", "{{.State.Pid}}", "box").must(t)
			check(t, h.docker.kill())
			if own, inside := deviceAt("self", h.mountpoint("vol")), deviceAt(pid, "/data"); own != device || inside != device {
				t.Fatalf("with docker dead device %s is mounted as %q, in the container %q", device, own, inside)
			}
			check(t, h.docker.start())
			if restart == "no" {
				h.docker.run("start", "box").must(t)
			}
			eventually(t, "the container runs again", func() bool {
				return h.docker.run("inspect", "--format", "{{.State.Running}} {{.State.Pid}}", "box").must(t) != "true "+pid &&
					h.docker.run("exec", "box", "true").code == 0
			})
			h.wantInUse(t, "vol", "box")
			h.wantFile(t, "box", "note", "before the crash")
			h.docker.run("stop", "box").must(t)
			h.wantReleased(t)
			wantCalls(t, h.relay.take("vol"), "Mount:a Mount:a Unmount:a")
		})
	}
}

// A2, with a container that is never started again: nobody sends the Unmount.
func TestVolumeOfAContainerThatDiedWithDockerCanBeUsedAndReleasedByAnother(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "left behind")
	device := h.wantInUse(t, "vol", "box")
	check(t, h.docker.kill())
	check(t, h.docker.start())
	h.docker.run("rm", "-f", "box").must(t)
	h.container(t, "next", "vol")
	if now := h.wantInUse(t, "vol", "next"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.wantFile(t, "next", "note", "left behind")
	h.docker.run("rm", "-f", "next").must(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a Mount:b Unmount:b")
	// The old holder is too young to be suspect. Whatever becomes of it, the volume is whole.
	h.once(t, "test -f /data/note", "-v", "vol:/data")
}

// A3: no Mount after the start; only Unmount, much later.
func TestLiveRestoreKeepsVolumesWhileDockerIsKilledAndStartedAgain(t *testing.T) {
	h := newHost(t, true, "--live-restore")
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "live")
	device := h.wantInUse(t, "vol", "box")
	pid := h.docker.run("inspect", "--format", "{{.State.Pid}}", "box").must(t)
	for _, end := range []func(*process) error{(*process).kill, (*process).stop} {
		check(t, end(h.docker.process))
		if own, inside := deviceAt("self", h.mountpoint("vol")), deviceAt(pid, "/data"); own != device || inside != device {
			t.Fatalf("without docker device %s is mounted as %q, in the container %q", device, own, inside)
		}
		check(t, h.docker.start("--live-restore"))
		if now := h.wantInUse(t, "vol", "box"); now != device {
			t.Fatalf("the device was %s and is %s", device, now)
		}
		if now := h.docker.run("inspect", "--format", "{{.State.Pid}}", "box").must(t); now != pid {
			t.Fatalf("the container was process %s and is %s", pid, now)
		}
	}
	h.wantFile(t, "box", "note", "live")
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a Unmount:a")
}

// A3 and then A1: Docker does not know of its mount any more, and the copy's Unmount is the last it sends.
func TestDockerCopyAfterALiveRestoreUnmountsNothingUnderARunningContainer(t *testing.T) {
	h := newHost(t, true, "--live-restore")
	h.create(t, "vol")
	h.container(t, "box", "vol")
	device := h.wantInUse(t, "vol", "box")
	check(t, h.docker.kill())
	check(t, h.docker.start("--live-restore"))
	h.docker.run("cp", h.docker.path("daemon.json"), "box:/data/copied").must(t)
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Fatalf("the device was %s and is %s", device, now)
	}
	h.wantFile(t, "box", "copied", "{}")
	h.docker.run("stop", "box").must(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a( Mount:[ab] Unmount:[ab])+( Unmount:a)?")
	h.settleByUse(t, "vol")
	h.wantReleased(t)
}

// A4: Unmount at the stop, and a new ID after it.
func TestGracefulStopOfDockerReleasesEveryVolume(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.container(t, "other", "vol")
	h.write(t, "box", "note", "kept")
	h.wantInUse(t, "vol", "box", "other")
	check(t, h.docker.stop())
	h.wantReleased(t)
	check(t, h.docker.start())
	h.docker.run("start", "box").must(t)
	h.wantInUse(t, "vol", "box")
	h.wantFile(t, "box", "note", "kept")
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
}

// A5: Docker's Get fails while the container stops, so that Unmount is never sent; Mount with the old ID.
func TestStopWithoutUnmountIsMadeGoodByTheNextStop(t *testing.T) {
	t.Run("plugin answers errors", func(t *testing.T) {
		h := newHost(t, true)
		h.stopWithoutUnmount(t, func() { h.relay.refuse("Get") }, h.relay.pass)
	})
	t.Run("plugin is dead", func(t *testing.T) {
		h := newHost(t, true)
		h.stopWithoutUnmount(t, func() { check(t, h.orlop.kill()) }, func() { check(t, h.orlop.start()) })
	})
}

func (h *host) stopWithoutUnmount(t *testing.T, breakGet, mend func()) {
	t.Helper()
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "still here")
	device := h.wantInUse(t, "vol", "box")
	breakGet()
	h.docker.run("stop", "box").must(t)
	mend()
	wantCalls(t, h.relay.take("vol"), "Mount:a")
	h.docker.run("start", "box").must(t)
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.wantFile(t, "box", "note", "still here")
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
}

// A6: Unmount although the container still runs, and none when it stops.
func TestFailedMountOfACopyUnmountsNothingUnderARunningContainer(t *testing.T) {
	for name, fail := range map[string]func(*relay, string){"refused": (*relay).refuse, "done but too late": (*relay).lose} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, true)
			h.create(t, "vol")
			h.container(t, "box", "vol")
			h.write(t, "box", "note", "still here")
			device := h.wantInUse(t, "vol", "box")
			fail(h.relay, "Mount")
			// The docker command asks twice; this asks once, as the table has it.
			if status, answer, err := h.docker.api(http.MethodHead, "/containers/box/archive?path=/data/note", nil); err != nil || status == http.StatusOK {
				t.Fatalf("look at a file of the container: status %d, %s, %v", status, answer, err)
			}
			h.relay.pass()
			wantCalls(t, h.relay.take("vol"), "Mount:a Mount:a Unmount:a")
			if now := h.wantInUse(t, "vol", "box"); now != device {
				t.Fatalf("the device was %s and is %s", device, now)
			}
			h.wantFile(t, "box", "note", "still here")
			if status, answer, err := h.orlop.call("VolumeDriver.Remove", map[string]any{"Name": "vol"}); err != nil || status == http.StatusOK {
				t.Errorf("Remove under a running container: status %d, %v, %v", status, answer, err)
			}
			h.container(t, "other", "vol")
			if now := h.wantInUse(t, "vol", "box", "other"); now != device {
				t.Errorf("the device was %s and is %s", device, now)
			}
			h.docker.run("rm", "-f", "other").must(t)
			h.wantInUse(t, "vol", "box")
			h.docker.run("stop", "box").must(t)
			h.settleByUse(t, "vol")
			h.wantReleased(t)
		})
	}
}

func TestVolumeThatAnotherNamespaceHoldsStaysUntilThatIsGone(t *testing.T) {
	h := newHost(t, true)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "seen by both")
	device := h.wantInUse(t, "vol", "box")
	outside := newNamespace(t, h.mountpoint("vol"))
	h.docker.run("stop", "box").must(t)
	wantCalls(t, h.relay.take("vol"), "Mount:a Unmount:a")
	if now := h.wantInUse(t, "vol"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	if status, answer, err := h.orlop.call("VolumeDriver.Remove", map[string]any{"Name": "vol"}); err != nil || status == http.StatusOK {
		t.Errorf("Remove while a namespace holds the volume: status %d, %v, %v", status, answer, err)
	} else if !strings.Contains(answer["Err"].(string), "pid "+outside.pid()) {
		t.Errorf("the refusal does not name process %s: %v", outside.pid(), answer)
	}
	if got := deviceAt(outside.pid(), h.mountpoint("vol")); got != device {
		t.Errorf("the other namespace sees device %q, want %s", got, device)
	}
	h.docker.run("start", "box").must(t)
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s: two superblocks of one image", device, now)
	}
	h.wantFile(t, "box", "note", "seen by both")
	outside.end(t)
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
}

// A7: podman has one mount ID for all it does, says with each command that it started, and sends no body with List.
func TestPodmansCallsUnmountNothingThatIsInUseAndLeaveNothing(t *testing.T) {
	h := newHost(t, false)
	const id = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"
	call := func(name string, request map[string]any) map[string]any {
		t.Helper()
		status, answer, err := h.orlop.call(name, request)
		if err != nil || status != http.StatusOK {
			t.Fatalf("%s %v: status %d, %v, %v", name, request, status, answer, err)
		}
		return answer
	}
	command := func(name, volume string) { // every podman command is a process that activates, and often twice
		t.Helper()
		call("Plugin.Activate", nil)
		call("Plugin.Activate", nil)
		call("VolumeDriver.List", nil)
		request := map[string]any{"Name": volume}
		if strings.HasSuffix(name, "ount") {
			request["ID"] = id
		}
		call("VolumeDriver."+name, request)
	}
	for _, volume := range []string{"first", "second"} {
		command("Create", volume)
		command("Mount", volume)
	}
	device := h.wantInUse(t, "first")
	h.wantInUse(t, "second")
	outside := newNamespace(t, h.mountpoint("first")) // its container, which sees both
	command("Mount", "first")                         // as after a crash of podman: without an Unmount
	for range 5 {
		command("Get", "first")
	}
	if now := h.wantInUse(t, "first"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	command("Unmount", "first")
	if now := h.wantInUse(t, "first"); now != device {
		t.Errorf("unmounted under a container: the device was %s and is %s", device, now)
	}
	if list := call("VolumeDriver.List", nil)["Volumes"].([]any); len(list) != 2 {
		t.Errorf("List without a body has %v", list)
	}
	if status, answer, err := h.orlop.call("VolumeDriver.Mount", map[string]any{"Name": "none", "ID": id}); err != nil || status != http.StatusInternalServerError || answer["Err"] == "" {
		t.Errorf("Mount of no volume: status %d, %v, %v", status, answer, err)
	}
	outside.end(t)
	command("Unmount", "second")
	command("Mount", "first")
	command("Unmount", "first")
	h.wantReleased(t)
	command("Unmount", "first") // what is not mounted
	command("Remove", "first")
	command("Remove", "second")
	h.wantNothingStored(t)
}
