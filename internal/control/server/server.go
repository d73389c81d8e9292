// Package server answers the control API: each handler decodes, calls one verb of internal/daemon, and encodes.
package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"
	"unicode/utf8"

	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// maxBody bounds a request's body in bytes.
const maxBody = 1 << 20

// Shutdown stops the daemon after the answer is sent; with detach it first frees the pools, and fails with
// fault.ErrInUse while a volume is held.
type Shutdown func(ctx context.Context, detach bool) error

// Handler answers requests below control.Prefix. What a user asked to be done and was refused or failed goes to log: who
// looks there later was not the one who was told.
func Handler(d *daemon.Daemon, version string, shutdown Shutdown, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	get := func(path string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET "+control.Prefix+path, func(w http.ResponseWriter, r *http.Request) { answer(w)(do(r)) })
	}
	post := func(path string, do func(context.Context, control.Request) (any, error)) {
		mux.HandleFunc("POST "+control.Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			request, err := decode(w, r)
			if err != nil {
				answer(w)(nil, err)
				return
			}
			response, err := do(r.Context(), request)
			if err != nil {
				log.Info("request failed", "request", r.URL.Path, "error", err)
			}
			answer(w)(response, err)
		})
	}
	get("/version", func(*http.Request) (any, error) {
		return control.Version{Version: version, API: control.Prefix[1:]}, nil
	})
	get("/info", func(r *http.Request) (any, error) { return d.Info(r.Context()) })
	get("/volumes", func(r *http.Request) (any, error) { return d.List(r.Context(), r.URL.Query()["filter"]) })
	get("/volumes/inspect", func(r *http.Request) (any, error) {
		return d.Inspect(r.Context(), r.URL.Query().Get("name"))
	})
	post("/volumes/create", func(ctx context.Context, q control.Request) (any, error) {
		if q.AutoName {
			q.Name = daemon.NewName()
		}
		return d.Create(ctx, q.Name, optionsOf(q))
	})
	post("/volumes/delete", func(ctx context.Context, q control.Request) (any, error) {
		return struct{}{}, d.Delete(ctx, q.Name, q.Snapshots)
	})
	post("/volumes/set", func(ctx context.Context, q control.Request) (any, error) {
		return d.Set(ctx, q.Name, daemon.Change{Labels: q.Labels, Protect: q.Protect, PreSnapshot: q.PreSnapshot, PostSnapshot: q.PostSnapshot, Keep: q.Keep, NoBackup: q.NoBackup})
	})
	post("/volumes/mount", func(ctx context.Context, q control.Request) (any, error) {
		path, err := d.Mount(ctx, q.Name, q.Mountpoint)
		return control.Mounted{Path: path}, err
	})
	post("/volumes/umount", func(ctx context.Context, q control.Request) (any, error) {
		held, err := d.Unmount(ctx, q.Name, q.Stale)
		return control.Unmounted{Held: held}, err
	})
	post("/volumes/resize", func(ctx context.Context, q control.Request) (any, error) {
		return d.Resize(ctx, q.Name, q.Size)
	})
	post("/volumes/trim", func(ctx context.Context, q control.Request) (any, error) {
		bytes, err := d.Trim(ctx, q.Name)
		return control.Trimmed{Bytes: bytes}, err
	})
	get("/snapshots", func(r *http.Request) (any, error) { return d.Snapshots(r.Context(), r.URL.Query().Get("volume")) })
	get("/snapshots/inspect", func(r *http.Request) (any, error) {
		return d.InspectSnapshot(r.Context(), r.URL.Query().Get("name"))
	})
	post("/snapshots/create", func(ctx context.Context, q control.Request) (any, error) {
		return d.CreateSnapshots(ctx, q.Volumes, q.Name, q.Labels)
	})
	post("/snapshots/delete", func(ctx context.Context, q control.Request) (any, error) {
		return struct{}{}, d.DeleteSnapshot(ctx, q.Name)
	})
	post("/snapshots/restore", func(ctx context.Context, q control.Request) (any, error) {
		return d.RestoreSnapshot(ctx, q.Name, q.Discard)
	})
	mux.HandleFunc("GET "+control.Prefix+"/snapshots/diff", func(w http.ResponseWriter, r *http.Request) {
		stream(w, func(line func(any) error) error {
			return d.DiffSnapshots(r.Context(), r.URL.Query()["name"], func(e daemon.ExtentView) error { return line(e) })
		})
	})
	post("/backups/create", func(ctx context.Context, q control.Request) (any, error) {
		return d.Backup(ctx, daemon.BackupOrder{
			Subject: q.Name, Destination: q.Destination, KeyFile: q.KeyFile, Credentials: credentialsOf(q), Policy: q.Policy, DropSnapshot: q.DropSnapshot,
		})
	})
	post("/backups/check", func(ctx context.Context, q control.Request) (any, error) {
		return struct{}{}, d.CheckDestination(ctx, q.Destination, q.KeyFile, credentialsOf(q))
	})
	post("/backups/restore", func(ctx context.Context, q control.Request) (any, error) {
		return d.Restore(ctx, daemon.RestoreOrder{
			URL: q.URL, KeyFile: q.KeyFile, Credentials: credentialsOf(q), Name: q.Name, Options: optionsOf(q), InPlace: q.InPlace, Discard: q.Discard,
		})
	})
	post("/backups/collect", func(ctx context.Context, q control.Request) (any, error) {
		job, due, err := d.CollectBackups(ctx, q.Destination, q.KeyFile, credentialsOf(q), q.Daily)
		if err != nil || !due {
			return control.Collecting{}, err
		}
		raw, err := json.Marshal(job)
		return control.Collecting{Due: true, Job: raw}, err
	})
	get("/jobs", func(*http.Request) (any, error) { return d.Jobs() })
	get("/jobs/inspect", func(r *http.Request) (any, error) { return d.Job(r.URL.Query().Get("id")) })
	mux.HandleFunc("GET "+control.Prefix+"/jobs/follow", func(w http.ResponseWriter, r *http.Request) {
		stream(w, func(line func(any) error) error {
			return d.FollowJob(r.Context(), r.URL.Query().Get("id"), func(j daemon.JobView) error {
				if err := line(j); err != nil {
					return err
				}
				return http.NewResponseController(w).Flush()
			})
		})
	})
	post("/jobs/cancel", func(ctx context.Context, q control.Request) (any, error) { return d.CancelJob(ctx, q.Job) })
	get("/doctor", func(r *http.Request) (any, error) {
		var age time.Duration
		if text := r.URL.Query().Get("max_backup_age"); text != "" {
			var err error
			if age, err = time.ParseDuration(text); err != nil {
				return nil, fault.Errorf(fault.ErrInvalid, "max_backup_age: %w", err)
			}
		}
		return d.Doctor(r.Context(), age)
	})
	post("/devices/adopt", func(ctx context.Context, q control.Request) (any, error) {
		return d.Adopt(ctx, q.Device, q.Name)
	})
	post("/devices/delete", func(ctx context.Context, q control.Request) (any, error) {
		return struct{}{}, d.DeleteDevice(ctx, q.Device)
	})
	post("/shutdown", func(ctx context.Context, q control.Request) (any, error) {
		return struct{}{}, shutdown(ctx, q.Detach)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w)(nil, fault.Errorf(fault.ErrNotFound, "%s %s: no such request: is the daemon older than this command?", r.Method, r.URL.Path))
	})
	return mux
}

