//go:build root

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup"
	"orlop/internal/daemon"
	"orlop/metadata"
)

// onReflink makes a place for a daemon whose pool is a directory on a filesystem that can reflink.
func onReflink(t *testing.T, flags ...string) *host {
	t.Helper()
	root := filepath.Join(scratchDisk(t, "xfs", 4*gib), "root")
	h := newHost(t, append([]string{"--root", root}, flags...)...)
	h.root = root
	return h
}

// A vault is a destination that hosts share: what a user has to carry from one host to the other.
type vault struct {
	dir string
	key []string // flags that give the key, none if it is not encrypted
}

// newVault makes a repository in dir, by the command line.
func newVault(t *testing.T, dir string, encrypted bool) vault {
	t.Helper()
	v := vault{dir: dir}
	how := []string{"--unencrypted"}
	if encrypted {
		file := filepath.Join(t.TempDir(), "key")
		quietly(t, "key", "create", file)
		v.key = []string{"--key-file", file}
		how = v.key
	}
	quietly(t, append([]string{"backup", "init", dir}, how...)...)
	return v
}

// quietly runs a command that needs no daemon and must succeed.
func quietly(t *testing.T, args ...string) string {
	t.Helper()
	got := invoke(args...)
	if got.code != 0 {
		t.Fatalf("orlop %q: %s", args, got)
	}
	return strings.TrimSuffix(got.stdout, "\n")
}

func (v vault) with(args ...string) []string { return append(args, v.key...) }

// url is the destination as URLs have it.
func (v vault) url() string { return "file://" + v.dir }

// list returns the backups in the vault, as "backup list" has them.
func (v vault) list(t *testing.T) (views []backup.View) {
	t.Helper()
	check(t, json.Unmarshal([]byte(quietly(t, v.with("--json", "backup", "list", v.dir)...)), &views))
	return views
}

// aloneInCache gives what runs from now on a memory of destinations of its own, as another host has it.
func aloneInCache(t *testing.T) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("ORLOP_DEST", "")
	t.Setenv("ORLOP_KEY_FILE", "")
}

// backUp backs up a volume and returns what the daemon says of it.
func (h *host) backUp(t *testing.T, v vault, volume string, flags ...string) backup.Made {
	t.Helper()
	return madeOf(t, h.must(t, v.with(append([]string{"--json", "backup", "create", volume, "--dest", v.dir}, flags...)...)...))
}

// madeOf reads the last event of "backup create --json".
func madeOf(t *testing.T, events string) (made backup.Made) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(events), "\n")
	check(t, json.Unmarshal([]byte(lines[len(lines)-1]), &made))
	return made
}

// restore restores a backup to a volume of that name.
func (h *host) restore(t *testing.T, v vault, url, name string) backup.Restored {
	t.Helper()
	var done backup.Restored
	lines := strings.Split(h.must(t, v.with("--json", "backup", "restore", url, name)...), "\n")
	check(t, json.Unmarshal([]byte(lines[len(lines)-1]), &done))
	return done
}

// run runs "backup run --json" and returns its report and its outcome.
func (h *host) run(t *testing.T, v vault, args ...string) (report runReport, got outcome) {
	t.Helper()
	got = h.orlop(v.with(append([]string{"--json", "backup", "run", "--dest", v.dir}, args...)...)...)
	check(t, json.Unmarshal([]byte(got.stdout), &report))
	return report, got
}

// jobs is what "job list" shows.
func (h *host) jobs(t *testing.T) (views []daemon.JobView) {
	t.Helper()
	check(t, json.Unmarshal([]byte(h.must(t, "--json", "job", "list")), &views))
	return views
}

// managed are the snapshots of a volume that backups took.
func (h *host) managed(t *testing.T, volume string) (views []daemon.SnapshotView) {
	t.Helper()
	for _, s := range h.snapshots(t, volume) {
		if s.Managed {
			views = append(views, s)
		}
	}
	return views
}

// imageOf returns the file in the pool that is the device of a snapshot, given by its ID.
func (h *host) imageOf(t *testing.T, id string) string {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(h.root, "pool", "images", "*.json"))
	check(t, err)
	for _, path := range records {
		raw, err := os.ReadFile(path)
		check(t, err)
		var record struct{ Snapshot *metadata.Snapshot }
		check(t, json.Unmarshal(raw, &record))
		if record.Snapshot != nil && record.Snapshot.ID == id {
			return strings.TrimSuffix(path, ".json") + ".img"
		}
	}
	t.Fatalf("no device carries snapshot %s", id)
	return ""
}

