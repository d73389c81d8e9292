package lvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
	"orlop/internal/run"
)

func wants(t *testing.T, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("want an error of kind %s, got %v", kind, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

// These are LVM's own words, of version 2.03.16.
func TestErrorsOfLVMKeepItsWordsAndHaveAKind(t *testing.T) {
	for words, want := range map[string]struct {
		kind   fault.Kind
		remedy string
	}{
		`Volume group "nosuch" not found; Cannot process volume group nosuch`:                                                {fault.ErrNotFound, ""},
		`Failed to find logical volume "vg/nosuch"`:                                                                          {fault.ErrNotFound, ""},
		`Pool nopool not found in Volume group vg.`:                                                                          {fault.ErrNotFound, ""},
		`Logical Volume "s3" already exists in volume group "vg"`:                                                            {fault.ErrExists, ""},
		`Logical volume vg/x contains a filesystem in use.`:                                                                  {fault.ErrInUse, ""},
		`Logical volume vg/x in use.`:                                                                                        {fault.ErrInUse, ""},
		`device-mapper: suspend ioctl on (253:4) failed: Device or resource busy`:                                            {fault.ErrInUse, ""},
		`Volume group "vg" has insufficient free space (3931 extents): 131072 required.`:                                     {fault.ErrNoSpace, "vgextend"},
		`Cannot create new thin volume, free space in thin pool vg/pool reached threshold.`:                                  {fault.ErrNoSpace, "lvextend"},
		`VG vg metadata on /dev/sda (522517 bytes) too large for circular buffer (1044480 bytes with 8192 used)`:             {fault.ErrFailed, ""},
		`VG vg 9 metadata on /dev/vdb (1050000 bytes) exceeds maximum metadata size; metadata too large for circular buffer`: {fault.ErrNoSpace, "--metadatasize"},
		`Cannot change VG vg while PVs are missing.; Consider vgreduce --removemissing.`:                                     {fault.ErrFailed, "attach the missing disk"},
		`Check of pool vg/pool failed (status:1). Manual repair required!`:                                                   {fault.ErrCorrupt, "lvconvert --repair"},
		`Thin pool vg-pool-tpool (253:2) transaction_id is 5, while expected 6.`:                                             {fault.ErrCorrupt, "lvmthin(7)"},
		`Something new`: {fault.ErrFailed, ""},
	} {
		err := classify(&run.ExitError{Argv: []string{"lvm", "lvchange"}, Code: 5, Output: words})
		wants(t, err, want.kind, words, "exit status 5", want.remedy)
	}
	if classify(nil) != nil {
		t.Error("no error has become one")
	}
}

func TestOpenSaysWhyAThinPoolCannotBeUsed(t *testing.T) {
	for name, test := range map[string]struct {
		pool   map[string]string
		config Config
		kind   fault.Kind
		words  []string
	}{
		"no thin pool":      {map[string]string{"segtype": "linear"}, Config{}, fault.ErrUnsupported, []string{"v-g/pool is not a thin pool", `"linear"`}},
		"lvmlockd":          {map[string]string{"vg_lock_type": "sanlock"}, Config{}, fault.ErrUnsupported, []string{"lvmlockd", "vgchange --lock-type none v-g"}},
		"exported":          {map[string]string{"vg_exported": "exported"}, Config{}, fault.ErrUnsupported, []string{"vgimport v-g"}},
		"read-only group":   {map[string]string{"vg_permissions": "read-only"}, Config{}, fault.ErrUnsupported, []string{"read-only"}},
		"missing disk":      {map[string]string{"vg_partial": "partial"}, Config{}, fault.ErrNotFound, []string{"lacks a disk"}},
		"read-only pool":    {map[string]string{"lv_permissions": "read-only"}, Config{}, fault.ErrUnsupported, []string{"lvchange --permission rw v-g/pool"}},
		"needs a check":     {map[string]string{"lv_check_needed": "check needed"}, Config{}, fault.ErrCorrupt, []string{"lvconvert --repair v-g/pool"}},
		"no zeroing":        {map[string]string{"zero": ""}, Config{}, fault.ErrUnsupported, []string{"lvchange --zero y v-g/pool"}},
		"renamed":           {map[string]string{"lv_name": "other"}, Config{UUID: "known", Create: 1 << 30}, fault.ErrNotFound, []string{"v-g/pool is missing", "lvs v-g"}},
		"never made":        {map[string]string{"lv_name": "other"}, Config{}, fault.ErrNotFound, []string{"--create-thin-pool"}},
		"another's":         {map[string]string{"lv_tags": "orlop.pool=other"}, Config{UUID: "known"}, fault.ErrCorrupt, []string{"is pool other, not known"}},
		"re-created":        {nil, Config{UUID: "known"}, fault.ErrNotFound, []string{"does not carry the tag orlop.pool=known"}},
		"unknown extents":   {map[string]string{"vg_extent_size": ""}, Config{}, fault.ErrFailed, []string{"vg_extent_size"}},
		"no size of chunks": {map[string]string{"chunk_size": "0"}, Config{}, fault.ErrFailed, []string{"chunks of 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			for field, value := range test.pool {
				f.pool[field] = value
			}
			_, err := f.open(test.config)
			wants(t, err, test.kind, test.words...)
			if calls := f.calls(); len(calls) > 0 {
				t.Errorf("changed something: %q", calls)
			}
		})
	}
}

func TestOpenRefusesAGroupThatIsNotThere(t *testing.T) {
	f := newFake(t)
	f.put("lvs", `echo '  Volume group "v-g" not found' >&2; exit 5`)
	_, err := f.open(Config{})
	wants(t, err, fault.ErrNotFound, `Volume group "v-g" not found`, "is its disk attached?")
}

func TestOpenRefusesVolumesThatTheMetadataDoesNotKnow(t *testing.T) {
	f := newFake(t)
	f.volumes(ours("orlop-"+idA, "u1", idA, "1"))
	f.put("thin_ls", "1 65536\n")
	f.pool["lv_tags"] = "orlop.pool=some"
	_, err := f.open(Config{})
	wants(t, err, fault.ErrCorrupt, "--rebuild-metadata")
	p, err := f.open(Config{Adopt: true})
	if err != nil || p.UUID() != "some" {
		t.Fatal(err)
	}
	if info, err := p.Stat(t.Context(), idA); err != nil || info.Used != 65536 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestOneProcessUsesAThinPool(t *testing.T) {
	locks := t.TempDir()
	first, second := &Pool{vg: "v-g", name: "pool"}, &Pool{vg: "v-g", name: "pool"}
	if err := first.takeLock(locks); err != nil {
		t.Fatal(err)
	}
	wants(t, second.takeLock(locks), fault.ErrInUse, "another orlop daemon")
	first.Close()
	if err := second.takeLock(locks); err != nil {
		t.Error(err)
	}
	second.Close()
}

func TestWarningsDoNotDisturbReports(t *testing.T) {
	f := newFake(t)
	f.put("words", "  WARNING: Device /dev/sdx has size of 1 sectors, { \"report\": which is \x00 odd\n")
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	infos, err := p.List(t.Context())
	if got := names(infos); err != nil || !slices.Equal(got, []string{idA}) {
		t.Errorf("%v, %v", got, err)
	}
}

// Get and List of volumes, and the look at the space, answer while an lvm command takes its time.
func TestQuestionsDoNotWaitForLVM(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	if err := unix.Mkfifo(filepath.Join(f.dir, "gate"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.put("lvchange", `read x < "$FAKE/gate"`)
	done := make(chan error, 1)
	go func() { done <- p.Describe(t.Context(), idA, blockdev.Record(`{"later":true}`)) }()
	gate, err := os.OpenFile(filepath.Join(f.dir, "gate"), os.O_WRONLY, 0) // opens when lvm hangs there
	if err != nil {
		t.Fatal(err)
	}
	info, statErr := p.Stat(t.Context(), idA)
	infos, listErr := p.List(t.Context())
	space, spaceErr := p.Space(t.Context())
	if statErr != nil || listErr != nil || spaceErr != nil || info.Size != 8<<20 || len(infos) != 1 || space.Size == 0 {
		t.Errorf("%+v %v, %+v %v, %+v %v", info, statErr, infos, listErr, space, spaceErr)
	}
	f.activate("orlop-"+idA, "u1", 1)
	if path, err := p.Activate(t.Context(), idA, blockdev.ReadWrite); err != nil || path == "" {
		t.Errorf("what is active already: %q, %v", path, err)
	}
	wants(t, p.Deactivate(t.Context(), idA), fault.ErrInUse)
	limited, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Create(limited, blockdev.NewID(), 1, nil); err == nil || !strings.Contains(err.Error(), "wait for another lvm command") {
		t.Error(err)
	}
	if _, err := gate.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	_ = gate.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A command that hangs is asked to end before it is killed: LVM defers that while devices are suspended.
func TestHangingCommandIsStoppedPolitely(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	p.lvm.change.Limit = 10 * time.Second // for the script to get as far as its trap
	f.put("lvchange", `trap 'echo left > "$FAKE/critical"; exit 5' TERM; while :; do sleep 0.1; done`)
	err := p.Describe(t.Context(), idA, blockdev.Record(`{}`))
	wants(t, err, fault.ErrFailed, "LVM hangs", "lvchange")
	if _, err := os.Stat(filepath.Join(f.dir, "critical")); err != nil {
		t.Error("the command had no time to end")
	}
	if info, err := p.Stat(t.Context(), idA); err != nil || info.Record != nil {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestWhatAFailedCreateLeftIsRemoved(t *testing.T) {
	f := newFake(t)
	p := f.opened()
	id := blockdev.NewID()
	f.put("after", string(reportOf(ours("orlop-"+string(id), "u1", string(id), "1"))))
	f.put("lvcreate", `cp "$FAKE/after" "$FAKE/volumes"; echo "  device-mapper: message ioctl on  (253:2) failed: No space left on device" >&2; exit 5`)
	wants(t, p.Create(t.Context(), id, 1, nil), fault.ErrNoSpace, "No space left on device", "lvextend")
	calls := f.calls()
	if len(calls) != 2 || !strings.HasPrefix(calls[1], "lvremove") || !strings.Contains(calls[1], "v-g/orlop-"+string(id)) {
		t.Errorf("%q", calls)
	}
	if _, err := p.Stat(t.Context(), id); !fault.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
}

func TestVolumesThatOthersRenameOrRemove(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"), ours("orlop-"+idB, "u2", idB, "2"))
	f.volumes(ours("renamed", "u1", idA, "1"))
	f.put("lvchange", `case $* in *v-g/renamed) ;; *) echo '  Failed to find logical volume' >&2; exit 5;; esac`)
	_, err := p.Activate(t.Context(), idB, blockdev.ReadWrite)
	wants(t, err, fault.ErrNotFound, "Failed to find logical volume", "orlop.id="+idB)
	if err := p.Describe(t.Context(), idA, blockdev.Record(`{}`)); err != nil {
		t.Errorf("renamed: %v", err)
	}
	if calls := f.calls(); !strings.HasSuffix(calls[len(calls)-1], "v-g/renamed") {
		t.Errorf("%q", calls)
	}
}

func TestCommandIsRepeatedForARenamedVolume(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	f.volumes(ours("renamed", "u1", idA, "1"))
	f.put("lvchange", `case $* in *v-g/renamed) ;; *) echo '  Failed to find logical volume' >&2; exit 5;; esac`)
	f.put("lvcreate", `case $* in *v-g/renamed*) ;; *) echo '  Failed to find logical volume' >&2; exit 5;; esac`)
	if err := p.Clone(t.Context(), blockdev.NewID(), idA, nil); err != nil {
		t.Errorf("clone: %v", err)
	}
	f.volumes(ours("again", "u1", idA, "1"))
	f.put("lvchange", `case $* in *v-g/again) ;; *) echo '  Failed to find logical volume' >&2; exit 5;; esac`)
	if err := p.Describe(t.Context(), idA, blockdev.Record(`{}`)); err != nil {
		t.Errorf("describe: %v", err)
	}
}

func TestActivationThatLVMRefusesSilentlyIsAnError(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	_, err := p.Activate(t.Context(), idA, blockdev.ReadWrite)
	wants(t, err, fault.ErrFailed, "volume_list")
}

func TestTwoVolumesWithOneIDAreAPersonsToTellApart(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"), ours("copy", "u2", idA, "2"))
	_, err := p.Stat(t.Context(), idA)
	wants(t, err, fault.ErrCorrupt, "v-g/copy", "lvchange --deltag orlop")
	wants(t, p.Remove(t.Context(), idA), fault.ErrCorrupt)
	if infos, err := p.List(t.Context()); err != nil || len(infos) != 1 || infos[0].Size != 0 {
		t.Errorf("%+v, %v", infos, err)
	}
	if calls := f.calls(); len(calls) > 0 {
		t.Errorf("changed something: %q", calls)
	}
}

func TestFullAndBrokenThinPoolsTakeNothing(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	for params, want := range map[string]struct {
		kind  fault.Kind
		words string
	}{
		"1 10/4096 8192/8192 - out_of_data_space discard_passdown queue_if_no_space - 1024": {fault.ErrNoSpace, "data of thin pool v-g/pool is full"},
		"1 4096/4096 10/8192 - rw discard_passdown queue_if_no_space - 1024":                {fault.ErrNoSpace, "metadata of thin pool v-g/pool is full"},
		"1 4090/4096 10/8192 - ro discard_passdown queue_if_no_space needs_check 1024":      {fault.ErrNoSpace, "run out of metadata"},
		"1 10/4096 10/8192 - ro discard_passdown queue_if_no_space needs_check 1024":        {fault.ErrCorrupt, "lvconvert --repair v-g/pool"},
		"1 10/4096 10/8192 - ro discard_passdown queue_if_no_space - 1024":                  {fault.ErrCorrupt, "read-only"},
		"Fail": {fault.ErrCorrupt, "has failed"},
	} {
		f.devices["v--g-pool-tpool"] = status{name: "v--g-pool-tpool", target: "thin-pool", params: params}
		wants(t, p.Create(t.Context(), blockdev.NewID(), 1, nil), want.kind, want.words)
		wants(t, p.Clone(t.Context(), blockdev.NewID(), idA, nil), want.kind, want.words)
		if info, err := p.Stat(t.Context(), idA); err != nil || info.Size == 0 {
			t.Errorf("%s: %+v, %v", params, info, err)
		}
	}
	f.devices["v--g-pool-tpool"] = status{name: "v--g-pool-tpool", target: "thin-pool", params: "1 4000/4096 10/8192 - rw"}
	space, err := p.Space(t.Context())
	if err != nil || !strings.Contains(space.Layer, "metadata") || !strings.Contains(space.Remedy, "--poolmetadatasize") || space.Free != 96*4096 {
		t.Errorf("%+v, %v", space, err)
	}
	delete(f.devices, "v--g-pool-tpool")
	_, err = p.Space(t.Context())
	wants(t, err, fault.ErrNotFound, "lvchange --activate y v-g/pool")
}

func TestSpaceTellsOfAGroupThatCannotBeRead(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	f.put("lvs", `echo '  Volume group "v-g" not found' >&2; exit 5`)
	if _, err := p.look(t.Context()); err == nil {
		t.Fatal("read")
	}
	_, err := p.Space(t.Context())
	wants(t, err, fault.ErrNotFound, `Volume group "v-g" not found`)
	if info, err := p.Stat(t.Context(), idA); err != nil || info.Size == 0 {
		t.Errorf("what is known is forgotten: %+v, %v", info, err)
	}
}

func TestComparisonSaysThatAnotherProgramHasTheMetadata(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	f.busy = true
	differ, _ := p.Differ()
	err := differ.Diff(t.Context(), "", idA, func(blockdev.Extent) error { return nil })
	wants(t, err, fault.ErrInUse, "release_metadata_snap")
}

func TestComparisonOfDamagedMetadataFails(t *testing.T) {
	f := newFake(t)
	p := f.opened(ours("orlop-"+idA, "u1", idA, "1"))
	differ, _ := p.Differ()
	f.put("thin_dump", dumped[:len(dumped)/2])
	if err := differ.Diff(t.Context(), "", idA, func(blockdev.Extent) error { return nil }); err == nil {
		t.Error("half a dump is taken for all")
	}
	f.put("thin_dump", dumped)
	told := 0
	if err := differ.Diff(t.Context(), "", idA, func(blockdev.Extent) error { told++; return nil }); err != nil || told != 2 {
		t.Errorf("%d extents, %v", told, err)
	}
}

func TestAdviceTellsOfThinPoolsThatDoNotExtendThemselves(t *testing.T) {
	f := newFake(t)
	f.pool["seg_monitor"], f.pool["discards"], f.pool["vg_mda_free"] = "not monitored", "ignore", "1000"
	p, err := f.open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for _, a := range p.Advice() {
		all += fmt.Sprintln(a.Problem, a.Command)
	}
	for _, word := range []string{"thin_pool_autoextend_threshold", "dmeventd", "discards", "metadata area"} {
		if !strings.Contains(all, word) {
			t.Errorf("no word of %s in %s", word, all)
		}
	}
	if calls := f.calls(); len(calls) != 1 || !strings.HasPrefix(calls[0], "lvchange --addtag orlop.pool="+p.UUID()) {
		t.Errorf("%q", calls)
	}
}

func TestNewThinPoolsHaveRoomForTenThousandDevices(t *testing.T) {
	for _, size := range []int64{1 << 30, 100 << 30, 8 << 40, 20 << 40, 1 << 50} {
		chunk, metadata := metadataSize(size)
		if least := min(size/chunk*48+10_000*4096*3, maxMetadata); metadata < least || metadata%(1<<20) > 0 || metadata > maxMetadata {
			t.Errorf("of %d bytes: chunks of %d, metadata of %d", size, chunk, metadata)
		}
	}
}
