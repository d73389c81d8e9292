package destination

import (
	"context"
	"errors"
	"fmt"
	"io"

	"orlop/internal/backup/repo"
	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/fault"
)

// Options are what Open, OpenOrInit and Repair need besides the destination.
type Options struct {
	// Key opens an encrypted repository; nil for one that is not encrypted. See repo.ReadKeyFile.
	Key *repo.Key

	// StateDir is where this host remembers destinations, each in a directory of its own, which is made when there is
	// something to keep: an absolute path. If it is empty nothing is remembered, lists of what packs hold are read from the
	// store by each process, and sessions of other hosts that stalled are never ended.
	StateDir string

	// Runs are those of this process, if it may have one repository open twice, at one destination or at two that are the
	// same directory. Nil for a process that does not.
	Runs *repo.Runs

	// Credentials open buckets.
	Credentials Credentials

	// Warn is told of what keeps no work from being done: *StateError, perhaps often; *Error; or another error. It may be
	// called concurrently. Nil ignores warnings.
	Warn func(error)
}

func (o Options) warn(err error) {
	if o.Warn != nil {
		o.Warn(err)
	}
}

// A Repository is an open repository in its destination, with what this host remembers of it. It is safe for concurrent use.
// See Options.Runs for a process that opens several.
type Repository struct {
	*repo.Repository
	Destination Destination
	State       *State

	objects objects
	warn    func(error)
}

// Open opens the repository of a destination. It makes nothing there, and fails with fault.ErrNotFound if no repository is
// there: the disk may not be mounted. Otherwise it fails as repo.Open does, with fault.ErrCorrupt for one that this host does
// not know. Errors that have a remedy are Errors: InitRepository, GiveKey. The caller closes the repository, and until then
// its filesystem is in use.
func Open(ctx context.Context, at Destination, o Options) (*Repository, error) {
	state := at.state(o)
	known, err := state.Recall()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	objects, err := openStore(at, known, o.Credentials)
	if err != nil {
		return nil, err
	}
	opened, err := openIn(ctx, at, objects, o, state, known)
	if err != nil {
		_ = objects.Close() // the error says more
		return nil, err
	}
	if damage := opened.Damage(); damage != nil {
		o.warn(damage)
	}
	return &Repository{opened, at, state, objects, o.warn}, nil
}

// isKnown reports whether this host knows a repository.
func isKnown(known repo.Known) bool { return known.Repository != repo.ID{} }

// objects is the store of a destination, as long as it is open.
type objects interface {
	store.Store
	io.Closer
}

func openStore(at Destination, known repo.Known, from Credentials) (objects, error) {
	if at.IsBucket() {
		return openBucket(at, from)
	}
	objects, err := dirstore.Open(at.dir)
	switch {
	case err == nil:
		return objects, nil
	case !fault.Is(err, fault.ErrNotFound):
		return nil, err
	case at.isTaken(): // which the error tells
		return nil, err
	case isKnown(known):
		return nil, fmt.Errorf("%w This host knows repository %s there", err, known.Repository)
	}
	return nil, &Error{Destination: at, Remedy: InitRepository, err: err}
}

func openIn(ctx context.Context, at Destination, objects objects, o Options, state *State, known repo.Known) (*repo.Repository, error) {
	options, err := state.options(at)
	if err != nil {
		return nil, err
	}
	if o.Runs != nil {
		options = append(options, repo.RunsIn(o.Runs))
	}
	r, err := repo.Open(ctx, objects, o.Key, options...)
	if err = missingBucket(err); err != nil && r == nil && isMissingBucket(err) {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	switch {
	case fault.Is(err, fault.ErrNotFound) && isKnown(known): // which the error tells
		return nil, fmt.Errorf("%s: %w: %s", at, err, at.doubt())
	case fault.Is(err, fault.ErrNotFound):
		return nil, &Error{Destination: at, Remedy: InitRepository, err: fmt.Errorf("%s: %w; %s", at, err, at.doubt())}
	case o.Key == nil && fault.Is(err, fault.ErrInvalid):
		return nil, &Error{Destination: at, Remedy: GiveKey, err: fmt.Errorf("%s: %w", at, err)}
	case err != nil:
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return r, nil
}

// Close lets go of the destination. No other method may be called any more, and none may be running.
func (r *Repository) Close() error { return r.objects.Close() }

// RememberedDamage returns what Verify found by this host's State, and did not find repaired since. It is what repo.BackupSpec
// and retention take.
func (r *Repository) RememberedDamage() repo.Damage {
	return repo.RememberedDamage(r.State.verified())
}

// Verify is repo.Repository.Verify with the host's memory of what was verified when.
func (r *Repository) Verify(ctx context.Context, o repo.VerifyOptions) (repo.Report, error) {
	o.Memory = r.State.verifiable()
	return r.Repository.Verify(ctx, o)
}

// PlanPrune is repo.Repository.PlanPrune for which backups that this host found damaged do not count as good ones.
func (r *Repository) PlanPrune(ctx context.Context, o repo.PruneOptions) (*repo.PrunePlan, error) {
	if o.Affected == nil {
		o.Affected = r.RememberedDamage().Hurts
	}
	if o.Warn == nil {
		o.Warn = r.warn
	}
	return r.Repository.PlanPrune(ctx, o)
}

// Repair is repo.Repair of a destination, whose config must tell or have told of a repository that o.Key opens. It fails as
// Open does before it begins.
func Repair(ctx context.Context, at Destination, o Options, dryRun, dropDamaged bool) ([]repo.Step, error) {
	quiet := o
	quiet.Warn = func(err error) {
		var lost *StateError
		if errors.As(err, &lost) { // the damage is what the steps are about
			o.warn(err)
		}
	}
	r, err := Open(ctx, at, quiet)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	origin, err := repo.LocalOrigin()
	if err != nil {
		return nil, err
	}
	steps, err := repo.Repair(ctx, r.objects, o.Key, repo.RepairOptions{
		DryRun: dryRun, DropDamaged: dropDamaged, Origin: origin, At: at.Quoted(), Memory: r.State.memory(), Cache: r.State.dir,
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", at, err)
	}
	return steps, err
}
