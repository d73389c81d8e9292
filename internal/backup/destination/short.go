package destination

import (
	"slices"
	"strings"

	"orlop/internal/backup/repo"
)

const (
	shortID    = 8 // characters of a short ID, unless more are needed to tell it from others
	shortestID = 4 // characters that are taken for one
)

// ShortIDs returns for each of these backups, by its ID, one that Find takes for it as long as there are no others: the
// beginning of its record, which is random where lineages begin alike, of 8 characters or as many more as tell it from those of
// the others.
func ShortIDs(backups []*repo.Backup) map[string]string {
	var records []string
	for _, b := range backups {
		records = append(records, b.Record)
	}
	slices.Sort(records)
	short := map[string]string{}
	for _, b := range backups {
		at, _ := slices.BinarySearch(records, b.Record)
		length := shortID
		for _, other := range []int{at - 1, at + 1} {
			if other >= 0 && other < len(records) {
				length = max(length, common(b.Record, records[other])+1)
			}
		}
		short[b.ID()] = b.Record[:min(length, len(b.Record))]
		if at+1 < len(records) && records[at+1] == b.Record { // in two lineages
			short[b.ID()] = b.ID()
		}
	}
	return short
}

// common is how many bytes a and b begin with alike.
func common(a, b string) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// matches reports whether text is a short form of a backup's ID.
func matches(text string, b *repo.Backup) bool {
	return len(text) >= shortestID && (strings.HasPrefix(b.Record, text) || strings.HasPrefix(b.ID(), text))
}
