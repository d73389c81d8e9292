package main

import (
	"net"
	"strings"
	"testing"

	"orlop/internal/fault"
)

func TestDaemonRefusesMetricsAddressesThatAreNone(t *testing.T) {
	root := t.TempDir()
	for _, address := range []string{
		"9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", "300.0.0.1:9464", "host:9464",
		"::1:9464", "[::1]", "http://127.0.0.1:9464", "/run/metrics.sock", " ", ":9464",
	} {
		got := invoke("daemon", "--root", root, "--metrics", address)
		if got.code != 2 || !strings.Contains(got.stderr, "--metrics") || !strings.Contains(got.stderr, "127.0.0.1:9464") {
			t.Errorf("--metrics %q: want exit code 2 and a message with an example\n%s", address, got)
		}
	}
	for _, address := range []string{"", "127.0.0.1:9464", "localhost:0", "[::1]:9464", "0.0.0.0:65535"} {
		if err := checkMetricsAddress(address); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestBusyMetricsPortIsNamed(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	address := other.Addr().String()
	if _, err := listenMetrics(address); !fault.Is(err, fault.ErrInUse) || !strings.Contains(err.Error(), address) {
		t.Errorf("listen at %s, which is taken: %v", address, err)
	}
	if _, err := listenMetrics("192.0.2.1:9464"); !fault.Is(err, fault.ErrInvalid) {
		t.Errorf("listen at another host's address: %v", err)
	}
}

func TestPoolsOfTheEnvironmentAreSeparatedByCommas(t *testing.T) {
	for _, test := range []struct {
		given    []string
		variable string
		set      bool
		want     int
	}{
		{nil, "", false, 1}, {[]string{""}, "", true, 1}, {[]string{"loop,fast=loop:/nvme"}, "loop,fast=loop:/nvme", true, 2},
		{[]string{"loop, fast=loop:/nvme"}, "loop, fast=loop:/nvme", true, 2}, {[]string{"loop:/a,b"}, "", false, 1},
		{[]string{"loop", "fast=loop:/nvme"}, "other", true, 2},
	} {
		if pools, err := parsePools(splitPools(test.given, test.variable, test.set)); err != nil || len(pools) != test.want {
			t.Errorf("%q with ORLOP_POOL=%q: %v, %v", test.given, test.variable, pools, err)
		}
	}
}
