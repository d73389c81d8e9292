package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// attemptLimit is how often a change of a lineage, or a look at its newest head, begins anew before it gives up. Each
// time somebody else was faster, or the store refused for no reason.
const attemptLimit = 1000

// A chain is the heads of one lineage, as protocoltest tells how to read and write them. It is safe for concurrent use.
type chain struct {
	repository *Repository
	lineage    *Lineage

	mu         sync.Mutex // guards what follows
	highest    uint64     // the highest number of a head that was read, or is in the chain
	listed     int        // how many heads there were when they were listed last
	remembered uint64     // the highest number that the host will know after its process ended
	last       KnownHead  // the newest head that certainly was in the chain, as far as is known

	loading sync.Mutex // guards what follows, for as long as an index is loaded
	index   *Index     // of the packs that were live in some head; nobody else holds it
}

// An errAbsent tells that a pack is not in the store though a head lists it. Whether that is damage, a newer head tells.
type errAbsent struct{ pack PackName }

func (e errAbsent) Error() string { return fmt.Sprintf("object %s is missing", e.pack) }

// An errDangling tells that no live pack holds a record though another refers to it.
type errDangling struct{ id ChunkID }

func (e errDangling) Error() string { return errMissing(e.id).Error() }

// A concluded is the error of an edit that shows by what stands in the head that nothing is to be written.
type concluded struct{ error }

func (c concluded) Unwrap() error { return c.error }

// errFenced tells that a session is registered no more, or has another owner.
var errFenced = errors.New("the session was ended by another host")

// errForked tells that the last known head is not in the chain, but another in its place.
var errForked = errors.New("the destination was set back to an older state, and others wrote to it since")

// read returns the newest head. It may be one that was never in the chain: between the listing and the Get its number
// may have been cleaned up, and created again by a writer that slept. Nothing may be concluded from it that a Put does
// not prove before genuine was asked.
func (c *chain) read(ctx context.Context) (*Head, error) {
	for range attemptLimit {
		number, err := c.newestNumber(ctx)
		if err != nil {
			return nil, err
		}
		if number == 0 {
			return &Head{Lineage: c.lineage.name, Sequence: 1}, nil
		}
		h, err := c.get(ctx, number)
		switch {
		case err == nil:
			if err := c.checkFollows(ctx, h); err != nil {
				return nil, err
			}
			return h, c.remember(number)
		case !fault.Is(err, fault.ErrNotFound):
			return nil, err
		}
	}
	return nil, c.errBusy()
}

func (c *chain) errBusy() error {
	return fault.Errorf(fault.ErrInUse, "lineage %s: its newest head was not caught in %d attempts: others write to it all the time", c.lineage.name, attemptLimit)
}

// get returns the head of a number; fault.ErrNotFound if it is not there.
func (c *chain) get(ctx context.Context, number uint64) (*Head, error) {
	name := HeadName(c.lineage.name, number)
	object, err := c.repository.objects.Get(ctx, name)
	if fault.Is(err, fault.ErrCorrupt) {
		return nil, c.damaged(err)
	}
	if err != nil {
		return nil, err
	}
	data, err := c.lineage.keys.OpenObject(name, object)
	if err != nil {
		return nil, c.damaged(err)
	}
	h, err := decodeHead(c.lineage.name, number, data, c.lineage.keys.decoder)
	if fault.Is(err, fault.ErrCorrupt) {
		return nil, c.damaged(corrupt(name, "%v", err))
	}
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", name, err)
	}
	return h, nil
}

func (c *chain) damaged(err error) error {
	return fmt.Errorf("%w; run orlop backup repair %s", err, c.repository.options.destination())
}

// newestNumber lists the heads and returns the highest number; 0 if there is none. It fails with fault.ErrCorrupt if this
// host has seen a higher one: a highest head is never deleted.
func (c *chain) newestNumber(ctx context.Context) (uint64, error) {
	newest, _, err := c.newestNumbers(ctx)
	return newest, err
}

