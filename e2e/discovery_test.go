//go:build root

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestDockerFindsThePluginWhereverItIsPublished(t *testing.T) {
	h := newHost(t, false)
	t.Run("socket", func(t *testing.T) { h.wantDriver(t, h.plugin) })
	own := h.plugin + "-own"
	check(t, os.Mkdir(filepath.Join(socketDir, own), 0o755))
	t.Cleanup(func() { check(t, os.RemoveAll(filepath.Join(socketDir, own))) })
	for _, way := range []struct {
		name, socket, file, content string
	}{
		{"own", filepath.Join(socketDir, own, own+".sock"), "", ""},
		{"spec", h.docker.path("spec.sock"), specDir + "/%s.spec", "unix://%[2]s\n"},
		{"spec-in-lib", h.docker.path("lib.sock"), libDir + "/%s.spec", "unix://%[2]s\n"},
		{"json", h.docker.path("json.sock"), specDir + "/%s.json", `{"Name": "%s", "Addr": "unix://%s"}`},
		{"json-in-lib", h.docker.path("json-lib.sock"), libDir + "/%s.json", `{"Name": "%s", "Addr": "unix://%s"}`},
	} {
		// Docker asks every plugin that it has found for every list: they all live until the host is closed.
		driver := h.plugin + "-" + way.name
		if way.file != "" {
			publish(t, fmt.Sprintf(way.file, driver), fmt.Sprintf(way.content, driver, way.socket))
		}
		h.secondDaemon(t, driver, way.socket)
		t.Run(way.name, func(t *testing.T) { h.wantDriver(t, driver) })
	}
}

// secondDaemon starts another daemon, with a root of its own and its Docker socket where the test publishes it.
func (h *host) secondDaemon(t *testing.T, name, socket string) {
	t.Helper()
	dir := filepath.Join(h.dir, name)
	check(t, os.Mkdir(dir, 0o711))
	o := newOrlop(dir, name, socket)
	t.Cleanup(func() {
		if err := errors.Join(o.close(), sweep(dir)); err != nil {
			t.Errorf("%v\norlop's log ends:\n%s", err, tail(o.logPath, 20))
		}
	})
	check(t, o.start())
}

// wantDriver fails unless Docker creates, uses and removes a volume of the driver.
func (h *host) wantDriver(t *testing.T, driver string) {
	t.Helper()
	volume := "of-" + driver
	h.docker.run("volume", "create", "--driver", driver, "-o", "size=64M", volume).must(t)
	h.docker.run("run", "--rm", "--network", "none", "--volume-driver", driver, "-v", volume+":/data", plainImage, "sh", "-ec", "echo x > /data/x").must(t)
	if got := h.inspect(t, volume).Driver; got != driver {
		t.Errorf("volume %s is of driver %q", volume, got)
	}
	h.docker.run("volume", "rm", volume).must(t)
}

// publish writes a file that tells Docker of a plugin, until the test's end.
func publish(t *testing.T, path, content string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(content), 0o644))
	t.Cleanup(func() { check(t, os.Remove(path)) })
}
