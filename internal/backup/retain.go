package backup

import (
	"context"
	"fmt"
	"time"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
	"orlop/internal/job"
	"orlop/metadata"
)

// retain applies a policy to the backups of one volume: the volume's own, or the one given. It removes records only: what
// they held is freed by a collection. What fails is a warning, as the backup is there.
func (m *Manager) retain(ctx context.Context, r *destination.Repository, v metadata.Volume, policy repo.Policy, made *Made) {
	now, err := m.volume(v.ID) // its policy may have changed since the job began
	if err == nil && now.Keep != "" {
		policy, err = repo.ParsePolicy(now.Keep)
	}
	if err != nil {
		m.warn(made, "cannot apply the volume's retention policy", err)
		return
	}
	if policy.IsZero() {
		return
	}
	plan, err := r.PlanPrune(ctx, repo.PruneOptions{
		Policy: policy, Lineages: []string{v.Lineage}, ForgetOnly: true,
		Match: func(b *repo.Backup) bool { return b.Volume.ID == v.ID },
	})
	if err != nil {
		m.warn(made, "cannot apply retention policy", err)
		return
	}
	for _, doubt := range plan.Doubts {
		if doubt.Obvious { // once, and not after each night in which the host was off
			m.warn(made, "backups kept beyond the retention policy", doubt)
		}
	}
	done, err := plan.Execute(ctx)
	m.warn(made, "cannot apply retention policy", err)
	for _, b := range done.Removed {
		made.Removed = append(made.Removed, b.ID())
	}
}

// collectEvery is how often at most Collect frees space if it is not told to do it at once. A little less than a day, so that
// a daily run never comes too early.
const collectEvery = 23 * time.Hour

// Collected is the result of a collection.
type Collected struct {
	Freed    int64    `json:"freed"` // bytes of the repository
	Warnings []string `json:"warnings"`
}

// Collect begins a job that frees what no backup of a destination needs. If daily is set and this host did so within the last
// day, none begins and due is false.
func (m *Manager) Collect(ctx context.Context, to Target, daily bool) (j metadata.Job, due bool, err error) {
	at := to.Destination.String()
	var last time.Time
	err = m.store.View(func(tx *metadata.Tx) error { last, err = tx.Collected(at); return err })
	if err != nil {
		return j, false, err
	}
	if since := m.now().Sub(last); daily && since >= 0 && since < collectEvery {
		return j, false, nil
	}
	spec := job.Spec{Kind: KindCollect, Key: KindCollect + "/" + at, Destination: at}
	j, _, err = m.jobs.Start(ctx, spec, func(ctx context.Context, _ func(done, total int64)) (any, error) {
		done, err := m.collect(ctx, to)
		if err != nil {
			return nil, fmt.Errorf("free space in %s: %w", at, err)
		}
		return done, m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutCollected(at, m.now().UTC()) })
	})
	return j, true, err
}

func (m *Manager) collect(ctx context.Context, to Target) (Collected, error) {
	r, release, err := m.opened(ctx, to)
	if err != nil {
		return Collected{}, err
	}
	defer release()
	if err := r.CheckStore(ctx); err != nil {
		return Collected{}, err
	}
	done := Collected{Warnings: []string{}}
	plan, err := r.PlanPrune(ctx, repo.PruneOptions{Warn: func(err error) { done.Warnings = append(done.Warnings, err.Error()) }})
	if err != nil {
		return done, err
	}
	pruned, err := plan.Execute(ctx)
	done.Freed = pruned.Freed
	return done, err
}
