package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/internal/fault"
)

const (
	footersAtOnce = 8  // packs whose lists of records are on their way at once
	cacheDead     = 64 // dead packs that are always tolerated in the local cache
)

// Index returns an index of exactly the packs that a head lists, which is the caller's own. Lists of records come from
// memory, then from the local cache, then from the store. If a pack is missing, which it may be if the head is not the
// newest any more, the error is fault.ErrNotFound and names it.
func (r *Repository) Index(ctx context.Context, h *Head) (*Index, error) {
	c, err := r.chain(h.Lineage)
	if err != nil {
		return nil, err
	}
	index, err := c.load(ctx, h)
	var absent errAbsent
	if errors.As(err, &absent) {
		return nil, fault.Errorf(fault.ErrNotFound, "%w", absent)
	}
	return index, err
}

// NewestIndexed returns the newest head of a lineage, as Newest does, and an index of its packs. It fails with
// fault.ErrCorrupt if one is missing.
func (r *Repository) NewestIndexed(ctx context.Context, lineage string) (*Head, *Index, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return nil, nil, err
	}
	for range attemptLimit {
		h, err := c.certain(ctx)
		if err != nil {
			return nil, nil, err
		}
		index, err := c.load(ctx, h)
		if err == nil {
			return h, index, nil
		}
		if err := c.doubt(ctx, h, err); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, c.errBusy()
}

// load returns an index of exactly the packs that a head lists. It fails with errAbsent if one is missing.
func (c *chain) load(ctx context.Context, h *Head) (*Index, error) {
	c.loading.Lock()
	defer c.loading.Unlock()
	index := c.index.fork()
	if err := c.refresh(ctx, index, h, nil); err != nil {
		return nil, err
	}
	c.index = index
	return index.fork(), nil
}

// keep makes an index of live packs the one that load begins with. The caller does not use it any more.
func (c *chain) keep(index *Index) {
	c.loading.Lock()
	defer c.loading.Unlock()
	c.index = index
}

// refresh makes an index that of exactly the packs that h lists and of those in own, which it holds.
func (c *chain) refresh(ctx context.Context, index *Index, h *Head, own map[PackName]bool) error {
	live := make(map[PackName]bool, len(h.Live))
	for _, p := range h.Live {
		live[p.Name] = true
	}
	for _, ref := range index.Packs() {
		if !live[ref.Name] && !own[ref.Name] {
			index.Drop(ref.Name)
		}
	}
	missing := func() (packs []LivePack) {
		for _, p := range h.Live {
			if !index.HasPack(p.Name) {
				packs = append(packs, p)
			}
		}
		return packs
	}
	if len(missing()) == 0 {
		return nil
	}
	c.loadCached(index, live)
	return c.fetch(ctx, index, missing())
}

// loadCached adds what the local cache knows of live packs. The cache only saves time: what cannot be read of it is read
// from the store. A cache that consists of dead packs for the most part is made anew.
func (c *chain) loadCached(index *Index, live map[PackName]bool) {
	cache := c.cache()
	if cache == nil {
		return
	}
	dead := 0
	err := cache.Load(index, func(name PackName) bool {
		if !live[name] {
			dead++
		}
		return live[name]
	})
	if err == nil && dead > len(live)+cacheDead && os.Remove(cache.path) == nil {
		c.cached(index.contents()...)
	}
}

// cache is the lineage's local cache; nil if there is none.
func (c *chain) cache() *Cache {
	if c.repository.options.cache == "" {
		return nil
	}
	return c.lineage.Cache(filepath.Join(c.repository.options.cache, c.lineage.name+".index"))
}

// cached puts lists of records into the local cache. What cannot be written is read from the store when it is needed.
func (c *chain) cached(packs ...Pack) {
	if cache := c.cache(); cache != nil && len(packs) > 0 {
		_ = cache.Append(packs...)
	}
}

// fetch reads lists of records from the store.
func (c *chain) fetch(ctx context.Context, index *Index, packs []LivePack) error {
	var mu sync.Mutex
	var fetched []Pack
	group, fetching := errgroup.WithContext(ctx)
	group.SetLimit(c.repository.parallel(footersAtOnce))
	for _, p := range packs {
		if fetching.Err() != nil {
			break
		}
		group.Go(func() error {
			ref, entries, err := c.lineage.ReadFooter(fetching, c.repository.objects, p.Name.String(), p.Size)
			if fault.Is(err, fault.ErrNotFound) {
				return errAbsent{p.Name}
			}
			if fault.Is(err, fault.ErrCorrupt) {
				return c.damaged(err)
			}
			if err != nil {
				return fmt.Errorf("read what packs hold: %w", err)
			}
			mu.Lock()
			defer mu.Unlock()
			index.Add(ref, entries)
			fetched = append(fetched, Pack{Ref: ref, Entries: entries})
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.cached(fetched...)
	return ctx.Err()
}

// fork returns a copy of the index. Neither sees what happens to the other from here on; they share what does not change.
// If most of its records are of dropped packs, the copy is made without them.
func (i *Index) fork() *Index {
	i.mu.RLock()
	defer i.mu.RUnlock()
	live := 0
	for n := range uint32(i.count) {
		if !i.packs[i.at(n).pack].dropped {
			live++
		}
	}
	if live < i.count/2 {
		compacted := NewIndex()
		for _, p := range i.contents() {
			compacted.Add(p.Ref, p.Entries)
		}
		return compacted
	}
	forked := &Index{
		packs: append([]indexedPack(nil), i.packs...), byName: make(map[PackName]uint32, len(i.byName)),
		blocks: append([][]indexed(nil), i.blocks...), count: i.count, table: append([]uint32(nil), i.table...),
	}
	for name, number := range i.byName {
		forked.byName[name] = number
	}
	if tail := i.count % blockLength; tail > 0 { // the last block is still written to
		last := make([]indexed, blockLength)
		copy(last, i.blocks[len(i.blocks)-1][:tail])
		forked.blocks[len(forked.blocks)-1] = last
	}
	return forked
}

// contents returns what the index holds, without what was dropped, in the order in which it was added. The packs have no
// bytes. The caller holds i.mu, or nobody else writes to the index.
func (i *Index) contents() (packs []Pack) {
	entries := make([][]Entry, len(i.packs))
	for n := range uint32(i.count) {
		if x := i.at(n); !i.packs[x.pack].dropped {
			entries[x.pack] = append(entries[x.pack], x.entry())
		}
	}
	for number, p := range i.packs {
		if !p.dropped {
			packs = append(packs, Pack{Ref: p.ref, Entries: entries[number]})
		}
	}
	return packs
}
