package metrics_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/backup"
	"orlop/internal/control/server"
	"orlop/internal/daemon"
	"orlop/internal/docker"
	"orlop/internal/job"
	"orlop/internal/metrics"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A house is a daemon with a pool in memory, and both front doors under observation.
type house struct {
	store           *metadata.Store
	pool            *blockdevtest.Memory
	docker, control http.Handler
	metrics         http.Handler
}

const poolID = "6f0c7a52-3c44-4b6e-9d4c-2b4d7f0a1e11"

func newHouse(t *testing.T) *house {
	t.Helper()
	root, log := t.TempDir(), slog.New(slog.DiscardHandler)
	store, err := metadata.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	memory := blockdevtest.NewMemory()
	t.Cleanup(memory.Close)
	pool := volume.Pool{Name: "fast", UUID: poolID, Pool: memory, OnRoot: true}
	volumes, err := volume.New(volume.Config{Root: root, Store: store, Pools: []volume.Pool{pool}, Boot: "boot", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	snapshots := snapshot.New(snapshot.Config{Store: store, Volumes: volumes, Log: log})
	jobs := job.New(store, log)
	d, err := daemon.New(daemon.Config{
		Version: "1.2.3", Root: root, Store: store, Volumes: volumes, Snapshots: snapshots, Jobs: jobs,
		Backups:     backup.New(backup.Config{Store: store, Volumes: volumes, Snapshots: snapshots, Jobs: jobs, Log: log}),
		DefaultSize: 1 << 30, DefaultFS: "ext4", PluginName: "orlop",
		Pools: []daemon.Pool{{Pool: pool, Kind: "loop", Spec: "loop", BlockSize: 4096}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New(d, "1.2.3", log)
	return &house{
		store: store, pool: memory, metrics: m.Handler(),
		docker:  m.Observe(docker.Handler(t.Context(), d, log)),
		control: m.Observe(server.Handler(d, "1.2.3", nil, slog.New(slog.DiscardHandler))),
	}
}

// put records a volume with holders, and makes its device unless that is to be missing.
func (h *house) put(t *testing.T, name string, state metadata.State, missing bool, holders ...metadata.Holder) {
	t.Helper()
	const size = 1 << 30
	v := metadata.Volume{
		ID: string(blockdev.NewID()), Name: name, Device: string(blockdev.NewID()), Pool: "fast", PoolUUID: poolID,
		Size: size, Filesystem: "ext4", State: metadata.Creating, Created: time.Now(),
	}
	if !missing {
		if err := h.pool.Create(t.Context(), blockdev.ID(v.Device), size, nil); err != nil {
			t.Fatal(err)
		}
	}
	err := h.store.Update(t.Context(), func(tx *metadata.Tx) error {
		if err := tx.PutVolume(v); err != nil {
			return err
		}
		if err := tx.PutDevice(metadata.Device{ID: v.Device, Pool: v.Pool, Kind: metadata.KindVolume, Size: size}); err != nil {
			return err
		}
		for _, holder := range holders {
			holder.Volume = v.ID
			if err := tx.PutHolder(holder); err != nil {
				return err
			}
		}
		v.State = state
		return tx.PutVolume(v)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) ask(t *testing.T, door http.Handler, method, path, body string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	door.ServeHTTP(httptest.NewRecorder(), r)
}

// scrape returns the lines of the answer.
func (h *house) scrape(t *testing.T) (lines []string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.metrics.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: status %d: %s", w.Code, w.Body)
	}
	return strings.Split(w.Body.String(), "\n")
}

// wantLines checks that the answer to a scrape has each of these lines.
func (h *house) wantLines(t *testing.T, want ...string) {
	t.Helper()
	got := h.scrape(t)
	for _, line := range want {
		if !slices.Contains(got, line) {
			name, _, _ := strings.Cut(line, "{")
			name, _, _ = strings.Cut(name, " ")
			near := slices.DeleteFunc(slices.Clone(got), func(l string) bool { return !strings.HasPrefix(l, name) })
			t.Errorf("a scrape lacks:\n%s\nand has:\n%s", line, strings.Join(near, "\n"))
		}
	}
}

func TestScrapeShowsVolumesOfEachPoolAndState(t *testing.T) {
	h := newHouse(t)
	h.wantLines(t, `orlop_volumes{pool="fast",state="ready"} 0`, `orlop_volumes{pool="fast",state="degraded"} 0`)
	h.put(t, "data", metadata.Ready, false, metadata.Holder{ID: "a"}, metadata.Holder{ID: "b"}, metadata.Holder{ID: "u", User: true})
	h.put(t, "old", metadata.Removing, false)
	h.put(t, "lost", metadata.Ready, true)
	h.wantLines(t,
		`orlop_volumes{pool="fast",state="ready"} 1`,
		`orlop_volumes{pool="fast",state="removing"} 1`,
		`orlop_volumes{pool="fast",state="degraded"} 1`,
		`orlop_volume_size_bytes{pool="fast",volume="data"} 1.073741824e+09`,
		`orlop_volume_used_bytes{pool="fast",volume="lost"} 0`,
		`orlop_holders{kind="docker"} 2`,
		`orlop_holders{kind="user"} 1`,
		`orlop_mounted_volumes 0`,
		`orlop_kept_volumes 0`,
		`orlop_ungrown_volumes 0`,
		`orlop_read_failures 0`,
		`orlop_pool_size_bytes{layer="pool",pool="fast"} 1.099511627776e+12`,
	)
	if text := strings.Join(h.scrape(t), "\n"); !strings.Contains(text, `orlop_pool_free_bytes{layer="host",pool="fast"} `) ||
		!strings.Contains(text, `orlop_build_info{goversion="go`) || !strings.Contains(text, "process_resident_memory_bytes ") || !strings.Contains(text, "go_goroutines ") {
		t.Errorf("a scrape lacks the host's space, the build, the process or the runtime:\n%s", text)
	}
}

func TestScrapeCountsVolumesThatCouldNotBeGrown(t *testing.T) {
	h := newHouse(t)
	h.put(t, "data", metadata.Ready, false)
	h.put(t, "stuck", metadata.Ready, false)
	err := h.store.Update(t.Context(), func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed("stuck")
		if err != nil {
			return err
		}
		device, err := tx.Device(v.Device)
		device.FailedGrowth = &metadata.FailedGrowth{Wanted: v.Size, Size: 1 << 20, Problem: "cannot"}
		return errors.Join(err, tx.PutDevice(device))
	})
	if err != nil {
		t.Fatal(err)
	}
	h.wantLines(t,
		`orlop_ungrown_volumes 1`, `orlop_volumes{pool="fast",state="ready"} 1`, `orlop_volumes{pool="fast",state="degraded"} 1`,
		`orlop_volume_size_bytes{pool="fast",volume="stuck"} 1.048576e+06`,
	)
}

func TestScrapeShowsSnapshotsOfEachPoolAndWhatWasAskedAboutThem(t *testing.T) {
	h := newHouse(t)
	h.wantLines(t, `orlop_snapshots{pool="fast",state="ready"} 0`, `orlop_snapshots{pool="fast",state="degraded"} 0`, `orlop_snapshots_used_bytes{pool="fast"} 0`)
	h.put(t, "data", metadata.Ready, false)
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/create", `{"volumes":["data"],"name":"s"}`)
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/create", `{"volumes":["data"],"name":"s"}`)
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/create", `{"volumes":["data"],"name":"lost"}`)
	h.ask(t, h.control, http.MethodGet, "/v1/snapshots", "")
	h.ask(t, h.control, http.MethodGet, "/v1/snapshots/inspect?name=s", "")
	h.ask(t, h.control, http.MethodGet, "/v1/snapshots/diff?name=s&name=nope", "")
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/restore", `{"name":"data@s","discard":true}`)
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/delete", `{"name":"nope"}`)
	h.loseSnapshot(t, "lost")
	h.wantLines(t,
		`orlop_snapshots{pool="fast",state="ready"} 1`,
		`orlop_snapshots{pool="fast",state="degraded"} 1`,
		`orlop_operations_total{operation="snapshots"} 1`,
		`orlop_operations_total{operation="snapshots/create"} 3`,
		`orlop_operation_errors_total{kind="exists",operation="snapshots/create"} 1`,
		`orlop_operation_duration_seconds_count{operation="snapshots/create"} 3`,
		`orlop_operations_total{operation="snapshots/inspect"} 1`,
		`orlop_operation_errors_total{kind="not_found",operation="snapshots/diff"} 1`,
		`orlop_operations_total{operation="snapshots/restore"} 1`,
		`orlop_operation_errors_total{kind="not_found",operation="snapshots/delete"} 1`,
	)
}

// TestAnErrorInTheMiddleOfAStreamIsCounted: its status was sent long before.
func TestAnErrorInTheMiddleOfAStreamIsCounted(t *testing.T) {
	h := newHouse(t)
	h.put(t, "data", metadata.Ready, false)
	h.write(t, "data")
	h.ask(t, h.control, http.MethodPost, "/v1/snapshots/create", `{"volumes":["data"],"name":"s"}`)
	w := &torn{ResponseRecorder: httptest.NewRecorder()}
	h.control.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/snapshots/diff?name=s", nil))
	h.wantLines(t, `orlop_operation_errors_total{kind="failed",operation="snapshots/diff"} 1`)
}

// A torn answer takes its first byte and no more.
type torn struct {
	*httptest.ResponseRecorder
}

func (w *torn) Write(p []byte) (int, error) {
	if w.Body.Len() > 0 {
		return 0, errors.New("the client is gone")
	}
	_ = w.Body.WriteByte(p[0]) // never fails
	return 1, io.ErrShortWrite
}

// loseSnapshot removes a snapshot's device.
func (h *house) loseSnapshot(t *testing.T, name string) {
	t.Helper()
	var device string
	err := h.store.View(func(tx *metadata.Tx) error {
		all, err := tx.Snapshots("")
		for _, s := range all {
			if s.Name == name {
				device = s.Device
			}
		}
		return err
	})
	if err == nil {
		err = h.pool.Remove(t.Context(), blockdev.ID(device))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// write writes to a volume's device.
func (h *house) write(t *testing.T, name string) {
	t.Helper()
	var v metadata.Volume
	err := h.store.View(func(tx *metadata.Tx) (err error) {
		v, err = tx.VolumeNamed(name)
		return err
	})
	var path string
	if err == nil {
		path, err = h.pool.Activate(t.Context(), blockdev.ID(v.Device), blockdev.ReadWrite)
	}
	if err == nil {
		err = errors.Join(os.WriteFile(path, []byte("data"), 0o600), os.Truncate(path, v.Size), h.pool.Deactivate(t.Context(), blockdev.ID(v.Device)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestOperationsOfBothFrontDoorsAreCountedWithTheirErrors(t *testing.T) {
	h := newHouse(t)
	h.put(t, "data", metadata.Ready, false)
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Get", `{"Name":"data"}`)
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Get", `{"Name":"none"}`)
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Path", `{"Name":"none"}`)
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Create", `{"Name":"../x"}`)
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Mount", ``)
	h.ask(t, h.docker, http.MethodPost, "/data/secret", `{}`)
	h.ask(t, h.control, http.MethodGet, "/v1/volumes", "")
	h.ask(t, h.control, http.MethodGet, "/v1/volumes/inspect?name=data", "")
	h.ask(t, h.control, http.MethodPost, "/v1/volumes/resize", `{"name":"data","size":"-1"}`)
	h.wantLines(t,
		`orlop_operations_total{operation="VolumeDriver.Get"} 2`,
		`orlop_operation_errors_total{kind="not_found",operation="VolumeDriver.Path"} 1`,
		`orlop_operation_duration_seconds_count{operation="VolumeDriver.Get"} 2`,
		`orlop_operation_errors_total{kind="invalid",operation="VolumeDriver.Create"} 1`,
		`orlop_operation_errors_total{kind="invalid",operation="VolumeDriver.Mount"} 1`,
		`orlop_operations_total{operation="unknown"} 1`,
		`orlop_operations_total{operation="volumes"} 1`,
		`orlop_operations_total{operation="volumes/inspect"} 1`,
		`orlop_operation_errors_total{kind="invalid",operation="volumes/resize"} 1`,
	)
	for _, line := range h.scrape(t) {
		if strings.HasPrefix(line, "orlop_operation") && strings.Contains(line, "secret") {
			t.Errorf("a path that a client made up became a series: %s", line)
		}
		if strings.HasPrefix(line, `orlop_operation_errors_total{kind="not_found",operation="VolumeDriver.Get"}`) {
			t.Errorf("Docker's question before each creation counts as an error: %s", line)
		}
	}
}

func TestNamesAndUnitsFollowPrometheus(t *testing.T) {
	h := newHouse(t)
	h.put(t, "data", metadata.Ready, false, metadata.Holder{ID: "a"})
	h.ask(t, h.docker, http.MethodPost, "/VolumeDriver.Get", `{"Name":"none"}`)
	h.scrape(t) // promhttp's own counters appear with the second scrape
	problems, err := promlint.New(strings.NewReader(strings.Join(h.scrape(t), "\n"))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestScrapeWaitsForNoWriter scrapes while a write transaction is open: a scrape reads the state before it.
func TestScrapeWaitsForNoWriter(t *testing.T) {
	h := newHouse(t)
	h.put(t, "data", metadata.Ready, false)
	err := h.store.Update(t.Context(), func(tx *metadata.Tx) error {
		v, err := tx.VolumeNamed("data")
		if err != nil {
			return err
		}
		v.State = metadata.Removing
		if err := tx.PutVolume(v); err != nil {
			return err
		}
		h.wantLines(t, `orlop_volumes{pool="fast",state="ready"} 1`)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.wantLines(t, `orlop_volumes{pool="fast",state="ready"} 0`, `orlop_volumes{pool="fast",state="removing"} 1`)
}

func TestRootOfTheAddressLinksToTheMetrics(t *testing.T) {
	h := newHouse(t)
	for path, want := range map[string]int{"/": http.StatusOK, "/nothing": http.StatusNotFound} {
		answer := httptest.NewRecorder()
		h.metrics.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		if links := strings.Contains(answer.Body.String(), `href="/metrics"`); answer.Code != want || links != (want == http.StatusOK) {
			t.Errorf("%s: status %d: %s", path, answer.Code, answer.Body)
		}
	}
}
