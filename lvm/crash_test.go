//go:build vm

package lvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"orlop/blockdev"
	"orlop/lvm"
)

// wrapper is put before a program in PATH: at the call whose number is in $ORLOP_CRASH_AT it kills the process that made
// it, and does nothing. Calls are counted in a file.
const wrapper = `#!/bin/sh
read n < "$ORLOP_CRASH_DIR/count"
n=$((n + 1))
echo $n > "$ORLOP_CRASH_DIR/count"
echo "$n ${0##*/} $1" >> "$ORLOP_CRASH_DIR/calls"
if [ "$ORLOP_CRASH_AT" = "$n" ]; then kill -KILL $PPID; exit 1; fi
exec "/usr/sbin/${0##*/}" "$@"
`

// The devices of a life, in the order in which it makes them.
const (
	volume   = blockdev.ID("01890a5d-ac96-774b-bcce-000000000001")
	snapshot = blockdev.ID("01890a5d-ac96-774b-bcce-000000000002")
	grown    = blockdev.ID("01890a5d-ac96-774b-bcce-000000000003")
)

// live leads devices through everything that a pool does. It is killed on its way.
func live(vg, uuid string) (err error) {
	pool, err := lvm.Open(ctx, lvm.Config{VG: vg, ThinPool: "pool", UUID: uuid})
	if err != nil {
		return err
	}
	defer pool.Close()
	step := func(name string, failed error) {
		if err == nil && failed != nil {
			err = fmt.Errorf("%s: %w", name, failed)
		}
	}
	step("create", pool.Create(ctx, volume, 8<<20, blockdev.Record(`{"is":"volume"}`)))
	step("write", write(pool, volume, "first"))
	step("clone", pool.Clone(ctx, snapshot, volume, blockdev.Record(`{"is":"snapshot"}`)))
	step("sync", pool.Sync(ctx, snapshot))
	step("seal", pool.Seal(ctx, snapshot))
	differ, _ := pool.Differ()
	step("dump", differ.Diff(ctx, "", snapshot, func(blockdev.Extent) error { return nil }))
	step("compare", differ.Diff(ctx, snapshot, volume, func(blockdev.Extent) error { return nil }))
	reader, openErr := differ.Open(ctx, snapshot)
	step("read", openErr)
	if openErr == nil {
		step("close", reader.Close())
	}
	step("clone to grow", pool.Clone(ctx, grown, volume, blockdev.Record(`{"is":"copy"}`)))
	step("grow", pool.Grow(ctx, grown, 16<<20))
	step("write", write(pool, grown, "second"))
	step("replace", pool.Replace(ctx, volume, grown))
	step("describe", pool.Describe(ctx, volume, blockdev.Record(`{"is":"described"}`)))
	step("remove", pool.Remove(ctx, volume))
	step("remove", pool.Remove(ctx, snapshot))
	return err
}

// write activates a device, writes its first block and deactivates it.
func write(pool *lvm.Pool, id blockdev.ID, text string) error {
	path, err := pool.Activate(ctx, id, blockdev.ReadWrite)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte(text), 4096)[:4096])
		err = errors.Join(err, f.Sync(), f.Close())
	}
	return errors.Join(err, pool.Deactivate(ctx, id))
}

// TestDaemonKilledBetweenAnyTwoCommandsLeavesWholeDevices kills a process at the programs that it starts, and opens the
// pool again: at each of them with ORLOP_SOAK, otherwise at a sample by ORLOP_SEED, and at those of a replacement.
func TestDaemonKilledBetweenAnyTwoCommandsLeavesWholeDevices(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "pool", "512M")
	pool, err := lvm.Open(t.Context(), lvm.Config{VG: vg, ThinPool: "pool"})
	must(t, err)
	uuid := pool.UUID()
	pool.Close()
	dir := t.TempDir()
	for _, program := range []string{"lvm", "thin_delta", "thin_dump", "thin_ls"} {
		must(t, os.WriteFile(filepath.Join(dir, program), []byte(wrapper), 0o755))
	}
	// crash leads a life that is killed at a call, or not at all at call 0, and returns the calls that it made.
	crash := func(at int) (calls []string, killed bool) {
		must(t, os.WriteFile(dir+"/count", []byte("0\n"), 0o600))
		must(t, os.WriteFile(dir+"/calls", nil, 0o600))
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ORLOP_CRASH_DIR="+dir,
			"ORLOP_CRASH_AT="+strconv.Itoa(at), "ORLOP_CRASH_LIFE="+vg+" "+uuid)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		killed = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled()
		if err != nil && !killed {
			t.Fatalf("killed at call %d: the life failed: %v: %s", at, err, out)
		}
		text, err := os.ReadFile(dir + "/calls")
		must(t, err)
		return strings.Split(strings.TrimSpace(string(text)), "\n"), killed
	}
	calls, _ := crash(0)
	t.Logf("a life makes the calls %q", calls)
	rng := seeded(t)
	for i, call := range calls {
		replacing := strings.HasSuffix(call, "lvrename") || i+1 < len(calls) && strings.HasSuffix(calls[i+1], "lvrename") || strings.Contains(call, "thin_delta")
		if os.Getenv("ORLOP_SOAK") == "" && !replacing && rng.IntN(5) > 0 {
			continue
		}
		made, killed := crash(i + 1)
		if !killed || len(made) != i+1 {
			t.Fatalf("not killed at call %d: made %q", i+1, made)
		}
		t.Logf("killed at call %s", call)
		afterCrash(t, lvm.Config{VG: vg, ThinPool: "pool", UUID: uuid})
	}
	if out := command(t, "lvs", "--noheadings", "-o", "lv_name", vg); strings.Contains(out, "orlop") {
		t.Errorf("left: %s", out)
	}
}

// afterCrash opens the pool again, checks that what is there is whole, and removes it.
func afterCrash(t *testing.T, c lvm.Config) {
	t.Helper()
	pool, err := lvm.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if status := command(t, "dmsetup", "status"); strings.Contains(status, "thin-pool") && !strings.Contains(status, " - rw ") {
		t.Errorf("the metadata is still reserved: %s", status)
	}
	infos, err := pool.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	differ, _ := pool.Differ()
	for _, info := range infos {
		if info.Record == nil || info.Size < 8<<20 {
			t.Errorf("device is not whole: %+v", info)
		}
		if info.Path != "" && info.ID == snapshot {
			t.Errorf("a reader's device is still active: %+v", info)
		}
		b, err := first(differ, info.ID)
		if err != nil {
			t.Errorf("%s: %v", info.ID, err)
			continue
		}
		switch content := string(bytes.TrimRight(b[:8], "\x00")); {
		case info.ID == snapshot && content != "firstfir",
			info.ID == volume && content != "" && content != "firstfir" && content != "secondse",
			info.ID == volume && content == "secondse" && info.Size != 16<<20,
			info.ID == volume && content != "secondse" && info.Size != 8<<20,
			info.ID == grown && content != "firstfir" && content != "secondse":
			t.Errorf("%s of %d bytes has %q", info.ID, info.Size, content)
		}
	}
	for _, id := range []blockdev.ID{grown, volume, snapshot} {
		if err := errors.Join(pool.Deactivate(t.Context(), id), pool.Remove(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
	}
}

// first reads the first block of a device.
func first(differ blockdev.Differ, id blockdev.ID) (b []byte, err error) {
	reader, err := differ.Open(context.Background(), id)
	if err != nil {
		return nil, err
	}
	b = make([]byte, 4096)
	_, err = reader.ReadAt(b, 0)
	return b, errors.Join(err, reader.Close())
}
