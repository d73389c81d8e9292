package repo

import (
	"context"

	"orlop/internal/backup/store"
)

// A Loader reads records by their IDs. It fails with fault.ErrNotFound if the index knows no pack that holds one, or the
// store does not hold that pack any more; and with fault.ErrCorrupt if the record is not what was written. It is safe
// for concurrent use.
type Loader struct {
	Lineage *Lineage
	Objects store.Store
	Index   *Index
}

// Load returns an encoded tree node.
func (l Loader) Load(ctx context.Context, level int, id ChunkID) ([]byte, error) {
	return l.read(ctx, TypeNode, level, id)
}

// LoadChunk returns a chunk of the volume, of its full size.
func (l Loader) LoadChunk(ctx context.Context, id ChunkID) ([]byte, error) {
	return l.read(ctx, TypeChunk, 0, id)
}

// LoadBackup returns a backup record.
func (l Loader) LoadBackup(ctx context.Context, id ChunkID) (*Backup, error) {
	data, err := l.read(ctx, TypeBackup, 0, id)
	if err != nil {
		return nil, err
	}
	return DecodeBackup(data)
}

func (l Loader) read(ctx context.Context, t Type, level int, id ChunkID) ([]byte, error) {
	ref, e, ok := l.Index.Find(id)
	if !ok {
		return nil, errMissing(id)
	}
	if e.Type != t || int(e.Level) != level {
		return nil, corrupt(ref.Name.String(), "%v is of type %d and level %d instead of %d and %d", &e, e.Type, e.Level, t, level)
	}
	return l.Lineage.ReadRecord(ctx, l.Objects, ref, e)
}

// Loader finds records by an index of the lineage.
func (r *Repository) Loader(lineage string, index *Index) (Loader, error) {
	c, err := r.chain(lineage)
	if err != nil {
		return Loader{}, err
	}
	return Loader{Lineage: c.lineage, Objects: r.objects, Index: index}, nil
}
