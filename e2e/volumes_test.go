//go:build root

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inspected is what docker volume inspect shows.
type inspected struct {
	Name, Driver, Mountpoint, Scope, CreatedAt string
	Labels, Options                            map[string]string
	Status                                     map[string]any
}

func (h *host) inspect(t *testing.T, volume string) inspected {
	t.Helper()
	out := h.docker.run("volume", "inspect", volume).must(t)
	var list []inspected
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		t.Fatalf("docker volume inspect %s: %v: %s", volume, err, out)
	}
	return list[0]
}

// orlopView is what orlop inspect shows.
type orlopView struct {
	Size       int64
	Filesystem string
	Labels     map[string]string
	Holders    []struct{ ID, Kind string }
}

func (h *host) orlopInspect(t *testing.T, volume string) (view orlopView) {
	t.Helper()
	out := h.orlop.run("inspect", volume).must(t)
	if err := json.Unmarshal([]byte(out), &view); err != nil {
		t.Fatalf("orlop inspect %s: %v: %s", volume, err, out)
	}
	return view
}

// volumes is what docker volume ls prints of the shared host's volumes. Docker asks every plugin that it finds for
// that, and waits 15 s for one that is gone: tests in parallel do without.
func (h *host) volumes(t *testing.T) string {
	t.Helper()
	return h.docker.run("volume", "ls", "--quiet", "--filter", "driver="+h.plugin).must(t)
}

func TestDockerCreatesListsInspectsAndRemovesVolumes(t *testing.T) {
	h := sharedHost(t)
	for _, volume := range []string{"one", "two"} {
		if got := h.docker.run("volume", "create", "--driver", h.plugin, volume).must(t); got != volume {
			t.Errorf("docker volume create prints %q", got)
		}
	}
	if got := h.volumes(t); got != "one\ntwo" {
		t.Errorf("docker volume ls prints %q", got)
	}
	if images := h.images(t); len(images) != 2 {
		t.Errorf("images of two volumes: %q", images)
	}
	if len(h.volumeLoops()) > 0 {
		t.Errorf("volumes that nobody uses are attached: %v", h.volumeLoops())
	}
	v := h.inspect(t, "one")
	if v.Name != "one" || v.Driver != h.plugin || v.Scope != "local" || v.Mountpoint != "" || v.CreatedAt == "" {
		t.Errorf("docker volume inspect shows %+v", v)
	}
	h.docker.run("volume", "rm", "one").must(t)
	if got := h.volumes(t); got != "two" {
		t.Errorf("after docker volume rm one there is %q", got)
	}
	if r := h.docker.run("volume", "inspect", "one"); r.code == 0 {
		t.Errorf("a removed volume is inspected: %s", r)
	}
	if images := h.images(t); len(images) != 1 {
		t.Errorf("images after one of two volumes was removed: %q", images)
	}
}

func TestCreatingAnExistingVolumeAgainKeepsItsData(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "vol", "size=256M")
	h.once(t, "echo precious > /data/file", "-v", "vol:/data")
	h.create(t, "vol", "size=512M")
	status, answer, err := h.orlop.call("VolumeDriver.Create", map[string]any{"Name": "vol", "Opts": map[string]string{"size": "512M", "fs": "xfs"}})
	if err != nil || status != http.StatusOK {
		t.Errorf("Create of an existing volume: status %d, %v, %v", status, answer, err)
	}
	if got := h.once(t, "cat /data/file", "-v", "vol:/data"); got != "precious" {
		t.Errorf("the file has %q", got)
	}
	if got := h.orlopInspect(t, "vol").Size; got != 256<<20 {
		t.Errorf("the size is %d now", got)
	}
}

