//go:build root

package volume_test

import (
	"bufio"
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
			h.Since = h.Since.Add(-age)
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
		{"old holders of an earlier epoch go only if the kernel shows no use", oldHolderOfEarlierEpoch},
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
		stays("unmount for a user", w.UnmountUser(ctx, id))
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
	if !within(5*time.Second, func() bool { err = attachTo(f, backing); return err == nil }) {
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
	w.Tidy(t.Context())
	w.wantMounted(t, subject, "old") // old, but of this epoch
	check(t, w.NewEpoch(t.Context()))
	c := startContainer(t)
	w.Tidy(t.Context())
	w.wantMounted(t, subject, "old") // the kernel shows a user
	c.end()
	w.Tidy(t.Context())
	w.wantFree(t, subject)
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
	check(t, w.UnmountUser(t.Context(), w.id(t, subject)))
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
