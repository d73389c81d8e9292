package daemon

import "testing"

func TestALargerSizeIsRoundedUpAndReadsAsASize(t *testing.T) {
	for size, want := range map[int64]string{
		8 << 20: "12M", 50 << 20: "75M", 1 << 30: "1536M", 10 << 30: "15G", 1395867648: "1997M", 3 << 30: "5G", 1 << 40: "1536G", 1 << 10: "1536",
	} {
		got := larger(size)
		if bytes, err := ParseSize(got); got != want || err != nil || bytes <= size {
			t.Errorf("%d: %s, %d bytes, %v, want %s", size, got, bytes, err, want)
		}
	}
}

func TestPercentIsRoundedUp(t *testing.T) {
	for share, want := range map[float64]string{0: "0%", 0.001: "1%", 0.5: "50%", 0.9001: "91%", 1: "100%"} {
		if got := Percent(share); got != want {
			t.Errorf("%g: %s, want %s", share, got, want)
		}
	}
}
