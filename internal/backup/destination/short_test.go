package destination

import (
	"testing"

	"orlop/internal/backup/repo"
	"orlop/internal/fault"
)

func TestShortIDsAreAsLongAsTheyMustBe(t *testing.T) {
	for _, test := range []struct{ ids, want [][2]string }{
		{[][2]string{{"l", "0123456789abcdef"}}, [][2]string{{"l.0123456789abcdef", "01234567"}}},
		{
			[][2]string{{"l", "0123456789abcdef"}, {"l", "0123456788abcdef"}, {"m", "0123456"}},
			[][2]string{{"l.0123456789abcdef", "0123456789"}, {"l.0123456788abcdef", "0123456788"}, {"m.0123456", "0123456"}},
		},
		{[][2]string{{"l", "0123456789"}, {"m", "0123456789"}}, [][2]string{{"l.0123456789", "l.0123456789"}, {"m.0123456789", "m.0123456789"}}},
	} {
		var backups []*repo.Backup
		for _, id := range test.ids {
			backups = append(backups, &repo.Backup{Lineage: id[0], Record: id[1]})
		}
		got := ShortIDs(backups)
		for _, want := range test.want {
			if got[want[0]] != want[1] {
				t.Errorf("%s: %q, want %q", want[0], got[want[0]], want[1])
			}
		}
	}
}

func TestFindTakesShortIDsThatAreOfOneBackup(t *testing.T) {
	w := newWorld(t)
	r := w.init()
	first, second := w.backup(r, "db", "id-1", 1), w.backup(r, "db", "id-1", 2)
	find := func(id string) (*repo.Backup, error) {
		return r.Find(t.Context(), URL{Destination: w.at, Backup: id}, nil)
	}
	short := ShortIDs([]*repo.Backup{first, second})
	for _, b := range []*repo.Backup{first, second} {
		for _, id := range []string{b.ID(), short[b.ID()], b.ID()[:len(b.ID())-1]} {
			if found, err := find(id); err != nil || found.ID() != b.ID() {
				t.Errorf("%q: %v", id, err)
			}
		}
	}
	_, err := find("id-1.")
	w.wantRemedy(err, fault.ErrInvalid, ListBackups)
	_, err = find(first.Record[:3])
	w.wantRemedy(err, fault.ErrNotFound, ListBackups)
}
