package main

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"orlop/internal/backup"
	"orlop/internal/daemon"
)

// snapshotColumns is how many columns the name of a snapshot takes in a table of 80. The other columns take 56 at least.
const snapshotColumns = 24

// printBackups prints a table, with short IDs as given unless it is to be wide.
func (c *cli) printBackups(views []backup.View, short map[string]string, wide bool) error {
	slices.SortStableFunc(views, func(a, b backup.View) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.VolumeID, b.VolumeID))
	})
	if c.json {
		return c.printJSON(views)
	}
	limit, header := lineWidth, []string{"VOLUME", "SNAPSHOT", "CREATED (UTC)", "SIZE", "STORED", "ID"}
	if wide {
		limit, header = 0, []string{"VOLUME", "SNAPSHOT", "CREATED (UTC)", "SIZE", "STORED", "HOST", "ID"}
	}
	var rows []row
	for _, v := range views {
		size, stored := daemon.Bytes(v.Size), daemon.Bytes(v.Stored)
		cells := []string{v.Volume, cut(v.Snapshot, snapshotColumns), shownTime(v.Created, "2006-01-02 15:04"), size, stored, short[v.ID]}
		if wide {
			cells = []string{v.Volume, v.Snapshot, shownTime(v.Created, time.DateTime), size, stored, v.Host, v.ID}
		}
		rows = append(rows, row{cells: cells})
	}
	return c.printTable(limit, header, rows)
}

// shownTime is the time of a view in another layout.
func shownTime(text, layout string) string {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.UTC().Format(layout)
	}
	return text
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
