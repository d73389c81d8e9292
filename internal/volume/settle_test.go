//go:build root

package volume_test

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/volume"
)

// A volume that is used without a holder, or held without a use that the kernel shows. The tests run one after the
// other, as those of TestTheKernelIsTheJudgeOfMounts do, and for the same reason.
func TestUsesThatNoHolderTellsOf(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"an unmount waits for no container and the background settles", unmountWaitsForNoContainer},
		{"no resize unmounts a volume whose container is starting", resizeWhileAContainerStarts},
		{"a resize of a mounted volume waits for its trim", resizeWaitsForTrim},
		{"a trim has no holder and keeps the volume mounted", trimKeepsMounted},
		{"a deletion waits for a trim", deletionWaitsForTrim},
		{"a volume that is read-only elsewhere is mounted read-only", readOnlyElsewhere},
		{"a volume is mounted back read-only if it has become so elsewhere", mountedBackReadOnly},
		{"a claim of the device that is no mount is named", claimedDevice},
		{"a user's mount goes though the volume's own is gone", userMountWithoutOwn},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s.newWorld(t, false)) })
	}
}

// A docker cp into a running container sends two Unmounts, each of which waited for a second.
func unmountWaitsForNoContainer(t *testing.T, w *world) {
	w.mount(t, "docker")
	c := startContainer(t)
	w.unmount(t, "docker")
	w.wantMounted(t, subject)
	if w.LeftToSettle() != 1 {
		t.Fatalf("left to the background: %d volumes, want 1", w.LeftToSettle())
	}
	if !w.UsedElsewhere(t.Context(), w.id(t, subject)) {
		t.Error("the background does not see the container")
	}
	w.wantMounted(t, subject)
	c.end()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.SettleQueued(ctx)
	}()
	settled := within(10*time.Second, func() bool { return len(w.mounts(t)) == 0 })
	cancel()
	<-ended
	if !settled {
		t.Fatal("the background has not settled the volume")
	}
	w.wantFree(t, subject)
}

// withoutResource calls do without CAP_SYS_RESOURCE, which this process may have.
func withoutResource(t *testing.T, do func()) {
	t.Helper()
	runtime.LockOSThread() // capabilities go by the thread
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	check(t, unix.Capget(&header, &had[0]))
	less := had
	less[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	check(t, unix.Capset(&header, &less[0]))
	defer func() { check(t, unix.Capset(&header, &had[0])) }()
	do()
}

// Between Docker's Mount and the mount in the container the kernel shows no use of the volume.
func resizeWhileAContainerStarts(t *testing.T, w *world) {
	w.mount(t, "docker")
	w.effects = nil
	var err error
	withoutResource(t, func() { err = resize(subject, 2*sizeExt4)(t.Context(), w) })
	if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "docker mount docker") {
		t.Errorf("resize while a container may be starting: %v", err)
	}
	if len(w.effects) > 0 || w.volume(t, subject).Size != sizeExt4 {
		t.Errorf("the refused resize had the effects %q", w.effects)
	}
	withoutResource(t, func() { check(t, resize(subject, sizeExt4)(t.Context(), w)) }) // nothing is to grow
	w.wantMounted(t, subject, "docker")
	if slices.Contains(w.effects, "host.Unmount") {
		t.Errorf("unmounted while a container may be starting: %q", w.effects)
	}
	w.age(t, "docker", volume.SuspectAge)
	withoutResource(t, func() { check(t, resize(subject, 2*sizeExt4)(t.Context(), w)) })
	if !slices.Contains(w.effects, "host.Unmount") {
		t.Errorf("the volume grew mounted: this test proves nothing: %q", w.effects)
	}
	w.wantMounted(t, subject, "docker")
	w.wantSize(t, w.volume(t, subject))
}

func resizeWaitsForTrim(t *testing.T, w *world) {
	check(t, mountUser("")(t.Context(), w))
	id := w.id(t, subject)
	_, err := w.BeginTrim(t.Context(), id)
	check(t, err)
	done := w.waitsForTrim(t, func() error {
		var err error
		withoutResource(t, func() { err = resize(subject, 2*sizeExt4)(t.Context(), w) })
		return err
	})
	w.TrimOver(id)
	check(t, <-done)
	w.wantMounted(t, subject, volume.UserHolder)
	w.wantSize(t, w.volume(t, subject))
}

