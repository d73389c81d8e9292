package metadata

import (
	"encoding/json"
	"time"

	"orlop/internal/fault"
)

// State is where a volume stands in its life.
type State string

// The states of a volume. The record exists before the first effect on disk and outlives the last.
const (
	Creating State = "creating" // being made; undone at the next start if the daemon dies
	Ready    State = "ready"
	Removing State = "removing" // being deleted; finished after the next start if the daemon dies

	// Restoring is the state of a volume that is being filled from a backup. It outlives the daemon: the restore is
	// resumed after the next start.
	Restoring State = "restoring"
	// Failed is the state of a volume whose restore failed. It keeps its name, so that Docker does not create an empty
	// volume under it, and can be restored again or deleted.
	Failed State = "failed"
)

// Keeping is a state of snapshots only: the state of a volume that a rollback replaced, which is being made a
// snapshot; finished at the next start if the daemon dies.
const Keeping State = "keeping"

// absent stands for "no record" in the table of transitions.
const absent State = ""

// transitions lists what may follow each state. A later state is one more row.
var transitions = map[State][]State{
	absent:    {Creating, Ready, Restoring, Failed}, // all but Creating: also adopted, or rebuilt from device records
	Creating:  {Ready, Removing, absent},
	Restoring: {Restoring, Ready, Failed, Removing, absent},
	Failed:    {Failed, Restoring, Removing},
	Ready:     {Ready, Removing},
	Removing:  {absent},
}

// snapshotTransitions is the same for snapshots.
var snapshotTransitions = map[State][]State{
	absent:   {Creating, Keeping, Ready}, // Ready: rebuilt from device records
	Creating: {Ready, Removing, absent},
	Keeping:  {Ready, Removing},
	Ready:    {Ready, Removing},
	Removing: {absent},
}

