package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A registered is a session as its owner sees it: what was uploaded under it, and an index of that and of live packs.
// The methods that change it are not safe for concurrent use.
type registered struct {
	chain *chain
	owner ID
	Session

	index *Index
	at    *Head // whose live packs the index holds
	own   map[PackName]bool
	packs []Pack // own, without their bytes
}

// register enters a session of a kind into the newest head. Base, if it is not nil, returns what of that head it builds
// on. If this host left a session of the kind behind, it is taken over with its bases and what was uploaded under it.
// The run counts as alive until release is called. Known is a head to try first, as for change.
func (c *chain) register(ctx context.Context, kind SessionKind, known *Head, base func(*Head) *Backup) (_ *registered, _ *Head, err error) {
	s := &registered{chain: c, own: map[PackName]bool{}}
	if s.owner, err = c.draw(); err != nil {
		return nil, nil, err
	}
	c.repository.options.runs.begin(s.owner)
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	drawn := map[ID]bool{}
	h, _, err := c.change(ctx, known, func(h *Head) (*Head, error) {
		if _, there := h.owned(s.owner); there {
			return nil, nil
		}
		id, err := c.draw()
		if err != nil {
			return nil, err
		}
		drawn[id] = true
		next := h.child()
		entered := Session{ID: id, Kind: kind}
		if i := slices.IndexFunc(next.Sessions, func(s Session) bool { return s.Kind == kind && c.repository.left(&s) }); i >= 0 {
			entered = next.Sessions[i]
			next.Sessions = slices.Delete(next.Sessions, i, i+1)
		}
		entered.Owner, entered.Origin = s.owner, c.repository.options.origin
		if base != nil {
			entered.Bases = withBase(entered.Bases, base(h))
		}
		next.Sessions = append(next.Sessions, entered)
		return next, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("begin to write to lineage %s: %w", c.lineage.name, err)
	}
	entered, _ := h.owned(s.owner)
	s.Session = *entered
	if !drawn[s.ID] {
		if err := s.adopt(ctx); err != nil {
			return nil, nil, err
		}
	}
	return s, h, nil
}

// withBase adds the tree of a backup to those that are protected. Of too many the oldest go: they were of runs that
// ended.
func withBase(bases []Tree, base *Backup) []Tree {
	if base == nil || slices.Contains(bases, base.Tree) {
		return bases
	}
	if len(bases) == maxBases {
		bases = bases[1:]
	}
	return append(slices.Clone(bases), base.Tree)
}

// draw returns a random ID.
func (c *chain) draw() (id ID, err error) {
	err = fill(c.lineage.keys.Random, id[:])
	return id, err
}

// Runs are the runs of a process that write to repositories. They keep a process that has one repository open twice, under
// two paths for example, from taking its own sessions for abandoned ones. Runs is safe for concurrent use.
type Runs struct {
	mu     sync.Mutex
	owners map[ID]bool // of sessions: random, so that those of all repositories may be together
}

// NewRuns returns an empty set of runs.
func NewRuns() *Runs { return &Runs{owners: map[ID]bool{}} }

func (r *Runs) begin(owner ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners[owner] = true
}

func (r *Runs) end(owner ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.owners, owner)
}

func (r *Runs) has(owner ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owners[owner]
}

// left reports whether a session is one that a run on this host left behind, in this process or in one that ended.
func (r *Repository) left(s *Session) bool {
	if origin := r.options.origin; origin.Host != "" && origin == s.Origin {
		return !r.options.runs.has(s.Owner)
	}
	return r.options.origin.ended(s.Origin)
}

// release notes that the run ended. Its session, if it is still registered, is left to the next run.
func (s *registered) release() {
	s.chain.repository.options.runs.end(s.owner)
}