func TestOptionsOfDockerVolumeCreateTakeEffect(t *testing.T) {
	h := sharedHost(t)
	h.docker.run("volume", "create", "--driver", h.plugin, "--label", "docker=label", "-o", "size=640M", "-o", "fs=xfs",
		"-o", "label.app=shop", "-o", "uid=1234", "-o", "gid=5678", "-o", "mode=02750", "vol").must(t)
	got := h.once(t, `stat -c '%u:%g %a' /data; ls -A /data | wc -l`, "-v", "vol:/data")
	if got != "1234:5678 2750\n0" {
		t.Errorf("owner, mode and number of entries of the root directory: %q", got)
	}
	v := h.inspect(t, "vol")
	for key, want := range map[string]any{"size": "640 MiB", "filesystem": "xfs", "state": "ready"} {
		if v.Status[key] != want {
			t.Errorf("Status has %s %v, want %v: %v", key, v.Status[key], want, v.Status)
		}
	}
	if labels, ok := v.Status["labels"].(map[string]any); !ok || labels["app"] != "shop" {
		t.Errorf("Status has labels %v", v.Status["labels"])
	}
	if v.Labels["docker"] != "label" || v.Options["size"] != "640M" {
		t.Errorf("docker keeps labels %v and options %v", v.Labels, v.Options)
	}
	if view := h.orlopInspect(t, "vol"); view.Size != 640<<20 || view.Filesystem != "xfs" || view.Labels["app"] != "shop" {
		t.Errorf("orlop inspect shows %+v", view)
	}
	h.container(t, "box", "vol")
	device := h.wantInUse(t, "vol", "box")
	entries, err := mounts("self", h.mountpoint("vol"))
	check(t, err)
	if len(entries) != 1 || entries[0][1] != device {
		t.Errorf("mounts of the volume: %v", entries)
	}
	if v := h.inspect(t, "vol"); v.Mountpoint != h.mountpoint("vol") {
		t.Errorf("a volume in use shows mount point %q", v.Mountpoint)
	}
}

func TestUnknownOptionIsRefusedAndTheKnownOnesAreListed(t *testing.T) {
	h := sharedHost(t)
	r := h.docker.run("volume", "create", "--driver", h.plugin, "-o", "sise=1G", "vol")
	if r.code == 0 {
		t.Fatal(r)
	}
	for _, word := range []string{`"sise"`, "size", "fs", "pool", "label.<key>", "uid", "gid", "mode", "mount-option", "protect"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("the refusal does not name %s: %s", word, r.stderr)
		}
	}
	for _, option := range []string{"size=0", "size=10X", "fs=ntfs", "uid=me", "mode=9", "label.=x", "mount-option=bogus"} {
		if r := h.docker.run("volume", "create", "--driver", h.plugin, "-o", option, "vol"); r.code == 0 {
			t.Errorf("-o %s is taken: %s", option, r)
		}
	}
	h.wantNoVolumes(t)
}

func TestBadNamesAreRefusedBeforeAnythingHappens(t *testing.T) {
	h := sharedHost(t)
	for _, name := range []string{"../x", "a/b", "..", ".", "-rf", "with space", "größe", "a\nb", strings.Repeat("n", 129)} {
		status, answer, err := h.docker.api(http.MethodPost, "/volumes/create", map[string]any{"Name": name, "Driver": h.plugin})
		check(t, err)
		if status < 400 || !strings.Contains(string(answer), "not allowed") {
			t.Errorf("volume name %q: status %d: %s", name, status, answer)
		}
	}
	status, answer, err := h.orlop.call("VolumeDriver.Create", map[string]any{"Name": ""})
	if err != nil || status != http.StatusInternalServerError || answer["Err"] == "" {
		t.Errorf("empty volume name: status %d, %v, %v", status, answer, err)
	}
	h.wantNoVolumes(t)
}

// wantNoVolumes fails if Docker, orlop or the disk has a volume.
func (h *host) wantNoVolumes(t *testing.T) {
	t.Helper()
	if got := h.volumes(t); got != "" {
		t.Errorf("docker has volumes %q", got)
	}
	h.wantNothingStored(t)
}

// wantNothingStored fails if orlop or the disk has a volume.
func (h *host) wantNothingStored(t *testing.T) {
	t.Helper()
	if got := h.orlop.run("list", "--json").must(t); got != "[]" {
		t.Errorf("orlop has volumes %s", got)
	}
	if images := h.images(t); len(images) > 0 {
		t.Errorf("the pool has images %q", images)
	}
	if dirs, err := filepath.Glob(h.mountpoint("*")); err != nil || len(dirs) > 0 {
		t.Errorf("mount points without a volume: %q, %v", dirs, err)
	}
}

