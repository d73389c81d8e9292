//go:build root

package volume_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/snapshot"
)

// A volume that is used without a holder, or held without a use that the kernel shows. The tests run one after the
// other, as those of TestTheKernelIsTheJudgeOfMounts do, and for the same reason.
func TestUsesThatNoHolderTellsOf(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"a passing look at the mount of a creation fails nothing", passingLookAtACreation},
		{"an unmount waits for no container and the background settles", unmountWaitsForNoContainer},
		{"no resize unmounts a volume whose container is starting", resizeWhileAContainerStarts},
		{"a resize of a mounted volume waits for its trim", resizeWaitsForTrim},
		{"a trim has no holder and keeps the volume mounted", trimKeepsMounted},
		{"a deletion waits for a trim", deletionWaitsForTrim},
		{"a volume that is read-only elsewhere is mounted read-only", readOnlyElsewhere},
		{"a volume is mounted back read-only if it has become so elsewhere", mountedBackReadOnly},
		{"a claim of the device that is no mount is named", claimedDevice},
		{"what uses a volume in this mount namespace is named, and keeps it", usesAreNamed},
		{"a use that ends while an unmount waits is none", useThatEnds},
		{"a mount that does not come about leaves no holder", mountNotShown},
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
	settled := within(func() bool { return len(w.mounts(t)) == 0 })
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
	if !within(func() bool { return w.LockWanted(id) }) {
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

// A process that is just being started has open what this one has, for some milliseconds.
func passingLookAtACreation(t *testing.T, w *world) {
	ctx, stop := context.WithCancel(t.Context())
	looks := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			mounts, _ := filepath.Glob(filepath.Join(w.root, "scratch", "*")) // the pattern is good
			for _, dir := range mounts {
				if f, err := os.Open(dir); err == nil {
					<-time.After(20 * time.Millisecond)
					_ = f.Close()
					<-time.After(20 * time.Millisecond)
					n++
				}
			}
			<-time.After(time.Millisecond)
		}
		looks <- n
	}()
	for i := range 5 {
		check(t, create("looked-at-"+strconv.Itoa(i))(t.Context(), w))
	}
	stop()
	if n := <-looks; n == 0 {
		t.Error("nobody looked")
	}
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