// newestImage is the image of the snapshot that a volume's last backup was made of.
func (h *host) newestImage(t *testing.T, volume string) string {
	t.Helper()
	views := h.managed(t, volume)
	if len(views) != 1 {
		t.Fatalf("volume %s: want one managed snapshot: %+v", volume, views)
	}
	return h.imageOf(t, views[0].ID)
}

// An imageSum is what an image holds, and how many bytes it takes for that.
type imageSum struct {
	size, allocated int64
	content         [sha256.Size]byte
}

// sumImage reads an image: two of the same size whose sums agree are equal byte for byte. Blocks of zeroes count as holes do.
func sumImage(t *testing.T, path string) (sum imageSum) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	info, err := f.Stat()
	check(t, err)
	sum.size, sum.allocated = info.Size(), mappedBytes(t, path)
	hash := sha256.New()
	const block = 4096
	buffer, zeroes := make([]byte, block), make([]byte, block)
	for at := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		check(t, err)
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		check(t, err)
		for at = begin / block * block; at < end; at += block {
			n, err := f.ReadAt(buffer, at)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if !bytes.Equal(buffer[:n], zeroes[:n]) {
				_ = binary.Write(hash, binary.BigEndian, at)
				hash.Write(buffer[:n])
			}
		}
	}
	hash.Sum(sum.content[:0])
	return sum
}

// mappedBytes is how much of a file is not holes. It leaves out what XFS sets aside for a while around writes to shared blocks,
// which st_blocks counts.
func mappedBytes(t *testing.T, path string) (bytes int64) {
	t.Helper()
	out, err := exec.Command("filefrag", "-v", "-b1", path).CombinedOutput()
	if err != nil {
		t.Fatalf("filefrag: %v: %s", err, out)
	}
	for _, extent := range regexp.MustCompile(`(?m)^ *\d+: +\d+\.\. *\d+: +\d+\.\. *\d+: +(\d+):`).FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.ParseInt(extent[1], 10, 64)
		check(t, err)
		bytes += n
	}
	return bytes
}

// wantRestored fails unless an image is what a snapshot was, and takes no more space than that took.
func wantRestored(t *testing.T, what, image string, want imageSum) {
	t.Helper()
	got := sumImage(t, image)
	if got.size != want.size || got.content != want.content {
		t.Errorf("%s: differs from its snapshot: %d bytes with sum %x, want %d with %x", what, got.size, got.content[:4], want.size, want.content[:4])
	}
	if got.allocated > want.allocated {
		t.Errorf("%s: takes %d bytes, and its snapshot took %d", what, got.allocated, want.allocated)
	}
}

// wantQuiet fails if anything of a backup or a restore is left: a job, a pin, a volume that is restoring, a mount, a device.
func (h *host) wantQuiet(t *testing.T) {
	t.Helper()
	for _, j := range h.jobs(t) {
		if j.State == string(metadata.JobRunning) {
			t.Errorf("runs still: %+v", j)
		}
	}
	for _, s := range h.snapshots(t) {
		if len(s.Pins) > 0 || s.State != string(metadata.Ready) {
			t.Errorf("left: %+v", s)
		}
	}
	var views []daemon.View
	check(t, json.Unmarshal([]byte(h.must(t, "list", "--json")), &views))
	for _, v := range views {
		if v.State != string(metadata.Ready) {
			t.Errorf("left: %s is %s: %s", v.Name, v.State, v.Problem)
		}
	}
	h.wantNoScratch(t)
}

// fill writes n pseudorandom bytes to a new file.
func fill(t *testing.T, path string, seed uint64, n int) {
	t.Helper()
	check(t, writeDurably(path, noise(seed, n)))
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	sum := sha256.Sum256(fmt.Append(nil, seed))
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(sum).Read(data)
	return data
}

// elsewhere runs a command that must succeed in a process of its own, as users do: sessions of a repository are told apart by
// their processes.
func elsewhere(args ...string) error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), spaceDaemonArgs+"="+strings.Join(append([]string{"orlop"}, args...), "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("orlop %q: %w: %s", args, err, out)
	}
	return nil
}
