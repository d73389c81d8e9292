package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/internal/fault"
)

// Backups returns the backups of all lineages, those of one together and by their sequence. Of lineages whose newest head
// cannot be read the errors are returned beside the backups of the others.
func (r *Repository) Backups(ctx context.Context) (backups []*Backup, err error) {
	lineages, err := r.Lineages(ctx)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, name := range lineages {
		of, err := r.BackupsOf(ctx, name)
		if err != nil {
			failed = append(failed, err)
		}
		backups = append(backups, of...)
	}
	return backups, errors.Join(failed...)
}

// BackupsOf returns the backups of a lineage by their sequence. It fails with fault.ErrCorrupt if there are packs but no
// heads.
func (r *Repository) BackupsOf(ctx context.Context, lineage string) ([]*Backup, error) {
	h, err := r.Newest(ctx, lineage)
	if err != nil {
		return nil, err
	}
	if h.Number == 0 {
		return nil, errHeadless(lineage, r.options.destination())
	}
	return h.Backups(), nil
}

func errHeadless(lineage, destination string) error {
	return fault.Errorf(fault.ErrCorrupt, "lineage %s has packs and no heads: they were deleted; run orlop backup repair %s", lineage, destination)
}

// Restore restores a backup. It fails with fault.ErrNotFound if the backup, or the base, is not there any more, and with
// fault.ErrCorrupt, naming the object, if something that it needs is damaged; damage to other backups does not matter.
func (r *Repository) Restore(ctx context.Context, o Restore) (Restored, error) {
	records, err := r.read(ctx, o.Backup, o.Base)
	if err != nil {
		return Restored{}, err
	}
	return o.restore(ctx, records)
}

// RestoreFile restores a backup to a new file, sparse, of the volume's size and with mode 0600. The file appears under its
// name, durably, when it is whole; until then it is path with ".orlop-part" behind it. What a crash or a failure leaves there
// is gone on with by the next call, for whichever backup; a failure to flush leaves nothing. It fails with fault.ErrExists if the file is there, and
// with fault.ErrInUse if another process restores to it; otherwise as Restore does.
func (r *Repository) RestoreFile(ctx context.Context, b *Backup, path string, progress func(done, total int64)) (Restored, error) {
	records, err := r.read(ctx, b, nil)
	if err != nil {
		return Restored{}, err
	}
	return Restore{Backup: b, Progress: progress}.restoreFile(ctx, records, path)
}

// read returns what finds the records of a backup and of a base, which may be nil.
func (r *Repository) read(ctx context.Context, b, base *Backup) (*reading, error) {
	c, err := r.chain(b.Lineage)
	if err != nil {
		return nil, err
	}
	s := &source{chain: c, backups: []*Backup{b}}
	if base != nil {
		s.backups = append(s.backups, base)
	}
	index, err := s.renew(ctx)
	if err != nil {
		return nil, err
	}
	return &reading{lineage: c.lineage, objects: r.objects, index: index, renew: s.again}, nil
}

// A source follows the heads of a lineage while backups are read.
type source struct {
	chain   *chain
	backups []*Backup
	head    *Head
	broken  map[PackName]error // live packs whose lists of records cannot be read
}

// renew takes the newest head for the current one, and returns an index of its packs.
func (s *source) renew(ctx context.Context) (*Index, error) {
	h, err := s.chain.certain(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range s.backups {
		if _, there := h.Backup(b.Record); there {
			continue
		}
		if h.Number == 0 {
			return nil, errHeadless(b.Lineage, s.chain.repository.options.destination())
		}
		return nil, errDeleted(b)
	}
	index, broken, err := s.chain.loadReadable(ctx, h)
	if err == nil {
		s.head, s.broken = h, broken
	}
	return index, err
}

// again is reading.renew.
func (s *source) again(ctx context.Context, absent PackName, unknown error) (*Index, error) {
	before, broken := s.head, s.broken
	index, err := s.renew(ctx)
	if err != nil {
		return nil, err
	}
	if unknown != nil {
		if s.head.Nonce == before.Nonce {
			return nil, lostBecause(unknown, broken)
		}
		return index, nil
	}
	if !s.head.IsLive(absent) {
		return index, nil
	}
	_, err = s.chain.repository.objects.GetRange(ctx, absent.String(), 0, packHeaderSize)
	if fault.Is(err, fault.ErrNotFound) {
		return nil, errLost(absent, nil)
	}
	return index, err
}

// lostBecause says why no pack holds a record: most likely because some cannot be read.
func lostBecause(unknown error, broken map[PackName]error) error {
	var because []error
	for _, err := range broken {
		because = append(because, err)
	}
	if because == nil {
		return errLost(PackName{}, unknown)
	}
	slices.SortFunc(because, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return fault.Errorf(fault.ErrCorrupt, "%w", errors.Join(because...))
}

// loadReadable is load, but leaves out packs that are missing or whose lists of records are damaged, and tells of them.
func (c *chain) loadReadable(ctx context.Context, h *Head) (*Index, map[PackName]error, error) {
	index, err := c.load(ctx, h)
	var absent errAbsent
	if err == nil || !errors.As(err, &absent) && !fault.Is(err, fault.ErrCorrupt) {
		return index, nil, err
	}
	index, broken := NewIndex(), map[PackName]error{}
	if cache := c.cache(); cache != nil {
		_ = cache.Load(index, h.IsLive) // what it does not tell, the store does
	}
	var mu sync.Mutex
	group, fetching := errgroup.WithContext(ctx)
	group.SetLimit(c.repository.parallel(footersAtOnce))
	for _, p := range h.Live {
		if index.HasPack(p.Name) {
			continue
		}
		group.Go(func() error {
			ref, entries, err := c.lineage.ReadFooter(fetching, c.repository.objects, p.Name.String(), p.Size)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				index.Add(ref, entries)
			case fault.Is(err, fault.ErrNotFound):
				broken[p.Name] = errLost(p.Name, nil)
			case fault.Is(err, fault.ErrCorrupt):
				broken[p.Name] = err
			default:
				return fmt.Errorf("read what packs hold: %w", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	return index, broken, ctx.Err()
}
