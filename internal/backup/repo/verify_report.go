package repo

import (
	"cmp"
	"maps"
	"slices"
)

// A Finding is something that is wrong in a repository.
type Finding struct {
	Object  string   `json:"object"`  // its name
	Problem string   `json:"problem"` // what is wrong with it
	Backups []string `json:"backups"` // IDs of those that cannot be restored because of it
	Volumes []string `json:"volumes"` // names of their volumes
	Command string   `json:"command"` // what to run next
	Unnamed bool     `json:"unnamed"` // it may hurt others, of which nothing is left that tells of them
}

// A Report is what Verify looked at and found.
type Report struct {
	Findings []Finding `json:"findings"`
	Backups  int       `json:"backups"` // whose trees were walked
	Packs    int       `json:"packs"`   // whose lists of records were read
	Read     int       `json:"read"`    // packs of which everything was read
	Bytes    int64     `json:"bytes"`   // in those
}

// findings lists what is wrong, given what to run next.
func (c *lineageCheck) findings(by map[string][]*Backup, command string) (findings []Finding) {
	problems := map[string]string{}
	for name, p := range c.packs {
		if p.problem != nil {
			problems[name.String()] = p.problem.Error()
		}
	}
	for object := range by {
		if problems[object] == "" {
			problems[object] = "its backups refer to records that no pack holds"
		}
	}
	for _, object := range slices.Sorted(maps.Keys(problems)) {
		findings = append(findings, newFinding(object, problems[object], by[object], command))
	}
	return findings
}

func newFinding(object, problem string, hurt []*Backup, command string) Finding {
	f := Finding{Object: object, Problem: problem, Command: command, Backups: []string{}, Volumes: []string{}}
	slices.SortFunc(hurt, func(a, b *Backup) int { return cmp.Compare(a.Sequence, b.Sequence) })
	for _, b := range hurt {
		f.Backups = append(f.Backups, b.ID())
		if !slices.Contains(f.Volumes, b.Volume.Name) {
			f.Volumes = append(f.Volumes, b.Volume.Name)
		}
	}
	return f
}
