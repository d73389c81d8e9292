package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"orlop/blockdev/loop"
	"orlop/internal/backup"
	"orlop/internal/control/server"
	product "orlop/internal/daemon"
	"orlop/internal/docker"
	"orlop/internal/fault"
	"orlop/internal/job"
	"orlop/internal/metrics"
	runner "orlop/internal/run"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

const (
	pluginDir = "/run/docker/plugins"
	// drainLimit is how long requests under way may take after a stop was asked for, before they are cancelled.
	drainLimit = 30 * time.Second
	// jobsLimit is how long jobs may take to end after they were interrupted: only one whose destination hangs takes long.
	jobsLimit = 20 * time.Second
)

// settings are the daemon's flags. Those given on a start always win: nothing of them is stored.
type settings struct {
	root, defaultFS, pluginName, pluginSocket, controlSocket, metrics, logFormat string
	pools                                                                        []poolSpec
	poolSize, thinPoolSize, defaultSize                                          int64
	preallocate, rebuild, verbose, allowHooks                                    bool
}

func (c *cli) daemonCommand() *urfave.Command {
	env := func(flag string) []string {
		return []string{"ORLOP_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
	}
	text := func(name, value, usage string) urfave.Flag {
		return &urfave.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
	}
	return &urfave.Command{
		Name: "daemon", Usage: "run the daemon in the foreground",
		Description: "Every flag has an environment variable, ORLOP_ and its name.\nExample: orlop daemon --pool loop:/srv/xfs",
		Flags: []urfave.Flag{
			text("root", "/var/lib/orlop", "directory of metadata, mount points and the built-in pool"),
			&urfave.StringSliceFlag{Name: "pool", Usage: "[NAME=]loop, or [NAME=]loop:DIR for images in a directory on XFS or btrfs, or [NAME=]lvm:VG/THINPOOL for thin volumes; the first is the default (default: loop)", EnvVars: env("pool")},
			text("pool-size", "", "nominal size of the built-in pool; a larger one than it has grows it (default: free space less 10%)"),
			&urfave.BoolFlag{Name: "pool-preallocate", Usage: "allocate all of the built-in pool's file", EnvVars: env("pool-preallocate")},
			text("create-thin-pool", "", "size of the thin pool of --pool lvm:VG/THINPOOL, which is made if it is not there"),
			text("default-size", "10G", "size of volumes created without one"),
			text("default-fs", "ext4", "filesystem of volumes created without one"),
			text("plugin-name", "orlop", "name of the volume driver"),
			text("plugin-socket", "", "socket for Docker (default: "+pluginDir+"/<plugin name>.sock)"),
			text("control-socket", defaultSocket, "socket for the orlop command; its group is orlop if that exists; membership is then equivalent to root"),
			&urfave.BoolFlag{Name: "rebuild-metadata", Usage: "if the metadata is damaged or missing, rebuild it from its copy and the devices; the old file is kept", EnvVars: env("rebuild-metadata")},
			text("metrics", "", "address for Prometheus, as in 127.0.0.1:9464; it has no password and shows the names of volumes (default: none)"),
			&urfave.BoolFlag{Name: "allow-hooks", Usage: "run the snapshot commands of volumes, as root", EnvVars: env("allow-hooks")},
			text("log-format", "text", "text or json"),
		},
		Action: func(ctx *urfave.Context) error {
			if _, err := arguments(ctx, 0, 0); err != nil {
				return err
			}
			s, err := readSettings(ctx)
			if err != nil {
				return err
			}
			return serve(ctx.Context, s, newLogger(c.stderr, s))
		},
	}
}

func readSettings(ctx *urfave.Context) (s settings, err error) {
	s = settings{
		root: ctx.String("root"), defaultFS: ctx.String("default-fs"), pluginName: ctx.String("plugin-name"),
		pluginSocket: ctx.String("plugin-socket"), controlSocket: ctx.String("control-socket"), metrics: ctx.String("metrics"), logFormat: ctx.String("log-format"),
		preallocate: ctx.Bool("pool-preallocate"), rebuild: ctx.Bool("rebuild-metadata"), allowHooks: ctx.Bool("allow-hooks"), verbose: ctx.Bool("verbose"),
	}
	if s.logFormat != "text" && s.logFormat != "json" {
		return s, fault.Errorf(fault.ErrInvalid, "--log-format %q: must be text or json", s.logFormat)
	}
	if s.pluginName == "" || strings.ContainsAny(s.pluginName, "/ \t\n") {
		return s, fault.Errorf(fault.ErrInvalid, "--plugin-name %q: must be a word without '/'", s.pluginName)
	}
	if err := checkMetricsAddress(s.metrics); err != nil {
		return s, err
	}
	if s.pluginSocket == "" {
		s.pluginSocket = filepath.Join(pluginDir, s.pluginName+".sock")
	}
	if s.defaultSize, err = product.ParseSize(ctx.String("default-size")); err != nil {
		return s, fmt.Errorf("--default-size: %w", err)
	}
	if err := product.CheckDefaults(s.defaultFS, s.defaultSize); err != nil {
		return s, err
	}
	if size := ctx.String("pool-size"); size != "" {
		if s.poolSize, err = product.ParseSize(size); err != nil {
			return s, fmt.Errorf("--pool-size: %w", err)
		}
		if s.poolSize < loop.MinSize {
			return s, fault.Errorf(fault.ErrInvalid, "--pool-size %s: must be at least %s", size, product.Bytes(loop.MinSize))
		}
	}
	variable, set := os.LookupEnv("ORLOP_POOL")
	if s.pools, err = parsePools(splitPools(ctx.StringSlice("pool"), variable, set)); err != nil {
		return s, err
	}
	if size := ctx.String("create-thin-pool"); size != "" {
		if s.thinPoolSize, err = product.ParseSize(size); err != nil {
			return s, fmt.Errorf("--create-thin-pool: %w", err)
		}
		if !slices.ContainsFunc(s.pools, func(p poolSpec) bool { return p.kind == "lvm" }) {
			return s, fault.Errorf(fault.ErrInvalid, "--create-thin-pool %s: no --pool lvm:VG/THINPOOL is given", size)
		}
	}
	return s, nil
}

func newLogger(w io.Writer, s settings) *slog.Logger {
	options := &slog.HandlerOptions{}
	if s.verbose {
		options.Level = slog.LevelDebug
	}
	if s.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// serve runs the daemon until ctx is done or a shutdown is asked for. The order matters: the metadata's lock makes the
// root ours. The addresses come before the pools, since they may be another process's. Requests that arrive from then on
// wait, and are answered after recovery, so that none meets half a daemon.
func serve(ctx context.Context, s settings, log *slog.Logger) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("daemon: must run as root: it attaches loop devices and mounts filesystems")
	}
	defer outliveSignals()()
	defer func(stopped context.Context) {
		if stopped.Err() != nil && errors.Is(err, context.Canceled) {
			log.Info("stopped before the daemon was ready", "interrupted", err)
			err = nil // the next start finishes what this one began
		}
	}(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if s.root, err = prepareRoot(s.root); err != nil {
		return err
	}
	store, err := openMetadata(&s, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := store.CopyError(); err != nil {
		log.Error("metadata not copied; the copy of an earlier start is kept", "error", err)
	}
	doors, err := listen(s)
	if err != nil {
		return err
	}
	defer doors.close()
	pools, err := openPools(ctx, s, store, log)
	if err != nil {
		return err
	}
	d, m, err := assemble(ctx, s, store, pools, log)
	if err != nil {
		return errors.Join(err, pools.abandon(ctx))
	}
	defer pools.close()
	if err := leaveNote(s.root); err != nil {
		log.Warn("cannot note beside the mount point that the data root is there", "error", err)
	}
	return answer(ctx, stop, s.root, doors, d, m, pools, log)
}

// assemble makes the daemon of its parts and recovers what an earlier one left unfinished.
func assemble(ctx context.Context, s settings, store *metadata.Store, pools *poolSet, log *slog.Logger) (*product.Daemon, managers, error) {
	var m managers
	volumes, err := volume.New(volume.Config{Root: s.root, Store: store, Pools: pools.forVolumes(), Boot: bootID(), Log: log})
	if err != nil {
		return nil, m, err
	}
	if s.rebuild {
		if err := volumes.Rebuild(ctx); err != nil {
			return nil, m, err
		}
	}
	if err := volumes.Recover(ctx); err != nil {
		return nil, m, fmt.Errorf("recover: %w", err)
	}
	snapshots := snapshot.New(snapshot.Config{Store: store, Volumes: volumes, RunHook: hooks(s, log), Log: log})
	if err := snapshots.Recover(ctx); err != nil {
		return nil, m, fmt.Errorf("recover: %w", err)
	}
	m = managers{volumes: volumes, snapshots: snapshots, jobs: job.New(store, log)}
	if err := m.jobs.Recover(ctx); err != nil {
		return nil, m, err
	}
	m.backups = backup.New(backup.Config{
		Store: store, Volumes: volumes, Snapshots: snapshots, Jobs: m.jobs, StateDir: stateOf(log), Version: version, Log: log,
	})
	d, err := product.New(product.Config{
		Version: version, Root: s.root, Store: store, Volumes: volumes, Snapshots: m.snapshots, Jobs: m.jobs, Backups: m.backups, Pools: pools.all,
		DefaultSize: s.defaultSize, DefaultFS: s.defaultFS, PluginName: s.pluginName,
	})
	return d, m, err
}

// stateOf returns where the daemon remembers backup destinations.
func stateOf(log *slog.Logger) string {
	dir, err := backupState()
	if err != nil {
		log.Warn("backup destinations are not remembered", "error", err)
	}
	return dir
}

// managers do work in the background.
type managers struct {
	volumes   *volume.Manager
	snapshots *snapshot.Manager
	jobs      *job.Manager
	backups   *backup.Manager
}

// hookLimit is how long a command around a snapshot may take.
const hookLimit = time.Minute

// hooks returns what runs the commands around snapshots, or nil if they are not allowed.
func hooks(s settings, log *slog.Logger) snapshot.RunHook {
	if !s.allowHooks {
		return nil
	}
	return func(ctx context.Context, argv, env []string) error {
		log.Info("hook runs", "command", argv, "environment", env)
		_, err := runner.Runner{Limit: hookLimit, Env: env, Clean: true}.Run(ctx, argv...)
		return err
	}
}

// openMetadata opens the metadata. It clears s.rebuild if there is nothing to rebuild.
func openMetadata(s *settings, log *slog.Logger) (*metadata.Store, error) {
	if !s.rebuild {
		store, err := metadata.Open(s.root)
		if err == nil {
			s.rebuild = store.Rebuilding() // an earlier start did not come to the end of it
		}
		return store, err
	}
	store, lost, kept, err := metadata.Rebuild(s.root)
	if err != nil {
		return nil, err
	}
	if s.rebuild = lost; lost {
		log.Warn("metadata is being rebuilt", "damaged_file", kept)
	} else {
		log.Info("metadata is sound: nothing to rebuild")
	}
	return store, nil
}

// bootID names this run of the kernel.
func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(raw))
}

