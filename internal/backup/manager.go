// Package backup backs volumes up into repositories and restores them: it ties snapshots, changed extents, pins and jobs
// to the repository engine, which knows none of them. Volumes and snapshots are named by their IDs here, repositories by
// their destinations.
package backup

import (
	"context"
	"log/slog"
	"os"
	"time"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// The kinds of jobs.
const (
	KindBackup  = "backup"
	KindRestore = "restore"
	KindCollect = "collect"
)

// Config is what a Manager needs.
type Config struct {
	Store     Store
	Volumes   *volume.Manager
	Snapshots *snapshot.Manager
	Jobs      *job.Manager
	StateDir  string // where this host remembers destinations; see destination.Options
	Version   string // of the program, for the records of backups
	Log       *slog.Logger
}

// A Store is what a Manager needs of a metadata.Store.
type Store interface {
	View(fn func(*metadata.Tx) error) error
	Update(ctx context.Context, fn func(*metadata.Tx) error) error
}

// A Manager backs up and restores. It is safe for concurrent use.
type Manager struct {
	store     Store
	volumes   *volume.Manager
	snapshots *snapshot.Manager
	jobs      *job.Manager
	stateDir  string
	version   string
	host      string
	log       *slog.Logger
	now       func() time.Time // the host's clock; another one in tests
	pauses    []time.Duration  // before each further try of a restore
	open      repositories
}

// New returns a Manager on c.
func New(c Config) *Manager {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &Manager{
		store: c.Store, volumes: c.Volumes, snapshots: c.Snapshots, jobs: c.Jobs, stateDir: c.StateDir, version: c.Version,
		host: host, log: c.Log, now: time.Now, open: repositories{runs: repo.NewRuns()},
		pauses: []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute},
	}
}

// A Target says where a repository is and with what it is opened.
type Target struct {
	Destination destination.Destination
	KeyFile     string                  // path of the key on this host; empty for a repository that is not encrypted
	Credentials destination.Credentials // for a bucket; zero for those of this process
}
