package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"orlop/internal/backup"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
	"orlop/internal/run"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A JobView is what users see of a job. Its JSON is a contract: names never change.
type JobView struct {
	ID          string             `json:"id"`
	Kind        string             `json:"kind"` // "backup", "restore", "collect"
	Volume      string             `json:"volume"`
	VolumeID    string             `json:"volume_id"`
	Destination string             `json:"destination"`
	State       string             `json:"state"`
	Done        int64              `json:"done"`    // bytes
	Total       int64              `json:"total"`   // bytes, 0 while unknown
	Started     string             `json:"started"` // RFC 3339, UTC
	Ended       string             `json:"ended,omitempty"`
	Error       *metadata.JobError `json:"error,omitempty"`
	Result      json.RawMessage    `json:"result,omitempty"`
	Joined      bool               `json:"joined,omitempty"` // another request had started it
}

func jobView(j metadata.Job, joined bool) JobView {
	view := JobView{
		ID: j.ID, Kind: j.Kind, Volume: j.Volume, VolumeID: j.VolumeID, Destination: j.Destination, State: string(j.State),
		Done: j.Done, Total: j.Total, Started: j.Started.UTC().Format(time.RFC3339Nano), Error: j.Error, Result: j.Result, Joined: joined,
	}
	if !j.Ended.IsZero() {
		view.Ended = j.Ended.UTC().Format(time.RFC3339Nano)
	}
	return view
}

// Jobs returns what users see of the jobs on record, by age.
func (d *Daemon) Jobs() ([]JobView, error) {
	jobs, err := d.jobs.List()
	views := make([]JobView, len(jobs))
	for i, j := range jobs {
		views[i] = jobView(j, false)
	}
	return views, err
}

// Job returns what users see of a job, by its ID or the beginning of it.
func (d *Daemon) Job(id string) (JobView, error) {
	j, err := d.jobs.Get(id)
	return jobView(j, false), err
}

// CancelJob ends a job, by its ID or the beginning of it, and returns it when it has ended. One that ended before stays as
// it is.
func (d *Daemon) CancelJob(ctx context.Context, id string) (JobView, error) {
	j, err := d.jobs.Cancel(ctx, id)
	return jobView(j, false), err
}

// progressEvery is how often FollowJob tells how a job stands.
const progressEvery = 500 * time.Millisecond

