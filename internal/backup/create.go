package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"orlop/blockdev"
	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/fault"
	"orlop/internal/job"
	"orlop/metadata"
	"orlop/snapshot"
)

// A Request asks for a backup of a volume.
type Request struct {
	Volume       string // ID of the volume
	Snapshot     string // ID of the snapshot of it to back up; empty to take one
	To           Target
	Policy       repo.Policy // applied to the volume's backups afterwards, unless the volume has one of its own; zero: none
	DropSnapshot bool        // do not keep the snapshot that was taken, so that the next backup reads all
}

// Made is the result of a backup.
type Made struct {
	View
	Read        int64    `json:"read"`        // bytes of the volume that were read
	Incremental bool     `json:"incremental"` // only what changed was read
	Resumed     bool     `json:"resumed"`     // what an earlier run had uploaded was used
	Existed     bool     `json:"existed"`     // the snapshot had been backed up already
	Recovered   bool     `json:"recovered"`   // the attempt before failed
	Removed     []string `json:"removed"`     // IDs of the backups that the policy removed
	Warnings    []string `json:"warnings"`    // of what did not fail the backup
}

// Start begins a backup in a job of its own. If one of the same volume, or of the same snapshot, to the same destination runs,
// that is returned and joined is true. While one of another snapshot of the volume runs, or one of the volume if a snapshot is
// asked for, Start waits for its end. What goes wrong with the backup itself shows in the job.
func (m *Manager) Start(ctx context.Context, q Request) (j metadata.Job, joined bool, err error) {
	v, err := m.volume(q.Volume)
	if err != nil {
		return j, false, err
	}
	spec := job.Spec{
		Kind: KindBackup, Key: KindBackup + "/" + v.ID + "/" + q.To.Destination.String(),
		Volume: v.Name, VolumeID: v.ID, Snapshot: q.Snapshot, Destination: q.To.Destination.String(),
	}
	work := func(ctx context.Context, progress func(done, total int64)) (any, error) {
		return m.run(ctx, v, q, progress)
	}
	for {
		j, joined, err = m.jobs.Start(ctx, spec, work)
		if err != nil || !joined || j.Snapshot == q.Snapshot {
			return j, joined, err
		}
		if _, err := m.jobs.Wait(ctx, j.ID); err != nil {
			return j, false, err
		}
		if ctx.Err() != nil {
			return j, false, fmt.Errorf("back up volume %q: wait for job %s: %w", v.Name, j.ID, ctx.Err())
		}
	}
}

// run is the work of a backup's job.
func (m *Manager) run(ctx context.Context, v metadata.Volume, q Request, progress func(done, total int64)) (any, error) {
	before := m.status(v.ID, q.To)
	made, err := m.backup(ctx, v, q, progress)
	if err != nil {
		m.recordFailure(ctx, v, q.To, err)
		return nil, fmt.Errorf("back up volume %q: %w", v.Name, err)
	}
	made.Recovered = before.Error != ""
	m.log.Info("volume backed up", "volume", v.Name, "backup", made.ID, "destination", q.To.Destination.String(),
		"read", made.Read, "stored", made.Stored, "incremental", made.Incremental)
	return made, nil
}

func (m *Manager) volume(id string) (v metadata.Volume, err error) {
	err = m.store.View(func(tx *metadata.Tx) error { v, err = tx.Volume(id); return err })
	return v, err
}

// backup makes one backup: snapshot, upload, commit, and then what follows from that.
func (m *Manager) backup(ctx context.Context, v metadata.Volume, q Request, progress func(done, total int64)) (made Made, err error) {
	r, release, err := m.opened(ctx, q.To)
	if err != nil {
		return made, err
	}
	defer release()
	head, err := r.Newest(ctx, v.Lineage)
	if err != nil {
		return made, err
	}
	if err := m.dropUnknown(ctx, r, v, head); err != nil {
		return made, err
	}
	s, taken, err := m.source(ctx, r, v, q.Snapshot)
	if err != nil {
		return made, err
	}
	committed := false
	defer func() {
		if taken && (!committed || q.DropSnapshot) {
			err = errors.Join(err, m.dropSnapshot(context.WithoutCancel(ctx), s))
		}
	}()
	began := m.now()
	if made, err = m.upload(ctx, r, s, head, progress); err != nil {
		return made, err
	}
	committed = true
	m.recordSuccess(ctx, v, q.To, r, made, m.now().Sub(began))
	if taken && !q.DropSnapshot {
		m.warn(&made, "cannot delete the snapshot that the backup before was made of", m.dropOlder(ctx, r, s))
	}
	m.retain(ctx, r, v, q.Policy, &made)
	return made, nil
}

// warn notes what did not fail a backup.
func (m *Manager) warn(made *Made, what string, err error) {
	if err != nil {
		m.log.Warn(what, "volume", made.Volume, "error", err)
		made.Warnings = append(made.Warnings, fmt.Sprintf("%s: %v", what, err))
	}
}

