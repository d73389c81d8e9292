package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"orlop/internal/backup"
	"orlop/internal/daemon"
)

// nameColumns is how many columns the names of volume and snapshot take together in a table of backups: the others take the
// rest of 80.
const nameColumns = 30

// printBackups prints a table, with short IDs as given unless it is to be wide.
func (c *cli) printBackups(views []backup.View, short map[string]string, wide bool) error {
	slices.SortStableFunc(views, func(a, b backup.View) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.VolumeID, b.VolumeID))
	})
	if c.json {
		return c.printJSON(views)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	if wide {
		fmt.Fprintln(w, "VOLUME\tSNAPSHOT\tCREATED\tSIZE\tSTORED\tHOST\tID")
		for _, v := range views {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Volume, v.Snapshot, shownTime(v.Created, time.DateTime)+" UTC",
				daemon.Bytes(v.Size), daemon.Bytes(v.Stored), v.Host, v.ID)
		}
	} else {
		volume, snapshot := nameWidths(views)
		fmt.Fprintln(w, "VOLUME\tSNAPSHOT\tCREATED (UTC)\tSIZE\tSTORED\tID")
		for _, v := range views {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", cut(v.Volume, volume), cut(v.Snapshot, snapshot), shownTime(v.Created, "2006-01-02 15:04"),
				daemon.Bytes(v.Size), daemon.Bytes(v.Stored), short[v.ID])
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// shownTime is the time of a view in another layout.
func shownTime(text, layout string) string {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.Format(layout)
	}
	return text
}

// nameWidths are the columns for the names of volumes and of snapshots: what they need, or what is left of nameColumns by the
// shorter ones, at least half.
func nameWidths(views []backup.View) (volume, snapshot int) {
	volume, snapshot = len("VOLUME"), len("SNAPSHOT")
	for _, v := range views {
		volume, snapshot = max(volume, utf8.RuneCountInString(v.Volume)), max(snapshot, utf8.RuneCountInString(v.Snapshot))
	}
	if volume+snapshot > nameColumns {
		volume = min(volume, max(nameColumns/2, nameColumns-snapshot))
		snapshot = min(snapshot, nameColumns-volume)
	}
	return volume, snapshot
}

// cut shortens a name that is longer than so many columns. Its beginning and its end stay: names often differ there.
func cut(name string, columns int) string {
	runes := []rune(name)
	if len(runes) <= columns {
		return name
	}
	head := columns / 2
	return strings.Join([]string{string(runes[:head]), string(runes[len(runes)-(columns-1-head):])}, "…")
}