// adopt takes what stands under the session for its own. What is missing was deleted, because the session was fenced
// meanwhile; the commit will find that out. What is damaged is nobody's.
func (s *registered) adopt(ctx context.Context) error {
	var packs []LivePack
	err := s.chain.repository.objects.List(ctx, SessionPrefix(s.chain.lineage.name, s.Name()), func(o store.Object) error {
		if name, err := ParsePackName(o.Name); err == nil {
			packs = append(packs, LivePack{name, o.Size})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("take over what an earlier run uploaded: %w", err)
	}
	for _, p := range packs {
		ref, entries, err := s.chain.lineage.ReadFooter(ctx, s.chain.repository.objects, p.Name.String(), p.Size)
		if fault.Is(err, fault.ErrNotFound) || fault.Is(err, fault.ErrCorrupt) {
			continue
		}
		if err != nil {
			return fmt.Errorf("take over what an earlier run uploaded: %w", err)
		}
		s.add(Pack{Ref: ref, Entries: entries})
	}
	return nil
}

// add makes a pack one of the session's own.
func (s *registered) add(pack Pack) {
	s.own[pack.Ref.Name] = true
	s.packs = append(s.packs, Pack{Ref: pack.Ref, Entries: pack.Entries})
}

// follow makes the index that of h's live packs and of the own ones. It tells whether a pack that was in the index is not
// live any more, so that what was found there must be looked up again.
func (s *registered) follow(ctx context.Context, h *Head) (lost bool, err error) {
	if s.at != nil && s.at.Nonce == h.Nonce {
		return false, nil
	}
	if s.index == nil {
		if s.index, err = s.chain.load(ctx, h); err != nil {
			return false, err
		}
		for _, p := range s.packs {
			s.index.Add(p.Ref, p.Entries)
		}
		s.at = h
		return false, nil
	}
	live := map[PackName]bool{}
	for _, p := range h.Live {
		live[p.Name] = true
	}
	for _, p := range s.at.Live {
		lost = lost || !live[p.Name]
	}
	if err := s.chain.refresh(ctx, s.index, h, s.own); err != nil {
		return false, err
	}
	s.at = h
	return lost, nil
}

// uploadAttempts is how often a pack is sent whose name is said to be taken and is not.
const uploadAttempts = 8

// upload stores a pack under the session. It counts when the store said so, or shows it.
func (s *registered) upload(ctx context.Context, pack Pack) error {
	name, objects := pack.Ref.Name.String(), s.chain.repository.objects
	var err error
	for range uploadAttempts {
		if err = objects.Put(ctx, name, pack.Bytes); err == nil {
			return nil
		}
		if !fault.Is(err, fault.ErrExists) {
			break
		}
		// The name is random: what is found under it is this pack.
		_, failed := objects.GetRange(ctx, name, pack.Ref.Size-1, 1)
		if failed == nil {
			return nil
		}
		if !fault.Is(failed, fault.ErrNotFound) {
			err = errors.Join(err, failed)
			break
		}
	}
	return fmt.Errorf("upload pack: %w", err) // the store names it
}

// beatEvery is how often a writer shows that it is alive, also while it finds nothing to upload. Nobody should take a session
// for stalled in less than a few times as long.
const beatEvery = 6 * time.Hour

// beat puts small objects under the session from time to time until stop is called. One that fails is not missed.
func (s *registered) beat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(beatEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if id, err := s.chain.draw(); err == nil {
				_ = s.chain.repository.objects.Put(ctx, BeatName(s.chain.lineage.name, s.Name(), id), []byte{1})
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// mine tells by a head whether the session is registered and the run's own.
func (s *registered) mine(h *Head) bool {
	now, there := h.owned(s.owner)
	return there && now.ID == s.ID
}

// live returns the own packs as they stand in a head.
func (s *registered) live() []LivePack {
	packs := make([]LivePack, len(s.packs))
	for i, p := range s.packs {
		packs[i] = LivePack{p.Ref.Name, p.Ref.Size}
	}
	return packs
}

// objects are the names of the own packs.
func (s *registered) objects() []string {
	names := make([]string, len(s.packs))
	for i, p := range s.packs {
		names[i] = p.Ref.Name.String()
	}
	return names
}

// committed hands the index on, now that the own packs are live.
func (s *registered) committed() {
	s.chain.keep(s.index)
	s.chain.cached(s.packs...)
}
