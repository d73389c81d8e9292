//go:build root

package main

import (
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

var loggedMetrics = regexp.MustCompile(`metrics=(127\.0\.0\.1:\d+)`)

// scrape returns what a daemon shows to Prometheus.
func scrape(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("scrape: status %d, %v: %s", response.StatusCode, err, text)
	}
	return string(text)
}

func TestDaemonShowsMetricsUntilItStops(t *testing.T) {
	t.Setenv("ORLOP_METRICS", "127.0.0.1:0")
	h := startHost(t)
	found := loggedMetrics.FindStringSubmatch(h.life.log.String())
	if found == nil {
		t.Fatalf("the log does not tell where the metrics are:\n%s", h.life.log)
	}
	address := found[1]
	h.must(t, "create", "data", "--size", "64M")
	h.docker(t, "Mount", dockerRequest{Name: "data", ID: "a"})
	text := scrape(t, address)
	for _, want := range []string{
		`orlop_volumes{pool="loop",state="ready"} 1`, `orlop_volume_size_bytes{pool="loop",volume="data"} 6.7108864e+07`,
		`orlop_volume_fs_size_bytes{pool="loop",volume="data"} `, `orlop_volume_fs_free_bytes{pool="loop",volume="data"} `,
		`orlop_volume_fs_files{pool="loop",volume="data"} 1`, `orlop_volume_fs_files_free{pool="loop",volume="data"} 1`,
		`orlop_mounted_volumes 1`, `orlop_holders{kind="docker"} 1`, `orlop_operations_total{operation="VolumeDriver.Mount"} 1`,
		`orlop_operations_total{operation="volumes/create"} 1`, `orlop_pool_free_bytes{layer="host",pool="loop"} `, `orlop_pool_free_bytes{layer="pool",pool="loop"} `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("a scrape lacks %s:\n%s", want, text)
		}
	}
	other := begin(newHost(t, "--metrics", address).flags...)
	<-other.done
	other.cancel()
	if log := other.log.String(); other.code == 0 || !strings.Contains(log, address) {
		t.Errorf("a second daemon at the same address: exit code %d:\n%s", other.code, log)
	}
	h.stop(t)
	if conn, err := net.Dial("tcp", address); err == nil {
		_ = conn.Close()
		t.Error("the metrics are there after the daemon's end")
	}
}
