package repo

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"orlop/internal/backup/store/dirstore"
)

// Backups of programs to an encrypted repository in a directory: a full one, one of which nothing changed and one of which
// ten chunks did.
func BenchmarkBackup(b *testing.B) {
	code := programs(b)
	size := int64(len(code)) / DefaultChunk * DefaultChunk
	open := func(b *testing.B) (*Repository, BackupSpec) {
		objects, err := dirstore.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = objects.Close() })
		spec := specOf(newSparse(size, DefaultChunk), nil, nil)
		spec.Backup.ChunkSize, spec.Source = DefaultChunk, bytes.NewReader(code)
		return newTestRepository(b, objects, newTestKey(b), From(testOrigin("h", "1:0"))), spec
	}
	b.Run("full", func(b *testing.B) {
		b.SetBytes(size)
		before := cpuTime(b)
		for b.Loop() {
			r, spec := open(b)
			spec.Extents = nil
			mustBackup(b, r, spec)
		}
		b.ReportMetric(float64(size)*float64(b.N)/(cpuTime(b)-before)/1e6, "MB/cpu-s")
	})
	for _, changed := range []int64{0, 10} {
		b.Run(fmt.Sprintf("changed=%d", changed), func(b *testing.B) {
			r, spec := open(b)
			spec.Extents = func(_ context.Context, base *Backup, fn func(Extent) error) error {
				if base == nil {
					return fn(Extent{Length: size})
				}
				for i := range changed {
					if err := fn(Extent{Offset: i * (size / DefaultChunk / changed) * DefaultChunk, Length: 4096}); err != nil {
						return err
					}
				}
				return nil
			}
			spec.Base = mustBackup(b, r, spec).Record
			for n := 0; b.Loop(); n++ {
				for i := range changed {
					at := i * (size / DefaultChunk / changed) * DefaultChunk
					copy(code[at:], fmt.Sprint("change ", n))
				}
				if w := mustBackup(b, r, spec); w.Mistrust != nil {
					b.Fatal(w.Mistrust)
				}
			}
		})
	}
}
