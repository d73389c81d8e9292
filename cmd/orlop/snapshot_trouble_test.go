//go:build root

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/fs"
)

// freeze freezes a mounted volume as somebody else would. After the test it is thawed, whatever happened.
func (h *host) freeze(t *testing.T, volume string) {
	t.Helper()
	dir := filepath.Join(h.root, "mounts", volume)
	t.Cleanup(func() { check(t, fs.Thaw(dir)) })
	if out, err := exec.Command("fsfreeze", "--freeze", dir).CombinedOutput(); err != nil {
		t.Fatalf("fsfreeze: %v: %s", err, out)
	}
}

// thaw ends what freeze began. It fails if the volume is not frozen any more.
func (h *host) thaw(t *testing.T, volume string) {
	t.Helper()
	if out, err := exec.Command("fsfreeze", "--unfreeze", filepath.Join(h.root, "mounts", volume)).CombinedOutput(); err != nil {
		t.Errorf("fsfreeze: %v: %s", err, out)
	}
}

func TestAFilesystemThatSomebodyElseHasFrozenStaysTheirs(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			h := startHost(t)
			h.must(t, "create", "data", "--size", "300M", "--fs", filesystem)
			h.must(t, "mount", "data")
			h.freeze(t, "data")
			for _, args := range [][]string{{"snapshot", "create", "data"}, {"create", "copy", "--from", "data"}} {
				got := h.orlop(args...)
				if got.code != 4 || !strings.Contains(got.stderr, `volume "data"`) || !strings.Contains(got.stderr, "frozen already") {
					t.Errorf("orlop %q: %s", args, got)
				}
			}
			if all := h.snapshots(t, "data"); len(all) > 0 || len(h.images(t)) != 2 {
				t.Errorf("left: %+v, %q", all, h.images(t))
			}
			h.thaw(t, "data") // by its owner: it was frozen all the time
			h.wantWritable(t, "data")
			name := h.must(t, "snapshot", "create", "data")
			h.wantWritable(t, "data")
			h.onClone(t, "data@"+name, func(dir string) {
				if _, err := os.Stat(filepath.Join(dir, "still-writable")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestAVolumeThatOnlyAnotherNamespaceHasMountedIsFrozenThere: our mount point shows nothing then.
func TestAVolumeThatOnlyAnotherNamespaceHasMountedIsFrozenThere(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			h := startHost(t)
			h.must(t, "create", "data", "--size", "300M", "--fs", filesystem)
			path := h.docker(t, "Mount", dockerRequest{Name: "data", ID: "container"}).Mountpoint
			check(t, writeDurably(filepath.Join(path, "before"), []byte("written before")))
			end := holdElsewhere(t)
			check(t, unix.Unmount(path, 0))
			h.must(t, "snapshot", "create", "data", "--name", "s")
			h.wantNoScratch(t)
			if mounted := h.view(t, "data").Mounted; mounted {
				t.Error("mounted at its own mount point again")
			}
			if s := h.snapshots(t, "data"); len(s) != 1 || s[0].Consistency != "frozen" {
				t.Errorf("%+v", s)
			}
			h.onClone(t, "data@s", func(dir string) {
				if text, err := os.ReadFile(filepath.Join(dir, "before")); err != nil || string(text) != "written before" {
					t.Errorf("%q, %v", text, err)
				}
			})
			h.docker(t, "Mount", dockerRequest{Name: "data", ID: "container"})
			h.wantWritable(t, "data") // one superblock: not frozen there either
			end()
			h.docker(t, "Unmount", dockerRequest{Name: "data", ID: "container"})
		})
	}
}

// holdElsewhere starts a process with a mount namespace of its own, in which all that is mounted now stays mounted until
// end is called.
func holdElsewhere(t *testing.T) (end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "cat", "/proc/self/mountinfo", "-")
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it is in its namespace
		t.Error(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = in.Close()
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended at the end of its input
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	return end
}

func TestARollbackKeepsTheSizeOfAVolumeThatHasGrown(t *testing.T) {
	const before, after = 320 * mib, 448 * mib
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			h := startHost(t)
			h.must(t, "create", "data", "--size", "320M", "--fs", filesystem, "--label", "of=then")
			path := h.must(t, "mount", "data")
			check(t, writeDurably(filepath.Join(path, "file"), []byte("then")))
			h.must(t, "snapshot", "create", "data", "--name", "small")
			h.must(t, "resize", "data", "--size", "448M")
			h.must(t, "set", "data", "--label", "of=now")
			check(t, writeDurably(filepath.Join(path, "file"), []byte("now")))
			if got := h.orlop("snapshot", "restore", "data@small"); got.code != 4 || !strings.Contains(got.stderr, "orlop umount data") {
				t.Errorf("rolled back while mounted: %s", got)
			}
			h.must(t, "umount", "data")
			h.must(t, "snapshot", "restore", "data@small")
			if v := h.view(t, "data"); v.Size != after || v.Labels["of"] != "now" || v.State != "ready" {
				t.Errorf("%+v", v)
			}
			wantFileAndSize(t, h.must(t, "mount", "data"), "then", before, after)
			h.must(t, "umount", "data")
			h.wantSound(t, "data")

			kept := h.snapshots(t, "data")
			if len(kept) != 2 || !strings.HasPrefix(kept[1].Name, "before-restore-") || kept[1].Size != after || kept[0].Size != before {
				t.Fatalf("%+v", kept)
			}
			h.onClone(t, "data@"+kept[1].Name, func(dir string) { wantFileAndSize(t, dir, "now", before, after) })
			h.onClone(t, "data@small", func(dir string) { wantFileAndSize(t, dir, "then", 0, before) })
			h.must(t, "snapshot", "restore", kept[1].Name, "--discard-current")
			wantFileAndSize(t, h.must(t, "mount", "data"), "now", before, after)
			h.wantWritable(t, "data")
			if kept := h.snapshots(t, "data"); len(kept) != 2 {
				t.Errorf("%+v", kept)
			}
		})
	}
}

