package destination

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

// Find returns the backup that a URL names: the one of its ID, whole or short (see ShortIDs), or of a volume's the newest that pass, which may be nil, does
// not report as one to be passed over (see repo.Damage.Hurts). It warns if a newer one was passed over, and if some of the
// backups cannot be read, so that there may be newer ones. It fails with fault.ErrNotFound if there is no such backup, with
// fault.ErrInvalid if volumes of several IDs have the name or several backups the short ID, and with fault.ErrCorrupt if all are passed over; these are Errors:
// ListBackups, ChooseBackup, VerifyData.
func (r *Repository) Find(ctx context.Context, u URL, pass func(*repo.Backup) bool) (*repo.Backup, error) {
	backups, err := r.Backups(ctx)
	if u.Backup != "" {
		return r.byID(backups, u, err)
	}
	b, failed := r.newestOf(backups, u, pass)
	switch {
	case err == nil:
		return b, failed
	case failed == nil && ctx.Err() == nil:
		r.warn(fault.Errorf(fault.KindOf(err), "not everything can be read, and there may be newer backups of volume %q: %w", u.Volume, err))
		return b, nil
	case fault.Is(failed, fault.ErrNotFound):
		return nil, fault.Errorf(fault.KindOf(err), "no backup of a volume %q is in what can be read: %w", u.Volume, err)
	case failed == nil:
		return nil, err
	}
	return nil, fault.Errorf(fault.KindOf(failed), "%w", errors.Join(err, failed)) // the last line is what the remedy is for
}

// NewestOf returns the newest backup of the volume of a name among backups that were listed before, and otherwise does what Find
// does. To find the backups of many volumes, it saves a listing for each.
func (r *Repository) NewestOf(backups []*repo.Backup, volume string, pass func(*repo.Backup) bool) (*repo.Backup, error) {
	return r.newestOf(backups, URL{Destination: r.Destination, Volume: volume}, pass)
}

// byID returns the backup of an ID. Of the backups that could not be read, failed tells.
func (r *Repository) byID(backups []*repo.Backup, u URL, failed error) (*repo.Backup, error) {
	var found []*repo.Backup
	for _, b := range backups {
		if u.Volume != "" && u.Volume != b.Volume.Name {
			continue
		}
		if b.ID() == u.Backup {
			return b, nil // that other lineages may be damaged does not matter
		}
		if matches(u.Backup, b) {
			found = append(found, b)
		}
	}
	switch {
	case failed != nil: // there may be others of a short ID
		return nil, failed
	case len(found) == 0:
		return nil, r.remedied(ListBackups, u, fault.Errorf(fault.ErrNotFound, "backup %q: not found", u.Backup))
	case len(found) > 1:
		return nil, r.remedied(ListBackups, u, fault.Errorf(fault.ErrInvalid, "backup %q: the IDs of %d backups begin so", u.Backup, len(found)))
	}
	return found[0], nil
}

// remedied is an error about a URL with its remedy.
func (r *Repository) remedied(remedy Remedy, u URL, err error) error {
	return &Error{Destination: r.Destination, Remedy: remedy, Volume: u.Volume, err: err}
}

// newestOf returns the newest backup of the volume of a name that is not to be passed over, and warns of newer ones that are.
func (r *Repository) newestOf(backups []*repo.Backup, u URL, pass func(*repo.Backup) bool) (*repo.Backup, error) {
	var newest, passed *repo.Backup
	var ids []string
	var named []*repo.Backup
	for _, b := range backups {
		if b.Volume.Name != u.Volume {
			continue
		}
		named = append(named, b)
		if !slices.Contains(ids, b.Volume.ID) {
			ids = append(ids, b.Volume.ID)
		}
		of := &newest
		if pass != nil && pass(b) {
			of = &passed
		}
		if *of == nil || b.Sequence > (*of).Sequence {
			*of = b
		}
	}
	switch {
	case len(ids) == 0:
		return nil, r.remedied(ListBackups, u, fault.Errorf(fault.ErrNotFound, "no backup of a volume %q", u.Volume))
	case len(ids) > 1 && !isOneHistory(named):
		slices.Sort(ids)
		return nil, r.remedied(ChooseBackup, u, fault.Errorf(fault.ErrInvalid, "there are backups of several volumes named %q, of IDs %q", u.Volume, ids))
	case newest == nil:
		return nil, r.remedied(VerifyData, u, fault.Errorf(fault.ErrCorrupt, "every backup of volume %q is damaged", u.Volume))
	}
	if passed != nil && passed.Sequence > newest.Sequence {
		r.warn(r.remedied(VerifyRepository, u, fault.Errorf(fault.ErrCorrupt, "the newest backup of volume %q, %s of %s, is damaged: this is %s of %s",
			u.Volume, passed.ID(), dated(passed), newest.ID(), dated(newest))))
	}
	return newest, nil
}

// isOneHistory reports whether backups of volumes of several IDs tell of one volume that was restored from a backup, under its
// name, and then backed up again: they are of one lineage, and of each volume but the last none is younger than any of the next.
// If two of the volumes live on, their backups alternate.
func isOneHistory(backups []*repo.Backup) bool {
	ordered := slices.SortedFunc(slices.Values(backups), func(a, b *repo.Backup) int { return cmp.Compare(a.Sequence, b.Sequence) })
	var ended []string
	for i, b := range ordered {
		switch {
		case b.Lineage != ordered[0].Lineage || slices.Contains(ended, b.Volume.ID):
			return false
		case i > 0 && ordered[i-1].Volume.ID != b.Volume.ID:
			ended = append(ended, ordered[i-1].Volume.ID)
		}
	}
	return true
}

// dated is when a backup was made, for people.
func dated(b *repo.Backup) string { return b.Created.UTC().Format(time.DateTime) + " UTC" }