// answer serves all doors until ctx is done, then lets the requests under way finish.
func answer(ctx context.Context, stop func(), root string, open doors, d *product.Daemon, m managers, pools *poolSet, log *slog.Logger) error {
	// Work outlives ctx until the requests under way are drained.
	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWork()
	observed := metrics.New(d, version, log)
	pluginServer := newServer(observed.Observe(docker.Handler(work, d, log)), log)
	shutdown := func(ctx context.Context, detach bool) error {
		if detach {
			if err := detachAll(ctx, m, pools); err != nil {
				return err
			}
		}
		stop() // the control server sends this answer before it is drained
		return nil
	}
	controlServer := newServer(observed.Observe(server.Handler(d, version, shutdown, log)), log)
	metricsServer := newServer(observed.Handler(), log)
	var group errgroup.Group
	for _, one := range []struct {
		server *http.Server
		socket socket
	}{{pluginServer, open.plugin}, {controlServer, open.control}, {metricsServer, open.metrics}} {
		if one.socket.Listener == nil {
			continue
		}
		group.Go(func() error {
			if err := one.server.Serve(one.socket.Listener); !errors.Is(err, http.ErrServerClosed) {
				stop()
				return fmt.Errorf("serve %s: %w", one.socket.path, err)
			}
			return nil
		})
	}
	background, cancelBackground := context.WithCancel(work)
	var watchers sync.WaitGroup
	for _, watch := range []func(context.Context){m.volumes.Run, m.volumes.WatchSpace, m.snapshots.Run, pools.watch} {
		watchers.Go(func() { watch(background) })
	}
	if err := m.backups.Resume(work); err != nil {
		log.Error("cannot resume restores", "error", err)
	}
	log.Info("ready", "version", version, "root", root, "plugin_socket", open.plugin.path, "control_socket", open.control.path, "metrics", open.metrics.path)
	tellSystemd(log, daemon.SdNotifyReady)
	<-ctx.Done()
	tellSystemd(log, daemon.SdNotifyStopping)
	log.Info("stopping; mounted volumes stay mounted")
	cancelBackground()
	m.jobs.Stop(jobsLimit)
	drain(cancelWork, log, pluginServer, controlServer, metricsServer)
	watchers.Wait()
	return group.Wait()
}