// wantFileAndSize fails unless the file in dir has this content, and the filesystem there more than above and at most
// atMost bytes.
func wantFileAndSize(t *testing.T, dir, content string, above, atMost int64) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != content {
		t.Errorf("the file has %q, %v, want %q", got, err, content)
	}
	var stat unix.Statfs_t
	check(t, unix.Statfs(dir, &stat))
	// What journals and tables take is not counted.
	if size := int64(stat.Blocks) * stat.Bsize; size > atMost || size <= above*9/10 || above > 0 && size < above {
		t.Errorf("the filesystem has %d bytes, want more than %d, up to %d", size, above, atMost)
	}
}

func TestANearlyFullPoolRefusesCopiesAndTheVolumeGoesOn(t *testing.T) {
	disk := scratchDisk(t, "xfs", gib)
	h := startHost(t, "--pool", "loop:"+disk)
	h.must(t, "create", "data", "--size", "64M")
	h.must(t, "mount", "data")
	h.must(t, "snapshot", "create", "data", "--name", "s")
	before := h.filesOf(t, disk)
	fillTo(t, disk, 0.97)
	for _, args := range [][]string{
		{"snapshot", "create", "data"}, {"create", "copy", "--from", "data"}, {"create", "copy", "--from", "data@s"},
	} {
		if got := h.orlop(args...); got.code != 5 || !strings.Contains(got.stderr, "pool filesystem "+disk) {
			t.Errorf("orlop %q: %s", args, got)
		}
		h.wantWritable(t, "data")
	}
	h.must(t, "umount", "data")
	if got := h.orlop("snapshot", "restore", "data@s"); got.code != 5 {
		t.Errorf("%s", got)
	}
	if after := h.filesOf(t, disk); after != before {
		t.Errorf("files before %s\nand after %s", before, after)
	}
	removeFillers(t, disk)
	h.must(t, "snapshot", "restore", "data@s")
	if got := h.orlop("doctor"); got.code != 0 {
		t.Errorf("doctor: %s", got)
	}
}

// filesOf lists the images in a pool's directory, and the snapshots.
func (h *host) filesOf(t *testing.T, dir string) string {
	t.Helper()
	return strings.Join(names(t, filepath.Join(dir, "images")), " ") + h.must(t, "snapshot", "list")
}

