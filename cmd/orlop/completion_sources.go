package main

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strings"

	"orlop/fs"
	"orlop/internal/control"
	"orlop/internal/daemon"
)

// A question asks a source for candidates for the word current. The daemon may be unreachable.
type question struct {
	ctx     context.Context
	client  *control.Client
	current string
}

// A source lists candidates. Some may not begin with the question's current word.
type source func(question) []candidate

// sources has a source for each parameter in the usage of a command, and for the value of each flag. An entry that
// begins with a command's name is for that command alone.
var sources = map[string]source{
	"NAME": question.volumes, "VOLUME": question.volumes, "SNAP": question.snapshots, "ID": question.unknownDevices,
	"FILE": question.files, "DEST": question.files, "URL": question.files,
	"job inspect ID": question.jobs, "job wait ID": question.jobs, "job cancel ID": question.jobs, "backup restore NAME": question.nothing,
	"create NAME": question.nothing, "device adopt NAME": question.nothing, "umount NAME": question.mountedVolumes,

	"--socket": question.files, "--plugin-socket": question.files, "--control-socket": question.files,
	"--dest": question.directories, "--backup": question.files, "--key-file": question.files, "--s3-credentials": question.files, "--to-file": question.files,
	"--root": question.directories, "--mountpoint": question.directories,
	"--fs": question.filesystems, "--default-fs": question.filesystems, "--mount-option": question.mountOptions,
	"--pool": question.pools, "daemon --pool": oneOf("loop", "lvm:"),
	"--from": question.origins, "--volume-name": question.volumes, "--filter": question.filters, "backup run --filter": question.labels,
	"--mode": oneOf("0700", "0750", "0755"), "--log-format": oneOf("text", "json"), "--metrics": oneOf("127.0.0.1:9464"),
}

// freeText are the flags whose values only the user knows.
var freeText = []string{
	"--size", "--pool-size", "--create-thin-pool", "--default-size", "--uid", "--gid", "--label", "--name", "--plugin-name", "--host", "--sample",
	"--pre-snapshot", "--post-snapshot", "--keep-within", "--keep-last", "--keep-hourly", "--keep-daily", "--keep-weekly",
	"--keep-monthly", "--keep-yearly", "--keep", "--max-backup-age", "--ping", "--notify",
}

func (question) nothing() []candidate { return nil }

func (question) files() []candidate { return []candidate{{word: shellFiles}} }

func (question) directories() []candidate { return []candidate{{word: shellDirectories}} }

func oneOf(list ...string) source {
	return func(question) (found []candidate) {
		for _, word := range list {
			found = append(found, candidate{word: word})
		}
		return found
	}
}

func (q question) filesystems() []candidate { return oneOf(fs.Names()...)(q) }

// mountOptions completes the last of several with commas between them.
func (q question) mountOptions() (found []candidate) {
	before := q.current[:strings.LastIndex(q.current, ",")+1]
	var options []string
	for _, name := range fs.Names() {
		if kind, err := fs.Lookup(name); err == nil {
			options = append(options, kind.MountOptions()...)
		}
	}
	slices.Sort(options)
	for _, option := range slices.Compact(options) {
		found = append(found, candidate{word: before + option})
	}
	return found
}

func (q question) list() (views []daemon.View) {
	_ = q.client.Get(q.ctx, "/volumes", nil, &views) // an unreachable daemon has none
	return views
}

func (q question) volumes() (found []candidate) {
	for _, v := range q.list() {
		found = append(found, candidate{v.Name, daemon.Bytes(v.Size) + ", " + v.State})
	}
	return found
}

func (q question) mountedVolumes() (found []candidate) {
	for _, v := range q.list() {
		if v.Mounted {
			found = append(found, candidate{v.Name, v.Mountpoint})
		}
	}
	return found
}

func (q question) snapshots() (found []candidate) {
	var views []daemon.SnapshotView
	_ = q.client.Get(q.ctx, "/snapshots", nil, &views)
	for _, s := range views {
		found = append(found, candidate{s.Volume + "@" + s.Name, s.Created})
	}
	return found
}

// origins lists volumes and snapshots: a new volume can be a copy of either.
func (q question) origins() []candidate { return append(q.volumes(), q.snapshots()...) }

func (q question) pools() (found []candidate) {
	var info daemon.Info
	_ = q.client.Get(q.ctx, "/info", url.Values{}, &info)
	for _, p := range info.Pools {
		found = append(found, candidate{p.Name, p.Spec})
	}
	return found
}

func (q question) unknownDevices() (found []candidate) {
	var findings []daemon.Finding
	_ = q.client.Get(q.ctx, "/doctor", nil, &findings)
	for _, f := range findings {
		if id, ok := strings.CutPrefix(f.Subject, "device "); ok {
			found = append(found, candidate{id, f.Problem})
		}
	}
	return found
}

func (q question) jobs() (found []candidate) {
	var jobs []daemon.JobView
	if q.client.Get(q.ctx, "/jobs", nil, &jobs) == nil {
		for _, j := range slices.Backward(jobs) {
			found = append(found, candidate{j.ID, strings.TrimSpace(j.Kind + " " + j.Volume + ", " + j.State)})
		}
	}
	return found
}

// filters lists the kinds of conditions on volumes, and behind the '=' of each the values.
func (q question) filters() (found []candidate) {
	kind, _, _ := strings.Cut(q.current, "=")
	switch kind {
	case q.current:
		return []candidate{{"label=", "volumes that have a label"}, {"pool=", "volumes in a pool"}, {"state=", "volumes in a state"}, {"mounted", "mounted volumes"}}
	case "pool":
		for _, pool := range q.pools() {
			found = append(found, candidate{"pool=" + pool.word, pool.about})
		}
		return found
	case "state":
		return oneOf("state=ready", "state=degraded", "state=creating", "state=restoring", "state=failed", "state=removing")(q)
	}
	return q.labels()
}

// labels lists the conditions on the labels of volumes.
func (q question) labels() (found []candidate) {
	for _, v := range q.list() {
		for key, value := range v.Labels {
			found = append(found, candidate{"label=" + key + "=" + value, ""})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Compare(a.word, b.word) })
	return slices.Compact(found)
}