// source returns the snapshot to back up: the one asked for, or one that it takes.
func (m *Manager) source(ctx context.Context, r *destination.Repository, v metadata.Volume, id string) (s metadata.Snapshot, taken bool, err error) {
	if id != "" {
		err = m.store.View(func(tx *metadata.Tx) error { s, err = tx.Snapshot(id); return err })
		return s, false, err
	}
	now := m.now().UTC()
	name := "backup-" + now.Format("20060102T150405.000Z")
	list, err := m.snapshots.Create(ctx, []string{v.ID}, snapshot.Spec{Name: name, Managed: true, Repository: r.ID().String(), Created: now})
	if err != nil {
		return s, false, err
	}
	return list[0], true, nil
}

// upload backs up a snapshot, which it pins meanwhile. Head is one that was the newest lately.
func (m *Manager) upload(ctx context.Context, r *destination.Repository, s metadata.Snapshot, head *repo.Head, progress func(done, total int64)) (made Made, err error) {
	s, unpin, err := m.volumes.Pin(s.ID, "a backup to "+r.Destination.String())
	if err != nil {
		return made, err
	}
	defer unpin()
	if err := m.snapshots.CheckDevice(ctx, s); err != nil {
		return made, err
	}
	damage := r.RememberedDamage()
	base, err := m.base(ctx, r, s, head, damage)
	if err != nil {
		return made, err
	}
	defer base.unpin()
	if base.same {
		return Made{View: NewView(r, base.backup), Existed: true, Removed: []string{}, Warnings: []string{}}, nil
	}
	differ, err := m.differ(s)
	if err != nil {
		return made, err
	}
	source, err := differ.Open(ctx, blockdev.ID(s.Device))
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	written, err := r.Backup(ctx, repo.BackupSpec{
		Backup: m.record(s), Source: source, Base: base.record(), Head: head, Damage: damage, Progress: progress,
		Extents: func(ctx context.Context, on *repo.Backup, fn func(repo.Extent) error) error {
			from := blockdev.ID("")
			if on != nil {
				from = blockdev.ID(base.snapshot.Device)
			}
			return differ.Diff(ctx, from, blockdev.ID(s.Device), func(e blockdev.Extent) error {
				return fn(repo.Extent{Offset: e.Offset, Length: e.Length, Hole: e.Kind == blockdev.Hole})
			})
		},
	})
	if fault.Is(err, fault.ErrNoSpace) { // reading the snapshot takes none
		return made, fmt.Errorf("destination %s is full: %w", r.Destination, err)
	}
	if err != nil {
		return made, err
	}
	made = Made{
		View: NewView(r, written.Backup), Read: written.Stats.Read, Resumed: written.Adopted,
		Incremental: written.Parent != "" && written.Mistrust == nil, Removed: []string{}, Warnings: []string{},
	}
	m.warn(&made, "the record of what changed was wrong: all of the volume was read", written.Mistrust)
	return made, nil
}

// differ returns what reads and compares snapshots of a snapshot's pool.
func (m *Manager) differ(s metadata.Snapshot) (blockdev.Differ, error) {
	pool, err := m.volumes.Pool(s.Volume)
	if err != nil {
		return nil, err
	}
	differ, can := pool.Differ()
	if !can {
		return nil, fault.Errorf(fault.ErrUnsupported, "pool %q: cannot read snapshots", s.Volume.Pool)
	}
	return differ, nil
}

// record returns what a backup's record says of the volume and the snapshot.
func (m *Manager) record(s metadata.Snapshot) repo.Backup {
	v := s.Volume
	return repo.Backup{
		Lineage: v.Lineage, Size: s.Size, Volume: repo.Named{ID: v.ID, Name: v.Name}, Snapshot: repo.Named{ID: s.ID, Name: s.Name},
		BlockSize: v.BlockSize, Filesystem: v.Filesystem, MkfsParams: v.MkfsParams, Labels: v.Labels,
		UID: v.UID, GID: v.GID, Mode: v.Mode, MountOptions: v.MountOptions,
		Consistency: string(s.Consistency), Hooks: len(v.PreSnapshot)+len(v.PostSnapshot) > 0, Group: s.Group,
		Writer: m.version, Host: m.host, Created: s.Created,
	}
}

// A View is what users see of a backup. Its JSON is a contract: names never change.
type View struct {
	URL        string `json:"url"`
	ID         string `json:"id"`
	Volume     string `json:"volume"`
	VolumeID   string `json:"volume_id"`
	Host       string `json:"host"`
	Snapshot   string `json:"snapshot"`
	Created    string `json:"created"` // when the snapshot was taken: RFC 3339, UTC
	Size       int64  `json:"size"`    // of the volume, bytes
	Stored     int64  `json:"stored"`  // bytes that the backup added to the repository
	New        int64  `json:"new"`     // bytes of the volume in these
	DurationMS int64  `json:"duration_ms"`
	Encrypted  bool   `json:"encrypted"`
}

// NewView returns what users see of a backup in a repository.
func NewView(r *destination.Repository, b *repo.Backup) View {
	return View{
		URL: r.Destination.URL(b).String(), ID: b.ID(), Volume: b.Volume.Name, VolumeID: b.Volume.ID, Host: b.Host,
		Snapshot: b.Snapshot.Name, Created: b.Created.UTC().Format(time.RFC3339Nano), Size: b.Size, Stored: b.Stats.Stored,
		New: b.Stats.New, DurationMS: b.Duration.Milliseconds(), Encrypted: r.Encrypted(),
	}
}