func TestSnapshotNamesThatFitNoneOrSeveralListTheCandidates(t *testing.T) {
	h := startHost(t)
	for _, name := range []string{"a", "b"} {
		h.must(t, "create", name, "--size", "16M")
		h.must(t, "snapshot", "create", name, "--name", "same")
	}
	h.must(t, "snapshot", "create", "a", "--name", "only")
	id := h.snapshots(t, "a")[1].ID
	for _, ref := range []string{"only", "a@only", id, id[:len(id)-1], "a@" + id} {
		if got := h.must(t, "snapshot", "inspect", ref); !strings.Contains(got, id) {
			t.Errorf("%s: %s", ref, got)
		}
	}
	for _, test := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"snapshot", "inspect", "same"}, 2, []string{"ambiguous", "a@same", "b@same"}},
		{[]string{"snapshot", "delete", "same"}, 2, []string{"ambiguous", "a@same", "b@same"}},
		{[]string{"snapshot", "restore", "nope"}, 3, []string{"not found", "a@same", "b@same", "a@only"}},
		{[]string{"snapshot", "delete", "a@nope"}, 3, []string{"not found", "a@same", "a@only"}},
		{[]string{"snapshot", "delete", "nope@same"}, 3, []string{`volume "nope"`}},
		{[]string{"create", "x", "--from", "a@nope"}, 3, []string{"a@same"}},
		{[]string{"snapshot", "diff", "a@only", "b@same"}, 2, []string{"not of one volume"}},
		{[]string{"snapshot", "create", "a", "--name", "only"}, 4, []string{"a@only", "already exists"}},
		{[]string{"snapshot", "create", "a", "--name", "../x"}, 2, []string{"../x"}},
		{[]string{"delete", "a"}, 4, []string{"2 snapshots (same, only)", "orlop delete --snapshots a"}},
	} {
		got := h.orlop(test.args...)
		if got.code != test.code {
			t.Errorf("orlop %q: %s, want exit code %d", test.args, got, test.code)
		}
		for _, text := range test.says {
			if !strings.Contains(got.stderr, text) {
				t.Errorf("orlop %q does not say %q: %s", test.args, text, got)
			}
		}
	}
	if all := h.snapshots(t); len(all) != 3 {
		t.Errorf("%+v", all)
	}
}

func TestDockerMakesClonesAndRemovesNoVolumeWithSnapshots(t *testing.T) {
	h := startHost(t)
	h.must(t, "create", "data", "--size", "16M", "--label", "of=data")
	check(t, writeDurably(filepath.Join(h.must(t, "mount", "data"), "file"), []byte("then")))
	h.must(t, "snapshot", "create", "data", "--name", "s")
	h.wantWritable(t, "data")
	h.docker(t, "Create", dockerRequest{Name: "copy", Opts: map[string]string{"from": "data@s", "label.by": "docker", "size": "32M"}})
	path := h.docker(t, "Mount", dockerRequest{Name: "copy", ID: "container"}).Mountpoint
	if got, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(got) != "then" {
		t.Errorf("%q, %v", got, err)
	}
	if got := names(t, path); len(got) != 1 {
		t.Errorf("the clone has %q", got)
	}
	if v := h.view(t, "copy"); v.Size != 32*mib || v.Labels["of"] != "data" || v.Labels["by"] != "docker" {
		t.Errorf("%+v", v)
	}
	h.must(t, "umount", "data")
	got, err := h.ask(t.Context(), "Remove", dockerRequest{Name: "data"})
	if err != nil || !strings.Contains(got.Err, "has 1 snapshot (s)") {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = h.ask(t.Context(), "Create", dockerRequest{Name: "x", Opts: map[string]string{"from": "data@nope"}})
	if err != nil || !strings.Contains(got.Err, "data@s") {
		t.Errorf("%+v, %v", got, err)
	}
	h.must(t, "snapshot", "delete", "data@s")
	h.docker(t, "Remove", dockerRequest{Name: "data"})
	h.docker(t, "Unmount", dockerRequest{Name: "copy", ID: "container"})
	h.must(t, "mount", "copy") // it outlives its origin
	h.wantWritable(t, "copy")
}
