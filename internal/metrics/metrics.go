// Package metrics shows the daemon to Prometheus: volumes, space, and what both front doors were asked and how
// long it took.
package metrics

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"orlop/internal/daemon"
	"orlop/internal/fault"
)

// Path is where the metrics are.
const Path = "/metrics"

// Metrics counts what the front doors are asked, and answers scrapes. It is safe for concurrent use.
type Metrics struct {
	daemon     *daemon.Daemon
	log        *slog.Logger
	registry   *prometheus.Registry // of all but the volumes, which each scrape reads anew
	operations *prometheus.CounterVec
	errors     *prometheus.CounterVec
	duration   *prometheus.HistogramVec
}

// New returns the metrics of d.
func New(d *daemon.Daemon, version string, log *slog.Logger) *Metrics {
	m := &Metrics{
		daemon: d, log: log, registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "orlop_operations_total", Help: "Requests of Docker and of the orlop command that were answered.",
		}, []string{"operation"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "orlop_operation_errors_total", Help: "Those that failed, by the kind of error.",
		}, []string{"operation", "kind"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "orlop_operation_duration_seconds", Help: "Time from the arrival of a request to its answer.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120},
		}, []string{"operation"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "orlop_build_info", Help: "Always 1; its labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.operations, m.errors, m.duration, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe counts and times the requests that next answers. An operation is the path under which next routes it,
// so that names in requests make no series. What failed shows its kind in the answer's header fault.Header.
func (m *Metrics) Observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		next.ServeHTTP(w, r)
		operation := operation(r.Pattern)
		m.operations.WithLabelValues(operation).Inc()
		m.duration.WithLabelValues(operation).Observe(time.Since(start).Seconds())
		if kind := w.Header().Get(fault.Header); kind != "" {
			m.errors.WithLabelValues(operation, kind).Inc()
		}
	})
}

// operation makes "VolumeDriver.Mount" and "volumes/create" of the patterns "/VolumeDriver.Mount" and
// "POST /v1/volumes/create".
func operation(pattern string) string {
	_, path, ok := strings.Cut(pattern, "/")
	if _, rest, versioned := strings.Cut(path, "/"); versioned {
		path = rest
	}
	if !ok || path == "" {
		return "unknown"
	}
	return path
}

// Handler answers scrapes at Path, and shows a link to it at the root. A scrape sees one consistent state of the metadata and waits for no operation.
// Where a part cannot be read the others are answered all the same.
func (m *Metrics) Handler() http.Handler {
	own := prometheus.NewRegistry()
	options := promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, Registry: own,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelError),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, `<!DOCTYPE html><title>Orlop</title><a href="`+Path+`">metrics of Orlop</a>`+"\n") // the reader is gone
	})
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, r *http.Request) {
		gatherers := prometheus.Gatherers{m.registry, own, m.volumes(r.Context())}
		promhttp.HandlerFor(gatherers, options).ServeHTTP(w, r)
	})
	return mux
}

// volumes gathers what a scrape reads from the daemon.
func (m *Metrics) volumes(ctx context.Context) prometheus.Gatherer {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{func(ch chan<- prometheus.Metric) { m.collect(ctx, ch) }})
	return registry
}

// collector is a prometheus.Collector for one scrape.
type collector struct {
	collect func(chan<- prometheus.Metric)
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range descriptions {
		ch <- desc
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) { c.collect(ch) }
