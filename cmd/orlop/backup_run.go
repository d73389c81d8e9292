package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"orlop/internal/backup"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/internal/notify"
	"orlop/metadata"
)

func (c *cli) backupRunCommand() *urfave.Command {
	flags := []urfave.Flag{
		destFlag(), keyFileFlag(), s3CredentialsFlag(),
		&urfave.BoolFlag{Name: "all", Usage: "back up every volume, except those with --no-backup"},
		&urfave.StringSliceFlag{Name: "filter", Usage: "back up the volumes with this label: label=key or label=key=value"},
	}
	flags = append(append(flags, keepFlags()...), notifyFlags()...)
	return &urfave.Command{
		Name: "run", Usage: "back up several volumes, delete old backups by rules, free space; for cron", ArgsUsage: "[VOLUME...]",
		Description: "Say which volumes by their names, by --filter or by --all. Prints a line for each, and exits with 0 only if every one was backed up. It may be repeated after anything.\n" +
			"A volume's own policy (orlop set NAME --keep) wins over the rules given here. Without any rule nothing is deleted,\n" +
			"and the newest good backup of a volume never is. Space is freed at most once a day.\n" +
			"Example: orlop backup run --all --dest file:///mnt/nas/orlop --key-file /root/orlop.key --keep-daily 7 --keep-weekly 5",
		Flags: append(flags, dropSnapshotFlag(), &urfave.BoolFlag{Name: "quiet", Usage: "print failures only"}),
		Action: func(ctx *urfave.Context) error {
			r, err := c.newBackupRun(ctx)
			if err != nil {
				return err
			}
			return r.run()
		},
	}
}

// A runReport is what --json tells of a run. It is a contract: names never change.
type runReport struct {
	Volumes []volumeReport `json:"volumes"`
	OK      bool           `json:"ok"`

	Warnings []string `json:"warnings"`
}

// A volumeReport is what became of one volume.
type volumeReport struct {
	Name    string   `json:"name"`
	Result  string   `json:"result"` // one of those below
	URL     string   `json:"url"`
	Read    int64    `json:"read"`    // bytes
	Stored  int64    `json:"stored"`  // bytes
	Removed []string `json:"removed"` // IDs of backups that retention deleted
	Error   string   `json:"error"`
}

// The results of volumes.
const (
	resultDone    = "done"
	resultFailed  = "failed"
	resultSkipped = "skipped"
)

// backupRun is one run of "backup run".
type backupRun struct {
	c       *cli
	ctx     *urfave.Context
	request control.Request
	report  runReport
	first   error // that failed
}

func (c *cli) newBackupRun(ctx *urfave.Context) (*backupRun, error) {
	args, err := arguments(ctx, 0, -1)
	if err != nil {
		return nil, err
	}
	ways := 0
	for _, given := range []bool{ctx.Bool("all"), len(ctx.StringSlice("filter")) > 0, len(args) > 0} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return nil, fault.Errorf(fault.ErrInvalid, "backup run: say which volumes: --all, --filter label=K=V, or names")
	}
	r := &backupRun{c: c, ctx: ctx, report: runReport{Volumes: []volumeReport{}, Warnings: []string{}}}
	if r.request, err = backupRequest(ctx); err != nil {
		return nil, err
	}
	policy, err := policyOf(ctx)
	r.request.Policy = policy.String()
	return r, err
}

// run backs up each volume and tells the services of --ping and --notify.
func (r *backupRun) run() error {
	finish, err := r.c.startRun(r.ctx, r.request.Destination, r.selection())
	if err != nil {
		return err
	}
	r.c.reportOnly = r.c.json
	r.backUpAll()
	finish(r.outcome())
	return r.end()
}

// outcome is what became of the volumes, and the failure of the run if that is none of a volume's.
func (r *backupRun) outcome() (volumes []notify.Volume, failed error) {
	failed = r.first
	for _, v := range r.report.Volumes {
		switch v.Result {
		case resultDone:
			volumes = append(volumes, notify.Volume{Name: v.Name})
		case resultFailed:
			volumes = append(volumes, notify.Volume{Name: v.Name, Err: errors.New(v.Error)})
			failed = nil // reported with the volume
		}
	}
	return volumes, failed
}

// selection is what the run backs up, for reports.
func (r *backupRun) selection() string {
	switch filters := r.ctx.StringSlice("filter"); {
	case r.ctx.Bool("all"):
		return "all volumes"
	case len(filters) > 0:
		return "volumes with " + strings.Join(filters, " and ")
	}
	return strings.Join(r.ctx.Args().Slice(), ", ")
}