// detachAll ends all jobs, unmounts the volumes without holders and frees the pools. If it fails, the jobs are resumed.
func detachAll(ctx context.Context, m managers, pools *poolSet) (err error) {
	m.jobs.Stop(jobsLimit)
	defer func() {
		if err != nil {
			m.jobs.Continue()
			err = errors.Join(err, m.backups.Resume(context.WithoutCancel(ctx)))
		}
	}()
	if err := m.volumes.SettleAll(ctx); err != nil {
		return err
	}
	return pools.detach(ctx)
}

// drain waits for the requests under way, and cancels them after drainLimit.
func drain(cancelWork func(), log *slog.Logger, servers ...*http.Server) {
	limit, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	for _, s := range servers {
		if err := s.Shutdown(limit); err != nil {
			log.Warn("requests cut short", "error", err)
			cancelWork()
			_ = s.Close() // the connections that are left
		}
	}
}

func tellSystemd(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("sd_notify failed", "state", state, "error", err)
	}
}

// newServer returns a server in which a panic ends the process: net/http would carry on with whatever state the
// panic left, and recovery at start is made for just that.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if p := recover(); p != nil {
					escalate(p)
				}
			}()
			log.Debug("request", "method", r.Method, "path", r.URL.Path)
			handler.ServeHTTP(w, r)
		}),
	}
}

// escalate panics where nobody recovers.
func escalate(p any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		panic(p)
	}()
	<-done
}
