//go:build root

package volume_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A container is a process in a mount namespace of its own, which has what was mounted when it began.
type container struct {
	end func() // waits for its end
}

func startContainer(t testing.TB) container {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line; true")
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	ended := false
	c := container{func() {
		if !ended {
			ended = true
			check(t, errors.Join(stdin.Close(), cmd.Wait()))
		}
	}}
	t.Cleanup(c.end)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("container: %q, %v", line, err)
	}
	return c
}

// holdersOf lists the IDs of a volume's holders.
func (w *world) holdersOf(t *testing.T, name string) (ids []string) {
	t.Helper()
	holders, err := w.Holders(w.volume(t, name))
	check(t, err)
	for _, h := range holders {
		ids = append(ids, h.ID)
	}
	return ids
}

// wantMounted checks that a volume is mounted once, at its own mount point and with its content.
func (w *world) wantMounted(t *testing.T, name string, holders ...string) {
	t.Helper()
	mounts := w.mounts(t)
	if len(mounts) != 1 || mounts[0] != w.Mountpoint(name) {
		t.Fatalf("mounted: %v, want %s only", mounts, name)
	}
	w.wantFiles(t, w.volume(t, name), mounts[0])
	if got := w.holdersOf(t, name); strings.Join(got, " ") != strings.Join(holders, " ") {
		t.Errorf("holders %q, want %q", got, holders)
	}
}

// wantFree checks that nothing is left of a volume's use.
func (w *world) wantFree(t *testing.T, name string) {
	t.Helper()
	if mounts, holders := w.mounts(t), w.holdersOf(t, name); len(mounts)+len(holders) > 0 {
		t.Fatalf("mounted %v, held by %q", mounts, holders)
	}
	w.wantSound(t)
}

func (w *world) mount(t *testing.T, holder string) {
	t.Helper()
	check(t, mount(subject, holder)(t.Context(), w))
}

// unmountUser is UnmountUser for who does not ask who else holds the volume.
func unmountUser(ctx context.Context, w *world, id string) error {
	_, err := w.UnmountUser(ctx, id, false)
	return err
}

func (w *world) unmount(t *testing.T, holder string) {
	t.Helper()
	check(t, unmount(subject, holder)(t.Context(), w))
}

// age makes a holder one that was taken some time ago.
func (w *world) age(t *testing.T, id string, age time.Duration) {
	t.Helper()
	holders, err := w.Holders(w.volume(t, subject))
	check(t, err)
	for _, h := range holders {
		if h.ID == id {
			h.SinceBoot -= int64(age / time.Second)
			check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutHolder(h) }))
		}
	}
}

// Docker's calls do not tell who uses a volume. These are the traces that Docker and podman really leave; the kernel
// decides. They run one after the other: a namespace that begins has what the tests have mounted.
func TestTheKernelIsTheJudgeOfMounts(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"a container that outlives its unmount keeps the volume", containerOutlivesUnmount},
		{"what somebody else mounted at a mount point stays", strangerAtMountpoint},
		{"a device whose number another file has taken is not touched", strangerInDevice},
		{"holders of an earlier epoch count for three minutes", youngHolderOfEarlierEpoch},
		{"old holders of an earlier epoch go with an unmount, if the kernel shows no use", oldHolderOfEarlierEpoch},
		{"a client that activates again and again has its volume unmounted by no time", activatedAgain},
		{"what podman holds goes only if podman says so, or a person does", podmanHolder},
		{"an old holder of the same epoch is in the way of no deletion", staleHolderDeleted},
		{"an old holder of the same epoch is in the way of no removal, rollback or detaching", staleHolderElsewhere},
		{"umount drops stale holders only if asked to", staleHolderUnmounted},
		{"the wall clock counts for no holder's age", wallClockSet},
		{"a user's holder goes with no epoch", userHolderOfEarlierEpoch},
		{"holders of another boot go at the start", holderOfAnotherBoot},
		{"the same mount ID twice is one holder", sameHolderTwice},
		{"one mount ID for all containers", oneHolderForAll},
		{"an unmount after a restart of the daemon settles", unmountAfterRestart},
		{"an unmount that Docker never sends is made up for by the next", unmountNeverSent},
		{"a mount that came back with an old ID", oldHolderAgain},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s.newWorld(t, false)) })
	}
}

