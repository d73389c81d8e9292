package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"orlop/internal/fault"
	"orlop/internal/run"
)

// Repair checks the filesystem on device if its superblock records an error, and repairs what can be repaired
// without a decision. The caller must know that no process has the device mounted. It reports whether anything was
// done and whether that made a lost+found, which the caller removes, and fails with fault.ErrCorrupt, and the command
// to run, where a person must decide.
func (t Type) Repair(ctx context.Context, r run.Runner, device string) (done, madeLostFound bool, err error) {
	if failed, err := t.Failed(device); err != nil || !failed {
		return false, false, err
	}
	if t.forgiven(ctx, r, device) {
		return true, false, nil
	}
	madeLostFound, err = e2fsck(ctx, r, append(slices.Clone(t.check), device)...)
	var exit *run.ExitError
	switch {
	case err == nil:
		return true, madeLostFound, nil
	case errors.As(err, &exit):
		path := lasting(device)
		return false, false, fault.Errorf(fault.ErrCorrupt, "%s on %s needs a decision: while it is unmounted, back it up, then run: %s: %w", t.Name, run.Line(path), run.Line(t.check[0], "-f", path), err)
	}
	return false, false, err
}

// forgiven clears the error that the superblock of a sound filesystem records, and reports whether it did. A check that may
// repair would fail on one without a free inode or block, which it wants for a lost+found, and leave damage.
func (t Type) forgiven(ctx context.Context, r run.Runner, device string) bool {
	if _, err := e2fsck(ctx, r, t.check[0], "-p", "-E", "journal_only", device); err != nil {
		return false
	}
	out, err := r.Run(ctx, t.check[0], "-f", "-n", device)
	var exit *run.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Code != 4) || !sound(string(out)) { // 4: the error that is recorded
		return false
	}
	for _, field := range []string{"error_count 0", "state 1"} { // the last is what counts; 1: clean, without errors
		if _, err := r.Run(ctx, "debugfs", "-w", "-R", "set_super_value "+field, device); err != nil {
			return false
		}
	}
	failed, err := t.Failed(device)
	return err == nil && !failed
}

// passing matches what e2fsck -n prints of a filesystem that is sound but for the error that its superblock records.
var passing = regexp.MustCompile(`^(Pass \d.*: Checking .*|.* contains a file system with errors, check forced\.|.*WARNING: Filesystem still has errors.*|.*: \d+/\d+ files \(.*\), \d+/\d+ blocks)?$`)

// totals matches what e2fsck -n says of the counts in the superblock, which the kernel computes at each mount and writes
// only to a filesystem without errors.
var totals = regexp.MustCompile(`Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\.\nFix\? no\n`)

// sound reports whether e2fsck -n found nothing wrong, by what it printed.
func sound(out string) bool {
	for line := range strings.Lines(totals.ReplaceAllString(out, "")) {
		if !passing.MatchString(strings.TrimSpace(line)) {
			return false
		}
	}
	return strings.Contains(out, "Pass 5: Checking")
}

// e2fsck runs e2fsck, which may repair, and reports whether that made a lost+found.
func e2fsck(ctx context.Context, r run.Runner, argv ...string) (madeLostFound bool, err error) {
	out, err := r.Run(ctx, argv...)
	var exit *run.ExitError
	if errors.As(err, &exit) && exit.Code&^3 == 0 { // 1: repaired, 2: and a reboot is advised
		err = nil
	}
	return bytes.Contains(out, []byte("/lost+found not found")), err
}

// GrowOffline extends the filesystem on device to size bytes and checks the result. The caller must know that no
// process has the device mounted and that its journal is empty. It reports whether it made a lost+found, which the
// caller removes. When it fails, or the machine does, the filesystem may be damaged: callers work on a copy.
//
// A check that repairs nothing comes first: one that repairs wants a lost+found, which takes an inode and a block.
func (t Type) GrowOffline(ctx context.Context, r run.Runner, device string, size int64) (madeLostFound bool, err error) {
	if size, err = t.Usable(device, size); err != nil {
		return false, err
	}
	if _, err := r.Run(ctx, "e2fsck", "-f", "-n", device); err != nil {
		if madeLostFound, err = e2fsck(ctx, r, "e2fsck", "-f", "-p", device); err != nil {
			return false, fmt.Errorf("check before growing: %w", err)
		}
	}
	// Forced, for a check that repairs nothing is not recorded.
	if _, err := r.Run(ctx, "resize2fs", "-f", device, strconv.FormatInt(size/ext4Block, 10)); err != nil {
		return false, withoutAdvice(err)
	}
	if _, err := r.Run(ctx, "e2fsck", "-f", "-n", device); err != nil {
		return false, fmt.Errorf("check after growing: %w", err)
	}
	return madeLostFound, nil
}

// withoutAdvice cuts off what resize2fs advises to run: the device that it names no longer exists when the message is read.
func withoutAdvice(err error) error {
	var failed *run.ExitError
	if errors.As(err, &failed) {
		failed.Output, _, _ = strings.Cut(failed.Output, "; Please run")
	}
	return err
}
