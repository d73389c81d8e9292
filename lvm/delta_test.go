package lvm

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"orlop/blockdev"
)

// printed is what thin_delta prints.
const printed = `<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="1" right="2">
    <different begin="0" length="2"/>
    <left_only begin="2" length="7"/>
    <different begin="9" length="1"/>
    <same begin="10" length="16"/>
    <right_only begin="26" length="1"/>
    <same begin="127" length="1"/>
  </diff>
</superblock>
`

// dumped is what thin_dump prints of one device.
const dumped = `<superblock uuid="" time="2" transaction="3" flags="0" version="2" data_block_size="128" nr_data_blocks="0">
  <device dev_id="1" mapped_blocks="28" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="31" length="10" time="1"/>
    <range_mapping origin_begin="10" data_begin="13" length="16" time="0"/>
    <single_mapping origin_block="127" data_block="10" time="0"/>
  </device>
</superblock>
`

const k64 = int64(64) << 10

func data(offset, length int64) blockdev.Extent {
	return blockdev.Extent{Offset: offset, Length: length, Kind: blockdev.Data}
}

func hole(offset, length int64) blockdev.Extent {
	return blockdev.Extent{Offset: offset, Length: length, Kind: blockdev.Hole}
}

func extentsOf(t *testing.T, xml string, size, seam int64) (all []blockdev.Extent) {
	t.Helper()
	d, err := readDelta(strings.NewReader(xml))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.extents(size, seam, func(e blockdev.Extent) error { all = append(all, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDeltaIsRead(t *testing.T) {
	want := []blockdev.Extent{data(0, 2*k64), hole(2*k64, 7*k64), data(9*k64, k64), data(26*k64, k64)}
	if got := extentsOf(t, printed, 128*k64, 128*k64); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	want = []blockdev.Extent{data(0, 26*k64), data(127*k64, k64/2)}
	if got := extentsOf(t, dumped, 127*k64+k64/2, 0); !reflect.DeepEqual(got, want) {
		t.Errorf("of one device, cut off within a chunk: %+v", got)
	}
}

// The chunk in which the smaller device ended differs, whatever thin_delta says: it holds more now.
func TestDeltaCoversTheSeamOfADeviceThatGrew(t *testing.T) {
	for seam, want := range map[int64]blockdev.Extent{
		12*k64 + 1:  data(12*k64, k64),
		50*k64 + 5:  data(50*k64, k64),
		127*k64 + 9: data(127*k64, k64),
	} {
		covered := false
		for _, e := range extentsOf(t, printed, 200*k64, seam) {
			covered = covered || e == want
		}
		if !covered {
			t.Errorf("seam at %d: %+v", seam, extentsOf(t, printed, 200*k64, seam))
		}
	}
}

func TestDamagedDeltaIsNoDelta(t *testing.T) {
	for name, xml := range map[string]string{
		"empty":             "",
		"cut short":         printed[:len(printed)/2],
		"without its end":   strings.TrimSuffix(printed, "</superblock>\n"),
		"unknown element":   strings.Replace(printed, "<same", "<perhaps", 1),
		"backwards":         strings.Replace(printed, `begin="9"`, `begin="3"`, 1),
		"no chunk size":     strings.Replace(printed, `data_block_size="128"`, ``, 1),
		"chunks of nothing": strings.Replace(printed, `data_block_size="128"`, `data_block_size="0"`, 1),
		"no length":         strings.Replace(printed, `length="7"`, ``, 1),
		"negative":          strings.Replace(printed, `length="7"`, `length="-7"`, 1),
		"too large":         strings.Replace(printed, `length="7"`, `length="9223372036854775807"`, 1),
		"other program":     "<html></html>",
	} {
		if d, err := readDelta(strings.NewReader(xml)); err == nil {
			t.Errorf("%s: read as %+v", name, d)
		}
	}
}

// FuzzDeltas reads whatever thin_delta may print: what comes out is in order, within the device, and leaves nothing out.
func FuzzDeltas(f *testing.F) {
	f.Add(printed, int64(128)*k64, int64(5))
	f.Add(dumped, int64(1), int64(0))
	rng := rand.New(rand.NewPCG(1, 1))
	var many strings.Builder
	at := 0
	for range 50 {
		at += rng.IntN(3)
		length := 1 + rng.IntN(4)
		fmt.Fprintf(&many, "<%s begin=%q length=%q/>", []string{"different", "left_only", "right_only", "same"}[rng.IntN(4)], fmt.Sprint(at), fmt.Sprint(length))
		at += length
	}
	f.Add(`<superblock data_block_size="1"><diff left="1" right="2">`+many.String()+`</diff></superblock>`, int64(60_001), int64(777))
	f.Fuzz(func(t *testing.T, xml string, size, seam int64) {
		d, err := readDelta(strings.NewReader(xml))
		if err != nil || size <= 0 {
			return
		}
		var got []blockdev.Extent
		end := int64(0)
		err = d.extents(size, seam, func(e blockdev.Extent) error {
			if e.Offset < end || e.Length <= 0 || e.End() > size {
				t.Fatalf("after %d of %d: %+v", end, size, e)
			}
			end = e.End()
			got = append(got, e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		covers := func(begin, until int64) bool {
			for begin < until && i < len(got) {
				switch e := got[i]; {
				case e.End() <= begin:
					i++
				case e.Offset > begin:
					return false
				default:
					begin = e.End()
				}
			}
			return begin >= until
		}
		for _, c := range d.changes {
			if begin := c.begin * d.chunk; begin < size && !covers(begin, min((c.begin+c.length)*d.chunk, size)) {
				t.Errorf("chunks %+v are left out of %+v", c, got)
			}
		}
	})
}

func TestThinListIsRead(t *testing.T) {
	used, err := parseList([]byte("1 1835008 \n2 0\n\n"))
	if err != nil || len(used) != 2 || used[1] != 1835008 {
		t.Error(used, err)
	}
	for _, bad := range []string{"1", "1 2 3", "a 1", "1 b", "1 -1"} {
		if _, err := parseList([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
