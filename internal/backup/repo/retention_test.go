package repo

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/fault"
)

// at reads a time as "2026-01-31 10:00".
func at(t testing.TB, text string) time.Time {
	t.Helper()
	parsed, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// dated returns backups of one volume, of these times, in this order.
func dated(volume string, times ...time.Time) (backups []*Backup) {
	for i, created := range times {
		b := NewBackup()
		b.Lineage, b.Record, b.Sequence = "l", fmt.Sprintf("r%d", i), uint64(i+1)
		b.Volume = Named{ID: volume, Name: "db"}
		b.Created = created
		backups = append(backups, b)
	}
	return backups
}

func records(backups []*Backup) (names []string) {
	for _, b := range backups {
		names = append(names, b.Record)
	}
	return names
}

func TestPoliciesKeepWhatTheySay(t *testing.T) {
	texts := []string{
		"2024-06-01 12:00", // r0
		"2025-12-30 08:00", // r1, a Tuesday of the first ISO week of 2026
		"2026-01-01 08:00", // r2
		"2026-01-01 08:30", // r3
		"2026-01-01 23:59", // r4
		"2026-01-02 00:00", // r5
		"2026-01-05 00:00", // r6, a Monday
		"2026-01-12 10:00", // r7
		"2026-02-01 10:00", // r8
		"2026-02-01 10:10", // r9
	}
	var times []time.Time
	for _, text := range texts {
		times = append(times, at(t, text))
	}
	backups := dated("v", times...)
	for _, test := range []struct {
		policy Policy
		keep   string
	}{
		{Policy{Last: 1}, "r9"},
		{Policy{Last: 3}, "r7 r8 r9"},
		{Policy{Last: 100}, "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9"},
		{Policy{Hourly: 2}, "r7 r9"},
		{Policy{Hourly: 6}, "r3 r4 r5 r6 r7 r9"},
		{Policy{Daily: 4}, "r5 r6 r7 r9"},
		{Policy{Daily: 5}, "r4 r5 r6 r7 r9"},
		{Policy{Weekly: 4}, "r5 r6 r7 r9"},
		{Policy{Weekly: 5}, "r0 r5 r6 r7 r9"},
		{Policy{Monthly: 3}, "r1 r7 r9"},
		{Policy{Yearly: 2}, "r1 r9"},
		{Policy{Yearly: 3}, "r0 r1 r9"},
		{Policy{Yearly: 1}, "r9"},
		{Policy{Within: Span{Hours: 1}}, "r8 r9"},
		{Policy{Within: Span{Days: 30}}, "r6 r7 r8 r9"},
		{Policy{Within: Span{Months: 1}}, "r4 r5 r6 r7 r8 r9"},
		{Policy{Within: Span{Years: 1, Months: 7}}, "r1 r2 r3 r4 r5 r6 r7 r8 r9"},
		{Policy{Within: Span{Years: 2}}, "r0 r1 r2 r3 r4 r5 r6 r7 r8 r9"},
		{Policy{Last: 2, Yearly: 2}, "r1 r8 r9"},
	} {
		verdicts := Retain(backups, test.policy, nil, true)
		if len(verdicts) != 1 || verdicts[0].Doubt != nil {
			t.Fatalf("%+v: %+v", test.policy, verdicts)
		}
		if got := strings.Join(records(verdicts[0].Keep), " "); got != test.keep {
			t.Errorf("%+v keeps %s, want %s", test.policy, got, test.keep)
		}
		if len(verdicts[0].Keep)+len(verdicts[0].Remove) != len(backups) {
			t.Errorf("%+v: %d kept and %d removed of %d", test.policy, len(verdicts[0].Keep), len(verdicts[0].Remove), len(backups))
		}
	}
}

// An oldest backup is kept as long as a rule has numbers left, so that the history stays long while it is young.
func TestARuleWithNumbersLeftKeepsTheOldestBackup(t *testing.T) {
	backups := dated("v", at(t, "2026-01-01 08:00"), at(t, "2026-01-01 09:00"), at(t, "2026-01-01 10:00"))
	for _, test := range []struct {
		policy Policy
		keep   []string
	}{{Policy{Daily: 1}, []string{"r2"}}, {Policy{Daily: 2}, []string{"r0", "r2"}}} {
		if got := records(Retain(backups, test.policy, nil, false)[0].Keep); !slices.Equal(got, test.keep) {
			t.Errorf("%+v keeps %v, want %v", test.policy, got, test.keep)
		}
	}
}

// Groups are volumes by their IDs: two of one name, and of one lineage, do not push each other out.
func TestRetentionIsForEachVolumeByItself(t *testing.T) {
	first := dated("v1", at(t, "2026-01-01 08:00"), at(t, "2026-01-02 08:00"))
	second := dated("v2", at(t, "2026-01-03 08:00"), at(t, "2026-01-04 08:00"))
	for _, b := range second {
		b.Sequence += 2
	}
	verdicts := Retain(slices.Concat(second, first), Policy{Last: 1}, nil, false)
	if len(verdicts) != 2 {
		t.Fatalf("%+v", verdicts)
	}
	for _, v := range verdicts {
		if !slices.Equal(records(v.Keep), []string{"r1"}) || !slices.Equal(records(v.Remove), []string{"r0"}) {
			t.Errorf("volume %s: keeps %v, removes %v", v.Volume, records(v.Keep), records(v.Remove))
		}
	}
}

func TestTheNewestBackupAndTheNewestGoodOneAreAlwaysKept(t *testing.T) {
	backups := dated("v", at(t, "2026-01-01 08:00"), at(t, "2026-01-02 08:00"), at(t, "2026-01-03 08:00"), at(t, "2026-01-04 08:00"))
	hurt := func(b *Backup) bool { return b.Sequence > 2 }
	v := Retain(backups, Policy{Last: 1}, hurt, false)[0]
	if !slices.Equal(records(v.Keep), []string{"r1", "r3"}) {
		t.Errorf("kept %v", records(v.Keep))
	}
	everyone := func(*Backup) bool { return true }
	v = Retain(backups, Policy{}, everyone, false)[0]
	if !slices.Equal(records(v.Keep), []string{"r3"}) {
		t.Errorf("kept %v", records(v.Keep))
	}
}

func TestOrderIsBySequenceWhateverTheClocksSaid(t *testing.T) {
	// The clock of r1 and r2 was a year behind.
	backups := dated("v", at(t, "2026-01-01 08:00"), at(t, "2025-01-02 08:00"), at(t, "2025-01-03 08:00"))
	slices.Reverse(backups)
	v := Retain(backups, Policy{Last: 2}, nil, false)[0]
	if v.Doubt != nil || !slices.Equal(records(v.Keep), []string{"r1", "r2"}) {
		t.Errorf("kept %v, doubt %v", records(v.Keep), v.Doubt)
	}
}

func TestNegativeRulesAreNamedByTheirFlags(t *testing.T) {
	for flag, policy := range map[string]Policy{
		"--keep-last -1:": {Last: -1}, "--keep-hourly -2:": {Hourly: -2}, "--keep-daily -3:": {Daily: -3}, "--keep-weekly -4:": {Weekly: -4},
		"--keep-monthly -5:": {Monthly: -5}, "--keep-yearly -6:": {Yearly: -6}, "--keep-within -7:": {Within: Span{Hours: -7}},
	} {
		if err := policy.Check(); !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), flag) {
			t.Errorf("%+v: %v", policy, err)
		}
	}
	if _, err := ParseSpan("5w"); err == nil || !strings.Contains(err.Error(), `--keep-within "5w"`) {
		t.Errorf("%v", err)
	}
}

