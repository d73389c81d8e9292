package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"orlop/internal/backup/destination"
	"orlop/internal/backup/repo"
)

// A repository may be open under two paths at once. Neither takes the other's session for one that was left behind: it would
// fence it, and the backup would begin again.
func TestJobsThroughTwoSpellingsOfADestinationLeaveEachOtherAlone(t *testing.T) {
	w := newWorld(t)
	link := filepath.Join(t.TempDir(), "link")
	at := w.to.Destination.String()[len("file://"):]
	check(t, os.Symlink(at, link))
	spelled, err := destination.Parse(link)
	check(t, err)
	one, two := w.open(t), w.openAt(t, Target{Destination: spelled})
	if one == two {
		t.Fatal("both spellings are one destination")
	}
	first, second := bytes.Repeat([]byte{1}, volumeSize), bytes.Repeat([]byte{2}, volumeSize)
	begun, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	calls := 0
	var written *repo.Written
	go func() {
		var err error
		written, err = one.Backup(t.Context(), w.specOf("db", first, func() {
			if calls++; calls == 1 {
				close(begun)
				<-goOn
			}
		}))
		ended <- err
	}()
	<-begun
	other, err := two.Backup(t.Context(), w.specOf("db", second, func() {}))
	check(t, err)
	plan, err := two.PlanPrune(t.Context(), repo.PruneOptions{Policy: repo.Policy{Last: 1}})
	check(t, err)
	_, err = plan.Execute(t.Context())
	check(t, err)
	close(goOn)
	check(t, <-ended)
	if calls != 1 || written.Adopted || other.Adopted {
		t.Errorf("the first began %d times; adopted: %t, %t", calls, written.Adopted, other.Adopted)
	}
	for b, want := range map[*repo.Backup][]byte{written.Backup: first, other.Backup: second} {
		if sha256.Sum256(content(t, one, b)) != sha256.Sum256(want) {
			t.Errorf("backup %s is not what its volume was", b.ID())
		}
	}
}

// openAt opens another repository than the world's own, or under another name.
func (w *world) openAt(t *testing.T, to Target) *destination.Repository {
	t.Helper()
	r, release, err := w.opened(t.Context(), to)
	check(t, err)
	t.Cleanup(release)
	return r
}

// specOf is a full backup of what a volume holds. Begun is called each time that it begins to read.
func (w *world) specOf(volume string, data []byte, begun func()) repo.BackupSpec {
	return repo.BackupSpec{
		Backup: repo.Backup{
			Lineage: volume, Size: int64(len(data)), BlockSize: 512, Filesystem: "ext4", Volume: repo.Named{ID: volume, Name: volume},
			Snapshot: repo.Named{ID: "s", Name: "s"}, Consistency: "unmounted", Writer: "test", Host: "host", Created: w.clock,
		},
		Source: bytes.NewReader(data),
		Extents: func(_ context.Context, _ *repo.Backup, fn func(repo.Extent) error) error {
			begun()
			return fn(repo.Extent{Length: int64(len(data))})
		},
	}
}
