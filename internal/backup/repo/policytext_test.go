package repo

import (
	"testing"

	"orlop/internal/fault"
)

func TestPolicyIsReadAsItIsWritten(t *testing.T) {
	for text, want := range map[string]Policy{
		"":                           {},
		"last:3":                     {Last: 3},
		"daily:7,weekly:4":           {Daily: 7, Weekly: 4},
		"hourly:24,yearly:2":         {Hourly: 24, Yearly: 2},
		"monthly:12,within:1y6m7d5h": {Monthly: 12, Within: Span{1, 6, 7, 5}},
	} {
		p, err := ParsePolicy(text)
		if err != nil || p != want || p.String() != text {
			t.Errorf("ParsePolicy(%q) = %+v, %v, and writes %q", text, p, err, p)
		}
	}
	if p, err := ParsePolicy("weekly:4, daily:7"); err != nil || p.String() != "daily:7,weekly:4" {
		t.Errorf("in another order, with a space: %q, %v", p, err)
	}
}

func TestPolicyThatCannotBeIsRefused(t *testing.T) {
	for _, text := range []string{"daily", "daily:", "daily:x", "daily:-1", "daily:7,daily:8", "nightly:3", "7", ",", "daily:0", "within:3", "daily:7;weekly:4", "daily:99999999999"} {
		if p, err := ParsePolicy(text); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("ParsePolicy(%q) = %+v, %v; want %s", text, p, err, fault.ErrInvalid)
		}
	}
}