func TestContainerReadsBackWhatItWroteAcrossRestartAndReplacement(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			h := sharedHost(t)
			h.create(t, "vol", "fs="+fs, "size=512M")
			h.container(t, "box", "vol")
			h.wantInUse(t, "vol", "box")
			sum := h.sh(t, "box", "dd if=/dev/urandom of=/data/blob bs=1M count=8 2>/dev/null; sync; sha256sum /data/blob")
			h.docker.run("restart", "box").must(t)
			h.wantInUse(t, "vol", "box")
			if got := h.sh(t, "box", "sha256sum /data/blob"); got != sum {
				t.Errorf("after the restart the checksum is %s, was %s", got, sum)
			}
			h.docker.run("rm", "-f", "box").must(t)
			h.wantReleased(t)
			if got := h.once(t, "sha256sum /data/blob", "-v", "vol:/data"); got != sum {
				t.Errorf("in the next container the checksum is %s, was %s", got, sum)
			}
		})
	}
}

func TestDockerRunMakesTheVolumeItNames(t *testing.T) {
	h := sharedHost(t)
	h.once(t, "echo made > /data/file", "-v", "fresh:/data")
	if got := h.inspect(t, "fresh").Driver; got != h.plugin {
		t.Errorf("the volume is of driver %s", got)
	}
	if got := h.once(t, "cat /data/file", "-v", "fresh:/data:ro"); got != "made" {
		t.Errorf("the file has %q", got)
	}
}

func TestTwoContainersShareOneVolumeAtOnce(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "vol")
	h.container(t, "first", "vol")
	h.container(t, "second", "vol")
	device := h.wantInUse(t, "vol", "first", "second")
	h.write(t, "first", "note", "hello")
	h.wantFile(t, "second", "note", "hello")
	h.docker.run("rm", "-f", "first").must(t)
	h.write(t, "second", "note", "alone now")
	if now := h.wantInUse(t, "vol", "second"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.container(t, "third", "vol")
	h.wantFile(t, "third", "note", "alone now")
	h.wantInUse(t, "vol", "second", "third")
	h.docker.run("rm", "-f", "second", "third").must(t)
	h.wantReleased(t)
}

func TestAnonymousVolumesLiveAndDieWithTheirContainer(t *testing.T) {
	h := sharedHost(t)
	h.docker.run(append(h.runArgs("--detach", "--rm", "--name", "box", "-v", "/data"), plainImage, "sleep", "3600")...).must(t)
	volume := h.volumes(t)
	if len(volume) != 64 || strings.Trim(volume, "0123456789abcdef") != "" {
		t.Fatalf("the anonymous volume is %q", volume)
	}
	h.wantInUse(t, volume, "box")
	h.docker.run("stop", "box").must(t)
	eventually(t, "the anonymous volume goes with its container", func() bool {
		return h.volumes(t) == ""
	})
	h.wantReleased(t)
	h.wantNoVolumes(t)
}

func TestNewVolumeTakesContentOwnerAndModeFromTheImage(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			h := sharedHost(t)
			h.create(t, "vol", "fs="+fs, "size=512M")
			script := `stat -c '%n %u:%g %a' /data /data/* ; ls -A /data; cat /data/seed`
			args := append(h.runArgs("--rm", "-v", "vol:/data"), seedImage, "sh", "-ec", script)
			want := "/data 1000:1000 750\n/data/seed 1000:1000 640\n/data/sub 1000:1000 700\nseed\nsub\n" + trimmed(seedText)
			if got := h.docker.run(args...).must(t); got != want {
				t.Errorf("the volume has\n%s\nwant\n%s", got, want)
			}
			h.once(t, "echo changed > /data/seed", "-v", "vol:/data")
			args = append(h.runArgs("--rm", "-v", "vol:/data"), seedImage, "cat", "/data/seed")
			if got := h.docker.run(args...).must(t); got != "changed" {
				t.Errorf("the second container reads %q: the image was copied again", got)
			}
		})
	}
}

func TestContainerOfAnotherUserWritesToItsVolume(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "owned", "uid=1000", "gid=1000", "mode=0700")
	write := "echo mine > /data/file; stat -c '%u:%g' /data/file"
	if got := h.once(t, write, "-u", "1000:1000", "-v", "owned:/data"); got != "1000:1000" {
		t.Errorf("the file belongs to %s", got)
	}
	args := append(h.runArgs("--rm", "-u", "1000:1000", "-v", "copied:/data"), seedImage, "sh", "-ec", write)
	if got := h.docker.run(args...).must(t); got != "1000:1000" {
		t.Errorf("the file beside the image's content belongs to %s", got)
	}
}

