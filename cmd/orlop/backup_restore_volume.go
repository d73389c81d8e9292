package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/metadata"
)

// restoreFlags are those of a restore to a volume.
func restoreFlags() []urfave.Flag {
	flags := []urfave.Flag{
		&urfave.BoolFlag{Name: "all", Usage: "restore the newest good backup of every volume in a destination"},
		&urfave.StringFlag{Name: "host", Usage: "with --all: only backups made by host NAME"},
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
	if fault.Is(err, fault.ErrExists) {
		return fmt.Errorf("%w: give the new volume another name, or replace the content of that one with --in-place", err)
	}
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
	if r.KeyFile, err = keyPath(ctx); err != nil {
		return r, err
	}
	r.Credentials, err = wireCredentials(ctx)
	return r, err
}

const restorePath = "/backups/restore"

// restoredBefore returns the job of a restore that this command asked for before: it was done, but the daemon ended before it
// said so. ok is false if there is no volume that was restored so.
func (c *cli) restoredBefore(ctx context.Context, request control.Request) (j daemon.JobView, ok bool) {
	u, err := destination.ParseURL(request.URL)
	if err != nil || request.InPlace {
		return j, false
	}
	name := request.Name
	if name == "" {
		name = u.Volume
	}
	v, ok := c.restoredFrom(ctx, name, u)
	if !ok {
		return j, false
	}
	done := backup.Restored{Volume: v.Name, VolumeID: v.ID, Backup: v.Restore.URL, Warnings: []string{}}
	if from, err := destination.ParseURL(v.Restore.URL); err == nil {
		done.BackupID = from.Backup
	}
	result, err := json.Marshal(done)
	return daemon.JobView{Kind: backup.KindRestore, Volume: v.Name, VolumeID: v.ID, State: string(metadata.JobDone), Result: result}, err == nil
}

// restoredFrom returns the volume of a name if it was restored from a backup. A URL that names no backup means any of its
// destination.
func (c *cli) restoredFrom(ctx context.Context, name string, u destination.URL) (v daemon.View, ok bool) {
	err := c.client.Get(ctx, "/volumes/inspect", url.Values{"name": {name}}, &v)
	if err != nil || v.Restore == nil || v.State != string(metadata.Ready) {
		return v, false
	}
	from, err := destination.ParseURL(v.Restore.URL)
	if u.Backup == "" {
		return v, err == nil && from.Destination == u.Destination
	}
	return v, err == nil && from.Backup == u.Backup
}

func (c *cli) restoreOne(ctx *urfave.Context, request control.Request) (done backup.Restored, err error) {
	j, err := c.do(ctx.Context, restorePath, request)
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
	if ctx.IsSet("host") && ctx.String("host") == "" {
		return fault.Errorf(fault.ErrInvalid, "backup restore: --host is empty: leave it out for all")
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

// chooseAll finds the newest good backup of every volume of a destination, or of those that one host made. What it cannot choose
// is in the report.
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
		if host := ctx.String("host"); host != "" {
			backups = slices.DeleteFunc(backups, func(b *repo.Backup) bool { return b.Host != host })
			if len(backups) == 0 && err == nil {
				return fault.Errorf(fault.ErrNotFound, "backup restore: there is no backup that host %q made", host)
			}
		}
		var names []string
		for _, b := range backups {
			if !slices.Contains(names, b.Volume.Name) {
				names = append(names, b.Volume.Name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			b, err := r.NewestOf(backups, name, r.RememberedDamage().Hurts)
			if v, before := c.restoredFrom(ctx.Context, name, destination.URL{Destination: at}); before && isAmbiguous(err) {
				run.done(volumeReport{Name: name, Result: resultDone, URL: v.Restore.URL}, "was restored before")
				continue
			}
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

// isAmbiguous reports whether a backup was not found because volumes of one name are several: which of them it is has to be
// said.
func isAmbiguous(err error) bool {
	r, ok := fault.RemedyOf(err)
	return ok && destination.Remedy(r.Code) == destination.ChooseBackup
}

// restore restores one volume of many.
func (r *backupRun) restore(request control.Request, u destination.URL) {
	request.URL = u.String()
	done, err := r.c.restoreOne(r.ctx, request)
	if err == nil {
		r.done(volumeReport{Name: u.Volume, Result: resultDone, URL: u.String()}, fmt.Sprintf("restored, %s fetched", daemon.Bytes(done.Fetched)))
		return
	}
	if _, before := r.c.restoredFrom(r.ctx.Context, u.Volume, u); before && fault.Is(err, fault.ErrExists) {
		r.done(volumeReport{Name: u.Volume, Result: resultDone, URL: u.String()}, "was restored before")
		return
	}
	r.failed(u.Volume, err)
}