func containerOutlivesUnmount(t *testing.T, w *world) {
	w.mount(t, "a")
	c := startContainer(t)
	w.unmount(t, "a")
	w.wantMounted(t, subject)
	err := w.Delete(t.Context(), w.id(t, subject), false)
	if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("delete while it is used: %v", err)
	}
	w.Tidy(t.Context())
	w.wantMounted(t, subject)
	c.end()
	w.Tidy(t.Context())
	w.wantFree(t, subject)
	w.wantContent(t)
}

func strangerAtMountpoint(t *testing.T, w *world) {
	dir := w.Mountpoint(subject)
	check(t, fs.MakeMountpoint(dir))
	check(t, unix.Mount("stranger", dir, "tmpfs", 0, ""))
	id, ctx := w.id(t, subject), t.Context()
	stays := func(after string, err error) {
		t.Helper()
		var stat unix.Statfs_t
		check(t, unix.Statfs(dir, &stat))
		if stat.Type != unix.TMPFS_MAGIC || len(w.mounts(t)) != 1 {
			t.Fatalf("%s touched what somebody else had mounted: %v (error %v)", after, w.mounts(t), err)
		}
	}
	settleAll := func() {
		t.Helper()
		stays("unmount", w.Unmount(ctx, id, "docker"))
		stays("unmount for a user", unmountUser(ctx, w, id))
		w.Tidy(ctx)
		stays("tidy", nil)
		err := w.Delete(ctx, id, false)
		if stays("delete", err); err == nil {
			t.Error("deleted")
		}
		stays("settle all", w.SettleAll(ctx))
	}
	settleAll()
	_, err := w.Mount(ctx, id, "docker")
	if stays("mount", err); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("mount: %v", err)
	}
	if left := attachedBelow(w.dir); len(left) > 0 {
		t.Errorf("not mounted, but attached: %v", left)
	}
	settleAll()
	check(t, unix.Unmount(dir, 0))
	w.mount(t, "docker")
	w.wantMounted(t, subject, "docker")
}

// The kernel frees a loop device with its last user, and its number may be another file's the next moment. Here the
// pool's own descriptor shows the other file too, as if it had been opened a moment too late.
func strangerInDevice(t *testing.T, w *world) {
	w.mount(t, "docker")
	info := w.info(t, subject)
	file, mountpoint := filepath.Join(w.user, "stranger.img"), filepath.Join(w.user, "stranger")
	check(t, errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, sizeExt4), os.Mkdir(mountpoint, 0o700)))
	kind, err := fs.Lookup("ext4")
	check(t, err)
	check(t, kind.Make(t.Context(), run.Runner{}, file, 0, 0))

	check(t, unix.Unmount(w.Mountpoint(subject), 0))
	giveDeviceTo(t, info.Path, file)
	check(t, kind.Mount(info.Path, mountpoint, nil))
	want := writeSynced(t, mountpoint)
	untouched := func(after string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(mountpoint, fileName))
		if err != nil || string(text) != want || attachedBelow(w.user)[info.Path] != file {
			t.Fatalf("%s touched a stranger: attached %v, error %v", after, attachedBelow(w.user), err)
		}
	}
	w.unmount(t, "docker")
	untouched("unmount")
	w.Tidy(t.Context())
	untouched("tidy")
	w.mount(t, "docker")
	untouched("mount")
	if now := w.info(t, subject); now.Path == info.Path || attachedBelow(w.dir)[now.Path] == "" {
		t.Errorf("mounted from %s, the stranger's is %s", now.Path, info.Path)
	}
	w.wantFiles(t, w.volume(t, subject), w.Mountpoint(subject))
	w.unmount(t, "docker")
	untouched("unmount")
	check(t, unix.Unmount(mountpoint, 0))
}

