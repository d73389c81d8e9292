package repo

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"orlop/internal/fault"
)

// A Policy says which backups of a volume are kept. The zero Policy keeps none, and is never applied: see IsZero. Of each
// hour, day and so on, in UTC, the newest backup counts; times without backups do not. As long as a rule has kept less
// than it may, it keeps the oldest backup too.
type Policy struct {
	Last    int // the newest so many
	Hourly  int // the newest of each of so many hours
	Daily   int
	Weekly  int // weeks begin on Mondays
	Monthly int
	Yearly  int
	Within  Span // all that are younger than the newest one by no more than this
}

// IsZero tells whether the policy has no rule.
func (p Policy) IsZero() bool { return p == Policy{} }

// Check fails with fault.ErrInvalid if a number is negative, and names the flag that it came from.
func (p Policy) Check() error {
	for _, rule := range []struct {
		flag  string
		count int
	}{
		{"--keep-last", p.Last}, {"--keep-hourly", p.Hourly}, {"--keep-daily", p.Daily}, {"--keep-weekly", p.Weekly},
		{"--keep-monthly", p.Monthly}, {"--keep-yearly", p.Yearly},
		{"--keep-within", min(p.Within.Years, p.Within.Months, p.Within.Days, p.Within.Hours)},
	} {
		if rule.count < 0 {
			return fault.Errorf(fault.ErrInvalid, "%s %d: must not be negative", rule.flag, rule.count)
		}
	}
	return nil
}

// A Span is a duration by the calendar, as in "1y6m7d12h".
type Span struct {
	Years, Months, Days, Hours int
}

// spanUnits are the letters of a Span, in the order in which String writes them.
var spanUnits = []struct {
	letter byte
	field  func(*Span) *int
}{
	{'y', func(s *Span) *int { return &s.Years }},
	{'m', func(s *Span) *int { return &s.Months }},
	{'d', func(s *Span) *int { return &s.Days }},
	{'h', func(s *Span) *int { return &s.Hours }},
}

// String returns what ParseSpan reads.
func (s Span) String() (text string) {
	for _, unit := range spanUnits {
		if n := *unit.field(&s); n != 0 {
			text += strconv.Itoa(n) + string(unit.letter)
		}
	}
	return cmp.Or(text, "0h")
}

// spanMax bounds each number of a Span. No backup is as old.
const spanMax = 100000

// ParseSpan reads numbers with a letter each, as in "2y5m7d3h": years, months, days and hours. It fails with
// fault.ErrInvalid, and names the flag that takes it.
func ParseSpan(text string) (Span, error) {
	var s Span
	invalid := fault.Errorf(fault.ErrInvalid, "--keep-within %q: want numbers of years, months, days and hours, as in 1y6m7d12h", text)
	seen := map[byte]bool{}
	for rest := text; rest != ""; {
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n > spanMax || digits == len(rest) || seen[rest[digits]] {
			return Span{}, invalid
		}
		letter := rest[digits]
		field := s.unit(letter)
		if field == nil {
			return Span{}, invalid
		}
		*field, seen[letter] = n, true
		rest = rest[digits+1:]
	}
	if text == "" {
		return Span{}, invalid
	}
	return s, nil
}

// unit is the field of a letter, nil if there is none.
func (s *Span) unit(letter byte) *int {
	for _, unit := range spanUnits {
		if unit.letter == letter {
			return unit.field(s)
		}
	}
	return nil
}

// before is the point in time that is the span before t.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}

// periodOf tells for each rule that counts periods in which one a time is.
var periodOf = []struct {
	count  func(Policy) int
	period func(t time.Time) string
}{
	{func(p Policy) int { return p.Hourly }, func(t time.Time) string { return t.Format("2006-01-02T15") }},
	{func(p Policy) int { return p.Daily }, func(t time.Time) string { return t.Format(time.DateOnly) }},
	{func(p Policy) int { return p.Weekly }, func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%d-%d", year, week)
	}},
	{func(p Policy) int { return p.Monthly }, func(t time.Time) string { return t.Format("2006-01") }},
	{func(p Policy) int { return p.Yearly }, func(t time.Time) string { return t.Format("2006") }},
}