// Each of these was called "a process with an open file", or "a mount that no process shows".
func usesAreNamed(t *testing.T, w *world) {
	id, dir, ctx := w.id(t, subject), w.Mountpoint(subject), t.Context()
	taken, err := w.snaps.Create(ctx, []string{id}, snapshot.Spec{Name: "s"})
	check(t, err)
	check(t, mountUser("")(ctx, w))
	inside := filepath.Join(dir, "inside")
	check(t, errors.Join(os.Mkdir(inside, 0o755), os.WriteFile(filepath.Join(dir, "disk"), make([]byte, mebibyte), 0o600)))
	copied, err := os.ReadFile("/bin/sleep")
	check(t, errors.Join(err, os.WriteFile(filepath.Join(dir, "program"), copied, 0o755)))
	sleep := func(program, where string, redirect ...string) func(*testing.T) (string, func()) {
		return func(t *testing.T) (string, func()) {
			cmd := exec.Command("sh", append([]string{"-c", `cd "$1"; exec 3<"$2"; exec "$0" 1000`, program, where}, redirect...)...)
			check(t, cmd.Start())
			pid := strconv.Itoa(cmd.Process.Pid)
			if !within(func() bool {
				args, err := os.ReadFile("/proc/" + pid + "/cmdline")
				return err == nil && strings.HasPrefix(string(args), program)
			}) {
				t.Fatal("not started")
			}
			return "pid " + pid, func() { check(t, cmd.Process.Kill()); _ = cmd.Wait() }
		}
	}
	mounted := func(from, at, kind string, flags uintptr) func(*testing.T) (string, func()) {
		return func(t *testing.T) (string, func()) {
			check(t, unix.Mount(from, at, kind, flags, ""))
			return "a mount at " + at, func() { check(t, unix.Unmount(at, 0)) }
		}
	}
	for name, begin := range map[string]func(*testing.T) (names string, end func()){
		"bind mount of a directory":  mounted(inside, w.user, "", unix.MS_BIND),
		"mount on a directory of it": mounted("x", inside, "tmpfs", 0),
		"open file":                  sleep("/bin/sleep", "/", filepath.Join(dir, "disk")),
		"directory":                  sleep("/bin/sleep", inside, "/dev/null"),
		"program":                    sleep(filepath.Join(dir, "program"), "/", "/dev/null"),
		"open device":                func(t *testing.T) (string, func()) { return sleep("/bin/sleep", "/", w.info(t, subject).Path)(t) },
		"loop device on a file": func(t *testing.T) (string, func()) {
			device, err := exec.Command("losetup", "--find", "--show", filepath.Join(dir, "disk")).Output()
			check(t, err)
			path := strings.TrimSpace(string(device))
			return "loop device " + path + " on " + filepath.Join(dir, "disk"), func() { check(t, exec.Command("losetup", "--detach", path).Run()) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.mount(t, "docker")
			names, end := begin(t)
			w.unmount(t, "docker")
			for _, door := range []struct {
				name string
				try  func() error
			}{
				{"umount", func() error { return unmountUser(ctx, w, id) }}, // first: detach names a holder in place of the kernel's users
				{"delete", func() error { return w.Delete(ctx, id, true) }},
				{"restore", func() error { _, err := w.snaps.Restore(ctx, taken[0].ID, true); return err }},
				{"detach", func() error { return w.SettleAll(ctx) }},
			} {
				if door.name != "umount" && name != "bind mount of a directory" && name != "open device" {
					continue // they are alike, and each waits for a second
				}
				err := door.try()
				if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), names) {
					t.Errorf("%s: %v: does not name %q", door.name, err, names)
				}
			}
			if uses := w.Lingering(ctx, w.volume(t, subject)); !strings.Contains(strings.Join(uses, ", "), names) {
				t.Errorf("for doctor: %q", uses)
			}
			end()
			check(t, unmountUser(ctx, w, id))
			w.wantFree(t, subject)
		})
	}
}

func useThatEnds(t *testing.T, w *world) {
	check(t, mountUser("")(t.Context(), w))
	f, err := os.Open(w.Mountpoint(subject))
	check(t, err)
	ended := make(chan error)
	id := w.id(t, subject)
	go func() {
		within(func() bool { return w.LockWanted(id) })
		ended <- f.Close()
	}()
	check(t, unmountUser(t.Context(), w, w.id(t, subject)))
	check(t, <-ended)
	w.wantFree(t, subject)
}

// A bind mount that shows nothing, or fails, kept the volume mounted for the user until an umount.
func mountNotShown(t *testing.T, w *world) {
	for _, wrong := range []volume.Host{noBind{}, emptyBind{}} {
		w.Decorate(w.store, wrong)
		_, err := w.MountUser(t.Context(), w.id(t, subject), w.user)
		if err == nil {
			t.Error("mounted at the user's directory, which does not show it")
		}
		w.wantFree(t, subject)
	}
	w.Decorate(w.store, volume.Kernel{})
	check(t, mountUser("")(t.Context(), w))
	w.Decorate(w.store, noBind{})
	if _, err := w.MountUser(t.Context(), w.id(t, subject), w.user); err == nil {
		t.Error("mounted at the user's directory, which does not show it")
	}
	w.wantMounted(t, subject, volume.UserHolder)
	check(t, unmountUser(t.Context(), w, w.id(t, subject)))
	w.wantFree(t, subject)
}

// noBind refuses bind mounts.
type noBind struct{ volume.Kernel }

func (noBind) Bind(string, string) error { return unix.EPERM }

// emptyBind says that it has mounted, and has not.
type emptyBind struct{ volume.Kernel }

func (emptyBind) Bind(string, string) error { return nil }
