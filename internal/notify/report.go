package notify

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// A Report is the outcome of a run.
type Report struct {
	Host        string    // where it ran
	Destination string    // URL of the repository; a password in it is not passed on
	Selection   string    // which volumes it was to back up; with Destination it tells one job from another
	Started     time.Time // zero if not known
	Ended       time.Time // likewise
	Volumes     []Volume  // what was tried
	Err         error     // why the run as a whole failed, nil if it did not
}

// A Volume is the outcome of a volume's backup.
type Volume struct {
	Name string
	Err  error // nil if it was backed up
}

// OK reports whether the run succeeded, with every volume.
func (r Report) OK() bool { return r.Err == nil && len(r.failed()) == 0 }

func (r Report) failed() (failed []Volume) {
	for _, v := range r.Volumes {
		if v.Err != nil {
			failed = append(failed, v)
		}
	}
	return failed
}

const (
	maxMessage = 1800 // bytes of a notification: some chats take 2000 characters
	maxError   = 400  // bytes of one error in it
	maxNames   = 3    // in a title
)

func (r Report) failedTitle() string {
	var names []string
	failed := r.failed()
	for _, v := range failed {
		names = append(names, v.Name)
	}
	if len(names) > maxNames {
		names = append(names[:maxNames], fmt.Sprintf("and %d more", len(failed)-maxNames))
	}
	if len(names) == 0 {
		return fmt.Sprintf("orlop: backup failed on %s", r.Host)
	}
	return fmt.Sprintf("orlop: backup failed on %s: %s", r.Host, strings.Join(names, ", "))
}

func (r Report) recoveredTitle() string {
	return fmt.Sprintf("orlop: backup succeeded again on %s", r.Host)
}

// body is the report for people, in about as many bytes as given: failed volumes that do not fit are counted.
func (r Report) body(most int) string {
	var b strings.Builder
	failed := r.failed()
	switch {
	case r.OK():
		fmt.Fprintf(&b, "Volumes backed up: %d.\n", len(r.Volumes))
	case len(r.Volumes) == 0:
		b.WriteString("The backup run failed.\n")
	default:
		fmt.Fprintf(&b, "Volumes that failed: %d of %d.\n", len(failed), len(r.Volumes))
	}
	fmt.Fprintf(&b, "\nHost:        %s\nDestination: %s\n", r.Host, withoutPassword(r.Destination))
	for _, at := range []struct {
		name string
		time time.Time
	}{{"Started", r.Started}, {"Ended", r.Ended}} {
		if !at.time.IsZero() {
			fmt.Fprintf(&b, "%-12s %s\n", at.name+":", at.time.UTC().Format(time.RFC3339))
		}
	}
	if r.Err != nil {
		fmt.Fprintf(&b, "\nError: %s\n", shorten(r.Err.Error()))
	}
	if len(failed) > 0 {
		b.WriteString("\n")
	}
	told := 0
	for _, g := range grouped(failed) {
		line := fmt.Sprintf("%s: %s\n", shorten(strings.Join(g.names, ", ")), shorten(g.text))
		if told > 0 && b.Len()+len(line) > most {
			fmt.Fprintf(&b, "and %d more\n", len(failed)-told)
			break
		}
		b.WriteString(line)
		told += len(g.names)
	}
	return b.String()
}

// A group is volumes that failed for the same reason, as all do where the destination is gone.
type group struct {
	text  string
	names []string
}

func grouped(failed []Volume) (groups []group) {
	index := map[string]int{}
	for _, v := range failed {
		text := v.Err.Error()
		i, known := index[text]
		if !known {
			i = len(groups)
			index[text] = i
			groups = append(groups, group{text: text})
		}
		groups[i].names = append(groups[i].names, v.Name)
	}
	return groups
}

// shorten makes one line of an error and cuts what exceeds maxError.
func shorten(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxError {
		text = strings.ToValidUTF8(text[:maxError], "") + "…"
	}
	return text
}

// withoutPassword removes user and password from a destination's URL, as that of an S3 endpoint may have.
func withoutPassword(destination string) string {
	u, err := url.Parse(destination)
	if err != nil {
		return "(not a URL)"
	}
	u.User = nil
	query := u.Query()
	for key, values := range query {
		for i, value := range values {
			if inner, err := url.Parse(value); err == nil && inner.User != nil {
				inner.User = nil
				query[key][i] = inner.String()
				u.RawQuery = query.Encode()
			}
		}
	}
	return u.String()
}