// giveDeviceTo frees a loop device that this process has open once and attaches a file to it, which the descriptor
// then shows.
func giveDeviceTo(t *testing.T, device, file string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	check(t, err)
	held := -1
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == device {
			held, err = strconv.Atoi(filepath.Base(link))
			check(t, err)
		}
	}
	if held < 0 {
		t.Fatalf("the pool does not hold %s", device)
	}
	null, err := os.Open(os.DevNull)
	check(t, err)
	check(t, unix.Dup3(int(null.Fd()), held, unix.O_CLOEXEC)) // the last user of the device is gone
	check(t, null.Close())
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	check(t, err)
	defer backing.Close()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	if !within(func() bool { err = attachTo(f, backing); return err == nil }) {
		t.Fatal(err)
	}
	check(t, unix.Dup3(int(f.Fd()), held, unix.O_CLOEXEC))
}

func youngHolderOfEarlierEpoch(t *testing.T, w *world) {
	w.mount(t, "old")
	check(t, w.NewEpoch(t.Context()))
	w.age(t, "old", 2*time.Minute)
	w.unmount(t, "never heard of")
	w.wantMounted(t, subject, "old")
	w.Tidy(t.Context())
	w.wantMounted(t, subject, "old")
	if err := w.Delete(t.Context(), w.id(t, subject), false); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "docker mount old") {
		t.Errorf("delete: %v", err)
	}
}

func oldHolderOfEarlierEpoch(t *testing.T, w *world) {
	w.mount(t, "old")
	w.age(t, "old", time.Hour)
	w.unmount(t, "never heard of")
	w.wantMounted(t, subject, "old") // old, but of this epoch
	check(t, w.NewEpoch(t.Context()))
	c := startContainer(t)
	w.unmount(t, "never heard of")
	w.wantMounted(t, subject, "old") // the kernel shows a user
	c.end()
	w.Tidy(t.Context())
	w.wantMounted(t, subject, "old") // nobody wants it unmounted
	w.unmount(t, "never heard of")
	w.wantFree(t, subject)
}

// Podman activates the plugin with each command, and mounts a volume again only when its own count rises from zero.
func activatedAgain(t *testing.T, w *world) {
	check(t, w.NewEpoch(t.Context()))
	w.mount(t, "client")
	for range 3 {
		check(t, w.NewEpoch(t.Context()))
		w.age(t, "client", 4*time.Minute)
		w.Tidy(t.Context())
		w.wantMounted(t, subject, "client")
	}
	w.die(t)
	w.unmountAll(t)
	w.begin(t)
	w.wantMounted(t, subject, "client") // it has not let go, and will not say again that it wants it
	w.unmount(t, "client")
	w.wantFree(t, subject)
}

func podmanHolder(t *testing.T, w *world) {
	w.mount(t, volume.PodmanHolder)
	check(t, w.NewEpoch(t.Context()))
	w.age(t, volume.PodmanHolder, time.Hour)
	w.unmount(t, "docker's")
	w.wantMounted(t, subject, volume.PodmanHolder)
	err := w.Delete(t.Context(), w.id(t, subject), false)
	if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "podman volume unmount "+subject) {
		t.Errorf("delete what podman holds: %v", err)
	}
	held, err := w.UnmountUser(t.Context(), w.id(t, subject), false)
	if check(t, err); !strings.Contains(held, "podman volume unmount "+subject) {
		t.Errorf("umount of what podman holds says %q", held)
	}
	w.wantMounted(t, subject, volume.PodmanHolder)
	_, err = w.UnmountUser(t.Context(), w.id(t, subject), true)
	check(t, err)
	w.wantFree(t, subject)
	w.mount(t, volume.PodmanHolder)
	w.age(t, volume.PodmanHolder, time.Hour)
	check(t, w.Remove(t.Context(), w.id(t, subject))) // podman's own: its count is zero by then
}

