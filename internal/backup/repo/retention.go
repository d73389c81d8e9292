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
	Within  Span // all that are older than the newest one by less than this
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
	Doubt  *Doubt    // nil if the dates need no allowance
}

// A Doubt says that a clock is or was wrong, or may have been, so that backups are kept which the rules alone would remove.
type Doubt struct {
	// Obvious reports whether the newest backup itself is dated before the one before, or months after it.
	Obvious bool

	text string
}

func (d *Doubt) Error() string { return d.text }

// Retain applies a policy to the backups of one lineage, for each volume by itself. Backups are ordered by their sequence
// numbers. The newest backup of a volume is always kept, and so is the newest that affected, which may be nil, does not
// report as damaged.
//
// Dates are those of the writers' clocks, which may have been wrong. Retain therefore makes allowance (see allow), and keeps
// what the policy would have kept with right clocks. With force it goes by the dates as they are. It reads no clock itself.
func Retain(backups []*Backup, policy Policy, affected func(*Backup) bool, force bool) []Verdict {
	volumes := map[string][]*Backup{}
	for _, b := range backups {
		volumes[b.Volume.ID] = append(volumes[b.Volume.ID], b)
	}
	var verdicts []Verdict
	for id, of := range volumes {
		slices.SortFunc(of, func(a, b *Backup) int { return cmp.Compare(b.Sequence, a.Sequence) })
		v := Verdict{Volume: id}
		kept := policy.keep(of, literally(of))
		if !force {
			literal := kept
			kept = policy.keep(of, allow(of))
			keepEvidence(kept, of)
			v.Doubt = doubt(of, literal, kept)
		}
		kept[0] = true
		if good := slices.IndexFunc(of, func(b *Backup) bool { return affected == nil || !affected(b) }); good >= 0 {
			kept[good] = true
		}
		for i, b := range slices.Backward(of) {
			if kept[i] {
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

// keep reports which backups, given with the newest first, the policy keeps, with an allowance for each.
func (p Policy) keep(backups []*Backup, allowed []allowance) []bool {
	kept := make([]bool, len(backups))
	for i := range backups {
		kept[i] = i < p.Last
	}
	for _, rule := range periodOf {
		if count := rule.count(p); count > 0 {
			keepPeriods(kept, backups, allowed, count, rule.period)
		}
	}
	if p.Within != (Span{}) {
		newest := backups[slices.IndexFunc(allowed, func(a allowance) bool { return !a.disbelieved })].Created.UTC()
		since := p.Within.before(newest)
		for i, a := range allowed {
			kept[i] = kept[i] || newest.Add(-a.age).After(since)
		}
	}
	return kept
}

// keepPeriods keeps the newest backup of each of so many periods, and the oldest as long as the rule may keep more. Only
// backups whose dates are believed count. Of a stretch of others the newest of each period is kept besides, and so is the
// one before the stretch, which need not be of the period that its neighbor behind the stretch is of.
func keepPeriods(kept []bool, backups []*Backup, allowed []allowance, count int, period func(time.Time) string) {
	newer, believed, other := 0, "", "" // how many periods newer backups are of, and the period of the last one of each sort
	for i, b := range backups {
		is, a := period(b.Created.UTC()), allowed[i]
		if max(newer-a.periods, min(newer, 1)) < count {
			switch {
			case i == len(backups)-1:
				kept[i] = true
			case a.disbelieved:
				kept[i] = kept[i] || is != other
			default:
				kept[i] = kept[i] || is != believed || other != "" && a.split
			}
		}
		if a.disbelieved {
			other = is
			continue
		}
		if is != believed {
			newer++
		}
		believed, other = is, ""
	}
}
