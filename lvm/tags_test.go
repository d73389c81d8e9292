package lvm

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// allowed is what LVM takes as a tag.
var allowed = regexp.MustCompile(`^[A-Za-z0-9_+.\-/=!:&#]+$`)

// FuzzRecordsSurviveTags keeps records in tags, in whatever order LVM lists them, and finds every change to one.
func FuzzRecordsSurviveTags(f *testing.F) {
	for _, record := range []string{`{}`, `{"a":"ü, \"x\""}`, `null`, `[` + strings.Repeat(`"label",`, 500) + `1]`} {
		f.Add(record, uint64(1))
	}
	f.Fuzz(func(t *testing.T, record string, seed uint64) {
		tags, err := recordTags(blockdev.Record(record))
		if err != nil {
			if fault.Is(err, fault.ErrInvalid) && len(record) > 1000 {
				return
			}
			t.Fatal(err)
		}
		for _, tag := range tags {
			if !allowed.MatchString(tag) || len(tag) > 1024 || !isRecord(tag) {
				t.Errorf("%q is no tag", tag)
			}
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		all := append([]string{tagOurs, tagID + "x", tagReplaces + "y", "somebody-elses"}, tags...)
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		got := recordOf(all)
		if !bytes.Equal(got, []byte(record)) && (got != nil || jsonValid(record)) {
			t.Fatalf("%q became %q", record, got)
		}
		if len(tags) == 0 || got == nil {
			return
		}
		i := rng.IntN(len(tags))
		missing := slices.Delete(slices.Clone(tags), i, i+1)
		if got := recordOf(missing); got != nil {
			t.Errorf("%q without one of its tags is %q", record, got)
		}
		at := rng.IntN(len(tags[i]))
		changed := slices.Clone(tags)
		changed[i] = changed[i][:at] + "#" + changed[i][at+1:]
		if got := recordOf(changed); got != nil {
			t.Errorf("%q with tag %q is %q", record, changed[i], got)
		}
	})
}

// FuzzAnyTagsAreRead reads tags that anybody may have set.
func FuzzAnyTagsAreRead(f *testing.F) {
	f.Add("orlop,orlop.id=x,orlop.record.0=00000000")
	f.Add("orlop.record.0=,orlop.record.-1=x,orlop.record.9999999999=y")
	f.Fuzz(func(t *testing.T, tags string) {
		if record := recordOf(strings.Split(tags, ",")); record != nil && !jsonValid(string(record)) {
			t.Errorf("%q has the record %q", tags, record)
		}
	})
}

func TestRecordThatIsTooLongForTagsIsRefused(t *testing.T) {
	var record strings.Builder
	rng := rand.New(rand.NewPCG(1, 1))
	record.WriteByte('"')
	for range 64 << 10 {
		record.WriteByte(byte('a' + rng.IntN(26)))
	}
	record.WriteByte('"')
	if _, err := recordTags(blockdev.Record(record.String())); !fault.Is(err, fault.ErrInvalid) {
		t.Error(err)
	}
}
