package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"orlop/internal/fault"
)

const (
	smallPart = 4  // a pack is small below this part of what it may hold
	smallMany = 16 // so many small packs of one kind are put together

	compactedAtOnce = 64 // packs, and as many small ones of each kind: the store needs room for what is left of them
)

// A Compacted is what a compaction did.
type Compacted struct {
	Replaced int   `json:"replaced"` // packs
	Written  int   `json:"written"`  // packs in their place
	Saved    int64 `json:"saved"`    // bytes, once Collect deletes what was replaced
}

// Compact writes what backups of a lineage need of wasteful packs anew, and replaces them: those of whose bytes at least
// the part threshold, from 0 to 1, is needed by nobody, and many small ones. Packs of which nothing is needed it leaves
// to Collect. It replaces some 64 packs at most, and does nothing if another host was faster; it can be run again. It fails
// with fault.ErrInUse if another host ended its session. What it wrote before it failed, the next run goes on with, or
// Collect deletes.
func (r *Repository) Compact(ctx context.Context, lineage string, threshold float64) (Compacted, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return Compacted{}, err
	}
	done, err := c.compact(ctx, threshold)
	if errors.Is(err, errFenced) {
		err = fault.Errorf(fault.ErrInUse, "%w", err)
	}
	if err != nil {
		return Compacted{}, fmt.Errorf("compact lineage %s: %w", lineage, err)
	}
	return done, nil
}

func (c *chain) compact(ctx context.Context, threshold float64) (Compacted, error) {
	h, index, err := c.repository.NewestIndexed(ctx, c.lineage.name)
	if err != nil {
		return Compacted{}, err
	}
	m, err := c.mark(ctx, h, index)
	if err != nil {
		return Compacted{}, c.settle(ctx, h, err)
	}
	if len(wasteful(m, threshold)) == 0 {
		return Compacted{}, nil
	}
	session, h, err := c.register(ctx, CompactionSession, nil, nil)
	if err != nil {
		return Compacted{}, err
	}
	defer session.release()
	defer session.beat(ctx)()
	w := &compactor{chain: c, session: session, threshold: threshold}
	_, wrote, err := c.change(ctx, h, func(h *Head) (*Head, error) { return w.swap(ctx, h) })
	// No head lists what was written, nor ever will: that is in the way if there is no room.
	if fault.Is(err, fault.ErrNoSpace) && !w.offered || err == nil && w.late {
		_ = c.remove(ctx, session.objects()) // what is left the next collection deletes
	}
	if err != nil || w.late {
		return Compacted{}, err
	}
	if wrote {
		c.cached(session.packs...)
	}
	done := Compacted{Replaced: len(w.victims), Written: len(session.packs)}
	for _, size := range w.victims {
		done.Saved += size
	}
	for _, p := range session.packs {
		done.Saved -= p.Ref.Size
	}
	return done, nil
}

// settle returns what an error met while marking means, an ErrInUse if it may be different now.
func (c *chain) settle(ctx context.Context, h *Head, err error) error {
	if err := c.doubt(ctx, h, err); err != nil {
		return err
	}
	return c.errBusy()
}

// wasteful returns the packs that are worth being replaced, with their sizes: of too many those in which least is needed.
func wasteful(m *marks, threshold float64) map[PackName]int64 {
	packs := map[PackName]int64{}
	small := map[PackKind][]PackRef{}
	used := m.usage()
	slices.SortStableFunc(used, func(a, b usage) int { return cmp.Compare(a.bytes*b.all, b.bytes*a.all) })
	for _, u := range used {
		switch dead := u.all - u.bytes; {
		case u.marked == 0:
		case dead > 0 && float64(dead) >= threshold*float64(u.all):
			if len(packs) < compactedAtOnce {
				packs[u.ref.Name] = u.ref.Size
			}
		case u.total < maxEntries && u.ref.Size < int64(packKinds[u.ref.Name.Kind].limit/smallPart):
			small[u.ref.Name.Kind] = append(small[u.ref.Name.Kind], u.ref)
		}
	}
	for _, refs := range small {
		if len(refs) < smallMany {
			continue
		}
		for _, ref := range refs[:min(len(refs), compactedAtOnce)] {
			packs[ref.Name] = ref.Size
		}
	}
	return packs
}

// A compactor replaces packs, the victims, by its session's own.
type compactor struct {
	chain     *chain
	session   *registered
	threshold float64
	victims   map[PackName]int64 // with their sizes; nil until they are chosen
	offered   bool               // a head was made that lists the own packs
	late      bool               // somebody else was faster, and nothing was replaced
}

