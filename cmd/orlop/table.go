package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// lineWidth is how many characters wide output for people is, unless a single word needs more.
const lineWidth = 80

// A row is a line of a table. Its notes are printed below it.
type row struct {
	cells []string
	notes []string
}

// printTable prints rows in aligned columns. To stay within limit characters, a first cell that is too long gets a line of
// its own, with the other cells on the next; a limit of 0 is none.
func (c *cli) printTable(limit int, header []string, rows []row) error {
	rows = append([]row{{cells: header}}, rows...)
	widths := make([]int, len(header))
	rest := 0
	for i := 1; i < len(header); i++ {
		for _, r := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r.cells[i]))
		}
		rest += 2 + widths[i]
	}
	for _, r := range rows {
		if width := utf8.RuneCountInString(r.cells[0]); limit == 0 || width+rest <= limit {
			widths[0] = max(widths[0], width)
		}
	}
	var b strings.Builder
	for _, r := range rows {
		first := r.cells[0]
		if utf8.RuneCountInString(first) > widths[0] {
			b.WriteString(first + "\n")
			first = ""
		}
		line := pad(first, widths[0])
		for i := 1; i < len(header); i++ {
			line += "  " + pad(r.cells[i], widths[i])
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		for _, note := range r.notes {
			b.WriteString(wrap("  "+note, "  "))
		}
	}
	if _, err := fmt.Fprint(c.stdout, b.String()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

// wrap breaks text between words into lines of at most lineWidth characters, all but the first indented. A longer word gets
// a line of its own. The text keeps its own indentation.
func wrap(text, indent string) string {
	var b strings.Builder
	line := text[:len(text)-len(strings.TrimLeft(text, " "))]
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > lineWidth {
			b.WriteString(line + "\n")
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	return b.String() + line + "\n"
}
