package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// A row is one line of the table. Its figures are in unit, one of each run.
type row struct {
	what, unit  string
	ours        series
	peer        series  // in the same runs; nil if there is none
	below       float64 // aim for ours; 0 if there is none
	ratioBelow  float64 // aim for ours divided by the peer's
	ratioAbove  float64
	explanation string // printed if the aim is missed
}

// ratio is the median of the runs' ratios: what else the machine does in a run slows both down.
func (w row) ratio() float64 {
	var ratios series
	for i := range min(len(w.ours), len(w.peer)) {
		ratios = append(ratios, w.ours[i]/w.peer[i])
	}
	return ratios.median()
}

// report collects what is to be printed.
type report struct {
	rows  []row
	notes []string
}

func (r *report) add(rows ...row) { r.rows = append(r.rows, rows...) }

func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// verdict says what was aimed at and whether that was reached.
func (w row) verdict() (aim string, met bool) {
	switch {
	case w.below > 0:
		aim, met = "< "+number(w.below), w.ours.median() < w.below
	case w.ratioBelow > 0:
		aim, met = fmt.Sprintf("≤ %.2f ×", w.ratioBelow), w.ratio() <= w.ratioBelow
	case w.ratioAbove > 0:
		aim, met = fmt.Sprintf("≥ %.2f ×", w.ratioAbove), w.ratio() >= w.ratioAbove
	default:
		return "", true
	}
	if !met {
		aim += " missed"
	}
	return aim, met
}

// print writes the table in Markdown, and what there is to say about missed aims.
func (r *report) print(w io.Writer) {
	lines := [][]string{{"what", "unit", "orlop", "peer", "ratio", "aim"}, {"---", "---", "--:", "--:", "--:", "---"}}
	var missed []string
	for _, row := range r.rows {
		peer, ratio := "", ""
		if row.peer != nil {
			peer, ratio = number(row.peer.median()), fmt.Sprintf("%.2f", row.ratio())
		}
		aim, met := row.verdict()
		if !met && row.explanation != "" {
			missed = append(missed, fmt.Sprintf("%s: %s", row.what, row.explanation))
		}
		lines = append(lines, []string{row.what, row.unit, number(row.ours.median()), peer, ratio, aim})
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range lines {
		for i, cell := range line {
			_, _ = fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		_, _ = fmt.Fprintln(w, "|")
	}
	for _, text := range missed {
		_, _ = fmt.Fprintf(w, "\nMissed: %s\n", text)
	}
	for _, text := range r.notes {
		_, _ = fmt.Fprintf(w, "\n%s\n", text)
	}
}

// number prints three digits that matter.
func number(x float64) string {
	switch {
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// A sample is how long something took each time.
type sample []time.Duration

// quantile returns the duration in milliseconds that a share q of the sample does not exceed.
func (s sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	if len(sorted) == 0 {
		return 0
	}
	return milliseconds(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// time adds how long do takes.
func (s *sample) time(do func() error) error {
	start := time.Now()
	err := do()
	*s = append(*s, time.Since(start))
	return err
}

// A series is a figure of each run.
type series []float64

func (s series) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