func TestVolumeInUseCannotBeRemoved(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	device := h.wantInUse(t, "vol", "box")
	if r := h.docker.run("volume", "rm", "vol"); r.code == 0 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("docker volume rm: %s", r)
	}
	// Docker stops the first by its own books, which it can lose: the plugin must refuse by itself.
	status, answer, err := h.orlop.call("VolumeDriver.Remove", map[string]any{"Name": "vol"})
	if text := fmt.Sprint(answer["Err"]); err != nil || status != http.StatusInternalServerError || !strings.Contains(text, "docker mount") {
		t.Errorf("Remove of a volume in use: status %d, %q, %v", status, text, err)
	}
	if r := h.orlop.run("delete", "vol"); r.code != 4 {
		t.Errorf("orlop delete of a volume in use: %s", r)
	}
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.docker.run("rm", "-f", "box").must(t)
	h.docker.run("volume", "rm", "vol").must(t)
	h.wantNoVolumes(t)
}

// space returns the size in bytes of the filesystem that a container sees at /data.
func (h *host) space(t *testing.T, container string) int64 {
	t.Helper()
	fields := strings.Fields(h.sh(t, container, "stat -f -c '%b %S' /data"))
	if len(fields) != 2 {
		t.Fatalf("stat -f prints %q", fields)
	}
	blocks, err := strconv.ParseInt(fields[0], 10, 64)
	check(t, err)
	size, err := strconv.ParseInt(fields[1], 10, 64)
	check(t, err)
	return blocks * size
}

func TestXFSVolumeGrowsWhileAContainerUsesIt(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "vol", "fs=xfs", "size=512M")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "still here")
	device := h.wantInUse(t, "vol", "box")
	h.wantGrown(t, "vol", "box", "3G", 5<<29)
	h.wantFile(t, "box", "note", "still here")
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.sh(t, "box", "dd if=/dev/zero of=/data/big bs=1M count=600 2>/dev/null; rm /data/big")
	if r := h.orlop.run("resize", "vol", "--size", "1G"); r.code != 2 {
		t.Errorf("shrinking: %s", r)
	}
}

// wantGrown resizes a volume, and fails unless a container sees at least so many bytes then.
func (h *host) wantGrown(t *testing.T, volume, container, size string, atLeast int64) {
	t.Helper()
	before := h.space(t, container)
	h.orlop.run("resize", volume, "--size", size).must(t)
	if after := h.space(t, container); after < atLeast || after <= before {
		t.Errorf("after growing to %s the container sees %d bytes, before %d", size, after, before)
	}
}

// Growing a mounted ext4 needs CAP_SYS_RESOURCE, and so does this test's other half to come true.
func TestExt4VolumeGrowsWhileAContainerUsesItWhereTheKernelAllowsIt(t *testing.T) {
	h := sharedHost(t)
	h.create(t, "vol", "fs=ext4", "size=256M")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "still here")
	device := h.wantInUse(t, "vol", "box")
	if hasCapability(t, unix.CAP_SYS_RESOURCE) {
		h.wantGrown(t, "vol", "box", "1G", 9<<26)
		h.wantFile(t, "box", "note", "still here")
		h.wantInUse(t, "vol", "box")
		return
	}
	before := h.space(t, "box")
	r := h.orlop.run("resize", "vol", "--size", "1G")
	if r.code != 8 || !strings.Contains(r.stderr, "CAP_SYS_RESOURCE") {
		t.Errorf("without the capability: %s", r)
	}
	if now := h.wantInUse(t, "vol", "box"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	if after, size := h.space(t, "box"), h.orlopInspect(t, "vol").Size; after != before || size != 256<<20 {
		t.Errorf("the refusal changed the filesystem from %d to %d bytes, the volume to %d", before, after, size)
	}
	h.wantFile(t, "box", "note", "still here")
	h.docker.run("stop", "box").must(t)
	h.wantReleased(t)
	h.orlop.run("resize", "vol", "--size", "1G").must(t)
	h.docker.run("start", "box").must(t)
	if after := h.space(t, "box"); after < 9<<26 {
		t.Errorf("after growing to 1G while stopped the container sees %d bytes", after)
	}
	h.wantFile(t, "box", "note", "still here")
}
