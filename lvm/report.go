package lvm

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"orlop/blockdev"
)

// volumeFields are what is read of each logical volume of the group: none of them makes LVM ask the kernel.
const volumeFields = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,thin_id,origin"

// poolFields are what is read of the thin pool and its group.
const poolFields = "lv_name,lv_uuid,lv_size,lv_tags,segtype,zero,discards,chunk_size,metadata_lv,lv_metadata_size,lv_active,lv_health_status," +
	"lv_check_needed,lv_permissions,seg_monitor,vg_uuid,vg_extent_size,vg_free,vg_partial,vg_exported,vg_permissions,vg_lock_type,vg_mda_free,vg_mda_size"

// A row is one line of a report: every value is a string, an unknown one empty.
type row map[string]string

// parseReport reads the rows of kind ("lv", "vg") from what lvm(8) prints with --reportformat json.
func parseReport(output []byte, kind string) ([]row, error) {
	var parsed struct {
		Report []map[string]json.RawMessage `json:"report"`
	}
	if err := json.Unmarshal(output, &parsed); err != nil {
		return nil, fmt.Errorf("report of lvm: %w", err)
	}
	var rows []row
	for _, part := range parsed.Report {
		raw, ok := part[kind]
		if !ok {
			continue
		}
		var some []row
		if err := json.Unmarshal(raw, &some); err != nil {
			return nil, fmt.Errorf("report of lvm: %w", err)
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

// bytes is a size in bytes. LVM prints none for what has no size.
func (r row) bytes(field string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(r[field], "B"), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("report of lvm: %s of %q is %q, not a size", field, r["lv_name"], r[field])
	}
	return n, nil
}

func (r row) tags() []string {
	if r["lv_tags"] == "" {
		return nil
	}
	return strings.Split(r["lv_tags"], ",")
}

// is reports whether a field is set that LVM prints as a word or as nothing, or as 1 or 0.
func (r row) is(field string) bool { return r[field] != "" && r[field] != "0" && r[field] != "unknown" }

// A device is one of Orlop's logical volumes.
type device struct {
	lv       string // name of the LV, without its group
	uuid     string // of the LV; empty until it has been read
	size     int64  // bytes
	thin     int64  // number in the thin pool; -1 until it has been read
	sealed   bool
	record   blockdev.Record
	tags     []string // all of them
	used     int64    // bytes allocated, as last seen
	replaced string   // UUID of the LV whose place it took; empty for most
	twin     string   // another LV that says to be the same device; empty for all but what a person copied
}

// deviceOf reads a row of volumeFields; ok is false for an LV that is not Orlop's, or not in this thin pool.
func deviceOf(r row, pool string) (id blockdev.ID, d device, ok bool, err error) {
	d = device{lv: r["lv_name"], uuid: r["lv_uuid"], tags: r.tags(), thin: -1}
	named, tagged := valueOf(d.tags, tagID)
	ours := false
	for _, tag := range d.tags {
		ours = ours || tag == tagOurs
		d.sealed = d.sealed || tag == tagSealed
	}
	id, parseErr := blockdev.ParseID(named)
	if !ours || !tagged || parseErr != nil || r["pool_lv"] != pool {
		return "", d, false, nil
	}
	if d.size, err = r.bytes("lv_size"); err != nil {
		return "", d, false, err
	}
	if d.thin, err = strconv.ParseInt(r["thin_id"], 10, 64); err != nil {
		return "", d, false, fmt.Errorf("report of lvm: thin_id of %q is %q, not a number", d.lv, r["thin_id"])
	}
	d.record = recordOf(d.tags)
	d.replaced, _ = valueOf(d.tags, tagReplaces)
	return id, d, true, nil
}

// devicesOf reads a report of volumeFields. superseded are LVs whose place another has taken: they are to be removed.
func devicesOf(rows []row, pool string) (devices map[blockdev.ID]*device, superseded []string, err error) {
	devices = map[blockdev.ID]*device{}
	for _, r := range rows {
		id, d, ok, err := deviceOf(r, pool)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			continue
		}
		other := devices[id]
		switch {
		case other == nil:
			devices[id] = &d
		case other.replaced != "" && other.replaced == d.uuid:
			superseded = append(superseded, d.lv)
		case d.replaced != "" && d.replaced == other.uuid:
			superseded = append(superseded, other.lv)
			devices[id] = &d
		default:
			other.twin = d.lv
		}
	}
	return devices, superseded, nil
}
