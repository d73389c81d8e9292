package repo

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	anHour = time.Hour
	aDay   = 24 * anHour
)

// runs are backups at regular times, with retention after each, once by a host's clock and once by a right one. Records
// are "right" or "wrong", as the clock was.
type runs struct {
	policy        Policy
	sequence      uint64
	ours, correct []*Backup
}

// back makes a backup, and returns those that a right clock would have kept and the host's has not.
func (r *runs) back(now time.Time, wrong time.Duration) (lost []*Backup) {
	r.sequence++
	made := func(created time.Time) *Backup {
		b := &Backup{Lineage: "l", Record: "right", Sequence: r.sequence, Volume: Named{"v", "db"}, Created: created}
		if wrong != 0 {
			b.Record = "wrong"
		}
		return b
	}
	r.ours = Retain(append(r.ours, made(now.Add(wrong))), r.policy, nil, false)[0].Keep
	r.correct = Retain(append(r.correct, made(now)), r.policy, nil, true)[0].Keep
	for _, b := range r.correct {
		if !slices.ContainsFunc(r.ours, func(o *Backup) bool { return o.Sequence == b.Sequence }) {
			lost = append(lost, b)
		}
	}
	return lost
}

var clockPolicies = []string{
	"last:2,hourly:5,daily:3", "within:30h", "within:2d,daily:4,weekly:3", "hourly:24,daily:7,weekly:5,monthly:12", "daily:1", "monthly:1,within:1m",
}

// Eight days of hourly runs. On one of them the clock is wrong, by whole days; after it was set, or after the host was off
// for a few hours.
func TestADayWithAWrongClockCostsNoBackup(t *testing.T) {
	for _, wrong := range []time.Duration{aDay, 30 * aDay, 365 * aDay, -aDay, -30 * aDay, -365 * aDay} {
		for _, reboot := range []bool{false, true} {
			for _, begin := range []int{72, 90} {
				for _, text := range clockPolicies {
					policy, err := ParsePolicy(text)
					if err != nil {
						t.Fatal(err)
					}
					r, most := runs{policy: policy}, 0
					for hour := range 8 * 24 {
						if reboot && (hour >= begin-4 && hour < begin || hour >= begin+20 && hour < begin+24) {
							continue
						}
						now, by := at(t, "2030-04-01 00:00").Add(time.Duration(hour)*anHour+time.Duration(hour*7%50)*time.Minute), time.Duration(0)
						if hour >= begin && hour < begin+24 {
							by = wrong
						}
						if lost := r.back(now, by); len(lost) > 0 {
							t.Fatalf("%s, wrong by %s, reboot %t: hour %d: lost %v of %s", text, wrong, reboot, hour, records(lost), lost[0].Created)
						}
						most = max(most, len(r.ours)-len(r.correct))
					}
					if most > 60 {
						t.Errorf("%s, wrong by %s, reboot %t: %d backups too many", text, wrong, reboot, most)
					}
				}
			}
		}
	}
}

// No history of wrong clocks costs a backup with a right date, nor are more and more kept.
func TestWrongDatesDisplaceNoRightOnes(t *testing.T) {
	type place struct{ begin, length, pause int }
	in := func(hour, begin, length int) bool { return hour >= begin && hour < begin+length }
	for name, wrong := range map[string]func(p place, hour int) time.Duration{
		"forward by hours": func(p place, hour int) time.Duration {
			if in(hour, p.begin, p.length) {
				return 5 * anHour
			}
			return 0
		},
		"back by hours": func(p place, hour int) time.Duration {
			if in(hour, p.begin, p.length) {
				return -5 * anHour
			}
			return 0
		},
		"twice forward": func(p place, hour int) time.Duration {
			if in(hour, p.begin, p.length) || in(hour, p.begin+p.pause, 20) {
				return 37 * anHour
			}
			return 0
		},
		"twice back": func(p place, hour int) time.Duration {
			if in(hour, p.begin, p.length) || in(hour, p.begin+p.pause, 20) {
				return -3 * aDay
			}
			return 0
		},
		"back, then forward": func(p place, hour int) time.Duration {
			switch {
			case in(hour, p.begin, p.length):
				return -2 * aDay
			case in(hour, p.begin+p.pause, 20):
				return 10 * aDay
			}
			return 0
		},
		"never set right": func(p place, hour int) time.Duration {
			if hour >= p.begin {
				return 10 * aDay
			}
			return 0
		},
		"off at night, empty battery": func(_ place, hour int) time.Duration {
			if hour%24 == 10 {
				return -3650 * aDay
			}
			return 0
		},
	} {
		for seed := range uint64(4) {
			random := rand.New(rand.NewPCG(seed, 0))
			r := runs{policy: Policy{
				Hourly: random.IntN(6), Daily: 1 + random.IntN(7), Weekly: random.IntN(5), Monthly: random.IntN(3), Within: Span{Hours: random.IntN(50)},
			}}
			p := place{72 + random.IntN(150), 1 + random.IntN(48), 1 + random.IntN(100)}
			most := 0
			for hour := range 20 * 24 {
				if strings.Contains(name, "night") && hour%24 < 10 {
					continue
				}
				now := at(t, "2030-04-01 00:00").Add(time.Duration(hour)*anHour + time.Duration(random.IntN(50))*time.Minute)
				lost := r.back(now, wrong(p, hour))
				if slices.Contains(records(lost), "right") {
					t.Fatalf("%s: seed %d, %s, %+v: hour %d: lost %v", name, seed, r.policy, p, hour, records(lost))
				}
				most = max(most, len(r.ours)-len(r.correct))
			}
			if most > 120 {
				t.Errorf("%s: seed %d, %s: %d backups too many", name, seed, r.policy, most)
			}
		}
	}
}