// Raising a number never removes what a lower one keeps.
func TestALargerPolicyKeepsASuperset(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 500 {
		created := at(t, "2025-01-01 00:00")
		var times []time.Time
		for range 1 + random.IntN(40) {
			// Mostly forward by minutes to weeks, at times backward.
			created = created.Add(time.Duration(random.Int64N(int64(time.Hour) << random.IntN(8))))
			if random.IntN(10) == 0 {
				created = created.Add(-time.Duration(random.Int64N(int64(400 * 24 * time.Hour))))
			}
			times = append(times, created)
		}
		backups := dated("v", times...)
		smaller := Policy{Last: random.IntN(5), Hourly: random.IntN(5), Daily: random.IntN(5), Weekly: random.IntN(5),
			Monthly: random.IntN(5), Yearly: random.IntN(5), Within: Span{Days: random.IntN(20)}}
		larger := smaller
		for _, n := range []*int{&larger.Last, &larger.Hourly, &larger.Daily, &larger.Weekly, &larger.Monthly, &larger.Yearly, &larger.Within.Days} {
			*n += random.IntN(3)
		}
		force := random.IntN(2) == 0
		some := Retain(backups, smaller, nil, force)[0]
		more := records(Retain(backups, larger, nil, force)[0].Keep)
		for _, name := range records(some.Keep) {
			if !slices.Contains(more, name) {
				t.Fatalf("seed %d, round %d: %+v keeps %s and %+v does not", seed, round, smaller, name, larger)
			}
		}
		if newest := backups[len(backups)-1].Record; !slices.Contains(records(some.Keep), newest) {
			t.Fatalf("seed %d, round %d: %+v does not keep the newest", seed, round, smaller)
		}
	}
}

func TestSpansAreReadAsWritten(t *testing.T) {
	for text, want := range map[string]Span{
		"1y6m7d12h": {1, 6, 7, 12}, "30d": {Days: 30}, "0h": {}, "12h1d": {Days: 1, Hours: 12}, "48h": {Hours: 48},
	} {
		got, err := ParseSpan(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := ParseSpan(got.String()); err != nil || again != got {
			t.Errorf("%s is written as %s", text, got)
		}
	}
	for _, text := range []string{"", "1", "d", "1w", "-1d", "1d1d", "1.5d", "1d ", "99999999999999999999d", "100001d", "1D"} {
		if got, err := ParseSpan(text); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