// backUpAll backs up each volume. What fails for one keeps it from no other.
func (r *backupRun) backUpAll() {
	names, err := r.names()
	if err == nil {
		err = r.c.client.Post(r.ctx.Context, "/backups/check", r.request, nil)
	}
	if err != nil {
		for _, name := range names {
			r.report.Volumes = append(r.report.Volumes, volumeReport{Name: name, Result: resultFailed, Removed: []string{}, Error: withRemedy(err).Error()})
		}
		r.fail(err)
	} else {
		for _, name := range names {
			if r.ctx.Context.Err() != nil {
				r.fail(r.ctx.Context.Err())
				break
			}
			r.backUp(name)
		}
		r.collect()
	}
}

// end prints the report and returns the first failure, which was told already.
func (r *backupRun) end() error {
	r.report.OK = r.first == nil
	if r.c.json {
		r.report.Warnings = r.c.warned.all()
		if err := r.c.printJSON(r.report); err != nil {
			return err
		}
	}
	if r.first != nil {
		return reported{r.first}
	}
	return nil
}

// names returns the volumes to back up.
func (r *backupRun) names() ([]string, error) {
	if args := r.ctx.Args().Slice(); len(args) > 0 {
		return args, nil
	}
	var views []daemon.View
	if err := r.c.client.Get(r.ctx.Context, "/volumes", url.Values{"filter": r.ctx.StringSlice("filter")}, &views); err != nil {
		return nil, err
	}
	r.c.answered = true
	if len(views) == 0 && !r.ctx.Bool("all") {
		return nil, fault.Errorf(fault.ErrNotFound, "backup run: no volume has %s", strings.Join(r.ctx.StringSlice("filter"), " and "))
	}
	var names []string
	for _, v := range views {
		switch metadata.State(v.State) {
		case metadata.Creating, metadata.Removing, metadata.Restoring:
			r.done(volumeReport{Name: v.Name, Result: resultSkipped}, "skipped: it is "+v.State)
		default:
			if !v.NoBackup {
				names = append(names, v.Name)
			}
		}
	}
	return names, nil
}

// backUp backs up one volume.
func (r *backupRun) backUp(name string) {
	request := r.request
	request.Name = name
	made, err := r.c.backUp(r.ctx, request)
	switch {
	case err == nil:
		r.done(volumeReport{Name: name, Result: resultDone, URL: made.URL, Read: made.Read, Stored: made.Stored, Removed: made.Removed}, outcomeOf(made))
	case fault.Is(err, fault.ErrNotFound) && r.ctx.NArg() == 0 && r.gone(name):
		r.done(volumeReport{Name: name, Result: resultSkipped}, "skipped: it was deleted")
	default:
		r.failed(name, err)
	}
}

// failed notes that a volume failed, and tells it.
func (r *backupRun) failed(name string, err error) {
	r.report.Volumes = append(r.report.Volumes, volumeReport{Name: name, Result: resultFailed, Removed: []string{}, Error: withRemedy(interrupted(err)).Error()})
	r.fail(err)
}

// gone reports whether a volume was deleted since the run began.
func (r *backupRun) gone(name string) bool {
	return fault.Is(r.c.client.Get(r.ctx.Context, "/volumes/inspect", url.Values{"name": {name}}, nil), fault.ErrNotFound)
}

// outcomeOf says what a backup did.
func outcomeOf(made backup.Made) string {
	text := fmt.Sprintf("%s read, %s stored", daemon.Bytes(made.Read), daemon.Bytes(made.Stored))
	if !made.Incremental {
		text = "full backup, " + text
	}
	if n := len(made.Removed); n > 0 {
		text += ", deleted " + counted(n, "old backup")
	}
	return text
}

// done notes what became of a volume, and tells it.
func (r *backupRun) done(v volumeReport, text string) {
	if v.Removed == nil {
		v.Removed = []string{}
	}
	r.report.Volumes = append(r.report.Volumes, v)
	if r.c.json || r.ctx.Bool("quiet") {
		return
	}
	if err := r.c.print(v.Name+": "+text, nil); err != nil {
		r.fail(err)
	}
}

// fail tells of a failure, and notes the first.
func (r *backupRun) fail(err error) {
	report(r.c.stderr, err, r.c.json)
	if r.first == nil {
		r.first = err
	}
}

// collect frees space in the repository, at most once a day. That it fails fails no run.
func (r *backupRun) collect() {
	done := false
	for _, v := range r.report.Volumes {
		done = done || v.Result == resultDone
	}
	if !done || r.ctx.Context.Err() != nil {
		return
	}
	request := control.Request{Destination: r.request.Destination, KeyFile: r.request.KeyFile, Credentials: r.request.Credentials, Daily: true}
	var begun control.Collecting
	err := r.c.client.Post(r.ctx.Context, "/backups/collect", request, &begun)
	if err == nil && begun.Due {
		var j daemon.JobView
		if err = json.Unmarshal(begun.Job, &j); err == nil {
			if j, err = r.c.follow(r.ctx.Context, j); err == nil {
				err = jobError(j)
			}
		}
	}
	if err != nil && !errors.Is(err, r.ctx.Context.Err()) {
		r.c.warn(fmt.Errorf("cannot free space in %s: %w", r.request.Destination, err))
	}
}
