package repo

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// verifying is how many objects are checked at once.
const verifying = 4

// A packCheck is what is known of one live pack.
type packCheck struct {
	name    PackName
	problem error             // nil if the pack is as it was written, as far as was looked
	missing bool              // the object is not there
	known   bool              // its list of records was read, and is in the index
	cached  *Pack             // its list of records as this host knows it, if the pack's own is damaged
	wrong   map[ChunkID]error // its records that do not open
	read    bool              // as a whole
	size    int64             // of the object, as its head says
	listed  int64             // as the store says
}

// bad tells what is wrong with a record of the pack.
func (p *packCheck) bad(id ChunkID) error {
	if p.missing {
		return errLost(p.name, nil)
	}
	return p.wrong[id]
}

// lineageCheck checks the packs of one head, and the trees of its records.
type lineageCheck struct {
	chain   *chain
	lineage *Lineage
	objects store.Store
	backups []*Backup
	packs   map[PackName]*packCheck
	index   *Index
	listed  map[string]int64 // sizes of all objects under the lineage's sessions

	known map[walked][]string // what is wrong below nodes that were walked
	nodes *reading

	loading sync.Mutex // held while the local cache is read
}

// A walked is a node as a backup has it. Of a node that several backups share, what is wrong below differs by the size of their
// chunks, and by how many chunks the volume has room for below it.
type walked struct {
	id        ChunkID
	chunkSize int
	room      int64
}

// newLineageCheck reads the lists of records of the live packs.
func newLineageCheck(ctx context.Context, of *chain, backups []*Backup, live []LivePack) (*lineageCheck, error) {
	lineage, objects := of.lineage, of.repository.objects
	c := &lineageCheck{
		chain:   of,
		lineage: lineage, objects: objects, backups: backups, packs: map[PackName]*packCheck{}, index: NewIndex(),
		listed: map[string]int64{}, known: map[walked][]string{},
	}
	err := objects.List(ctx, SessionsPrefix(lineage.Name()), func(o store.Object) error {
		c.listed[o.Name] = o.Size
		return nil
	})
	if err != nil {
		return nil, err
	}
	var names []PackName
	for _, p := range live {
		names = append(names, p.Name)
		c.packs[p.Name] = &packCheck{name: p.Name, size: p.Size, listed: c.listed[p.Name.String()], wrong: map[ChunkID]error{}}
	}
	if err := c.each(ctx, names, (*packCheck).checkFooter, nil); err != nil {
		return nil, err
	}
	c.nodes = &reading{lineage: lineage, objects: objects, index: c.index,
		renew: func(_ context.Context, absent PackName, unknown error) (*Index, error) {
			err := errLost(absent, unknown)
			if p := c.packs[absent]; p != nil { // it was there before
				p.missing, p.problem = true, err
			}
			return nil, err
		}}
	return c, nil
}