// A Verdict is what a policy decides for the backups of one volume.
type Verdict struct {
	Volume string // the volume's ID
	Keep   []*Backup
	Remove []*Backup // both with the oldest first

	// Doubt, if it is not nil, tells why the times of the backups cannot be trusted. Then nothing is removed.
	Doubt error
}

// clockGap is how long after its predecessor a newest backup may be, however often there were backups, before its clock
// is doubted.
const clockGap = 30 * 24 * time.Hour

// Retain applies a policy to the backups of one lineage, for each volume by itself. The order of backups is that of
// their sequence numbers, whatever the clocks said. The newest backup of a volume is always kept, and so is the newest
// that hurt, which may be nil, does not report as damaged. If now is before the newest backup of a volume, or that is
// more than 30 days after the one before it and more than twice the usual gap, some clock was wrong: Verdict.Doubt,
// unless force.
func Retain(backups []*Backup, policy Policy, now time.Time, hurt func(*Backup) bool, force bool) []Verdict {
	volumes := map[string][]*Backup{}
	for _, b := range backups {
		volumes[b.Volume.ID] = append(volumes[b.Volume.ID], b)
	}
	var verdicts []Verdict
	for id, of := range volumes {
		slices.SortFunc(of, func(a, b *Backup) int { return cmp.Compare(b.Sequence, a.Sequence) })
		v := Verdict{Volume: id}
		if !force {
			v.Doubt = doubt(of, now)
		}
		kept := policy.keep(of)
		kept[0] = true
		if good := slices.IndexFunc(of, func(b *Backup) bool { return hurt == nil || !hurt(b) }); good >= 0 {
			kept[good] = true
		}
		for i, b := range slices.Backward(of) {
			if kept[i] || v.Doubt != nil {
				v.Keep = append(v.Keep, b)
			} else {
				v.Remove = append(v.Remove, b)
			}
		}
		verdicts = append(verdicts, v)
	}
	slices.SortFunc(verdicts, func(a, b Verdict) int { return cmp.Compare(a.Volume, b.Volume) })
	return verdicts
}

// doubt tells what is strange about the times of a volume's backups, given with the newest first.
func doubt(backups []*Backup, now time.Time) error {
	newest := backups[0]
	const hint = "a clock is, or was, wrong; look at the times, and use --force if they are right"
	if now.Before(newest.Created) {
		return fmt.Errorf("volume %q: its newest backup %s is of %s, and now is %s: %s", newest.Volume.Name, newest.ID(),
			newest.Created.Format(time.RFC3339), now.UTC().Format(time.RFC3339), hint)
	}
	if len(backups) == 1 {
		return nil
	}
	before := backups[1]
	if gap := newest.Created.Sub(before.Created); gap > clockGap && gap > 2*usualGap(backups[1:]) {
		return fmt.Errorf("volume %q: its newest backup %s is of %s, %d days after the one before, %s of %s: %s", newest.Volume.Name,
			newest.ID(), newest.Created.Format(time.RFC3339), gap/(24*time.Hour), before.ID(), before.Created.Format(time.RFC3339), hint)
	}
	return nil
}

// usualGap is the longer of the two gaps between the three newest of these backups, given with the newest first. Older
// ones do not count: retention has thinned them. A single backup, as monthly ones with a rule of one leave it, passes for
// a monthly one.
func usualGap(backups []*Backup) time.Duration {
	if len(backups) == 1 {
		return clockGap
	}
	usual := backups[0].Created.Sub(backups[1].Created)
	if len(backups) > 2 {
		usual = max(usual, backups[1].Created.Sub(backups[2].Created))
	}
	return usual
}

// keep tells which backups, given with the newest first, the policy keeps.
func (p Policy) keep(backups []*Backup) []bool {
	kept := make([]bool, len(backups))
	for i := range backups {
		kept[i] = i < p.Last
	}
	for _, rule := range periodOf {
		left, last := rule.count(p), ""
		for i, b := range backups {
			period := rule.period(b.Created.UTC())
			if left > 0 && (period != last || i == len(backups)-1) {
				kept[i] = true
				last = period
				left--
			}
		}
	}
	if p.Within != (Span{}) {
		since := p.Within.before(backups[0].Created.UTC())
		for i, b := range backups {
			kept[i] = kept[i] || b.Created.After(since)
		}
	}
	return kept
}