// newestNumbers is newestNumber, and returns the numbers of all heads too.
func (c *chain) newestNumbers(ctx context.Context) (newest uint64, numbers []uint64, err error) {
	c.mu.Lock()
	seen := c.highest // what others of this process see meanwhile, the listing need not show
	c.mu.Unlock()
	if numbers, err = c.numbers(ctx); err != nil {
		return 0, nil, err
	}
	if len(numbers) > 0 {
		newest = numbers[len(numbers)-1]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed = len(numbers)
	if newest < seen {
		return 0, nil, fault.Errorf(fault.ErrCorrupt, "lineage %s: its newest head is %d, but this host has seen head %d: the destination was set back to an older state, or another one is mounted in its place; bring the newer state back, or run orlop backup repair %s to go on from the older one",
			c.lineage.name, newest, seen, c.repository.options.destination())
	}
	return newest, numbers, nil
}

// numbers lists the numbers of all heads by rising order.
func (c *chain) numbers(ctx context.Context) (numbers []uint64, err error) {
	prefix := HeadPrefix(c.lineage.name)
	err = c.repository.objects.List(ctx, prefix, func(o store.Object) error {
		number, err := strconv.ParseUint(strings.TrimPrefix(o.Name, prefix), 10, 64)
		if err == nil && number > 0 && number <= maxHead && o.Name == HeadName(c.lineage.name, number) {
			numbers = append(numbers, number)
		}
		return nil
	})
	slices.Sort(numbers)
	return numbers, err
}

// genuine tells whether a head, which was read or put before, is certainly of the chain: its number is among the kept ones
// of a listing begun afterwards, so it was never deleted before, so it was created once.
func (c *chain) genuine(ctx context.Context, h *Head) (bool, error) {
	newest, err := c.newestNumber(ctx)
	return newest-h.Number < c.repository.kept, err
}

// checkFollows fails with fault.ErrCorrupt if h, which was read as the newest head, is not of the chain in which the last known
// head is: others wrote to an older state of it.
func (c *chain) checkFollows(ctx context.Context, h *Head) error {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	if last.Number == 0 || h.Number < last.Number || h.Number-last.Number >= c.repository.kept {
		return nil
	}
	nonce := h.Nonce
	if h.Number != last.Number {
		if h.Number == last.Number+1 && h.Parent == last.Nonce {
			return nil
		}
		there, err := c.get(ctx, last.Number)
		if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrCorrupt) {
			return nil // cleaned up meanwhile, or damage that nothing needs
		}
		if err != nil {
			return err
		}
		nonce = there.Nonce
	}
	if nonce == last.Nonce {
		return nil
	}
	// Unless its number was cleaned up meanwhile, and created again by a writer that slept.
	kept, err := c.genuine(ctx, &Head{Number: last.Number})
	if err != nil || !kept {
		return err
	}
	return c.errSetBack(last)
}

func (c *chain) errSetBack(last KnownHead) error {
	return fault.Errorf(fault.ErrCorrupt, "lineage %s: head %d is not the one that this host has seen: %w; bring the newer state back, or run orlop backup repair %s to go on from this one",
		c.lineage.name, last.Number, errForked, c.repository.options.destination())
}

// certain returns a head that is of the chain, and was the newest when certain was called or later.
func (c *chain) certain(ctx context.Context) (*Head, error) {
	for range attemptLimit {
		h, err := c.read(ctx)
		if err != nil {
			return nil, err
		}
		genuine, err := c.genuine(ctx, h)
		if err != nil {
			return nil, err
		}
		if genuine {
			return h, c.know(h)
		}
	}
	return nil, c.errBusy()
}

// write puts next, after giving it a nonce, and tells whether it is in the chain for certain. If not, it may be there or
// come to be there all the same. It fails with fault.ErrCorrupt if the head of number before, on which next follows, is gone: then
// the place was set back, and what others wrote to the older state must not be hidden. With before 0 that does not matter.
func (c *chain) write(ctx context.Context, next *Head, before uint64) (bool, error) {
	if err := fill(c.lineage.keys.Random, next.Nonce[:]); err != nil {
		return false, fmt.Errorf("write a head: %w", err)
	}
	name := HeadName(next.Lineage, next.Number)
	if next.Number > maxHead {
		return false, c.damaged(corrupt(HeadName(next.Lineage, next.Number-1), "no number can follow this one"))
	}
	object, err := c.repository.sealHead(name, next)
	if err != nil {
		return false, fmt.Errorf("write head %d of lineage %s: %w", next.Number, next.Lineage, err)
	}
	if failed := c.repository.objects.Put(ctx, name, object); failed != nil {
		there, err := c.get(ctx, next.Number)
		switch {
		case fault.Is(err, fault.ErrNotFound) && !fault.Is(failed, fault.ErrExists):
			return false, failed
		case fault.Is(err, fault.ErrNotFound):
			return false, nil
		case err != nil:
			return false, errors.Join(failed, err)
		case there.Nonce != next.Nonce:
			return false, nil
		}
	}
	newest, numbers, err := c.newestNumbers(ctx)
	if err != nil || newest-next.Number >= c.repository.kept {
		return false, err
	}
	if before > 0 && newest-before < c.repository.kept && !slices.Contains(numbers, before) {
		_, err := c.get(ctx, before) // one listing is not enough to take back what is committed otherwise
		switch {
		case fault.Is(err, fault.ErrNotFound):
			if newest == next.Number {
				_ = c.repository.objects.Delete(ctx, name)
			}
			return false, fault.Errorf(fault.ErrCorrupt, "lineage %s: head %d is not there any more: the destination was set back to an older state meanwhile; bring the newer state back, or run orlop backup repair %s to go on from the older one",
				c.lineage.name, before, c.repository.options.destination())
		case err != nil && !fault.Is(err, fault.ErrCorrupt):
			return false, err
		}
	}
	return true, c.know(next)
}

