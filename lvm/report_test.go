package lvm

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"orlop/blockdev"
)

func jsonValid(s string) bool { return json.Valid([]byte(s)) }

const (
	idA = "01890a5d-ac96-774b-bcce-b302099a8057"
	idB = "01890a5d-ac96-774b-bcce-b302099a8058"
)

// line is a row as lvm(8) prints it.
func line(name, uuid, tags, pool, thin string) string {
	return fmt.Sprintf(`{"lv_name":%q, "lv_uuid":%q, "lv_size":"8388608", "lv_tags":%q, "pool_lv":%q, "thin_id":%q, "origin":""}`, name, uuid, tags, pool, thin)
}

func reportOf(lines ...string) []byte {
	return []byte("  {\n      \"report\": [\n          {\n              \"lv\": [\n" + strings.Join(lines, ",\n") + "\n ]\n }\n ]\n , \"log\": [] }\n")
}

func TestOnlyTaggedThinVolumesOfThePoolAreDevices(t *testing.T) {
	tags, err := newTags(idA, blockdev.Record(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.Join(tags, ",")
	rows, err := parseReport(reportOf(
		line("[lvol0_pmspare]", "u0", "", "", ""),
		line("orlop-"+idA, "u1", ours+",orlop.sealed", "pool", "7"),
		line("orlop-"+idB, "u2", "", "pool", "8"),                             // a name like ours
		line("x", "u3", "orlop.id="+idB, "pool", "9"),                         // half a mark
		line("y", "u4", "orlop,orlop.id="+strings.ToUpper(idB), "pool", "10"), // no minted ID
		line("z", "u5", "orlop,orlop.id="+idB+",orlop.id="+idA, "pool", "11"), // two IDs
		line("elsewhere", "u6", "orlop,orlop.id="+idB, "other-pool", "12"),    // another pool's
		line("root", "u7", "orlop,orlop.id="+idB, "", ""),                     // not thin
	), "lv")
	if err != nil {
		t.Fatal(err)
	}
	devices, superseded, err := devicesOf(rows, "pool")
	if err != nil || len(superseded) > 0 || len(devices) != 1 {
		t.Fatalf("%v, %v, %v", devices, superseded, err)
	}
	d := devices[idA]
	if d == nil || d.lv != "orlop-"+idA || d.size != 8<<20 || d.thin != 7 || !d.sealed || string(d.record) != `{"a":1}` || d.twin != "" {
		t.Errorf("%+v", d)
	}
}

func TestOfTwoVolumesWithOneIDTheOneThatReplacedTheOtherCounts(t *testing.T) {
	for range 2 {
		old, young := line("old", "u1", "orlop,orlop.id="+idA, "pool", "1"), line("young", "u2", "orlop,orlop.id="+idA+",orlop.replaces=u1", "pool", "2")
		for _, lines := range [][]string{{old, young}, {young, old}} {
			rows, err := parseReport(reportOf(lines...), "lv")
			if err != nil {
				t.Fatal(err)
			}
			devices, superseded, err := devicesOf(rows, "pool")
			if err != nil || devices[idA].lv != "young" || len(superseded) != 1 || superseded[0] != "old" || devices[idA].twin != "" {
				t.Errorf("%+v, %v, %v", devices[idA], superseded, err)
			}
		}
	}
	rows, err := parseReport(reportOf(line("one", "u1", "orlop,orlop.id="+idA, "pool", "1"), line("two", "u2", "orlop,orlop.id="+idA, "pool", "2")), "lv")
	if err != nil {
		t.Fatal(err)
	}
	devices, superseded, err := devicesOf(rows, "pool")
	if err != nil || len(superseded) > 0 || devices[idA].twin != "two" {
		t.Errorf("%+v, %v, %v", devices[idA], superseded, err)
	}
}

// FuzzReportsAreRead reads whatever lvm(8) may print.
func FuzzReportsAreRead(f *testing.F) {
	f.Add(string(reportOf(line("orlop-"+idA, "u1", "orlop,orlop.id="+idA, "pool", "7"))))
	f.Add(`{"report":[{"lv":null},{"vg":[{"a":1}]}]}`)
	f.Add(`{"report":[{"lv":[{"lv_name":"x","lv_size":"-1"}]}]}`)
	f.Fuzz(func(t *testing.T, output string) {
		rows, err := parseReport([]byte(output), "lv")
		if err != nil {
			return
		}
		devices, _, err := devicesOf(rows, "pool")
		if err != nil {
			return
		}
		for id, d := range devices {
			if _, err := blockdev.ParseID(string(id)); err != nil || d.size < 0 {
				t.Errorf("%q: %+v", id, d)
			}
		}
	})
}

func TestPlacesAreTwoNames(t *testing.T) {
	vg, pool, err := ParsePlace("my-vg/thin-pool_1.x+")
	if err != nil || vg != "my-vg" || pool != "thin-pool_1.x+" {
		t.Error(vg, pool, err)
	}
	for _, bad := range []string{"", "/", "vg", "vg/", "/pool", "vg/pool/x", "-vg/pool", "vg/-pool", "vg/..", "./pool", "v g/pool", "vg/p@", "vg/" + strings.Repeat("p", 128)} {
		if _, _, err := ParsePlace(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