// FollowJob calls fn with how a job stands, now and then, and last when it has ended.
func (d *Daemon) FollowJob(ctx context.Context, id string, fn func(JobView) error) error {
	j, err := d.jobs.Get(id)
	for err == nil {
		if err := fn(jobView(j, false)); err != nil || j.State != metadata.JobRunning {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, progressEvery)
		j, err = d.jobs.Wait(wait, j.ID)
		cancel()
		if err == nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

// Credentials open buckets. None are the daemon's own.
type Credentials = destination.Credentials

// A BackupOrder says what to back up.
type BackupOrder struct {
	Subject      string // volume, or snapshot as volume@snapshot, or a snapshot's name or ID
	Destination  string
	KeyFile      string // absolute path, or empty
	Credentials  Credentials
	Policy       string // retention, as repo.ParsePolicy reads it; the volume's own wins
	DropSnapshot bool
}

// Backup begins a backup in a job.
func (d *Daemon) Backup(ctx context.Context, o BackupOrder) (JobView, error) {
	to, err := parseTarget(o.Destination, o.KeyFile, o.Credentials)
	if err != nil {
		return JobView{}, err
	}
	policy, err := repo.ParsePolicy(o.Policy)
	if err != nil {
		return JobView{}, err
	}
	request := backup.Request{To: to, Policy: policy, DropSnapshot: o.DropSnapshot}
	if request.Volume, request.Snapshot, err = d.subject(o.Subject); err != nil {
		return JobView{}, err
	}
	j, joined, err := d.backups.Start(ctx, request)
	return jobView(j, joined), err
}

// CheckDestination opens the repository of a destination, and fails as a backup to it would.
func (d *Daemon) CheckDestination(ctx context.Context, dest, keyFile string, from Credentials) error {
	to, err := parseTarget(dest, keyFile, from)
	if err != nil {
		return err
	}
	return d.backups.Check(ctx, to)
}

// subject finds what is to be backed up: a volume, or a snapshot and its volume.
func (d *Daemon) subject(ref string) (volumeID, snapshotID string, err error) {
	if !strings.Contains(ref, "@") {
		volumeID, err = d.resolve(ref)
		if !fault.Is(err, fault.ErrNotFound) {
			return volumeID, "", err
		}
	}
	s, snapshotErr := d.resolveSnapshot(ref)
	if err != nil && fault.Is(snapshotErr, fault.ErrNotFound) {
		return "", "", err // neither: the volume is what was most likely meant
	}
	return s.Volume.ID, s.ID, snapshotErr
}

// parseTarget reads a destination and checks the paths of a key and of credentials.
func parseTarget(text, keyFile string, from Credentials) (to backup.Target, err error) {
	if to.Destination, err = destination.Parse(text); err != nil {
		return to, err
	}
	to.KeyFile, to.Credentials = keyFile, from
	return to, checkFiles(keyFile, from)
}

// checkFiles refuses relative paths.
func checkFiles(keyFile string, from Credentials) error {
	if err := checkKeyFile(keyFile); err != nil {
		return err
	}
	for _, path := range []string{from.File, from.CABundle} {
		if path != "" && !filepath.IsAbs(path) {
			return fault.Errorf(fault.ErrInvalid, "S3 credentials %q: must be an absolute path on this host", path)
		}
	}
	return nil
}

// checkKeyFile refuses a relative path: the daemon's directory is not the user's.
func checkKeyFile(path string) error {
	if path != "" && !filepath.IsAbs(path) {
		return fault.Errorf(fault.ErrInvalid, "key file %q: must be an absolute path on this host", path)
	}
	return nil
}

// CollectBackups begins to free what no backup of a destination needs. If daily is set and that was done within the last
// day, it does nothing and due is false.
func (d *Daemon) CollectBackups(ctx context.Context, dest, keyFile string, from Credentials, daily bool) (view JobView, due bool, err error) {
	to, err := parseTarget(dest, keyFile, from)
	if err != nil {
		return view, false, err
	}
	j, due, err := d.backups.Collect(ctx, to, daily)
	return jobView(j, false), due, err
}

// A RestoreOrder says what to restore.
type RestoreOrder struct {
	URL     string
	KeyFile string // absolute path, or empty

	Credentials Credentials

	Name    string // of the new volume; empty for that of the volume that was backed up
	Options []Option
	InPlace bool // give the content to the volume of that name, which is there and unused
	Discard bool // in place: do not keep what the volume holds now
}

// Restore begins to restore a backup in a job.
func (d *Daemon) Restore(ctx context.Context, o RestoreOrder) (JobView, error) {
	u, err := destination.ParseURL(o.URL)
	if err == nil {
		err = checkFiles(o.KeyFile, o.Credentials)
	}
	if err != nil {
		return JobView{}, err
	}
	if o.InPlace {
		return d.restoreInPlace(ctx, u, o)
	}
	s, err := d.parseOptions(o.Name, o.Options)
	if err != nil {
		return JobView{}, err
	}
	return d.restore(ctx, u, o.KeyFile, o.Credentials, s, false)
}

// restore begins to restore a backup to a volume that is specified in part.
func (d *Daemon) restore(ctx context.Context, u destination.URL, keyFile string, from Credentials, s CreateSpec, docker bool) (JobView, error) {
	j, joined, err := d.backups.Restore(ctx, backup.RestoreRequest{
		URL: u, KeyFile: keyFile, Credentials: from, Docker: docker,
		Spec: func(b *repo.Backup) (volume.Spec, error) { return d.restoreSpec(s, b) },
	})
	return jobView(j, joined), err
}

func (d *Daemon) restoreInPlace(ctx context.Context, u destination.URL, o RestoreOrder) (JobView, error) {
	if o.Name == "" {
		return JobView{}, fault.Errorf(fault.ErrInvalid, "restore in place: name the volume that is to be replaced")
	}
	if len(o.Options) > 0 {
		return JobView{}, fault.Errorf(fault.ErrInvalid, "restore in place: the volume keeps its pool and its settings: %q cannot be given", o.Options[0].Key)
	}
	id, err := d.resolve(o.Name)
	if err != nil {
		return JobView{}, err
	}
	j, joined, err := d.backups.RestoreInPlace(ctx, u, backup.Target{Destination: u.Destination, KeyFile: o.KeyFile, Credentials: o.Credentials}, id, o.Discard)
	return jobView(j, joined), err
}

// restoreSpec completes the specification of a volume with what a backup's record says.
func (d *Daemon) restoreSpec(s CreateSpec, b *repo.Backup) (volume.Spec, error) {
	if s.Name == "" {
		s.Name = b.Volume.Name
	}
	if err := checkName(s.Name); err != nil {
		return s.Spec, err
	}
	if s.given["uid"] || s.given["gid"] || s.given["mode"] {
		return s.Spec, fault.Errorf(fault.ErrInvalid, "options uid, gid and mode: a restored volume has those of its backup")
	}
	if s.given["from"] {
		return s.Spec, fault.Errorf(fault.ErrInvalid, "option %q: not with a backup", "from")
	}
	like := metadata.Volume{Filesystem: b.Filesystem, UID: b.UID, GID: b.GID, Mode: b.Mode, MountOptions: b.MountOptions, Labels: b.Labels}
	if err := s.inheritAll("backup "+b.ID(), like, b.Size); err != nil {
		return s.Spec, err
	}
	if err := errors.Join(d.checkHooks(s.PreSnapshot, s.PostSnapshot), s.checkFilesystem()); err != nil {
		return s.Spec, err
	}
	err := d.choosePool(&s, s.given)
	s.BlockSize = b.BlockSize
	return s.Spec, err
}

// restoreWait is how long Docker's calls wait for a restore. Docker itself waits for 120 s.
const restoreWait = 100 * time.Second

// createFromBackup makes a volume from a backup: for Docker it waits a while for the restore, for others until it ends.
func (d *Daemon) createFromBackup(ctx context.Context, s CreateSpec, docker bool) error {
	u, err := destination.ParseURL(s.backup)
	if err == nil && s.given["endpoint"] {
		u.Destination, err = u.WithEndpoint(s.endpoint)
	}
	if err == nil {
		err = checkKeyFile(s.keyFile)
	}
	if err != nil {
		return err
	}
	view, err := d.restore(ctx, u, s.keyFile, Credentials{}, s, docker)
	if err != nil {
		return err
	}
	wait := ctx
	if docker {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, restoreWait)
		defer cancel()
	}
	j, err := d.jobs.Wait(wait, view.ID)
	switch {
	case err != nil:
		return err
	case j.State == metadata.JobRunning && docker:
		return nil // the volume is there, and mounting it waits
	case j.State == metadata.JobRunning:
		return ctx.Err()
	case j.Error != nil:
		return j.Error.Err()
	}
	return nil
}

// awaitRestore waits a while for the restore of the volume with this ID, if there is one, for Docker's Mount.
func (d *Daemon) awaitRestore(ctx context.Context, id string) error {
	j, running := d.jobs.Running(backup.RestoreKey(id))
	if running {
		wait, cancel := context.WithTimeout(ctx, restoreWait)
		defer cancel()
		var err error
		if j, err = d.jobs.Wait(wait, j.ID); err != nil {
			return err
		}
	}
	var v metadata.Volume
	err := d.store.View(func(tx *metadata.Tx) (err error) { v, err = tx.Volume(id); return err })
	if err != nil {
		return err
	}
	switch v.State {
	case metadata.Restoring:
		progress := "it has not begun"
		if j.Total > 0 {
			progress = Bytes(j.Done) + " of " + Bytes(j.Total) + " are there"
		}
		if v.Restore.Error != "" {
			progress = "it waits: " + v.Restore.Error
		}
		return fault.Errorf(fault.ErrInUse, "volume %q: is being restored from %s: %s: start the container again later", v.Name, v.Restore.URL, progress)
	case metadata.Failed:
		return fault.Errorf(fault.ErrFailed, "volume %q: its restore failed: %s: run %s", v.Name, v.Restore.Error, restoreAgain(v.Name, v.Restore.URL))
	}
	return nil
}

// restoreAgain is what to type for a volume whose restore failed.
func restoreAgain(name, url string) string {
	return run.Line("orlop", "backup", "restore", url, name) + ", or " + run.Line("orlop", "delete", name)
}

// A RestoreView is what users see of the backup that a volume came from, or is being filled from.
type RestoreView struct {
	URL   string `json:"url"`
	Done  int64  `json:"done"`  // bytes, while it runs
	Total int64  `json:"total"` // bytes, while it runs
	Error string `json:"error,omitempty"`
}

// BackupRef is what users see of a volume's last backup.
type BackupRef struct {
	URL     string `json:"url"`
	Created string `json:"created"` // RFC 3339, UTC
}

// A BackupStatus is what users see of the backups of a volume to one destination.
type BackupStatus struct {
	Volume      string
	Destination string
	Last        time.Time // when the last one was committed; zero if none was
	Created     time.Time // and when its snapshot was taken
	Duration    time.Duration
	Read        int64 // bytes
	Stored      int64 // bytes
	Failures    int64
	Error       string // of the last attempt, if that failed
}

// BackupStatuses returns how the backups of every volume stand.
func (d *Daemon) BackupStatuses() (statuses []BackupStatus, err error) {
	err = d.store.View(func(tx *metadata.Tx) error {
		all, err := tx.Backups("")
		if err != nil {
			return err
		}
		for _, s := range all {
			v, err := tx.Volume(s.Volume)
			if err != nil {
				return err
			}
			statuses = append(statuses, BackupStatus{v.Name, s.Destination, s.Finished, s.Created, s.Duration, s.Read, s.Stored, s.Failures, s.Error})
		}
		return nil
	})
	return statuses, err
}

// lastBackup returns the newest of a volume's backups that this host made, or nil.
func lastBackup(all []metadata.BackupStatus) *BackupRef {
	var newest metadata.BackupStatus
	for _, s := range all {
		if s.URL != "" && s.Finished.After(newest.Finished) {
			newest = s
		}
	}
	if newest.URL == "" {
		return nil
	}
	return &BackupRef{URL: newest.URL, Created: newest.Created.UTC().Format(time.RFC3339Nano)}
}

// restoreView returns what users see of where a volume came from, or nil.
func (d *Daemon) restoreView(v metadata.Volume) *RestoreView {
	if v.Restore == nil {
		return nil
	}
	view := &RestoreView{URL: v.Restore.URL, Error: v.Restore.Error}
	if v.State == metadata.Restoring {
		if j, running := d.jobs.Running(backup.RestoreKey(v.ID)); running {
			view.Done, view.Total = j.Done, j.Total
		}
	}
	return view
}