// As long as runs are regular, or a single one fails, the rules keep just what they say.
func TestRegularBackupsNeedNoAllowance(t *testing.T) {
	for _, every := range []time.Duration{anHour, aDay, 7 * aDay} {
		for _, text := range clockPolicies {
			policy, err := ParsePolicy(text)
			if err != nil {
				t.Fatal(err)
			}
			r := runs{policy: policy}
			for n := range 200 {
				if n%90 == 80 {
					continue
				}
				r.back(at(t, "2030-04-01 00:00").Add(time.Duration(n)*every+time.Duration(n*7%20)*time.Minute), 0)
				if one := policy.Within != (Span{}) && len(r.correct) == 1; n > 5 && len(r.ours) > len(r.correct) && !one { // no usual gap is known
					t.Fatalf("%s, each %s: %d are kept, and want %d", text, every, len(r.ours), len(r.correct))
				}
			}
		}
	}
}

// A host that is off at night and at weekends keeps no more than the longest of these pauses concedes.
func TestAHostThatIsOftenOffKeepsLittleMore(t *testing.T) {
	r, most := runs{policy: Policy{Daily: 7, Weekly: 4, Within: Span{Hours: 24}}}, 0
	for hour := range 40 * 24 {
		if hour%24 < 10 || hour/24%7 > 4 {
			continue
		}
		r.back(at(t, "2030-04-01 00:00").Add(time.Duration(hour)*anHour), 0)
		most = max(most, len(r.ours)-len(r.correct))
	}
	if most > 30 {
		t.Errorf("%d backups too many", most)
	}
}

func TestADoubtNamesBackupsAndTheWayOut(t *testing.T) {
	hourly := func(days int) (times []time.Time) {
		for hour := range 24 * days {
			times = append(times, at(t, "2026-01-01 08:00").Add(time.Duration(hour)*anHour))
		}
		return times
	}
	for name, test := range map[string]struct {
		newest  string
		obvious bool
	}{
		"a year ahead": {"2027-01-04 08:00", true}, "a day ahead": {"2026-01-05 08:00", false}, "a day behind": {"2026-01-03 01:00", true},
	} {
		backups := dated("v", append(hourly(3), at(t, test.newest))...)
		policy := Policy{Hourly: 2, Within: Span{Hours: 6}}
		v := Retain(backups, policy, nil, false)[0]
		if v.Doubt == nil || v.Doubt.Obvious != test.obvious {
			t.Fatalf("%s: %+v", name, v.Doubt)
		}
		forced := Retain(backups, policy, nil, true)[0]
		texts := []string{`"db"`}
		if extra := len(v.Keep) - len(forced.Keep); extra > 0 {
			texts = append(texts, "--force", fmt.Sprintf("%d backups", extra))
		}
		if test.obvious {
			texts = append(texts, "l.r72", backups[72].Created.Format(time.RFC3339), "l.r71", backups[71].Created.Format(time.RFC3339))
		}
		for _, text := range texts {
			if !strings.Contains(v.Doubt.Error(), text) {
				t.Errorf("%s: want %q in %v", name, text, v.Doubt)
			}
		}
		if forced.Doubt != nil || test.newest > "2026-01-04" && len(forced.Keep) >= len(v.Keep) {
			t.Errorf("%s, forced: %v, keeps %v", name, forced.Doubt, records(forced.Keep))
		}
	}
}
