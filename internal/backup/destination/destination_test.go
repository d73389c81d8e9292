package destination

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

// world is a destination and what opening it warned of.
type world struct {
	t       *testing.T
	at      Destination
	options Options
	warned  []error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	at, err := Parse(filepath.Join(dir, "nas"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, at: at}
	w.options = Options{StateDir: filepath.Join(dir, "state"), Warn: func(err error) { w.warned = append(w.warned, err) }}
	return w
}

func (w *world) init() *Repository {
	w.t.Helper()
	r, err := OpenOrInit(w.t.Context(), w.at, w.options, false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.Close() })
	return r
}

func (w *world) backup(r *Repository, volume, id string, content byte) *repo.Backup {
	w.t.Helper()
	return w.backupOf(r, id, volume, id, content)
}

// backupOf backs a volume up whose lineage is not its own.
func (w *world) backupOf(r *Repository, lineage, volume, id string, content byte) *repo.Backup {
	w.t.Helper()
	data := bytes.Repeat([]byte{content}, repo.MinChunk)
	spec := repo.BackupSpec{Source: bytes.NewReader(data)}
	spec.Backup = repo.Backup{
		Lineage: lineage, Size: int64(len(data)), ChunkSize: repo.MinChunk, Created: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Host: "h", Writer: "test",
		Volume: repo.Named{ID: id, Name: volume}, Snapshot: repo.Named{ID: "s", Name: "s"}, Filesystem: "ext4", Consistency: "frozen",
	}
	b, err := r.Backup(w.t.Context(), spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return b.Backup
}

func (w *world) wantRemedy(err error, kind fault.Kind, remedy Remedy) {
	w.t.Helper()
	var e *Error
	if !fault.Is(err, kind) || !errors.As(err, &e) || e.Remedy != remedy || e.Destination != w.at {
		w.t.Errorf("%v: want kind %s and remedy %q", err, kind, remedy)
	}
}

func TestARepositoryCanBeUsedOnceItIsMade(t *testing.T) {
	w := newWorld(t)
	_, err := Open(t.Context(), w.at, w.options)
	w.wantRemedy(err, fault.ErrNotFound, InitRepository)
	made := w.backup(w.init(), "db", "id-1", 1)
	r := w.init() // there already
	found, err := r.Find(t.Context(), URL{Destination: w.at, Volume: "db"}, nil)
	if err != nil || found.ID() != made.ID() {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestARepositoryThatIsGoneIsReplacedOnlyIfAsked(t *testing.T) {
	w := newWorld(t)
	first := w.init()
	if err := os.RemoveAll(w.at.dir); err != nil {
		t.Fatal(err)
	}
	_, err := OpenOrInit(t.Context(), w.at, w.options, false)
	w.wantRemedy(err, fault.ErrCorrupt, ReplaceRepository)
	if _, err := Open(t.Context(), w.at, w.options); !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), first.ID().String()) {
		t.Errorf("%v", err)
	}
	second, err := OpenOrInit(t.Context(), w.at, w.options, true)
	if err != nil || second.ID() == first.ID() {
		t.Fatal(err)
	}
	defer second.Close()
	w.backup(second, "db", "id-1", 1)
	if again := w.init(); again.ID() != second.ID() {
		t.Error("the host knows another repository")
	}
}

// What one user of a state knows, another does not: the daemon's is not the commands'.
func TestEachStateDirectoryKnowsItsOwn(t *testing.T) {
	w := newWorld(t)
	w.init()
	if err := os.RemoveAll(w.at.dir); err != nil {
		t.Fatal(err)
	}
	other := w.options
	other.StateDir = t.TempDir()
	r, err := OpenOrInit(t.Context(), w.at, other, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	other.StateDir = ""
	if r, err = Open(t.Context(), w.at, other); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := Open(t.Context(), w.at, w.options); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if len(w.warned) > 0 {
		t.Errorf("warned of %v", w.warned)
	}
}

func TestFindChoosesTheNewestOfAVolume(t *testing.T) {
	w := newWorld(t)
	r := w.init()
	first, second := w.backup(r, "db", "id-1", 1), w.backup(r, "db", "id-1", 2)
	w.backup(r, "web", "id-2", 1)
	w.backup(r, "web", "id-3", 1)
	find := func(query string, pass func(*repo.Backup) bool) (*repo.Backup, error) {
		u, err := ParseURL(w.at.String() + "?" + query)
		if err != nil {
			t.Fatal(err)
		}
		return r.Find(t.Context(), u, pass)
	}
	if b, err := find("volume=db", nil); err != nil || b.ID() != second.ID() {
		t.Errorf("%+v, %v", b, err)
	}
	if u := w.at.URL(first); len(w.warned) > 0 || u.String() != w.at.String()+"?backup="+first.ID()+"&volume=db" {
		t.Errorf("%s, warned of %v", u, w.warned)
	}
	if b, err := find("volume=db", func(b *repo.Backup) bool { return b.ID() == second.ID() }); err != nil || b.ID() != first.ID() {
		t.Errorf("%+v, %v", b, err)
	}
	if len(w.warned) != 1 {
		t.Fatalf("warned of %v", w.warned)
	}
	w.wantRemedy(w.warned[0], fault.ErrCorrupt, VerifyRepository)
	_, err := find("volume=db", func(*repo.Backup) bool { return true })
	w.wantRemedy(err, fault.ErrCorrupt, VerifyData)
	_, err = find("volume=web", nil)
	w.wantRemedy(err, fault.ErrInvalid, ChooseBackup)
	_, err = find("volume=nothing", nil)
	w.wantRemedy(err, fault.ErrNotFound, ListBackups)
	_, err = find("backup="+first.ID()+"&volume=web", nil)
	w.wantRemedy(err, fault.ErrNotFound, ListBackups)
}

func TestARestoredVolumeContinuesTheHistoryOfItsName(t *testing.T) {
	w := newWorld(t)
	r := w.init()
	db := URL{Destination: w.at, Volume: "db"}
	w.backup(r, "db", "first", 1)
	w.backup(r, "db", "first", 2)
	w.backupOf(r, "first", "db", "second", 3)
	third := w.backupOf(r, "first", "db", "third", 4)
	found, err := r.Find(t.Context(), db, nil)
	if err != nil || found.ID() != third.ID() {
		t.Errorf("restored twice: %+v, %v; want %s", found, err, third.ID())
	}
	w.backup(r, "db", "first", 5) // the first one lives on, so that two volumes have the name
	_, err = r.Find(t.Context(), db, nil)
	w.wantRemedy(err, fault.ErrInvalid, ChooseBackup)
}
