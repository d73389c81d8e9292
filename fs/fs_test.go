package fs

import (
	"encoding/binary"
	"strings"
	"testing"

	"orlop/internal/fault"
)

func TestLookupNamesWhatThereIs(t *testing.T) {
	for _, name := range Names() {
		if kind, err := Lookup(name); err != nil || kind.Name != name || kind.MinSize <= 0 || kind.MaxSize <= kind.MinSize {
			t.Errorf("%s: %+v, %v", name, kind, err)
		}
	}
	for _, name := range []string{"", "btrfs", "EXT4", "ext4 "} {
		_, err := Lookup(name)
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "ext4 or xfs") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParamsCannotChangeTheTable(t *testing.T) {
	kind, err := Lookup("ext4")
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Join(kind.Params(), " ")
	kind.Params()[0] = "changed"
	if after := strings.Join(kind.Params(), " "); after != before {
		t.Errorf("%q became %q", before, after)
	}
}

func TestMountOptionsAreOfTheirTypesOnly(t *testing.T) {
	for _, c := range []struct {
		kind, option string
		ok           bool
	}{
		{"ext4", "noatime", true}, {"xfs", "noatime", true}, {"ext4", "acl", true}, {"xfs", "acl", false},
		{"ext4", "inode64", false}, {"xfs", "inode64", true}, {"ext4", "data=journal", true},
		{"ext4", "data=writeback", false}, {"ext4", "nobarrier", false}, {"xfs", "", false}, {"ext4", "ro,dev", false},
	} {
		kind, err := Lookup(c.kind)
		if err != nil {
			t.Fatal(err)
		}
		err = kind.CheckMountOption(c.option)
		if c.ok != (err == nil) || !c.ok && !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s on %s: %v", c.option, c.kind, err)
		}
	}
}

func TestProcessNamesItsContainer(t *testing.T) {
	if s := (Process{PID: 7, Name: "sh", Cgroup: "/docker/abc"}).String(); s != "pid 7 (sh, cgroup /docker/abc)" {
		t.Error(s)
	}
	if s := (Process{PID: 7, Name: "sh", Cgroup: "/"}).String(); s != "pid 7 (sh)" {
		t.Error(s)
	}
	if path := longestPath("2:cpu:/\n1:name=systemd:/docker/abc\n0::/x\nbroken\n"); path != "/docker/abc" {
		t.Error(path)
	}
}

func TestReadOnlyIsSeenHoweverItCame(t *testing.T) {
	for options, wanted := range map[string]bool{
		"ro": true, "rw": false, "": false, "ro,discard,errors=remount-ro": true, "rw,errors=remount-ro": false,
		"rw,discard,errors=remount-ro,emergency_ro": true, // ext4 since Linux 6.15
	} {
		if readOnly(options) != wanted {
			t.Errorf("%q: %t", options, !wanted)
		}
	}
}

// table has lines as in proc_pid_mountinfo(5).
const table = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n" +
	"36 22 7:3 / /mnt/a\\040b rw,nosuid - xfs /dev/loop3 rw,nouuid\n"

func FuzzMountinfo(f *testing.F) {
	f.Add(table, "7:3")
	f.Add(table, "7:4")
	f.Add("", "7:3")
	f.Add("1 2\n\n7:3\n a b 7:3", "7:3")
	f.Fuzz(func(t *testing.T, text, device string) {
		mounts, err := mountsOf(strings.NewReader(text), map[string]uint64{device: 1})
		if err != nil {
			return
		}
		if len(mounts) > 0 && !strings.Contains(text, device) {
			t.Errorf("found %q in %q", device, text)
		}
		// What others have mounted cannot hide a mount.
		if found, err := mountsOf(strings.NewReader(text+"\n99 1 252:7 / /x rw - ext4 x rw\n"), map[string]uint64{"252:7": 1}); len(found) == 0 || err != nil {
			t.Errorf("a mount after %q: %v, %v", text, found, err)
		}
	})
}

func FuzzSuperblock(f *testing.F) {
	ext4 := make([]byte, 4096)
	binary.LittleEndian.PutUint16(ext4[ext4Start+0x38:], ext4Magic)
	binary.LittleEndian.PutUint32(ext4[ext4Start+0x18:], 2)
	binary.LittleEndian.PutUint32(ext4[ext4Start+0x04:], 1<<20)
	binary.LittleEndian.PutUint32(ext4[ext4Start+0x60:], 0x80)
	xfs := append([]byte("XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x10\x00\x00"), make([]byte, 100)...)
	for _, block := range [][]byte{ext4, xfs, nil, ext4[:ext4Start], ext4[:2000], xfs[:10]} {
		f.Add(block)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		for name, read := range map[string]func([]byte) (int64, bool){"ext4": ext4Size, "xfs": xfsSize} {
			if size, ok := read(block); size < 0 || !ok && size != 0 {
				t.Errorf("%s size %d, %t", name, size, ok)
			}
		}
		if _, ok := ext4Size(block); ext4Failed(block) && !ok {
			t.Error("an error in what is no ext4")
		}
	})
}
