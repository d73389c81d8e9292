package daemon

import (
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"orlop/internal/fault"
	"orlop/internal/volume"
)

func TestSizesAreReadInUnitsOf1024(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "4096": 4096, "1073741824": 1 << 30, "007": 7,
		"1K": 1 << 10, "1k": 1 << 10, "1KiB": 1 << 10, "1kib": 1 << 10, "1KIB": 1 << 10,
		"512M": 512 << 20, "512m": 512 << 20, "512MiB": 512 << 20, "512mib": 512 << 20,
		"10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "10gib": 10 << 30,
		"1T": 1 << 40, "1t": 1 << 40, "1.5T": 3 << 39, "1.5t": 3 << 39, "1.5TiB": 3 << 39,
		"0.5G": 1 << 29, "2.25M": 9 << 18, "1.50G": 3 << 29, "1.0K": 1 << 10, "0.1K": 102, "1.9999K": 2047,
		"8388607.5T":          math.MaxInt64 - 1<<39 + 1,
		"9223372036854775807": math.MaxInt64,
		"9007199254740991K":   9007199254740991 << 10,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestWhatIsNoSizeIsRefusedByName(t *testing.T) {
	for _, text := range []string{
		"", " ", "0", "0G", "0.0G", "00", "-1", "-1G", "+1G", "0.0000001K", "G", "GiB", ".", ".5G", "5.G", "1..5G", "1.5.5G", "1.5", "1,5G",
		"10X", "10P", "10E", "10B", "10GB", "10Gi", "10GiBB", "10GG", "10G ", " 10G", "10 G", "10G\n", "\n10G", "10G\x00", "10G;", "10G -f",
		"1e3", "1E3", "0x10", "0b1", "1_000", "NaN", "Inf", "inf", "-Inf", "١G", "１G", "10Ｇ", "½G", "\xff", "1\xff",
		"9223372036854775808", "18446744073709551616", "99999999999999999999", "8388608T", "9999999999T", "9007199254740992K",
		"999999999999999999999", strings.Repeat("9", 5000), "1." + strings.Repeat("0", 5000) + "G", "--size", "ten",
	} {
		got, err := ParseSize(text)
		if !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want kind invalid", text, got, err)
		} else if !strings.Contains(err.Error(), strconv.Quote(text)) {
			t.Errorf("ParseSize(%q): the message does not name the value: %v", text, err)
		}
	}
}

func TestNamesAreOneWordOfPlainCharacters(t *testing.T) {
	for _, name := range []string{
		"a", "A", "0", "db", "db-1", "db_1", "db.1", "a..b", "a--", "9_.-", strings.Repeat("a", 64), strings.Repeat("f", 128), "volume.img", "con",
	} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range badNames {
		err := checkName(name)
		if !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v; want kind invalid", name, err)
		} else if !strings.Contains(err.Error(), strconv.Quote(name)) || !strings.Contains(err.Error(), nameHelp) {
			t.Errorf("%q: the message does not name the value and what is allowed: %v", name, err)
		}
	}
}

var badNames = []string{
	"", ".", "..", "../x", "x/../y", "/", "/x", "x/", "a/b", "-", "-rf", "--size", "_a", ".hidden", " ", " a", "a ", "a b", "a\tb", "a\nb", "a\n", "\n",
	"a\x00", "a\x00b", "a\r", "ä", "naïve", "数据", "a\u200b", "\ufeffa", "a\xff", "a:b", "a@b", "a,b", "a=b", "a%b", "a\\b", "a'b", `a"b`, "a$b", "$(id)",
	"a;b", "a|b", "a*", "a?", "~a", "#a", strings.Repeat("a", 129), strings.Repeat("ä", 64), strings.Repeat("a/", 2000),
}

