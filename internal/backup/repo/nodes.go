package repo

import "context"

// A MetaWriter puts tree nodes and backup records into metadata packs. What
// the index knows is not written again. It is not safe for concurrent use, and of no use after an error.
type MetaWriter struct {
	lineage    *Lineage
	session    string
	index      *Index
	emit       func(context.Context, Pack) error
	hasher     *Hasher
	compressor *compressor
	pack       *packWriter
	pending    map[ChunkID]bool // in pack
	stored     int64
}

// NewMetaWriter returns a writer that hands each finished pack to emit and then adds it to the index. emit must not
// keep the pack's bytes.
func (l *Lineage) NewMetaWriter(session string, index *Index, emit func(context.Context, Pack) error) (*MetaWriter, error) {
	if err := CheckLabel(session); err != nil {
		return nil, err
	}
	compressor, err := newCompressor(DefaultChunk)
	if err != nil {
		return nil, err
	}
	return &MetaWriter{
		lineage: l, session: session, index: index, emit: emit, hasher: l.Hasher(), compressor: compressor,
		pending: map[ChunkID]bool{},
	}, nil
}

// Store writes an encoded tree node.
func (w *MetaWriter) Store(ctx context.Context, level int, encoded []byte) (ChunkID, error) {
	return w.write(ctx, TypeNode, level, encoded)
}

// StoreBackup writes a backup record.
func (w *MetaWriter) StoreBackup(ctx context.Context, b *Backup) (ChunkID, error) {
	data, err := b.Encode()
	if err != nil {
		return Hole, err
	}
	return w.write(ctx, TypeBackup, 0, data)
}

func (w *MetaWriter) write(ctx context.Context, t Type, level int, plaintext []byte) (ChunkID, error) {
	id := w.hasher.Sum(t, level, plaintext)
	if w.pending[id] || w.index.Has(id) {
		return id, nil
	}
	payload, flags := w.compressor.compress(nil, plaintext)
	if w.pack != nil && !w.pack.fits(len(payload)) {
		if err := w.Flush(ctx); err != nil {
			return Hole, err
		}
	}
	if w.pack == nil {
		pack, err := w.lineage.newPackWriter(w.session, MetaPack, nil)
		if err != nil {
			return Hole, err
		}
		w.pack = pack
	}
	w.pack.add(Entry{ID: id, Type: t, Level: uint8(level), Length: uint32(len(plaintext)), flags: flags}, payload)
	w.pending[id] = true
	return id, nil
}

// Flush emits what is not emitted yet.
func (w *MetaWriter) Flush(ctx context.Context) error {
	if w.pack == nil {
		return nil
	}
	pack := w.pack.finish()
	if err := w.emit(ctx, pack); err != nil {
		return err
	}
	w.index.Add(pack.Ref, pack.Entries)
	w.stored += pack.Ref.Size
	w.pack = nil
	clear(w.pending)
	return nil
}

// Stored is the size of all packs emitted so far, in bytes.
func (w *MetaWriter) Stored() int64 { return w.stored }