// each checks packs, several at once, and calls done for one after the other.
func (c *lineageCheck) each(ctx context.Context, names []PackName,
	check func(*packCheck, context.Context, *lineageCheck) error, done func(*packCheck)) error {
	var mu sync.Mutex
	group, checking := errgroup.WithContext(ctx)
	group.SetLimit(verifying)
	for _, name := range names {
		if checking.Err() != nil {
			break
		}
		p := c.packs[name]
		group.Go(func() error {
			if err := p.judge(check(p, checking, c)); err != nil {
				return err
			}
			if done != nil {
				mu.Lock()
				defer mu.Unlock()
				done(p)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// judge takes an error for a problem of the pack. It returns those that say nothing about it.
func (p *packCheck) judge(err error) error {
	switch {
	case fault.Is(err, fault.ErrNotFound):
		p.missing, p.problem = true, errLost(p.name, nil)
	case fault.Is(err, fault.ErrCorrupt):
		p.problem = err
	case err != nil:
		return err
	}
	return nil
}

// checkFooter reads the list of records.
func (p *packCheck) checkFooter(ctx context.Context, c *lineageCheck) error {
	ref, entries, err := c.lineage.ReadFooter(ctx, c.objects, p.name.String(), p.size)
	if fault.Is(err, fault.ErrCorrupt) {
		if p.cached = c.cached(p.name); p.cached != nil {
			p.known = true
			c.index.Add(p.cached.Ref, p.cached.Entries)
		}
	}
	if err != nil {
		return err
	}
	p.known = true
	c.index.Add(ref, entries)
	if p.listed != p.size {
		return corrupt(p.name.String(), "it has %d bytes instead of %d", p.listed, p.size)
	}
	return nil
}

// checkWhole opens every record.
func (p *packCheck) checkWhole(ctx context.Context, c *lineageCheck) error {
	if !p.known {
		return nil // its problem is
	}
	name := p.name.String()
	look := func(e Entry, _ []byte, err error) error {
		if err != nil {
			p.wrong[e.ID] = err
		}
		return nil
	}
	data, err := c.whole(ctx, p)
	if fault.Is(err, fault.ErrCorrupt) { // a part of it cannot be read: which, the records tell
		p.read, p.problem = true, err
		return c.openEach(ctx, p, look)
	}
	if err != nil {
		return err
	}
	p.read = true
	if p.cached != nil {
		return errors.Join(p.problem, c.openCached(p.cached, data, look))
	}
	_, _, err = c.lineage.OpenPack(name, data, look)
	if err != nil {
		if _, _, failed := c.lineage.SalvagePack(name, data, look); failed != nil {
			p.missing = true // since its list of records was read
			return failed
		}
	}
	if err == nil && len(p.wrong) > 0 {
		err = corrupt(name, "%d of its records are not what was written", len(p.wrong))
	}
	return err
}

// cached returns what this host knows of a pack; nil if it knows nothing.
func (c *lineageCheck) cached(name PackName) (known *Pack) {
	cache := c.chain.cache()
	if cache == nil {
		return nil
	}
	c.loading.Lock() // the cache is one user's at a time
	defer c.loading.Unlock()
	index := NewIndex()
	_ = cache.Load(index, func(n PackName) bool { return n == name }) // it may be damaged itself
	for _, pack := range index.contents() {
		known = &pack
	}
	return known
}

// openCached is SalvagePack for a pack whose list of records is damaged, and known all the same.
func (c *lineageCheck) openCached(pack *Pack, data []byte, fn func(Entry, []byte, error) error) error {
	for _, e := range pack.Entries {
		start, end := min(int(e.Offset), len(data)), min(int(e.Offset+e.Sealed), len(data))
		plaintext, err := c.lineage.OpenRecord(pack.Ref, e, data[start:end])
		if err := fn(e, plaintext, err); err != nil {
			return err
		}
	}
	return nil
}

// openEach opens the records of a pack one by one, for packs that cannot be read as a whole.
func (c *lineageCheck) openEach(ctx context.Context, p *packCheck, fn func(Entry, []byte, error) error) error {
	var ref PackRef
	var entries []Entry
	if p.cached != nil {
		ref, entries = p.cached.Ref, p.cached.Entries
	} else {
		var err error
		if ref, entries, err = c.lineage.ReadFooter(ctx, c.objects, p.name.String(), p.size); err != nil {
			return err
		}
	}
	for _, e := range entries {
		data, err := c.lineage.ReadRecord(ctx, c.objects, ref, e)
		if err != nil && !fault.Is(err, fault.ErrCorrupt) {
			return err
		}
		if err := fn(e, data, err); err != nil {
			return err
		}
	}
	return nil
}

// whole reads a pack. What stands in the object behind the pack's end is no part of it.
func (c *lineageCheck) whole(ctx context.Context, p *packCheck) ([]byte, error) {
	data, err := c.objects.Get(ctx, p.name.String())
	return data[:min(int64(len(data)), p.size)], err
}

// hurt returns the backups that cannot be restored, by the names of the objects that are to blame.
func (c *lineageCheck) hurt(ctx context.Context) (map[string][]*Backup, error) {
	by := map[string][]*Backup{}
	for _, b := range c.backups {
		objects, err := c.treeOf(ctx, b)
		if err != nil {
			return nil, err
		}
		for _, object := range objects {
			by[object] = append(by[object], b)
		}
	}
	return by, nil
}

// treeOf returns what is wrong in the tree of a backup.
func (c *lineageCheck) treeOf(ctx context.Context, b *Backup) ([]string, error) {
	if b.Tree.Root == Hole {
		return nil, nil
	}
	return c.below(ctx, b, Place{Level: levelsFor(b.Tree.Chunks), ID: b.Tree.Root})
}

// below returns the objects that are to blame for what is wrong with a node or a chunk and what is under it.
func (c *lineageCheck) below(ctx context.Context, b *Backup, at Place) ([]string, error) {
	if at.Index >= b.Tree.Chunks {
		return []string{HeadPrefix(c.lineage.Name())}, nil // no pack is to blame
	}
	if at.Level == 0 {
		return c.chunk(ctx, at.ID, b.ChunkSize)
	}
	key := walked{at.ID, b.ChunkSize, min(b.Tree.Chunks-at.Index, span(at.Level))}
	if wrong, there := c.known[key]; there {
		return wrong, nil
	}
	n, err := loadNode(ctx, c.nodes, at.Level, at.ID)
	if fault.Is(err, fault.ErrCorrupt) {
		c.known[key] = c.blame(at.ID, TypeNode, at.Level)
		return c.known[key], nil
	}
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for i, id := range n {
		if id == Hole {
			continue
		}
		wrong, err := c.below(ctx, b, Place{Level: at.Level - 1, Index: at.Index + int64(i)*span(at.Level-1), ID: id})
		if err != nil {
			return nil, err
		}
		for _, object := range wrong {
			found[object] = true
		}
	}
	c.known[key] = slices.Sorted(maps.Keys(found))
	return c.known[key], nil
}

// chunk returns what is wrong with a chunk, as far as its packs were looked at. Copies of another length it reads: if one is as
// it was written, no pack is to blame, but who refers to it.
func (c *lineageCheck) chunk(ctx context.Context, id ChunkID, size int) ([]string, error) {
	good := false
	var others []indexedPlace
	c.index.FindAll(id, func(ref PackRef, e Entry) bool {
		if e.Type == TypeChunk && c.packs[ref.Name].bad(id) == nil {
			good = int(e.Length) == size
			others = append(others, indexedPlace{ref, e})
		}
		return !good
	})
	if good {
		return nil, nil
	}
	for _, at := range others {
		_, err := c.lineage.ReadRecord(ctx, c.objects, at.ref, at.entry)
		switch {
		case err == nil:
			return []string{HeadPrefix(c.lineage.Name())}, nil
		case fault.Is(err, fault.ErrCorrupt):
			c.packs[at.ref.Name].wrong[id] = err
		case !fault.Is(err, fault.ErrNotFound): // a missing pack is found missing elsewhere
			return nil, err
		}
	}
	return c.blame(id, TypeChunk, 0), nil
}

// blame returns the objects because of which a record is lost: those that hold it and are damaged or, if there are none,
// those of which nobody knows what they held.
func (c *lineageCheck) blame(id ChunkID, t Type, level int) (objects []string) {
	c.index.FindAll(id, func(ref PackRef, e Entry) bool {
		p := c.packs[ref.Name]
		if p.bad(id) == nil {
			p.wrong[id] = corrupt(ref.Name.String(), "%v is not of type %d and level %d, or not what was written", &e, t, level)
		}
		if p.problem == nil {
			p.problem = p.bad(id)
		}
		objects = append(objects, ref.Name.String())
		return true
	})
	if objects != nil {
		return objects
	}
	for _, p := range c.packs {
		if !p.known {
			objects = append(objects, p.name.String())
		}
	}
	slices.Sort(objects)
	if objects == nil {
		// No pack was damaged: the head must be wrong, or who wrote it.
		objects = []string{HeadPrefix(c.lineage.Name())}
	}
	return objects
}

// damaged tells whether anything is wrong with a pack.
func (c *lineageCheck) damaged() bool {
	for _, p := range c.packs {
		if p.problem != nil {
			return true
		}
	}
	return false
}

// replaced tells whether a newer head does without a pack that is not there.
func (c *lineageCheck) replaced(newest *Head) bool {
	for name, p := range c.packs {
		if p.missing && !newest.IsLive(name) {
			return true
		}
	}
	return false
}

// misses tells whether a pack is not there.
func (c *lineageCheck) misses() bool {
	for _, p := range c.packs {
		if p.missing {
			return true
		}
	}
	return false
}

// neededBeside returns the packs that are not live in h, and hold what the trees of the backups lead to and no live pack holds.
func (c *lineageCheck) neededBeside(ctx context.Context, h *Head) (map[PackName]bool, error) {
	live := map[PackName]bool{}
	for _, p := range h.Live {
		live[p.Name] = true
	}
	needed, seen := map[PackName]bool{}, map[ChunkID]bool{} // nodes
	look := func(id ChunkID) {
		held := false
		var beside []PackName
		c.index.FindAll(id, func(ref PackRef, _ Entry) bool {
			held = live[ref.Name] && !c.packs[ref.Name].missing
			beside = append(beside, ref.Name)
			return !held
		})
		for _, name := range beside {
			needed[name] = needed[name] || !held
		}
	}
	for _, b := range c.backups {
		err := Walk(ctx, c.nodes, b.Tree, func(at Place) (bool, error) {
			if seen[at.ID] {
				return false, nil
			}
			if at.Level > 0 {
				seen[at.ID] = true
			}
			look(at.ID)
			return true, nil
		})
		if err != nil && !fault.Is(err, fault.ErrCorrupt) { // what is damaged is found later
			return nil, err
		}
	}
	return needed, nil
}

// needed returns the packs that the trees of the backups lead to.
func (c *lineageCheck) needed(ctx context.Context) (map[PackName]bool, error) {
	needed := map[PackName]bool{}
	add := func(id ChunkID) {
		c.index.FindAll(id, func(ref PackRef, _ Entry) bool {
			needed[ref.Name] = true
			return true
		})
	}
	for _, b := range c.backups {
		err := Walk(ctx, c.nodes, b.Tree, func(at Place) (bool, error) {
			add(at.ID)
			return true, nil
		})
		if err != nil && !fault.Is(err, fault.ErrCorrupt) { // what is damaged is found later
			return nil, err
		}
	}
	return needed, nil
}