func TestLabelsAreCheckedOnBothSides(t *testing.T) {
	for _, text := range []string{"k=v", "k=", "k=a=b", "a.b/c-d_e=x", "k= v ", "k=ü", "K0=1", "k=" + strings.Repeat("v", 1024), strings.Repeat("k", 128) + "=v"} {
		if _, _, err := parseLabel(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{
		"", "k", "=", "=v", "-k=v", ".k=v", "k k=v", " k=v", "ü=v", "k\n=v", "k=a\nb", "k=\x00", "k=\x1b[31m", "k=\x7f", "k=\xff",
		"k=" + strings.Repeat("v", 1025), strings.Repeat("k", 129) + "=v", "k:x=v",
	} {
		if key, value, err := parseLabel(text); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: taken as %q, %q (%v); want kind invalid", text, key, value, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"", "0", "1", "512M", "10GiB", "1.5T", "1.5", "9223372036854775807", "9223372036854775808K", "-1G", "0.0001K", "1e3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := ParseSize(text)
		if err != nil {
			if !fault.Is(err, fault.ErrInvalid) || size != 0 {
				t.Fatalf("ParseSize(%q) = %d, %v", text, size, err)
			}
			return
		}
		if size <= 0 {
			t.Fatalf("ParseSize(%q) = %d", text, size)
		}
		for _, again := range []string{strconv.FormatInt(size, 10), strings.ToLower(text), strings.ToUpper(text)} {
			if second, err := ParseSize(again); err != nil || second != size {
				t.Fatalf("ParseSize(%q) = %d, but ParseSize(%q) = %d, %v", text, size, again, second, err)
			}
		}
	})
}

func FuzzName(f *testing.F) {
	for _, seed := range append(slices.Clone(badNames), "a", "db-1.x_y", strings.Repeat("a", 128)) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if err := checkName(name); err != nil {
			if !fault.Is(err, fault.ErrInvalid) || !utf8.ValidString(err.Error()) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q: %v", name, err)
			}
			return
		}
		if path := filepath.Join("/root/mounts", name); filepath.Dir(path) != "/root/mounts" || filepath.Base(path) != name {
			t.Fatalf("%q leads to %s", name, path)
		}
		if len(name) > 128 || strings.HasPrefix(name, "-") || strings.ContainsAny(name, " \t\r\n/\\\x00,=:") || !utf8.ValidString(name) {
			t.Fatalf("%q was taken", name)
		}
	})
}

// bare is a daemon that can check options and nothing else.
func bare() *Daemon {
	return &Daemon{
		defaultSize: 1 << 30, defaultFS: "ext4",
		pools: []Pool{{Pool: volume.Pool{Name: "loop"}, Kind: "loop", BlockSize: 4096}, {Pool: volume.Pool{Name: "fast"}, Kind: "loop", BlockSize: 4096}},
	}
}

func TestUnknownOptionsListTheKnownOnes(t *testing.T) {
	for _, key := range []string{"sizes", "SIZE", "", " size", "labels", "opt", "o", "size\n"} {
		_, _, err := bare().spec("v", []Option{{key, "1"}})
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), strconv.Quote(key)) {
			t.Errorf("%q: %v; want kind invalid and the option named", key, err)
		}
		for _, kind := range OptionKinds {
			if !kind.FlagOnly && !strings.Contains(err.Error(), kind.Key) {
				t.Errorf("%q: %q is not listed: %v", key, kind.Key, err)
			}
		}
	}
}

func TestOptionsGivenTwiceAreRefusedUnlessTheyRepeat(t *testing.T) {
	values := map[string]string{
		"size": "1G", "fs": "ext4", "pool": "loop", "uid": "1", "gid": "1", "mode": "0700", "protect": "true", "driver": "loop", "mount-option": "noatime",
	}
	for _, kind := range OptionKinds {
		value, ok := values[kind.Key]
		if !ok {
			continue
		}
		_, _, err := bare().spec("v", []Option{{kind.Key, value}, {kind.Key, value}})
		if kind.Repeats && err != nil || !kind.Repeats && !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s given twice: %v", kind.Key, err)
		}
	}
	if _, _, err := bare().spec("v", []Option{{"label", "k=a"}, {"label.k", "b"}}); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("one label in both forms: %v", err)
	}
}

