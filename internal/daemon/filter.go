package daemon

import (
	"strconv"
	"strings"

	"orlop/internal/fault"
	"orlop/metadata"
)

// filterForms is what a filter may be.
const filterForms = "label=<key>, label=<key>=<value>, pool=<name>, state=<state> or mounted[=true|false]"

// parseFilters returns the conditions that filters set, those on a volume's record apart from those on what users see. It
// fails with fault.ErrInvalid.
func parseFilters(filters []string) (pass func(metadata.Volume) bool, show func(View) bool, err error) {
	var records []func(metadata.Volume) bool
	var views []func(View) bool
	for _, filter := range filters {
		kind, text, hasText := strings.Cut(filter, "=")
		mounted := true
		if kind == "mounted" && hasText {
			if mounted, err = strconv.ParseBool(text); err != nil {
				kind = ""
			}
		}
		switch {
		case kind == "label" && text != "" && text[0] != '=':
			key, value, exact := strings.Cut(text, "=")
			records = append(records, func(v metadata.Volume) bool {
				has, ok := v.Labels[key]
				return ok && (!exact || has == value)
			})
		case kind == "pool" && text != "":
			records = append(records, func(v metadata.Volume) bool { return v.Pool == text })
		case kind == "state" && text != "":
			views = append(views, func(v View) bool { return v.State == text })
		case kind == "mounted":
			views = append(views, func(v View) bool { return v.Mounted == mounted })
		default:
			return nil, nil, fault.Errorf(fault.ErrInvalid, "filter %q: must be %s", filter, filterForms)
		}
	}
	return func(v metadata.Volume) bool { return all(records, v) }, func(v View) bool { return all(views, v) }, nil
}

// all reports whether v meets every condition.
func all[T any](conditions []func(T) bool, v T) bool {
	for _, met := range conditions {
		if !met(v) {
			return false
		}
	}
	return true
}