// Docker does not repeat an Unmount that it could not send.
func staleHolderDeleted(t *testing.T, w *world) {
	w.mount(t, "lost")
	err := w.Delete(t.Context(), w.id(t, subject), false)
	if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "docker mount lost (no process uses it") {
		t.Errorf("delete while a container may be starting: %v", err)
	}
	w.age(t, "lost", volume.SuspectAge)
	c := startContainer(t)
	err = w.Delete(t.Context(), w.id(t, subject), false)
	if !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("delete while a container runs: %v", err)
	}
	w.wantMounted(t, subject, "lost")
	stale, err := w.StaleHolders(t.Context())
	if check(t, err); len(stale) > 0 {
		t.Errorf("stale while a container runs: %v", stale)
	}
	c.end()
	stale, err = w.StaleHolders(t.Context())
	if check(t, err); len(stale) != 1 || stale[0].Volume != subject || stale[0].Holder.ID != "lost" {
		t.Errorf("stale: %v", stale)
	}
	check(t, w.Delete(t.Context(), w.id(t, subject), false))
}

func staleHolderElsewhere(t *testing.T, w *world) {
	lose := func() {
		w.mount(t, "lost")
		w.age(t, "lost", volume.SuspectAge)
	}
	taken, err := w.snaps.Create(t.Context(), []string{w.id(t, subject)}, snapshot.Spec{Name: "s"})
	check(t, err)
	lose()
	_, err = w.snaps.Restore(t.Context(), taken[0].ID, true)
	check(t, err)
	w.wantFree(t, subject)
	check(t, w.snaps.Delete(t.Context(), taken[0].ID))
	lose()
	check(t, w.SettleAll(t.Context()))
	w.wantFree(t, subject)
	lose()
	check(t, w.Remove(t.Context(), w.id(t, subject)))
}

func staleHolderUnmounted(t *testing.T, w *world) {
	id, ctx := w.id(t, subject), t.Context()
	check(t, mountUser("")(ctx, w))
	w.mount(t, "lost")
	if _, err := w.UnmountUser(ctx, id, true); !fault.Is(err, fault.ErrInUse) {
		t.Errorf("drop stale holders while a container may be starting: %v", err)
	}
	w.age(t, "lost", volume.SuspectAge)
	held, err := w.UnmountUser(ctx, id, false)
	if check(t, err); !strings.Contains(held, "docker mount lost") {
		t.Errorf("umount of what docker holds says %q", held)
	}
	w.wantMounted(t, subject, "lost")
	for range 2 { // it may be repeated
		held, err = w.UnmountUser(ctx, id, true)
		if check(t, err); held != "" {
			t.Errorf("held by %q", held)
		}
		w.wantFree(t, subject)
	}
}

// Set forth by hours the clock makes no container's volume go, and set back it keeps none for ever; a restart of the daemon
// in between changes nothing.
func wallClockSet(t *testing.T, w *world) {
	for _, shift := range []time.Duration{-5 * time.Hour, 5 * time.Hour} {
		w.mount(t, "docker")
		h := w.holder(t, "docker")
		h.Since = h.Since.Add(shift)
		check(t, w.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutHolder(h) }))
		check(t, w.NewEpoch(t.Context()))
		w.die(t)
		w.begin(t)
		if w.Suspect(h) {
			t.Errorf("suspect after the clock was set by %s", -shift)
		}
		if err := w.Delete(t.Context(), w.id(t, subject), false); !fault.Is(err, fault.ErrInUse) {
			t.Fatalf("delete after the clock was set by %s: %v", -shift, err)
		}
		w.age(t, "docker", volume.SuspectAge)
		if !w.Suspect(w.holder(t, "docker")) {
			t.Errorf("not suspect after the clock was set by %s and three minutes", -shift)
		}
		w.unmount(t, "never heard of")
		w.wantFree(t, subject)
	}
}