func TestSizesOutOfAFilesystemsBoundsAreRefused(t *testing.T) {
	for _, test := range []struct {
		fs, size string
		ok       bool
	}{
		{"ext4", "8M", true}, {"ext4", "8384512", false}, {"ext4", "8384513", true}, {"ext4", "1", false}, {"ext4", "16T", true}, {"ext4", "17592186044417", false}, {"ext4", "17T", false},
		{"xfs", "300M", true}, {"xfs", "299M", false}, {"xfs", "64T", true}, {"xfs", "65T", false}, {"xfs", "9223372036854775807", false},
	} {
		_, _, err := bare().spec("v", []Option{{"fs", test.fs}, {"size", test.size}})
		if test.ok && err != nil || !test.ok && !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%s of %s: %v", test.fs, test.size, err)
		}
	}
}

func TestSizesOfVolumesAreWholeBlocks(t *testing.T) {
	for text, want := range map[string]int64{"1.3G": 1395867648, "1000000000": 1000001536, "16M": 16 << 20, "16777217": 16<<20 + 4096} {
		s, _, err := bare().spec("v", []Option{{"size", text}})
		if err != nil || s.Size != want || s.Size%4096 != 0 {
			t.Errorf("%s becomes %d bytes, want %d: %v", text, s.Size, want, err)
		}
	}
	for size, want := range map[int64]int64{0: 0, 1: 4096, 4096: 4096, 4097: 8192, 1<<63 - 1: 1<<63 - 4096, 1<<63 - 4096: 1<<63 - 4096} {
		if got := volume.RoundUp(size); got != want {
			t.Errorf("%d is rounded to %d, want %d", size, got, want)
		}
	}
}

func TestRefusalsOfSizesSayWhatWasTypedAndWhatIsAllowed(t *testing.T) {
	_, _, err := bare().spec("v", []Option{{"size", "1m"}})
	if err == nil || !strings.Contains(err.Error(), "size 1m:") || !strings.Contains(err.Error(), "from 8.0 MiB to 16 TiB") {
		t.Error(err)
	}
}

// given turns a specification back into options.
func given(s volume.Spec) []Option {
	options := []Option{
		{"size", strconv.FormatInt(s.Size, 10)}, {"fs", s.Filesystem}, {"pool", s.Pool}, {"uid", strconv.Itoa(s.UID)}, {"gid", strconv.Itoa(s.GID)},
		{"mode", fmt.Sprintf("%o", s.Mode)}, {"protect", strconv.FormatBool(s.Protected)},
	}
	for key, value := range s.Labels {
		options = append(options, Option{"label." + key, value})
	}
	for _, option := range s.MountOptions {
		options = append(options, Option{"mount-option", option})
	}
	return options
}

func FuzzOptions(f *testing.F) {
	for _, seed := range [][4]string{
		{"size", "1G", "fs", "xfs"}, {"label", "a=b", "label.c", "d"}, {"mode", "7777", "uid", "4294967294"}, {"mount-option", "noatime,ro", "protect", "1"},
		{"driver", "loop", "pool", "fast"}, {"pool", "", "driver", ""}, {"size", "", "gid", "-1"}, {"label.", "", "label", "="}, {"mode", "0o7", "mode", "+7"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	d := bare()
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		for _, key := range []string{key1, key2} {
			if key == "from" || key == "pre-snapshot" || key == "post-snapshot" {
				return // these look into the metadata
			}
		}
		spec, _, err := d.spec("v", []Option{{key1, value1}, {key2, value2}})
		if err != nil {
			if !fault.Is(err, fault.ErrInvalid) {
				t.Fatalf("%q=%q %q=%q: %v", key1, value1, key2, value2, err)
			}
			return
		}
		if spec.Size <= 0 || spec.Mode > 0o7777 || spec.UID < 0 || spec.UID >= 1<<32-1 || spec.GID < 0 || spec.GID >= 1<<32-1 || spec.Pool == "" || spec.BlockSize == 0 {
			t.Fatalf("%q=%q %q=%q: %+v", key1, value1, key2, value2, spec)
		}
		again, _, err := d.spec("v", given(spec.Spec))
		if err != nil || !reflect.DeepEqual(spec.Spec, again.Spec) {
			t.Fatalf("%q=%q %q=%q: read as %+v, and from that as %+v, %v", key1, value1, key2, value2, spec, again, err)
		}
	})
}