// optionsOf returns the options of a new volume.
func optionsOf(q control.Request) []daemon.Option {
	options := make([]daemon.Option, len(q.Options))
	for i, o := range q.Options {
		options[i] = daemon.Option(o)
	}
	return options
}

// decode reads a request. A field that this daemon does not know is refused, not ignored.
func decode(w http.ResponseWriter, r *http.Request) (control.Request, error) {
	var request control.Request
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil && !utf8.Valid(body) {
		err = errors.New("it is not UTF-8") // which package json would replace, unasked
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err == nil {
		err = decoder.Decode(&request)
	}
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one JSON value")
		}
	}
	if err != nil {
		return request, fault.Errorf(fault.ErrInvalid, "read request: %w", err)
	}
	return request, nil
}

// stream answers with a JSON value a line as they come, and an empty line at the end. An error before the first line is
// an ordinary answer; a later one is the last line.
func stream(w http.ResponseWriter, do func(line func(any) error) error) {
	begun := false
	encoder := encoderTo(w)
	err := do(func(value any) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/jsonl")
		}
		return encoder.Encode(value)
	})
	switch {
	case err != nil && !begun:
		answer(w)(nil, err)
	case err != nil:
		w.Header().Set(fault.Header, string(fault.KindOf(err))) // too late for the client, not for the metrics
		_ = encoder.Encode(control.NewErrorBody(err))           // a client that is gone cannot be told
	default:
		_, _ = w.Write([]byte("\n"))
	}
}

// answer returns a function that encodes a verb's outcome.
func answer(w http.ResponseWriter) func(any, error) {
	return func(response any, err error) {
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.Header().Set(fault.Header, string(fault.KindOf(err)))
			w.WriteHeader(status(err))
			response = control.NewErrorBody(err)
		}
		_ = encoderTo(w).Encode(response) // a client that is gone cannot be told
	}
}

// encoderTo returns an encoder that leaves the & of a URL as it is: people read these answers.
func encoderTo(w io.Writer) *json.Encoder {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder
}

// credentialsOf returns the credentials of a request; none for the daemon's own.
func credentialsOf(q control.Request) (c daemon.Credentials) {
	if w := q.Credentials; w != nil {
		c = daemon.Credentials{File: w.File, Access: w.AccessKey, Secret: w.SecretKey, Token: w.SessionToken, CABundle: w.CABundle}
	}
	return c
}
