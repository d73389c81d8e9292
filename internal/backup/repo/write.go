package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"orlop/internal/fault"
)

// fencedLimit is how often a backup begins anew because its session was ended by another host.
const fencedLimit = 4

// A BackupSpec is what is to be backed up.
type BackupSpec struct {
	// Backup says what is known of the volume and the snapshot: its size and chunk size (0 is DefaultChunk), and all that
	// a restore needs. Lineage is where it goes. What Repository.Backup finds out it fills in itself: version, record,
	// parent, sequence, tree, algorithms, duration and stats.
	Backup Backup

	// Source reads the volume. Nobody writes to it meanwhile, and it may be read several times and at several places at
	// once.
	Source io.ReaderAt

	// Base is the record that the extents are told against; none if empty. It is not used if it is not in the repository
	// any more.
	Base string

	// Head, if it is not nil, is what Newest returned lately. It saves requests if it is still the newest.
	Head *Head

	// Extents calls fn by rising offset for each part of the volume in which it may differ from the base. With base nil
	// these are all parts that may hold data; the others are holes. It may be called several times.
	Extents func(ctx context.Context, base *Backup, fn func(Extent) error) error

	// Damage is what is known to be lost in the repository. Such a backup is no base, and such chunks are uploaded again,
	// which mends the older backups that need them.
	Damage Damage

	// Progress, if it is set, is told how many bytes of those that are to be looked at are done. One call at a time.
	Progress func(done, total int64)
}

// A Written is a backup that was committed.
type Written struct {
	*Backup

	Adopted bool // it went on with what an earlier run had uploaded

	// Mistrust, if it is not nil, tells that the extents, or the backup that they were told against, were wrong: a part that
	// they left out differs from the base. All of the volume was read.
	Mistrust error
}

// Backup writes a backup. When it returns one, that is in the newest head, or was until somebody removed it. Its requests
// and what it reads depend on what changed since the base, and not on the size of the volume.
//
// Cut short or failed, it leaves everything as it was, but for its session: the next run on this host goes on with what
// was uploaded. It may be committed all the same if the store did not say. It fails with fault.ErrInUse if other hosts
// end its sessions time and again.
func (r *Repository) Backup(ctx context.Context, spec BackupSpec) (*Written, error) {
	b := spec.Backup
	fresh := NewBackup()
	b.Version, b.MinReader, b.Hash, b.Compression = fresh.Version, fresh.MinReader, fresh.Hash, fresh.Compression
	if b.ChunkSize == 0 {
		b.ChunkSize = DefaultChunk
	}
	spec.Backup = b
	c, err := r.chain(b.Lineage)
	if err != nil {
		return nil, err
	}
	if _, err := NewPlan(b.Size, b.ChunkSize); err != nil {
		return nil, err
	}
	if err := checkRecord(b); err != nil {
		return nil, err
	}
	began := time.Now()
	for range fencedLimit {
		w := &writer{BackupSpec: spec, chain: c, began: began}
		var written *Written
		if written, err = w.write(ctx); !errors.Is(err, errFenced) {
			return written, err
		}
	}
	return nil, fault.Errorf(fault.ErrInUse, "back up to lineage %s: %w, %d times", b.Lineage, err, fencedLimit)
}

// checkRecord fails if the record of a backup could not be stored once everything else is.
func checkRecord(b Backup) error {
	b.Record, b.Parent, b.Sequence = ID{}.String(), ID{}.String(), math.MaxUint64
	b.Tree = Tree{Chunks: chunksOf(b.Size, b.ChunkSize)}
	b.Duration, b.Stats = math.MaxInt64, Stats{math.MaxInt64, math.MaxInt64, math.MaxInt64}
	_, err := b.Encode()
	return err
}

// A writer is one attempt to write a backup, with one session.
type writer struct {
	BackupSpec
	chain   *chain
	began   time.Time
	session *registered
	base    *Backup // whose tree is taken as given; nil if there is none
	adopted bool

	nodes    *liveNodes
	absent   map[PackName]bool // live packs that are not there as they were written
	mu       sync.Mutex        // guards session.packs and stats while packs are uploaded
	built    bool              // tree is there
	doubtful bool              // and refers to what may not be live any more
	tree     Tree
	stats    Stats
	mistrust error
	record   Record // as it was stored last
}

