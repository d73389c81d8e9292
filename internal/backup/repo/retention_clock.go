package repo

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"
)

// An allowance is what retention concedes for one backup to clocks that may have been wrong.
//
// What is known for certain is the order of backups. Dates that contradict it are wrong. Which of them, is decided by the
// majority: the longest series of backups whose dates ascend is believed. The others take no place from those.
//
// A date that is far ahead of the one before contradicts nothing: the host may have been off. Such a leap is judged by how
// many backups were made meanwhile, which sequence numbers tell, and by the usual time between two. The largest leap may be
// a wrong clock, so no time counts as passed in it, and it may have split a period in two, or begun one too early. For each
// stretch of wrong dates, up to wrongStretches, another leap is treated like this, as a majority may be wrong too.
type allowance struct {
	disbelieved bool
	split       bool          // what lies between this backup and a newer one may have been another period
	periods     int           // of those that newer backups are of, so many may be none
	age         time.Duration // how much older than the newest it is at least
}

// wrongStretches is how many stretches of wrong dates in what is kept of a volume are allowed for in full.
const wrongStretches = 4

// leapPeriods is how many periods a leap may add: one that it splits, and one that its end is shifted into.
const leapPeriods = 2

// literally returns the allowances of backups, given with the newest first, whose dates are taken as they are.
func literally(backups []*Backup) []allowance {
	allowed := make([]allowance, len(backups))
	for i, b := range backups {
		allowed[i].age = backups[0].Created.Sub(b.Created)
	}
	return allowed
}

// allow returns the allowances of backups, given with the newest first.
func allow(backups []*Backup) []allowance {
	allowed := make([]allowance, len(backups))
	ascending, usual := longestAscent(backups), usualGap(backups)
	stretches := 0
	for i := range backups {
		allowed[i].disbelieved = !ascending[i]
		if !ascending[i] && (i == 0 || ascending[i-1]) {
			stretches++
		}
		allowed[i].split = stretches <= wrongStretches
	}
	var elapsed time.Duration
	var leaps []time.Duration // the largest first
	newer := -1
	for i, b := range backups {
		if ascending[i] {
			if newer >= 0 {
				gap := backups[newer].Created.Sub(b.Created)
				elapsed += gap
				if isLeap(backups[newer], b, usual) {
					leaps = append(leaps, gap)
					slices.SortFunc(leaps, func(a, b time.Duration) int { return cmp.Compare(b, a) })
					leaps = leaps[:min(len(leaps), 1+min(stretches, wrongStretches))]
				}
			}
			newer = i
		}
		allowed[i].periods, allowed[i].age = leapPeriods*len(leaps), elapsed
		for _, leap := range leaps {
			allowed[i].age -= leap
		}
	}
	return allowed
}

// isLeap reports whether a backup is dated later after an older one than the number of backups between them explains, by
// more than the time in which two are usually made.
func isLeap(newer, older *Backup, usual time.Duration) bool {
	return newer.Created.Sub(older.Created)/(steps(newer, older)+2) > usual
}

// steps returns how many backups of the lineage were made from an older one to a newer one.
func steps(newer, older *Backup) time.Duration {
	return time.Duration(max(newer.Sequence-older.Sequence, 1))
}

// longestAscent reports which backups, given with the newest first, are in the longest series whose dates are in the order
// of the backups.
func longestAscent(backups []*Backup) []bool {
	before := make([]int, len(backups)) // the next newer one in the longest series that each ends
	var ends []int                      // of the series of each length the one that ends with the latest date
	for i, b := range backups {
		n := sort.Search(len(ends), func(n int) bool { return backups[ends[n]].Created.Before(b.Created) })
		before[i] = -1
		if n > 0 {
			before[i] = ends[n-1]
		}
		if n == len(ends) {
			ends = append(ends, i)
		} else {
			ends[n] = i
		}
	}
	in := make([]bool, len(backups))
	for i := ends[len(ends)-1]; i >= 0; i = before[i] {
		in[i] = true
	}
	return in
}

// usualGap is the median time between two backups, as sequence numbers count them: retention has removed some. It is 0
// where fewer than two gaps are known.
func usualGap(backups []*Backup) time.Duration {
	var gaps []time.Duration
	for i := range backups[1:] {
		newer, older := backups[i], backups[i+1]
		if gap := newer.Created.Sub(older.Created); gap >= 0 {
			gaps = append(gaps, gap/steps(newer, older))
		}
	}
	if len(gaps) < 2 {
		return 0
	}
	slices.Sort(gaps)
	return gaps[(len(gaps)-1)/2]
}

// obviousLeap is how long after the one before a backup may be dated without being conspicuous.
const obviousLeap = 30 * 24 * time.Hour

// keepEvidence keeps with each kept backup that is dated after its successor the latter too. Else it would pass for a right
// one as soon as only newer successors are left.
func keepEvidence(kept []bool, backups []*Backup) {
	for i := len(backups) - 1; i > 0; i-- {
		kept[i-1] = kept[i-1] || kept[i] && backups[i-1].Created.Before(backups[i].Created)
	}
}

// doubt returns what is to be said of a volume's backups, given with the newest first: nil if the rules alone keep what is
// kept, and the newest has a plausible date.
func doubt(backups []*Backup, literal, kept []bool) *Doubt {
	extra := 0
	for i := range kept {
		if kept[i] && !literal[i] {
			extra++
		}
	}
	newest, text := backups[0], fmt.Sprintf("volume %q: ", backups[0].Volume.Name)
	obvious := isObvious(backups)
	if obvious {
		text += fmt.Sprintf("its newest backup %s is of %s, and the one before, %s, of %s: a clock is or was wrong; ", newest.ID(),
			newest.Created.UTC().Format(time.RFC3339), backups[1].ID(), backups[1].Created.UTC().Format(time.RFC3339))
	}
	switch {
	case extra > 0:
		text += fmt.Sprintf("%d backups are kept beyond the rules, since a clock may have been wrong: look at the dates, and use --force if "+
			"all are right", extra)
	case obvious:
		text += "no backup is kept beyond the rules for that"
	default:
		return nil
	}
	return &Doubt{obvious, text}
}

// isObvious reports whether the newest backup is dated before the one before, or more than 30 days and far after it.
func isObvious(backups []*Backup) bool {
	if len(backups) == 1 {
		return false
	}
	gap := backups[0].Created.Sub(backups[1].Created)
	return gap < 0 || gap > obviousLeap && isLeap(backups[0], backups[1], usualGap(backups))
}
