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

// Each hour of a week a run, and on one day the clock is wrong. At each time just the backups are there that the policy says,
// each of them what its volume was. A volume without a policy, and another one's, are left alone.
func TestAWeekOfHourlyRunsLeavesWhatThePolicySays(t *testing.T) {
	for name, wrong := range map[string]time.Duration{"right clock": 0, "a day back": -24 * time.Hour, "a day ahead": 24 * time.Hour, "a year back": -365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv("ORLOP_SOAK") == "" && name != "a day back" {
				t.Skip("ORLOP_SOAK is not set")
			}
			t.Parallel()
			w := newWorld(t)
			v, other := w.addVolume(t, "db"), w.addVolume(t, "other")
			policy := repo.Policy{Last: 2, Hourly: 5, Daily: 3}
			start := w.clock
			var all []known
			untouched := []string{w.back(t, other, repo.Policy{}).ID}
			for hour := range 7 * 24 {
				w.clock = start.Add(time.Duration(hour)*time.Hour + time.Duration(hour%50)*time.Minute)
				if day := hour / 24; day == 3 {
					w.clock = w.clock.Add(wrong)
				}
				content := w.write(t, v)
				made := w.back(t, v, policy)
				if hour > 0 && !made.Incremental {
					t.Errorf("hour %d: %+v", hour, made)
				}
				all = append(all, known{made.ID, w.clock, content})
				if len(made.Warnings) > 0 { // a doubted clock: nothing goes
					if wrong > -365*24*time.Hour || len(made.Removed) > 0 {
						t.Errorf("hour %d: %+v", hour, made)
					}
				} else {
					all = kept(all, policy.Last, policy.Hourly, policy.Daily)
				}
				w.wantBackups(t, fmt.Sprintf("hour %d", hour), v.ID, all)
				if hour%30 == 0 {
					untouched = append(untouched, w.back(t, other, repo.Policy{}).ID)
				}
				if hour%24 == 23 {
					w.wantCollected(t, hour/24 != 3 || wrong != -24*time.Hour) // a second time on one day, for all it knows
				}
			}
			r := w.open(t)
			for _, b := range w.backups(t, v.ID) {
				i := slices.IndexFunc(all, func(k known) bool { return k.id == b.ID() })
				if i < 0 || !bytes.Equal(content(t, r, b), all[i].content) {
					t.Errorf("backup %s is not what its volume was", b.ID())
				}
			}
			if left := w.backups(t, other.ID); len(left) != len(untouched) {
				t.Errorf("%d backups of the other volume, want %d", len(left), len(untouched))
			}
			if managed, err := w.managed(r, v.ID); err != nil || len(managed) != 1 {
				t.Errorf("%d managed snapshots, %v", len(managed), err)
			}
		})
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

// wantCollected frees what no backup needs, as a run does: once a day by the clock of the host, whatever that is.
func (w *world) wantCollected(t *testing.T, want bool) {
	t.Helper()
	j, due, err := w.Collect(t.Context(), w.to, true)
	check(t, err)
	if due != want {
		t.Errorf("%s: a collection is due: %t", w.clock, due)
	}
	if !due {
		return
	}
	if j, err = w.jobs.Wait(t.Context(), j.ID); err != nil || j.Error != nil {
		t.Errorf("%v, %+v", err, j.Error)
	}
	if _, due, err = w.Collect(t.Context(), w.to, true); err != nil || due {
		t.Errorf("due again: %t, %v", due, err)
	}
}