// holder returns one of the subject's holders.
func (w *world) holder(t *testing.T, id string) metadata.Holder {
	t.Helper()
	holders, err := w.Holders(w.volume(t, subject))
	check(t, err)
	for _, h := range holders {
		if h.ID == id {
			return h
		}
	}
	t.Fatalf("no holder %q in %v", id, holders)
	return metadata.Holder{}
}

func userHolderOfEarlierEpoch(t *testing.T, w *world) {
	check(t, mountUser("")(t.Context(), w))
	w.mount(t, "docker")
	w.age(t, volume.UserHolder, time.Hour)
	check(t, w.NewEpoch(t.Context()))
	check(t, w.NewEpoch(t.Context()))
	w.unmount(t, "docker")
	w.Tidy(t.Context())
	w.wantMounted(t, subject, volume.UserHolder)
	check(t, unmountUser(t.Context(), w, w.id(t, subject)))
	w.wantFree(t, subject)
}

func holderOfAnotherBoot(t *testing.T, w *world) {
	w.mount(t, "docker")
	check(t, mountUser("")(t.Context(), w))
	w.die(t)
	w.boot = "boot-2" // and yet it is mounted: the kernel did not start again
	w.open(t)
	check(t, w.Recover(t.Context()))
	w.wantMounted(t, subject)
	w.Tidy(t.Context())
	w.wantFree(t, subject)
}

// docker cp on a running container mounts and unmounts with the container's own ID.
func sameHolderTwice(t *testing.T, w *world) {
	w.mount(t, "b")
	c := startContainer(t)
	w.mount(t, "b")
	w.wantMounted(t, subject, "b")
	w.unmount(t, "b")
	w.wantMounted(t, subject) // the container still runs
	c.end()
	w.unmount(t, "b")
	w.wantFree(t, subject)
}

// Podman gives one constant ID to all; after a reboot it mounts again without an unmount.
func oneHolderForAll(t *testing.T, w *world) {
	w.mount(t, "podman")
	first := startContainer(t)
	w.mount(t, "podman")
	second := startContainer(t)
	first.end()
	w.unmount(t, "podman")
	w.wantMounted(t, subject)
	w.mount(t, "podman")
	w.wantMounted(t, subject, "podman")
	second.end()
	w.die(t)
	w.unmountAll(t)
	w.boot = "boot-2"
	w.begin(t)
	w.wantFree(t, subject)
	w.mount(t, "podman")
	w.wantMounted(t, subject, "podman")
	w.unmount(t, "podman")
	w.wantFree(t, subject)
}

// With live-restore only the unmount comes after dockerd and the daemon started again.
func unmountAfterRestart(t *testing.T, w *world) {
	w.mount(t, "b")
	c := startContainer(t)
	w.die(t)
	w.begin(t)
	w.wantMounted(t, subject, "b")
	check(t, w.NewEpoch(t.Context()))
	c.end()
	w.unmount(t, "b")
	w.wantFree(t, subject)
}

// Docker sends no unmount if an error came from Get while the container stopped.
func unmountNeverSent(t *testing.T, w *world) {
	w.mount(t, "lost")
	check(t, w.NewEpoch(t.Context()))
	w.age(t, "lost", volume.SuspectAge)
	w.mount(t, "new")
	w.wantMounted(t, subject, "lost", "new")
	w.unmount(t, "new")
	w.wantFree(t, subject)
}

// A dockerd that was killed mounts again with the old ID, and unmounts once.
func oldHolderAgain(t *testing.T, w *world) {
	w.mount(t, "b")
	check(t, w.NewEpoch(t.Context()))
	w.age(t, "b", time.Hour)
	w.mount(t, "b")
	w.Tidy(t.Context())
	w.wantMounted(t, subject, "b") // it is of this epoch again
	w.unmount(t, "b")
	w.wantFree(t, subject)
}
