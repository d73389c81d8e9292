package backup

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"orlop/internal/backup/repo"
)

// A made backup, as the test knows it.
type known struct {
	id      string
	dated   time.Time // by the clock of the host
	created time.Time
	content []byte
}

// kept is what a policy of so many hours and days, and of the newest so many, leaves of backups, given with the oldest first:
// of each hour and day the newest. Its neighbours in time are those in the order in which they were made.
func kept(all []known, last, hours, days int) (left []known) {
	hour, day := "", ""
	for i, b := range slices.Backward(all) {
		keep := len(all)-i <= last
		if is := b.created.Format("2006-01-02 15"); hours > 0 && (is != hour || i == 0) {
			keep, hour, hours = true, is, hours-1
		}
		if is := b.created.Format("2006-01-02"); days > 0 && (is != day || i == 0) {
			keep, day, days = true, is, days-1
		}
		if keep {
			left = append(left, b)
		}
	}
	slices.Reverse(left)
	return left
}

// Each hour of a week a run, and on one day the clock is wrong. With a right clock just the backups are there that the policy
// says, with a wrong one those that a right one would have left are there and some more. Each of them is what its volume was. A
// volume without a policy, and another one's, are left alone.
func TestAWeekOfHourlyRunsLeavesWhatThePolicySays(t *testing.T) {
	const day = 24 * time.Hour
	for name, wrong := range map[string]time.Duration{
		"right clock": 0, "a day back": -day, "a day ahead": day, "a month back": -30 * day, "a month ahead": 30 * day, "a year back": -365 * day,
		"a year ahead": 365 * day,
	} {
		for _, reboot := range []bool{false, true} {
			if os.Getenv("ORLOP_SOAK") == "" && (name != "a year ahead" || reboot) {
				continue // a soak runs all
			}
			t.Run(fmt.Sprintf("%s, reboot %t", name, reboot), func(t *testing.T) {
				t.Parallel()
				newWorld(t).aWeek(t, wrong, reboot)
			})
		}
	}
}

// aWeek runs a backup each hour of a week, on one day with a wrong clock. A reboot lets the runs of four hours fail before that
// day and at its end.
func (w *world) aWeek(t *testing.T, wrong time.Duration, reboot bool) {
	v, other := w.addVolume(t, "db"), w.addVolume(t, "other")
	policy := repo.Policy{Last: 2, Hourly: 5, Daily: 3}
	start := w.clock
	var correct []known
	contents, dates := map[string][]byte{}, map[string]time.Time{}
	untouched := []string{w.back(t, other, repo.Policy{}).ID}
	for hour := range 7 * 24 {
		if reboot && (hour >= 68 && hour < 72 || hour >= 92 && hour < 96) {
			continue
		}
		now := start.Add(time.Duration(hour)*time.Hour + time.Duration(hour%50)*time.Minute)
		w.clock = now
		if day := hour / 24; day == 3 {
			w.clock = w.clock.Add(wrong)
		}
		content := w.write(t, v)
		made := w.back(t, v, policy)
		if hour > 0 && !made.Incremental {
			t.Errorf("hour %d: %+v", hour, made)
		}
		if warned := len(made.Warnings) > 0; warned && hour != 72 && hour != 96 {
			t.Errorf("hour %d: %q", hour, made.Warnings)
		}
		contents[made.ID], dates[made.ID] = content, w.clock
		correct = kept(append(correct, known{made.ID, w.clock, now, content}), policy.Last, policy.Hourly, policy.Daily)
		if wrong == 0 && !reboot {
			w.wantBackups(t, fmt.Sprintf("hour %d", hour), v.ID, correct)
		} else {
			w.wantAtLeast(t, fmt.Sprintf("hour %d", hour), v.ID, correct)
		}
		if hour%30 == 0 {
			untouched = append(untouched, w.back(t, other, repo.Policy{}).ID)
		}
		if hour%24 == 23 {
			w.wantCollected(t, wrong == 0 && !reboot)
		}
	}
	r := w.open(t)
	left := w.backups(t, v.ID)
	if len(left) > len(correct)+20 {
		t.Errorf("%d backups are left, the policy wants %d", len(left), len(correct))
	}
	for _, b := range left {
		if !bytes.Equal(content(t, r, b), contents[b.ID()]) || !b.Created.Equal(dates[b.ID()]) {
			t.Errorf("backup %s is not what its volume was", b.ID())
		}
	}
	if left := w.backups(t, other.ID); len(left) != len(untouched) {
		t.Errorf("%d backups of the other volume, want %d", len(left), len(untouched))
	}
	if managed, err := w.managed(r, v.ID); err != nil || len(managed) != 1 {
		t.Errorf("%d managed snapshots, %v", len(managed), err)
	}
}

// wantAtLeast checks that these backups are there.
func (w *world) wantAtLeast(t *testing.T, when, volume string, want []known) {
	t.Helper()
	got := w.backups(t, volume)
	for _, k := range want {
		if !slices.ContainsFunc(got, func(b *repo.Backup) bool { return b.ID() == k.id }) {
			t.Fatalf("%s: the backup of %s, dated %s, is gone", when, k.created, k.dated)
		}
	}
}

func (w *world) backups(t *testing.T, volume string) (of []*repo.Backup) {
	t.Helper()
	r, release, err := w.opened(t.Context(), w.to)
	check(t, err)
	defer release()
	all, err := r.Backups(t.Context())
	check(t, err)
	for _, b := range all {
		if b.Volume.ID == volume {
			of = append(of, b)
		}
	}
	slices.SortFunc(of, func(a, b *repo.Backup) int { return int(a.Sequence) - int(b.Sequence) })
	return of
}

func (w *world) wantBackups(t *testing.T, when, volume string, want []known) {
	t.Helper()
	var got, wanted []string
	for _, b := range w.backups(t, volume) {
		got = append(got, b.Created.Format(time.DateTime)+" "+b.ID())
	}
	for _, k := range want {
		wanted = append(wanted, k.created.Format(time.DateTime)+" "+k.id)
	}
	if !slices.Equal(got, wanted) {
		t.Fatalf("%s: backups\n%q, want\n%q", when, got, wanted)
	}
}

// wantCollected frees what no backup needs. With daily it does so as a run does, once a day by the clock of the host.
func (w *world) wantCollected(t *testing.T, daily bool) {
	t.Helper()
	j, due, err := w.Collect(t.Context(), w.to, daily)
	check(t, err)
	if !due {
		t.Errorf("%s: no collection is due", w.clock)
	}
	if j, err = w.jobs.Wait(t.Context(), j.ID); err != nil || j.Error != nil {
		t.Errorf("%v, %+v", err, j.Error)
	}
	if _, due, err = w.Collect(t.Context(), w.to, true); err != nil || due {
		t.Errorf("due again: %t, %v", due, err)
	}
}
