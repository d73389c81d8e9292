package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"orlop/internal/fault"
)

// checkMetricsAddress fails with fault.ErrInvalid unless address is empty or one that can be listened at.
func checkMetricsAddress(address string) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err == nil && host == "" {
		return fault.Errorf(fault.ErrInvalid, "--metrics %q: would listen on every address of the host, without a password: use 127.0.0.1:%s, or 0.0.0.0:%s if every address is meant", address, port, port)
	}
	if err == nil && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fault.Errorf(fault.ErrInvalid, "--metrics %q: must be an IP address or localhost, and a port, as in 127.0.0.1:9464", address)
	}
	return nil
}

// listenMetrics listens at a TCP address for Prometheus; an empty one gives a socket without a listener. It fails
// with fault.ErrInUse if another process has the port, and with fault.ErrInvalid if the host lacks the address.
func listenMetrics(address string) (socket, error) {
	if address == "" {
		return socket{}, nil
	}
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return socket{}, fault.Errorf(fault.ErrInUse, "--metrics %s: another process listens there", address)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return socket{}, fault.Errorf(fault.ErrInvalid, "--metrics %s: this host does not have that address", address)
	case err != nil:
		return socket{}, fmt.Errorf("--metrics: %w", err)
	}
	return socket{listener, listener.Addr().String(), true}, nil
}
