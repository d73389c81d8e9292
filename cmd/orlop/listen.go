package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
)

// controlGroup may use the control socket, where it exists.
const controlGroup = "orlop"

// A socket is a listening socket.
type socket struct {
	net.Listener
	path  string // of a unix socket; the address of a TCP socket
	given bool   // by the service manager, which keeps it; or it has no file
}

// close stops listening and deletes the socket file that we made.
func (s socket) close() {
	if s.Listener == nil {
		return
	}
	_ = s.Listener.Close() // its server may have closed it already
	if !s.given {
		_ = os.Remove(s.path) // a stale one is replaced at the next start
	}
}

// doors are what the daemon listens at. The metrics' has no Listener if no address was asked for.
type doors struct {
	plugin, control, metrics socket
}

func (d doors) close() {
	d.plugin.close()
	d.control.close()
	d.metrics.close()
}

// listen opens the doors, all or none. The sockets are those that systemd hands over, told apart by their paths, and
// otherwise new ones.
func listen(s settings) (d doors, err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.metrics, err = listenMetrics(s.metrics); err != nil {
		return d, err
	}
	given, err := activation.Listeners()
	if err != nil {
		return d, fmt.Errorf("sockets of the service manager: %w", err)
	}
	for _, listener := range given {
		if listener == nil {
			continue
		}
		switch path := listener.Addr().String(); path {
		case s.pluginSocket:
			d.plugin = socket{listener, path, true}
		case s.controlSocket:
			d.control = socket{listener, path, true}
		default:
			return d, fault.Errorf(fault.ErrInvalid, "the service manager hands over a socket at %s, but the daemon is to listen at %s and %s", path, s.pluginSocket, s.controlSocket)
		}
	}
	if d.plugin.Listener == nil {
		if d.plugin, err = listenAt(s.pluginSocket); err != nil {
			return d, err
		}
	}
	if d.control.Listener == nil {
		if d.control, err = listenAt(s.controlSocket); err != nil {
			return d, err
		}
	}
	return d, openToGroup(s.controlSocket)
}

// listenAt makes a unix socket that only root may use. A socket file that nobody answers at is replaced; one that
// answers is another daemon's, and fault.ErrInUse.
func listenAt(path string) (socket, error) {
	if err := fs.MakeDirs(filepath.Dir(path), 0o755); err != nil {
		return socket{}, fmt.Errorf("listen at %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode()&os.ModeSocket == 0:
		return socket{}, fault.Errorf(fault.ErrExists, "listen at %s: a file that is not a socket is there", path)
	case err == nil:
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return socket{}, fault.Errorf(fault.ErrInUse, "listen at %s: another process answers there", path)
		}
		if err := os.Remove(path); err != nil {
			return socket{}, fmt.Errorf("listen at %s: %w", path, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return socket{}, fmt.Errorf("listen at %s: %w", path, err)
	}
	old := unix.Umask(0o177)
	listener, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return socket{}, fmt.Errorf("listen at %s: %w", path, err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	return socket{listener, path, false}, nil
}

// openToGroup lets the group orlop use a socket, if there is such a group.
func openToGroup(path string) error {
	group, err := user.LookupGroup(controlGroup)
	if err != nil {
		return nil //nolint:nilerr // no such group: root only
	}
	gid, err := strconv.Atoi(group.Gid)
	if err == nil {
		err = errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660))
	}
	if err != nil {
		return fmt.Errorf("open %s to group %s: %w", path, controlGroup, err)
	}
	return nil
}