// swap makes the head in which the own packs stand for the victims. For each head it marks again: what nobody needed in a
// victim may be needed by a new backup.
func (w *compactor) swap(ctx context.Context, h *Head) (*Head, error) {
	if !w.session.mine(h) {
		for _, p := range w.session.packs {
			if h.IsLive(p.Ref.Name) {
				return nil, nil
			}
		}
		return nil, concluded{errFenced}
	}
	w.late = false
	index, err := w.chain.load(ctx, h)
	if err != nil {
		return nil, err
	}
	m, err := w.chain.mark(ctx, h, index)
	if err != nil {
		return nil, err
	}
	if w.victims == nil {
		w.victims = wasteful(m, w.threshold)
	}
	chosen := map[PackName]bool{}
	for name := range w.victims {
		if !index.HasPack(name) {
			// Somebody else replaced or collected it. What was written for it would stand twice for ever.
			w.late = true
			next := h.child()
			next.end(w.session.ID)
			return next, nil
		}
		chosen[name] = true
	}
	if err := w.rewrite(ctx, m, chosen); err != nil {
		return nil, err
	}
	next := h.child()
	next.drop(chosen)
	next.Live = append(next.Live, w.session.live()...)
	w.offered = true
	next.end(w.session.ID)
	return next, nil
}

// rewrite uploads what is marked in the victims and neither in own packs nor, whole, in live packs that stay.
func (w *compactor) rewrite(ctx context.Context, m *marks, victims map[PackName]bool) error {
	staying, own := m.index.fork(), NewIndex()
	for _, p := range w.session.packs {
		own.Add(p.Ref, p.Entries)
	}
	for name := range victims {
		staying.Drop(name)
	}
	emit := func(ctx context.Context, pack Pack) error {
		if err := w.session.upload(ctx, pack); err != nil {
			return err
		}
		w.session.add(pack)
		return nil
	}
	compressor, err := newCompressor(DefaultChunk)
	if err != nil {
		return err
	}
	writers := map[PackKind]*repacker{}
	for kind := range packKinds {
		writers[kind] = &repacker{lineage: w.chain.lineage, session: w.session.Name(), kind: kind, index: own, compressor: compressor, emit: emit}
	}
	for _, ref := range m.index.Packs() { // in the order in which they were written
		if !victims[ref.Name] {
			continue
		}
		if err := w.copyMarked(ctx, m, ref, staying, writers[ref.Name.Kind]); err != nil {
			return err
		}
	}
	return errors.Join(writers[DataPack].flush(ctx), writers[MetaPack].flush(ctx))
}

// copyMarked copies what is needed of one victim.
func (w *compactor) copyMarked(ctx context.Context, m *marks, ref PackRef, staying *Index, to *repacker) error {
	name := ref.Name.String()
	data, err := w.chain.repository.objects.Get(ctx, name)
	if fault.Is(err, fault.ErrNotFound) {
		return errAbsent{ref.Name}
	}
	if err != nil {
		return err
	}
	_, _, err = w.chain.lineage.OpenPack(name, data, func(e Entry, plaintext []byte, err error) error {
		m.index.mu.RLock()
		marked := m.has(e.ID)
		m.index.mu.RUnlock()
		if !marked || to.has(e.ID) {
			return nil
		}
		if staying.Has(e.ID) { // what stays may be damaged, and this its only good copy
			if _, lost := w.chain.record(ctx, staying, e.Type, int(e.Level), e.ID); lost == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
		return to.add(ctx, e, plaintext)
	})
	if fault.Is(err, fault.ErrCorrupt) {
		return w.chain.damaged(err)
	}
	return err
}

// A repacker puts records into packs of one kind.
type repacker struct {
	lineage    *Lineage
	session    string
	kind       PackKind
	index      *Index // of what was written before
	compressor *compressor
	emit       func(context.Context, Pack) error
	pack       *packWriter
	pending    map[ChunkID]bool // in pack
}

func (p *repacker) has(id ChunkID) bool { return p.pending[id] || p.index.Has(id) }

func (p *repacker) add(ctx context.Context, e Entry, plaintext []byte) error {
	payload, flags := p.compressor.compress(nil, plaintext)
	if p.pack != nil && !p.pack.fits(len(payload)) {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	if p.pack == nil {
		pack, err := p.lineage.newPackWriter(p.session, p.kind, nil)
		if err != nil {
			return err
		}
		p.pack, p.pending = pack, map[ChunkID]bool{}
	}
	p.pack.add(Entry{ID: e.ID, Type: e.Type, Level: e.Level, Length: uint32(len(plaintext)), flags: flags}, payload)
	p.pending[e.ID] = true
	return nil
}

// flush uploads the pack that is being filled.
func (p *repacker) flush(ctx context.Context) error {
	if p.pack == nil {
		return nil
	}
	pack := p.pack.finish()
	p.pack = nil
	if err := p.emit(ctx, pack); err != nil {
		return err
	}
	p.index.Add(pack.Ref, pack.Entries)
	return nil
}
