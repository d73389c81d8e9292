package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// restoreFlags are those of a restore to a volume.
func restoreFlags() []urfave.Flag {
	flags := []urfave.Flag{
		&urfave.BoolFlag{Name: "all", Usage: "restore the newest good backup of every volume in a destination"},
		&urfave.BoolFlag{Name: "in-place", Usage: "replace the content of the volume NAME, which must not be in use; a snapshot keeps what it holds"},
		&urfave.BoolFlag{Name: "discard-current", Usage: "with --in-place: keep no snapshot"},
	}
	for _, kind := range daemon.OptionKinds {
		if !slices.Contains(restoreOptions, kind.Key) {
			continue
		}
		switch {
		case kind.Switch:
			flags = append(flags, &urfave.BoolFlag{Name: kind.Key, Usage: kind.Help})
		case kind.Repeats:
			flags = append(flags, &urfave.StringSliceFlag{Name: kind.Key, Usage: kind.Help})
		default:
			flags = append(flags, &urfave.StringFlag{Name: kind.Key, Usage: kind.Help})
		}
	}
	return flags
}

// restoreOptions are the options of a new volume that do not come from its backup.
var restoreOptions = []string{"pool", "size", "label", "mount-option", "protect", "keep", "no-backup", "pre-snapshot", "post-snapshot"}

// restoreVolume restores one backup to a volume.
func (c *cli) restoreVolume(ctx *urfave.Context, u destination.URL, name string) error {
	request, err := c.restoreRequest(ctx, name)
	if err != nil {
		return err
	}
	request.URL = u.String()
	done, err := c.restoreOne(ctx, request)
	if err != nil {
		return err
	}
	if c.json {
		return c.printEvent(volumeRestored{"done", done})
	}
	return c.print(done.Volume, nil)
}

// volumeRestored is what --json tells of a restore to a volume, after a progressEvent a second.
type volumeRestored struct {
	Event string `json:"event"` // "done"
	backup.Restored
}

// restoreRequest reads what a restore to a volume was given, but for the URL.
func (c *cli) restoreRequest(ctx *urfave.Context, name string) (r control.Request, err error) {
	if ctx.Bool("discard-current") && !ctx.Bool("in-place") {
		return r, fault.Errorf(fault.ErrInvalid, "backup restore: --discard-current goes with --in-place")
	}
	r = control.Request{Name: name, InPlace: ctx.Bool("in-place"), Discard: ctx.Bool("discard-current")}
	if r.Options, err = settingsOf(ctx); err != nil {
		return r, err
	}
	r.KeyFile, err = keyPath(ctx)
	return r, err
}

func (c *cli) restoreOne(ctx *urfave.Context, request control.Request) (done backup.Restored, err error) {
	j, err := c.do(ctx.Context, "/backups/restore", request)
	if err != nil {
		return done, err
	}
	if err := json.Unmarshal(j.Result, &done); err != nil {
		return done, fmt.Errorf("read result of restore: %w", err)
	}
	for _, warning := range done.Warnings {
		c.warn(fmt.Errorf("volume %q: %s", done.Volume, warning)) //nolint:err113 // the daemon's text
	}
	return done, nil
}

// restoreAll restores every volume of a destination, each from its newest good backup. What fails for one keeps it from no
// other. One that was restored from that backup before is left alone, so that the command may be repeated.
func (c *cli) restoreAll(ctx *urfave.Context, at destination.Destination) error {
	if ctx.Bool("in-place") || ctx.IsSet("size") {
		return fault.Errorf(fault.ErrInvalid, "backup restore: --in-place and --size go with the backup of one volume, not with --all")
	}
	request, err := c.restoreRequest(ctx, "")
	if err != nil {
		return err
	}
	c.reportOnly = c.json
	chosen, r, err := c.chooseAll(ctx, at)
	if err != nil {
		return err
	}
	for _, u := range chosen {
		if ctx.Context.Err() != nil {
			r.fail(ctx.Context.Err())
			break
		}
		r.restore(request, u)
	}
	return r.end()
}

// chooseAll finds the newest good backup of every volume of a destination. What it cannot choose is in the report.
func (c *cli) chooseAll(ctx *urfave.Context, at destination.Destination) (chosen []destination.URL, run *backupRun, err error) {
	run = &backupRun{c: c, ctx: ctx, report: runReport{Volumes: []volumeReport{}, Warnings: []string{}}}
	err = c.openRepository(ctx, at, func(r *destination.Repository) error {
		backups, err := r.Backups(ctx.Context)
		if err != nil && len(backups) == 0 {
			return err
		}
		if err != nil {
			run.fail(err)
		}
		var names []string
		for _, b := range backups {
			if !slices.Contains(names, b.Volume.Name) {
				names = append(names, b.Volume.Name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			b, err := r.Find(ctx.Context, destination.URL{Destination: at, Volume: name}, r.RememberedDamage().Hurts)
			if err != nil {
				run.failed(name, err)
				continue
			}
			chosen = append(chosen, at.URL(b))
		}
		return nil
	})
	return chosen, run, err
}

// restore restores one volume of many.
func (r *backupRun) restore(request control.Request, u destination.URL) {
	request.URL = u.String()
	done, err := r.c.restoreOne(r.ctx, request)
	switch {
	case err == nil:
		r.done(volumeReport{Name: u.Volume, Result: resultDone, URL: u.String()}, fmt.Sprintf("restored, %s fetched", daemon.Bytes(done.Fetched)))
	case fault.Is(err, fault.ErrExists) && r.isFrom(u):
		r.done(volumeReport{Name: u.Volume, Result: resultDone, URL: u.String()}, "was restored before")
	default:
		r.failed(u.Volume, err)
	}
}

// isFrom reports whether a volume of the backup's volume's name was restored from the backup.
func (r *backupRun) isFrom(u destination.URL) bool {
	var v daemon.View
	err := r.c.client.Get(r.ctx.Context, "/volumes/inspect", url.Values{"name": {u.Volume}}, &v)
	if err != nil || v.Restore == nil {
		return false
	}
	from, err := destination.ParseURL(v.Restore.URL)
	return err == nil && from.Backup == u.Backup && v.State == "ready"
}
