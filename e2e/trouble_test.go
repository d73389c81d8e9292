//go:build root

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A disk is an XFS in a file, on a loop device that stays attached until the host is closed. It holds a pool.
type disk struct{ device, dir string }

// addDisk restarts orlop with a second pool, called away, on a disk of its own.
func (h *host) addDisk(t *testing.T) disk {
	t.Helper()
	image, d := filepath.Join(h.dir, "disk.img"), disk{dir: filepath.Join(h.dir, "disk")}
	check(t, errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<30), os.Mkdir(d.dir, 0o700)))
	run(nil, "mkfs.xfs", "-q", image).must(t)
	d.device = run(nil, "losetup", "--find", "--show", image).must(t)
	d.mount(t)
	check(t, os.Mkdir(d.pool(), 0o700))
	check(t, h.orlop.stop())
	h.orlop.flags = []string{"--pool", "loop", "--pool", "away=loop:" + d.pool()}
	check(t, h.orlop.start())
	return d
}

func (d disk) pool() string   { return filepath.Join(d.dir, "pool") }
func (d disk) marker() string { return filepath.Join(d.pool(), "orlop-pool.json") }

func (d disk) mount(t *testing.T) {
	t.Helper()
	run(nil, "mount", d.device, d.dir).must(t)
}

// image returns the only image in the pool.
func (d disk) image(t *testing.T) string {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(d.pool(), "images", "*.img"))
	check(t, err)
	if len(images) != 1 {
		t.Fatalf("images in %s: %q", d.pool(), images)
	}
	return images[0]
}

// A trouble takes something away from the pool called away while orlop is down, and brings it back.
type trouble struct {
	name       string
	begin, end func(t *testing.T)
	problem    string // in what users see of the volume
	keeps      bool   // the volume cannot be deleted meanwhile
}

// troubles are all that can befall a pool of one volume.
func (d disk) troubles() []trouble {
	away := func(path func(t *testing.T) string) (begin, end func(t *testing.T)) {
		var from string
		return func(t *testing.T) {
				t.Helper()
				from = path(t)
				check(t, os.Rename(from, from+".away"))
			}, func(t *testing.T) {
				t.Helper()
				check(t, os.Rename(from+".away", from))
			}
	}
	hide, show := away(func(*testing.T) string { return d.marker() })
	lose, find := away(d.image)
	save, restore := away(d.image)
	return []trouble{
		{"pool's disk not mounted", func(t *testing.T) { run(nil, "umount", d.dir).must(t) }, d.mount, "is missing", true},
		{"pool's marker hidden", hide, show, "is missing", true},
		{"image missing", lose, find, "image is missing", false},
		{"image truncated", func(t *testing.T) {
			image := d.image(t)
			save(t)
			run(nil, "cp", image+".away", image).must(t)
			check(t, os.Truncate(image, 1<<20))
		}, restore, "truncated", false},
	}
}

// createIn makes a volume with labels and options of Docker's, in a pool, and a file in it.
func (h *host) createIn(t *testing.T, volume, pool string) {
	t.Helper()
	h.docker.run("volume", "create", "--driver", h.plugin, "--label", "docker=label-of-"+volume, "-o", "size=64M", "-o", "pool="+pool,
		"-o", "label.app=app-of-"+volume, volume).must(t)
	h.once(t, "echo data of "+volume+" > /data/file", "-v", volume+":/data")
}

// wantRemembered fails unless Docker shows a volume's labels and options as they were given, and orlop its state.
func (h *host) wantRemembered(t *testing.T, volume, pool, state, problem string) {
	t.Helper()
	v := h.inspect(t, volume)
	if v.Labels["docker"] != "label-of-"+volume || len(v.Labels) != 1 {
		t.Errorf("docker shows labels %v of volume %s", v.Labels, volume)
	}
	if v.Options["size"] != "64M" || v.Options["pool"] != pool || v.Options["label.app"] != "app-of-"+volume || len(v.Options) != 3 {
		t.Errorf("docker shows options %v of volume %s", v.Options, volume)
	}
	if labels, ok := v.Status["labels"].(map[string]any); !ok || labels["app"] != "app-of-"+volume {
		t.Errorf("orlop's labels of volume %s: %v", volume, v.Status["labels"])
	}
	if got := fmt.Sprint(v.Status["problem"]); v.Status["state"] != state || (v.Status["problem"] != nil) != (problem != "") || !strings.Contains(got, problem) {
		t.Errorf("volume %s has state %v and problem %v, want %s and %q", volume, v.Status["state"], v.Status["problem"], state, problem)
	}
	if view := h.orlopInspect(t, volume); view.Labels["app"] != "app-of-"+volume || view.Size != 64<<20 {
		t.Errorf("orlop inspect shows %+v of volume %s", view, volume)
	}
}

