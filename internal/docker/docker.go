// Package docker speaks Docker's volume plugin protocol on top of internal/daemon. The wire types are those of
// go-plugins-helpers; its server offers no contexts, no graceful stop and no way to cut a connection, so the nine
// calls are dispatched here.
package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/docker/go-plugins-helpers/volume"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// Docker gives up on Create and Mount after 120 s and on the other calls after 60 s.
const (
	longLimit  = 115 * time.Second
	shortLimit = 55 * time.Second
)

// maxBody bounds a request's body in bytes.
const maxBody = 1 << 20

// Handler answers Docker's calls. Work goes on when Docker hangs up, but not after ctx is done.
//
// Docker repeats a call whose plugin died with an empty body, and takes an error for "no such volume", after which
// it forgets the volume's labels for ever. So a call that lacks its body gets no answer: the connection is closed.
// Errors are HTTP 500 and {"Err":…}: Docker reads the text, podman the status.
func Handler(ctx context.Context, d *daemon.Daemon, log *slog.Logger) http.Handler {
	a := adapter{d}
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.DockerStarted(ctx); err != nil {
			log.Error("start of docker not noted", "error", err)
		}
		answer(w, map[string][]string{"Implements": {"VolumeDriver"}}, nil)
	})
	mux.HandleFunc("/VolumeDriver.Create", call(ctx, log, longLimit, a.create))
	mux.HandleFunc("/VolumeDriver.Mount", func(w http.ResponseWriter, r *http.Request) {
		gone := func() bool { return r.Context().Err() != nil }
		call(ctx, log, longLimit, func(ctx context.Context, m volume.MountRequest) (any, error) {
			path, err := a.daemon.MountDocker(ctx, m.Name, m.ID, gone)
			return volume.MountResponse{Mountpoint: path}, err
		})(w, r)
	})
	mux.HandleFunc("/VolumeDriver.Unmount", call(ctx, log, shortLimit, a.unmount))
	mux.HandleFunc("/VolumeDriver.Remove", call(ctx, log, shortLimit, a.remove))
	mux.HandleFunc("/VolumeDriver.Path", call(ctx, log, shortLimit, a.path))
	mux.HandleFunc("/VolumeDriver.Get", call(ctx, log, shortLimit, a.get))
	// These two need no body; podman sends none.
	mux.HandleFunc("/VolumeDriver.List", func(w http.ResponseWriter, _ *http.Request) {
		list, err := a.list(ctx)
		answer(w, list, err)
	})
	mux.HandleFunc("/VolumeDriver.Capabilities", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "local"}}, nil)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("%s: no such call", r.URL.Path), http.StatusNotFound)
	})
	return mux
}

// call decodes a request, hands it to do within limit, and encodes the answer.
func call[Request any](ctx context.Context, log *slog.Logger, limit time.Duration, do func(context.Context, Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err == nil && len(bytes.TrimSpace(body)) == 0 {
			hangUp(w, r, log)
			return
		}
		var request Request
		if err == nil && !utf8.Valid(body) {
			err = errors.New("it is not UTF-8") // which package json would replace, unasked
		}
		if err == nil {
			err = json.Unmarshal(body, &request)
		}
		if err != nil {
			answer(w, nil, fault.Errorf(fault.ErrInvalid, "read request: %w", err))
			return
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		response, err := do(ctx, request)
		switch {
		case err == nil:
		case asksWhether(r, err):
			log.Debug("docker asked for a volume that does not exist", "call", r.URL.Path, "request", request)
		default:
			log.Warn("docker call failed", "call", r.URL.Path, "request", request, "error", err)
		}
		answer(w, response, err)
		if asksWhether(r, err) {
			w.Header().Del(fault.Header) // no failure for the metrics
		}
	}
}

// asksWhether reports whether err is the usual answer to a Get: Docker asks for each volume before it creates it.
func asksWhether(r *http.Request, err error) bool {
	return r.URL.Path == "/VolumeDriver.Get" && fault.Is(err, fault.ErrNotFound)
}

func answer(w http.ResponseWriter, response any, err error) {
	if err != nil {
		w.Header().Set(fault.Header, string(fault.KindOf(err)))
		response = volume.NewErrorResponse(err.Error())
	}
	sdk.EncodeResponse(w, response, err != nil)
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter, r *http.Request, log *slog.Logger) {
	log.Warn("docker call without a body: closing the connection", "call", r.URL.Path)
	w.Header().Set(fault.Header, string(fault.ErrInvalid)) // for the metrics
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return
	}
	if conn, _, err := hijacker.Hijack(); err == nil {
		_ = conn.Close() // that it closes is all we want
	}
}

// adapter turns Docker's calls into the daemon's verbs.
type adapter struct {
	daemon *daemon.Daemon
}

type empty struct{}

func (a adapter) create(ctx context.Context, r volume.CreateRequest) (any, error) {
	return empty{}, a.daemon.EnsureDocker(ctx, r.Name, r.Options)
}

func (a adapter) remove(ctx context.Context, r volume.RemoveRequest) (any, error) {
	return empty{}, a.daemon.RemoveDocker(ctx, r.Name)
}

func (a adapter) unmount(ctx context.Context, r volume.UnmountRequest) (any, error) {
	return empty{}, a.daemon.UnmountDocker(ctx, r.Name, r.ID)
}

func (a adapter) path(ctx context.Context, r volume.PathRequest) (any, error) {
	path, err := a.daemon.Mountpoint(ctx, r.Name)
	return volume.PathResponse{Mountpoint: path}, err
}

func (a adapter) list(ctx context.Context) (volume.ListResponse, error) {
	names, mountpoints, err := a.daemon.Names(ctx)
	list := volume.ListResponse{Volumes: make([]*volume.Volume, len(names))}
	for i, name := range names {
		list.Volumes[i] = &volume.Volume{Name: name, Mountpoint: mountpoints[name]}
	}
	return list, err
}

// get never fails for a volume that exists: its trouble shows in Status.
func (a adapter) get(ctx context.Context, r volume.GetRequest) (any, error) {
	view, ok := a.daemon.Get(ctx, r.Name)
	if !ok {
		return nil, fault.Errorf(fault.ErrNotFound, "volume %q: not found", r.Name)
	}
	status := map[string]any{
		"state": view.State, "size": daemon.Bytes(view.Size), "used": daemon.Bytes(view.Used), "filesystem": view.Filesystem,
		"pool": view.Pool, "holders": len(view.Holders), "labels": view.Labels, "protected": view.Protected,
		"snapshots": len(view.Snapshots),
	}
	if view.FillView != nil {
		status["fs_size"], status["fs_free"], status["fs_used"] = daemon.Bytes(view.FSSize), daemon.Bytes(view.FSFree), daemon.Percent(view.FSUsed())
		status["inodes"], status["inodes_free"] = view.Inodes, view.InodesFree
	}
	if view.Kept {
		status["kept"] = "mounted without a holder because something uses it still"
	}
	if view.LastBackup != nil {
		status["last_backup"] = view.LastBackup.Created
	}
	if view.Restore != nil && view.Restore.Total > 0 {
		status["restored"] = daemon.Bytes(view.Restore.Done) + " of " + daemon.Bytes(view.Restore.Total)
	}
	if len(view.Warnings) > 0 {
		status["warnings"] = view.Warnings
	}
	if view.Problem != "" {
		status["problem"] = view.Problem
	}
	return volume.GetResponse{Volume: &volume.Volume{
		Name: view.Name, Mountpoint: view.Mountpoint, CreatedAt: view.Created, Status: status,
	}}, nil
}