// write registers, uploads and commits.
func (w *writer) write(ctx context.Context) (*Written, error) {
	var base *Backup
	known := w.Head
	if known != nil && known.Number == 0 {
		known = nil // whether there is none, is to be looked at again
	}
	w.Head = nil // a next attempt begins with what is there then
	session, h, err := w.chain.register(ctx, BackupSession, known, func(h *Head) *Backup {
		base = nil
		if b, there := h.Backup(w.Base); there && b.ChunkSize == w.Backup.ChunkSize && !w.Damage.Hurts(b) {
			base = b
		}
		return base
	})
	if err != nil {
		return nil, err
	}
	defer session.release()
	defer session.beat(ctx)()
	w.session, w.adopted = session, len(session.packs) > 0
	// Only what the session protects is a base.
	for _, tree := range session.Bases {
		if base != nil && tree == base.Tree {
			w.base = base
		}
	}
	h, wrote, err := w.chain.change(ctx, h, func(h *Head) (*Head, error) { return w.commit(ctx, h) })
	if err != nil {
		return nil, fmt.Errorf("back up to lineage %s: %w", w.chain.lineage.name, err)
	}
	if wrote {
		session.index.Spurn(nil)
		session.committed()
		w.chain.tidy(ctx)
	}
	committed, there := h.Backup(session.owner.String())
	if !there {
		committed = w.record.Backup
	}
	return &Written{Backup: committed, Adopted: w.adopted, Mistrust: w.mistrust}, nil
}

// commit makes the head that adds the record. Whatever the tree refers to is looked up in this head.
func (w *writer) commit(ctx context.Context, h *Head) (*Head, error) {
	if _, there := h.Backup(w.session.owner.String()); there {
		return nil, nil
	}
	if !w.session.mine(h) {
		return nil, concluded{errFenced}
	}
	if err := w.complete(ctx, h); err != nil {
		return nil, err
	}
	next := h.child()
	next.Records = append(next.Records, w.record)
	next.Sequence++
	next.Live = append(next.Live, w.session.live()...)
	next.end(w.session.ID)
	return next, nil
}

// complete uploads what the tree needs and neither a base nor an own pack nor a live pack of h holds, and the record.
func (w *writer) complete(ctx context.Context, h *Head) error {
	lost, err := w.session.follow(ctx, h)
	if err != nil {
		return err
	}
	w.session.index.Spurn(func(pack PackName, id ChunkID) bool { return w.absent[pack] || w.Damage.of(pack, id) })
	w.doubtful = w.doubtful || lost
	if w.built && w.doubtful {
		if w.built, err = w.isComplete(ctx); err != nil {
			w.built = true // the tree; whether it is complete, the next head will tell
			return err
		}
	}
	if !w.built {
		if err := w.build(ctx); err != nil {
			return err
		}
		w.built = true
	}
	w.doubtful = false
	return w.storeRecord(ctx, h.Sequence)
}

// isComplete tells whether everything that the tree has and the base has not is still in packs.
func (w *writer) isComplete(ctx context.Context) (bool, error) {
	var from Tree
	if w.base != nil {
		from = w.base.Tree
	}
	errLacking := errors.New("lacking")
	err := Diff(ctx, w.nodes, from, w.tree, func(_ int64, _, id ChunkID) error {
		if id != Hole && !w.session.index.Has(id) {
			return errLacking
		}
		return nil
	})
	var dangling errDangling
	if errors.Is(err, errLacking) || errors.As(err, &dangling) {
		return false, nil
	}
	return err == nil, err
}

// storeRecord uploads the record with a sequence number, unless that was done, and what else is left to upload.
func (w *writer) storeRecord(ctx context.Context, sequence uint64) error {
	if w.record.Backup != nil && w.record.Sequence == sequence && w.record.Tree == w.tree {
		return w.nodes.meta.Flush(ctx)
	}
	b := w.Backup
	b.Record, b.Sequence, b.Tree = w.session.owner.String(), sequence, w.tree
	if w.base != nil {
		b.Parent = w.base.Record
	}
	b.Stats, b.Duration = w.stats, time.Since(w.began)
	encoded, err := b.Encode()
	if err != nil {
		return err
	}
	if _, err := w.nodes.meta.StoreBackup(ctx, &b); err != nil {
		return err
	}
	if err := w.nodes.meta.Flush(ctx); err != nil {
		return err
	}
	w.record = Record{&b, encoded}
	return nil
}

// emit uploads a pack.
func (w *writer) emit(ctx context.Context, pack Pack) error {
	if err := w.session.upload(ctx, pack); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session.add(pack)
	w.stats.Stored += pack.Ref.Size
	return nil
}