// waitsForTrim starts what must wait for the trim of the subject, and returns when that has the volume's lock.
func (w *world) waitsForTrim(t *testing.T, do func() error) (done chan error) {
	t.Helper()
	done = make(chan error, 1)
	go func() { done <- do() }()
	id := w.id(t, subject)
	if !within(10*time.Second, func() bool { return w.LockWanted(id) }) {
		t.Fatal("the volume's lock is not taken")
	}
	select {
	case err := <-done:
		t.Fatalf("has not waited for the trim: %v", err)
	default:
	}
	return done
}

func trimKeepsMounted(t *testing.T, w *world) {
	id := w.id(t, subject)
	w.mount(t, "docker")
	dir, err := w.BeginTrim(t.Context(), id)
	check(t, err)
	w.wantMounted(t, subject, "docker") // and no other
	w.unmount(t, "docker")
	w.wantMounted(t, subject)
	w.Tidy(t.Context())
	w.wantMounted(t, subject)
	_, err = fs.Trim(dir)
	check(t, err)
	check(t, w.EndTrim(t.Context(), id))
	w.wantFree(t, subject)
}

func deletionWaitsForTrim(t *testing.T, w *world) {
	id := w.id(t, subject)
	for range 2 {
		_, err := w.BeginTrim(t.Context(), id)
		check(t, err)
	}
	w.TrimOver(id) // one of two
	done := w.waitsForTrim(t, func() error { return remove(subject)(t.Context(), w) })
	check(t, w.EndTrim(t.Context(), id))
	check(t, <-done)
	w.wantSound(t)
	if w.named(subject) != "" || len(w.mounts(t)) > 0 {
		t.Errorf("after the deletion there are %v and mounts %v", w.volumes(t), w.mounts(t))
	}
}

// makeReadOnly does what a filesystem does to itself after an error.
func (w *world) makeReadOnly(t *testing.T) {
	t.Helper()
	check(t, unix.Mount("", w.Mountpoint(subject), "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""))
}

func (w *world) readOnly(t *testing.T) bool {
	t.Helper()
	entry, err := w.MountOf(w.Mountpoint(subject))
	check(t, err)
	if entry == nil {
		t.Fatal("not mounted")
	}
	return entry.ReadOnly
}

func readOnlyElsewhere(t *testing.T, w *world) {
	w.mount(t, "docker")
	w.makeReadOnly(t)
	c := startContainer(t)
	check(t, unix.Unmount(w.Mountpoint(subject), 0))
	w.mount(t, "docker")
	w.wantMounted(t, subject, "docker")
	if !w.readOnly(t) {
		t.Error("mounted writable beside a read-only mount")
	}
	c.end()
	w.unmount(t, "docker")
	w.wantFree(t, subject)
	w.mount(t, "docker")
	if w.readOnly(t) {
		t.Error("read-only still, with nobody else there")
	}
	w.wantMounted(t, subject, "docker")
}

// mountedBackReadOnly is about what no process shows: the namespace of a file descriptor.
func mountedBackReadOnly(t *testing.T, w *world) {
	w.mount(t, "docker")
	w.makeReadOnly(t)
	tree, err := unix.OpenTree(unix.AT_FDCWD, w.Mountpoint(subject), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	check(t, err)
	w.unmount(t, "docker")
	w.wantMounted(t, subject)
	if !w.readOnly(t) {
		t.Error("mounted back writable")
	}
	check(t, unix.Close(tree))
	w.Tidy(t.Context())
	w.wantFree(t, subject)
}

func claimedDevice(t *testing.T, w *world) {
	w.mount(t, "docker")
	path := w.info(t, subject).Path
	check(t, unix.Unmount(w.Mountpoint(subject), 0))
	claim, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	check(t, err)
	_, err = w.Mount(t.Context(), w.id(t, subject), "docker")
	if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "claims the device") {
		t.Errorf("mount of a device that is claimed: %v", err)
	}
	check(t, unix.Close(claim))
	w.mount(t, "docker")
	w.wantMounted(t, subject, "docker")
}

func userMountWithoutOwn(t *testing.T, w *world) {
	check(t, mountUser("user")(t.Context(), w))
	check(t, unix.Unmount(w.Mountpoint(subject), 0))
	check(t, unmountUser(t.Context(), w, w.id(t, subject)))
	w.wantFree(t, subject)
}
