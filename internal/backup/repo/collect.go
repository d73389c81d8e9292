package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// deletesAtOnce is how many objects are deleted at once.
const deletesAtOnce = 8

// A Collected is what a collection did.
type Collected struct {
	Sessions int   `json:"sessions"` // that were ended
	Packs    int   `json:"packs"`    // that were live, and are not any more
	Objects  int   `json:"objects"`  // that were deleted, heads aside
	Freed    int64 `json:"freed"`    // bytes of those
	Heads    int   `json:"heads"`    // that were deleted
}

// Collect deletes what no backup of a lineage needs: packs in which nothing is needed, what was uploaded under sessions that
// are over, and old heads. It ends the sessions that this host left behind, and of other hosts' those that stalled
// says are dead, which may be nil; whoever runs one of them all the same begins anew. It may be cut short at any
// point and run beside everything else. If anything that a backup needs cannot be found, it deletes nothing.
func (r *Repository) Collect(ctx context.Context, lineage string, stalled func(*Session) bool) (Collected, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return Collected{}, err
	}
	done, err := c.collect(ctx, func(s *Session) bool { return r.left(s) || stalled != nil && stalled(s) })
	if err != nil {
		return done, fmt.Errorf("collect in lineage %s: %w", lineage, err)
	}
	return done, nil
}

func (c *chain) collect(ctx context.Context, dead func(*Session) bool) (done Collected, err error) {
	// The listing comes before the head by which it is judged: what is uploaded later is not in it.
	listed, err := c.uploaded(ctx)
	if err != nil {
		return done, err
	}
	h, wrote, err := c.changeWithRoom(ctx, func(h *Head) (*Head, error) {
		next := h.child()
		done = Collected{}
		for i := range h.Sessions {
			if dead(&h.Sessions[i]) {
				next.end(h.Sessions[i].ID)
				done.Sessions++
			}
		}
		packs, err := c.dead(ctx, next)
		if err != nil {
			return nil, err
		}
		done.Packs = len(packs)
		if done == (Collected{}) {
			return nil, nil
		}
		next.drop(packs)
		return next, nil
	})
	if err != nil {
		return Collected{}, err
	}
	if !wrote {
		done = Collected{}
	}
	if err := c.sweep(ctx, h, listed, &done); err != nil {
		return done, err
	}
	err = c.cleanHeads(ctx, &done)
	return done, err
}

// uploaded lists what stands under sessions.
func (c *chain) uploaded(ctx context.Context) (listed []store.Object, err error) {
	err = c.repository.objects.List(ctx, SessionsPrefix(c.lineage.name), func(o store.Object) error {
		listed = append(listed, o)
		return nil
	})
	return listed, err
}

// dead returns the live packs of a head in which nothing is needed.
func (c *chain) dead(ctx context.Context, h *Head) (map[PackName]bool, error) {
	index, err := c.load(ctx, h)
	if err != nil {
		return nil, err
	}
	m, err := c.mark(ctx, h, index)
	if err != nil {
		return nil, err
	}
	packs := map[PackName]bool{}
	for _, u := range m.usage() {
		if u.marked == 0 {
			packs[u.ref.Name] = true
		}
	}
	return packs, nil
}

// sweep deletes those of the listed objects that the head neither lists as live nor has a session for. They are dead for
// ever: their sessions are never registered again.
func (c *chain) sweep(ctx context.Context, h *Head, listed []store.Object, done *Collected) error {
	spared := map[string]bool{}
	for _, p := range h.Live {
		spared[p.Name.String()] = true
	}
	for i := range h.Sessions {
		spared[SessionPrefix(h.Lineage, h.Sessions[i].Name())] = true
	}
	var names, records []string
	for _, o := range listed {
		session, _, within := strings.Cut(strings.TrimPrefix(o.Name, SessionsPrefix(h.Lineage)), "/")
		if !within || spared[o.Name] || spared[SessionPrefix(h.Lineage, session)] {
			continue
		}
		if name, err := ParsePackName(o.Name); err == nil && name.Kind == MetaPack {
			records = append(records, o.Name)
		} else {
			names = append(names, o.Name)
		}
		done.Objects++
		done.Freed += o.Size
	}
	// Packs with backup records go first: what is left when this is cut short must not look like a backup.
	if err := c.remove(ctx, records); err != nil {
		return err
	}
	return c.remove(ctx, names)
}

// cleanHeads deletes all heads but those with the highest numbers. It goes by numbers alone, and reads none.
func (c *chain) cleanHeads(ctx context.Context, done *Collected) error {
	numbers, err := c.numbers(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, number := range numbers {
		if number+c.repository.kept <= numbers[len(numbers)-1] {
			names = append(names, HeadName(c.lineage.name, number))
		}
	}
	done.Heads = len(names)
	return c.remove(ctx, names)
}

// changeWithRoom is change for edits after which something can be freed. If there is no room for a head, what is dead already
// makes some.
func (c *chain) changeWithRoom(ctx context.Context, edit func(*Head) (*Head, error)) (*Head, bool, error) {
	h, wrote, err := c.change(ctx, nil, edit)
	if fault.Is(err, fault.ErrNoSpace) && c.makeRoom(ctx) {
		h, wrote, err = c.change(ctx, nil, edit)
	}
	return h, wrote, err
}

// makeRoom deletes what is dead already by the newest head, and old heads, and tells whether there was any.
func (c *chain) makeRoom(ctx context.Context) bool {
	listed, err := c.uploaded(ctx) // before the head by which it is judged
	if err != nil {
		return false
	}
	h, err := c.certain(ctx)
	if err != nil || h.Number == 0 { // without heads nothing is dead: they may be lost
		return false
	}
	var done Collected
	err = errors.Join(c.sweep(ctx, h, listed, &done), c.cleanHeads(ctx, &done))
	return err == nil && done != Collected{}
}

// tidy deletes old heads once there are many: who never collects would have all that ever were, and each holds everything.
// What it cannot delete, another run will.
func (c *chain) tidy(ctx context.Context) {
	c.mu.Lock()
	many := uint64(c.listed) > 2*c.repository.kept
	c.mu.Unlock()
	if many {
		_ = c.cleanHeads(ctx, &Collected{})
	}
}

// whole makes sure that all packs of a head are there and that everything that it needs is in them, and returns those in
// which nothing is.
func (c *chain) whole(ctx context.Context, h *Head) (dead map[PackName]bool, err error) {
	absent, err := c.absent(ctx, h)
	if err != nil {
		return nil, err
	}
	for pack := range absent {
		return nil, errAbsent{pack}
	}
	return c.dead(ctx, h)
}

// absent returns the live packs of a head that are not there, or not whole. Lists of what packs hold come from this host's
// cache, and say nothing of that.
func (c *chain) absent(ctx context.Context, h *Head) (map[PackName]bool, error) {
	packs := map[PackName]bool{}
	if len(h.Live) == 0 {
		return packs, nil
	}
	listed, err := c.uploaded(ctx)
	if err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(listed))
	for _, o := range listed {
		sizes[o.Name] = o.Size
	}
	for _, p := range h.Live {
		if sizes[p.Name.String()] < p.Size {
			packs[p.Name] = true
		}
	}
	return packs, nil
}

// remove deletes objects, several at once. What is left because of an error, the next collection deletes.
func (c *chain) remove(ctx context.Context, names []string) error {
	return store.DeleteAll(ctx, c.repository.objects, names, c.repository.parallel(deletesAtOnce))
}