// wantWell fails unless a volume has its labels and works. Each time it adds to what the volume's file has.
func (h *host) wantWell(t *testing.T, volume, pool string) {
	t.Helper()
	h.wantRemembered(t, volume, pool, "ready", "")
	got := h.once(t, "echo more >> /data/file; cat /data/file", "-v", volume+":/data")
	if first, rest, _ := strings.Cut(got, "\n"); first != "data of "+volume || strings.Trim(rest, "more\n") != "" {
		t.Errorf("volume %s has the file %q", volume, got)
	}
}

// wantTrouble fails unless Docker and orlop know all about a volume that cannot be used, and refuse to use it.
func (h *host) wantTrouble(t *testing.T, volume string, trouble trouble) {
	t.Helper()
	degraded := func() {
		t.Helper()
		h.wantRemembered(t, volume, "away", "degraded", trouble.problem)
	}
	degraded()
	r := h.docker.run(append(h.runArgs("--rm", "-v", volume+":/data"), plainImage, "true")...)
	if r.code == 0 || !strings.Contains(r.stderr, trouble.problem) || !strings.Contains(r.stderr, volume) {
		t.Errorf("docker run says nothing of %q: %s", trouble.problem, r)
	}
	h.create(t, volume, "size=1G") // what exists is success, and stays as it is
	if trouble.keeps {
		if r := h.docker.run("volume", "rm", volume); r.code == 0 || !strings.Contains(r.stderr, trouble.problem) {
			t.Errorf("docker volume rm says nothing of %q: %s", trouble.problem, r)
		}
	}
	degraded()
	if list := strings.Fields(h.volumes(t)); !slices.Contains(list, volume) {
		t.Errorf("docker volume ls has %q, not %s", list, volume)
	}
}

func TestDockersLabelsAndOptionsSurviveWhatBefallsAPool(t *testing.T) {
	h := newLoneHost(t, false)
	d := h.addDisk(t)
	h.createIn(t, "here", "loop")
	h.createIn(t, "there", "away")
	for _, trouble := range d.troubles() {
		t.Run(trouble.name, func(t *testing.T) {
			check(t, h.orlop.stop())
			trouble.begin(t)
			check(t, h.orlop.start())
			h.wantTrouble(t, "there", trouble)
			h.wantWell(t, "here", "loop")
			check(t, errors.Join(h.docker.stop(), h.docker.start()))
			h.wantTrouble(t, "there", trouble)
			h.wantWell(t, "here", "loop")
			check(t, h.orlop.stop())
			trouble.end(t)
			check(t, h.orlop.start())
			h.wantWell(t, "there", "away")
			check(t, errors.Join(h.docker.kill(), h.docker.start()))
			h.wantWell(t, "there", "away")
			h.wantWell(t, "here", "loop")
		})
	}
	h.docker.run("volume", "rm", "here", "there").must(t)
	h.wantNoVolumes(t)
}

func TestContainerGoesOnWhileItsPoolIsMissing(t *testing.T) {
	h := newHost(t, false)
	d := h.addDisk(t)
	h.createIn(t, "there", "away")
	h.container(t, "box", "there")
	device := deviceAt("self", h.mountpoint("there"))
	check(t, h.orlop.stop())
	check(t, os.Rename(d.marker(), d.marker()+".away"))
	check(t, h.orlop.start())
	h.write(t, "box", "note", "written meanwhile")
	h.wantRemembered(t, "there", "away", "degraded", "is missing")
	if now := deviceAt("self", h.mountpoint("there")); now != device || device == "" {
		t.Errorf("the device was %q and is %q", device, now)
	}
	h.docker.run("stop", "box").must(t)
	if r := h.docker.run("start", "box"); r.code == 0 || !strings.Contains(r.stderr, "is missing") {
		t.Errorf("docker start without the pool: %s", r)
	}
	h.wantRemembered(t, "there", "away", "degraded", "is missing")
	check(t, h.orlop.stop())
	check(t, os.Rename(d.marker()+".away", d.marker()))
	check(t, h.orlop.start())
	h.docker.run("start", "box").must(t)
	h.wantFile(t, "box", "note", "written meanwhile")
	h.docker.run("rm", "-f", "box").must(t)
	h.wantWell(t, "there", "away")
	eventually(t, "the volume is unmounted and detached", func() bool {
		return deviceAt("self", h.mountpoint("there")) == "" && len(loops(d.pool())) == 0
	})
}