// TestCommandsAreSplitAsAShellSplitsThem has the shell split them too.
func TestCommandsAreSplitAsAShellSplitsThem(t *testing.T) {
	for _, line := range []string{
		`a b  c`, `a "b c" d`, `a 'b "c" \d'`, `a "x\y" "x\"y" "x\\y" "\$HOME" "\'" "a\tb" "\d+\."`, `a x\ y \"z`, `psql -c "select E'\\n'"`, `a "" ''`, `a b"c"'d'e`,
	} {
		argv, err := parseCommand("pre-snapshot", line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		out, err := exec.Command("sh", "-c", "printf '%s\\n' "+line).Output()
		if want := strings.Join(argv, "\n") + "\n"; err != nil || string(out) != want {
			t.Errorf("%s: a shell makes %q of it, and we %q: %v", line, out, want, err)
		}
	}
}

// TestModesFromDockerHaveALeadingZero: a Compose file's 0770 without quotes arrives as 504.
func TestModesFromDockerHaveALeadingZero(t *testing.T) {
	for mode, says := range map[string][]string{
		"504": {"as in 0504", `"0770"`}, "493": {`"0755"`}, "457": {"as in 0457", `"0711"`}, "750": {"as in 0750"}, "1777": {"as in 01777"}, "4095": {`"07777"`}, "99999": nil, "8": nil,
	} {
		_, err := bare().dockerOptions("v", map[string]string{"mode": mode})
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "octal") {
			t.Errorf("mode %s: %v", mode, err)
			continue
		}
		for _, words := range says {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("mode %s: nothing of %s: %v", mode, words, err)
			}
		}
	}
	for mode, want := range map[string]uint32{"0770": 0o770, "01777": 0o1777, "0": 0, "00": 0} {
		options, err := bare().dockerOptions("v", map[string]string{"mode": mode})
		if err != nil {
			t.Errorf("mode %s: %v", mode, err)
			continue
		}
		if spec, _, err := bare().spec("v", options); err != nil || spec.Mode != want {
			t.Errorf("mode %s: %o, %v", mode, spec.Mode, err)
		}
	}
	for _, mode := range []string{"750", "0750"} { // of the command line, as chmod takes them
		if spec, _, err := bare().spec("v", []Option{{"mode", mode}}); err != nil || spec.Mode != 0o750 {
			t.Errorf("--mode %s: %o, %v", mode, spec.Mode, err)
		}
	}
}

// TestWhatYAMLMakesOfNumbersIsReadAsMeantOrRefused has what Compose passes on for values without quotes.
func TestWhatYAMLMakesOfNumbersIsReadAsMeantOrRefused(t *testing.T) {
	for _, test := range []struct{ key, value string }{
		{"size", "1e9"}, {"size", "1e+09"}, {"size", "1000000000.0"}, {"size", "1.5"}, {"size", "0x40000000"}, {"uid", "0x3e8"}, {"uid", "1000.0"}, {"gid", "1e3"},
		{"protect", "yes"}, {"protect", "on"}, {"protect", "null"}, {"protect", ""},
	} {
		options, err := bare().dockerOptions("v", map[string]string{test.key: test.value})
		if err == nil {
			_, _, err = bare().spec("v", options)
		}
		if !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), strconv.Quote(test.value)) {
			t.Errorf("%s: %s: %v", test.key, test.value, err)
		}
	}
	for _, protect := range []string{"true", "True", "TRUE"} { // YAML, Python
		if spec, _, err := bare().spec("v", []Option{{"protect", protect}}); err != nil || !spec.Protected {
			t.Errorf("protect: %s: %v", protect, err)
		}
	}
}

func TestHelpForDockerListsEveryOptionWithItsDefault(t *testing.T) {
	_, err := bare().dockerOptions("v", map[string]string{"help": ""})
	if !fault.Is(err, fault.ErrInvalid) {
		t.Fatal(err)
	}
	for _, kind := range OptionKinds {
		if listed := strings.Contains(err.Error(), "\n  "+kind.Key); listed == kind.FlagOnly {
			t.Errorf("%s: listed %t: %v", kind.Key, listed, err)
		}
	}
	for _, words := range []string{"label.<key>", "(default " + Bytes(bare().defaultSize) + ")", "(default ext4)", "(default 0755)", "(default loop)"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("nothing of %s: %v", words, err)
		}
	}
}