// Volume is one volume's record.
type Volume struct {
	ID           string            `json:"id"`      // UUIDv7
	Name         string            `json:"name"`    // unique among volumes
	Lineage      string            `json:"lineage"` // shared by a volume and what is copied from it; UUIDv7
	Device       string            `json:"device"`  // ID of its block device
	Pool         string            `json:"pool"`    // the pool's name
	PoolUUID     string            `json:"pool_uuid"`
	Size         int64             `json:"size"` // bytes wanted; every activation converges to it
	Filesystem   string            `json:"filesystem"`
	MkfsParams   []string          `json:"mkfs_params,omitempty"`
	BlockSize    int               `json:"block_size"` // logical block size of the device in bytes
	UID          int               `json:"uid"`        // owner of the root directory when made
	GID          int               `json:"gid"`
	Mode         uint32            `json:"mode"` // permission bits of the root directory when made
	MountOptions []string          `json:"mount_options,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Protected    bool              `json:"protected,omitempty"`
	PreSnapshot  []string          `json:"pre_snapshot,omitempty"`  // command to run before a snapshot, with its arguments
	PostSnapshot []string          `json:"post_snapshot,omitempty"` // and after it, whatever became of it
	Rollbacks    int               `json:"rollbacks,omitempty"`     // how often the device was replaced: the highest is the volume's
	Keep         string            `json:"keep,omitempty"`          // retention policy of its backups, as in "daily:7,weekly:4"
	NoBackup     bool              `json:"no_backup,omitempty"`     // left out when all volumes are backed up
	Restore      *Restore          `json:"restore,omitempty"`       // the backup that the volume came from, or is being filled from
	State        State             `json:"state"`
	Created      time.Time         `json:"created"`
}

// Restore says from which backup a volume is, or was, filled. It names no secret.
type Restore struct {
	URL         string `json:"url"`                   // of the backup
	Backup      string `json:"backup"`                // its ID
	KeyFile     string `json:"key_file,omitempty"`    // path of the key on this host
	Credentials string `json:"credentials,omitempty"` // path of the keys for the bucket on this host; empty for the daemon's own
	Size        int64  `json:"size,omitempty"`        // bytes to grow to when the content is there; 0 for the backup's size
	Docker      bool   `json:"docker,omitempty"`      // asked for by Docker, which must never see the volume vanish
	Error       string `json:"error,omitempty"`       // why it failed or, in state restoring, waits
}

// Snapshot is one snapshot's record.
type Snapshot struct {
	ID          string            `json:"id"`                 // UUIDv7, so that snapshots sort by their age, as the clock told it
	Sequence    uint64            `json:"sequence,omitempty"` // given when it is recorded, rising, whatever the clock says; 0 of old ones
	Name        string            `json:"name"`               // unique among the volume's snapshots
	Device      string            `json:"device"`             // ID of its block device
	Size        int64             `json:"size"`               // bytes
	Labels      map[string]string `json:"labels,omitempty"`
	Managed     bool              `json:"managed,omitempty"`    // taken by a backup: never in the way of a deletion
	Repository  string            `json:"repository,omitempty"` // of a managed one: ID of the repository that it was taken for
	Backup      string            `json:"backup,omitempty"`     // ID of the backup whose content it has, of a volume just restored
	Group       string            `json:"group,omitempty"`      // shared by snapshots of one point in time; UUIDv7
	Consistency Consistency       `json:"consistency"`
	State       State             `json:"state"`
	Created     time.Time         `json:"created"`
	Volume      Volume            `json:"volume"` // as it was then; its ID says whose snapshot this is
}

// Consistency tells what was done so that a snapshot shows a whole filesystem.
type Consistency string

// The ways to a consistent snapshot.
const (
	Unmounted Consistency = "unmounted" // nobody had the filesystem mounted
	Frozen    Consistency = "frozen"    // the filesystem was frozen meanwhile
	Quiesced  Consistency = "quiesced"  // the pool made the filesystem consistent
)

// The kinds of devices.
const (
	KindVolume   = "volume"   // a volume's current device
	KindSnapshot = "snapshot" // a snapshot's
	KindIncoming = "incoming" // being made to replace a volume's; removed at the next start if the daemon dies
	KindTrash    = "trash"    // replaced; removed in the background
	KindGrowing  = "growing"  // copy of a volume's, to grow its filesystem on; removed at the next start if the daemon dies
)

// Device is the record of one block device.
type Device struct {
	ID     string `json:"id"`
	Pool   string `json:"pool"`
	Parent string `json:"parent,omitempty"` // ID of the device it was cloned from
	Kind   string `json:"kind"`
	Size   int64  `json:"size"` // bytes

	// FailedGrowth is set on a volume's device whose filesystem is smaller than the volume is to be.
	FailedGrowth *FailedGrowth `json:"failed_growth,omitempty"`
}

// FailedGrowth is a growth of a filesystem that failed. Its volume is used at the size that it has.
type FailedGrowth struct {
	Wanted  int64  `json:"wanted"`          // bytes
	Size    int64  `json:"size"`            // bytes that the filesystem has instead
	Problem string `json:"problem"`         // why, in words
	Retry   bool   `json:"retry,omitempty"` // each mount tries again; otherwise only a resize does
}

// Pool is the identity of a pool. A pool that is recorded here and does not show its marker is missing, never new.
type Pool struct {
	Name    string    `json:"name"`
	UUID    string    `json:"uuid"`
	Spec    string    `json:"spec"` // as on the command line: "loop", "loop:/dir"
	Created time.Time `json:"created"`
}

// Holder is somebody who asked for a volume to be mounted and has not yet let go.
type Holder struct {
	Volume     string    `json:"volume"`               // the volume's ID
	ID         string    `json:"id"`                   // Docker's mount ID, or one of the command line's
	Mountpoint string    `json:"mountpoint,omitempty"` // besides the volume's own; empty for Docker
	User       bool      `json:"user,omitempty"`       // taken by "orlop mount": only "orlop umount" or a reboot drops it
	Boot       string    `json:"boot"`                 // boot ID of the kernel it was taken under
	Epoch      uint64    `json:"epoch,omitempty"`      // Docker epoch it was taken in
	Since      time.Time `json:"since"`                // by the wall clock, for people
	SinceBoot  int64     `json:"since_boot,omitempty"` // seconds from the start of that kernel, suspends included; ages count by it
}

// Intent announces a freeze. It is recorded before the freeze and removed after the thaw.
type Intent struct {
	Volume string `json:"volume"` // the volume's ID
	Boot   string `json:"boot"`
	Device uint64 `json:"device"` // st_rdev of the frozen filesystem's block device
}

// JobState is where a job stands.
type JobState string

// The states of a job. All but Running are final.
const (
	JobRunning     JobState = "running"
	JobDone        JobState = "done"
	JobFailed      JobState = "failed"
	JobCanceled    JobState = "canceled"    // by a person
	JobInterrupted JobState = "interrupted" // by the end of the daemon
)

// Job is the record of one piece of long work.
type Job struct {
	ID          string          `json:"id"`               // UUIDv7, so that jobs sort by their age
	Kind        string          `json:"kind"`             // "backup", "restore", …
	Key         string          `json:"key"`              // two jobs of one key never run at once
	Volume      string          `json:"volume,omitempty"` // name
	VolumeID    string          `json:"volume_id,omitempty"`
	Snapshot    string          `json:"snapshot,omitempty"` // ID of the snapshot, if one was named
	Destination string          `json:"destination,omitempty"`
	State       JobState        `json:"state"`
	Done        int64           `json:"done"`  // bytes
	Total       int64           `json:"total"` // bytes; 0 while unknown
	Started     time.Time       `json:"started"`
	Ended       time.Time       `json:"ended,omitzero"`
	Error       *JobError       `json:"error,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"`
}

// JobError is why a job failed.
type JobError struct {
	Kind    fault.Kind    `json:"kind"`
	Message string        `json:"message"`
	Remedy  *fault.Remedy `json:"remedy,omitempty"`
}

// NewJobError returns the record of err.
func NewJobError(err error) *JobError {
	j := &JobError{Kind: fault.KindOf(err), Message: err.Error()}
	if remedy, ok := fault.RemedyOf(err); ok {
		j.Remedy = &remedy
	}
	return j
}

// Err returns the error that was recorded.
func (j *JobError) Err() error {
	err := fault.Errorf(j.Kind, "%s", j.Message)
	if j.Remedy != nil {
		err = fault.WithRemedy(err, *j.Remedy)
	}
	return err
}

// BackupStatus is what this host knows of the backups of one volume in one repository.
type BackupStatus struct {
	Volume      string        `json:"volume"`             // the volume's ID
	Destination string        `json:"destination"`        // URL
	KeyFile     string        `json:"key_file,omitempty"` // path of the key that the last attempt was given
	Repository  string        `json:"repository,omitempty"`
	URL         string        `json:"url,omitempty"`     // of the newest backup that this host made
	Created     time.Time     `json:"created,omitzero"`  // when its snapshot was taken
	Finished    time.Time     `json:"finished,omitzero"` // when it was committed
	Duration    time.Duration `json:"duration_ns"`
	Read        int64         `json:"read"`     // bytes of the volume that it read
	Stored      int64         `json:"stored"`   // bytes that it added to the repository
	Failures    int64         `json:"failures"` // ever
	Failed      time.Time     `json:"failed,omitzero"`
	Error       string        `json:"error,omitempty"` // of the last attempt, if that failed
}