// change replaces the newest head by what edit makes of it, until that stands, and returns it and true. Edit is called
// anew for each head that is to be replaced, and carries nothing over that it decided from another. When it returns no
// head, because what is wanted has happened already or with a concluded error, change returns the head that
// was looked at, which is genuine and was read after change was called, and that error. Known is a head to try first, nil
// to read one: the Put will tell whether it is the newest.
func (c *chain) change(ctx context.Context, known *Head, edit func(*Head) (*Head, error)) (*Head, bool, error) {
	if err := c.repository.damage; err != nil {
		return nil, false, err
	}
	for range attemptLimit {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		h, fresh := known, known == nil
		if fresh {
			var err error
			if h, err = c.read(ctx); err != nil {
				return nil, false, err
			}
		}
		known = nil
		if h.Number == 0 {
			if moved, err := c.checkNew(ctx); err != nil {
				return nil, false, err
			} else if moved {
				continue
			}
		}
		next, err := edit(h)
		var conclusion concluded
		switch {
		case err != nil && !errors.As(err, &conclusion):
			if err := c.doubt(ctx, h, err); err != nil {
				return nil, false, err
			}
		case next != nil:
			if written, err := c.write(ctx, next, h.Number); err != nil || written {
				return next, written, err
			}
		case fresh:
			genuine, failed := c.genuine(ctx, h)
			if failed != nil {
				return nil, false, failed
			}
			if genuine {
				return h, false, err
			}
		}
	}
	return nil, false, c.errBusy()
}

// checkNew makes sure that a lineage without heads is a new one: sessions are registered before anything is uploaded. It
// tells whether there is a head by now, and fails with fault.ErrCorrupt if there are packs and no heads: those must not be
// taken for nobody's.
func (c *chain) checkNew(ctx context.Context) (moved bool, err error) {
	err = c.repository.objects.List(ctx, SessionsPrefix(c.lineage.name), func(store.Object) error { return errFound })
	if !errors.Is(err, errFound) {
		return false, err
	}
	number, err := c.newestNumber(ctx)
	if err == nil && number == 0 {
		err = errHeadless(c.lineage.name, c.repository.options.destination())
	}
	return true, err
}

// doubt decides what an error says that was met while the packs of h were read. It returns nil if a newer head is to be
// looked at, and fault.ErrCorrupt if there is something missing for certain.
func (c *chain) doubt(ctx context.Context, h *Head, err error) error {
	var absent errAbsent
	if errors.As(err, &absent) {
		return c.suspect(ctx, absent.pack)
	}
	var dangling errDangling
	if !errors.As(err, &dangling) {
		return err
	}
	genuine, failed := c.genuine(ctx, h)
	if failed != nil {
		return failed
	}
	if genuine {
		return c.damaged(fault.Errorf(fault.ErrCorrupt, "lineage %s: %v", c.lineage.name, err))
	}
	return nil
}

// suspect is called when a pack was not in the store, or not whole, though a head listed it. It returns nil if a newer head
// does not list it any more, or if it is there now, and fault.ErrCorrupt otherwise.
func (c *chain) suspect(ctx context.Context, pack PackName) error {
	h, err := c.certain(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(h.Live, func(p LivePack) bool { return p.Name == pack })
	if i < 0 {
		return nil
	}
	_, err = c.repository.objects.GetRange(ctx, pack.String(), h.Live[i].Size-1, 1)
	if fault.Is(err, fault.ErrNotFound) {
		return c.damaged(corrupt(pack.String(), "it is missing"))
	}
	if fault.Is(err, fault.ErrCorrupt) {
		return c.damaged(corrupt(pack.String(), "%v", err))
	}
	return err
}
