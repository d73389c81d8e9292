package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"orlop/internal/fault"
	"orlop/internal/run"
)

const (
	commandLimit = 60 * time.Second // for one lvm command, its wait for LVM's own locks included
	stopGrace    = 20 * time.Second // that a command gets to leave its critical section when it is stopped
)

// commands is the one door to lvm(8).
type commands struct {
	query  run.Runner // of what only reads: it may be killed
	change run.Runner // of what changes: killed half-way it could leave a device suspended
	udev   bool       // udev runs, and makes the nodes in /dev
}

func newCommands() commands {
	env := []string{"LVM_SUPPRESS_FD_WARNINGS=1"}
	_, err := os.Stat("/run/udev/control")
	return commands{
		query:  run.Runner{Limit: commandLimit, Env: env},
		change: run.Runner{Limit: commandLimit, Env: env, Stop: syscall.SIGTERM, Grace: stopGrace},
		udev:   err == nil,
	}
}

// config returns the arguments that set what Orlop needs of LVM's configuration.
func (c commands) config() []string {
	if c.udev {
		return nil
	}
	return []string{"--config", "activation{udev_sync=0 udev_rules=0}"}
}

// report returns the rows of a report about LVs: of a group, or of one LV.
func (c commands) report(ctx context.Context, fields, of string) ([]row, error) {
	argv := append([]string{"lvm", "lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", fields}, c.config()...)
	out, _, err := c.query.Capture(ctx, append(argv, of)...)
	if err != nil {
		return nil, classify(err)
	}
	return parseReport(out, "lv")
}

// setting returns a value of LVM's configuration as it prints it.
func (c commands) setting(ctx context.Context, name string) (string, error) {
	out, _, err := c.query.Capture(ctx, "lvm", "lvmconfig", "--typeconfig", "full", name)
	if err != nil {
		return "", classify(err)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	return strings.Trim(value, `"`), nil
}

// run runs a command that changes something, to its end: it does not end with ctx, once begun. It returns what the
// command said in passing.
func (c commands) run(ctx context.Context, argv ...string) (said string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("lvm %s: %w", argv[0], err)
	}
	_, stderr, err := c.change.Capture(context.WithoutCancel(ctx), append([]string{"lvm"}, argv...)...)
	return string(stderr), classify(err)
}

// kinds are what LVM says and what it means: it exits with 5 on every failure. The first that is found counts.
var kinds = []struct {
	words  string
	kind   fault.Kind
	remedy string
}{
	{"metadata too large for circular buffer", fault.ErrNoSpace, "the metadata area of the volume group is full: delete volumes, or move it to a group made with 'vgcreate --metadatasize 64m'"},
	{"insufficient free space", fault.ErrNoSpace, "add a disk with vgextend"},
	{"insufficient suitable", fault.ErrNoSpace, "add a disk with vgextend"},
	{"reached threshold", fault.ErrNoSpace, "enlarge the thin pool with lvextend, or delete volumes"},
	{"No space left on device", fault.ErrNoSpace, "enlarge the thin pool with lvextend"},
	{"while PVs are missing", fault.ErrFailed, "attach the missing disk, or run 'vgreduce --removemissing'"},
	{"already exists", fault.ErrExists, ""},
	{"contains a filesystem in use", fault.ErrInUse, ""},
	{"in use", fault.ErrInUse, ""},
	{"Device or resource busy", fault.ErrInUse, ""},
	{"Failed to find logical volume", fault.ErrNotFound, ""},
	{"not found", fault.ErrNotFound, ""},
	{"Cannot process volume group", fault.ErrNotFound, ""},
	{"Check of pool", fault.ErrCorrupt, "run 'lvconvert --repair' on the thin pool while it is inactive"},
	{"needs_check", fault.ErrCorrupt, "run 'lvconvert --repair' on the thin pool while it is inactive"},
	{"transaction_id", fault.ErrCorrupt, "run 'vgcfgrestore --list' and see lvmthin(7), Metadata check and repair"},
}

// classify gives an error of lvm(8) its kind and, where there is one, the remedy. nil stays nil.
func classify(err error) error {
	var exit *run.ExitError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: LVM hangs: another lvm command may hold its lock, or a disk does not answer", err)
	case !errors.As(err, &exit):
		return err
	}
	for _, k := range kinds {
		if strings.Contains(exit.Output, k.words) {
			if k.remedy != "" {
				return fault.Errorf(k.kind, "%w: %s", err, k.remedy)
			}
			return fault.Errorf(k.kind, "%w", err)
		}
	}
	return err
}
