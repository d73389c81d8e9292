//go:build root

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A project is a Compose file with one service, box, that has the volume data at /data.
type project struct {
	host *host
	file string
}

// compose writes a Compose file. Nothing of the project is left after the test.
func (h *host) compose(t *testing.T, options string) *project {
	t.Helper()
	p := &project{h, filepath.Join(t.TempDir(), "docker-compose.yml")}
	p.write(t, options)
	t.Cleanup(func() {
		p.run("rm", "-sf").must(t)
		h.orlop.run("set", "test_data", "--unprotect") // it may never have been made
		h.docker.run("volume", "rm", "-f", "test_data").must(t)
	})
	return p
}

// write gives the volume other options.
func (p *project) write(t *testing.T, options string) {
	t.Helper()
	text := fmt.Sprintf(`version: "3.3"
services:
  box: {image: %s, command: [sleep, "3600"], network_mode: none, stop_signal: KILL, volumes: ["data:/data"]}
volumes:
  data: {driver: %s, driver_opts: {%s}}
`, plainImage, p.host.plugin, options)
	check(t, os.WriteFile(p.file, []byte(text), 0o600))
}

func (p *project) run(args ...string) result {
	env := []string{"DOCKER_HOST=unix://" + p.host.docker.path("docker.sock"), "DOCKER_CONFIG=" + p.host.docker.path("config"), "DOCKER_CONTEXT=", "COMPOSE_API_VERSION="}
	return run(env, "docker-compose", append([]string{"--project-name", "test", "--file", p.file}, args...)...)
}

// TestComposeGetsNoModeThatYAMLHasReadAsADecimal has modes without quotes first, which arrive as other numbers.
func TestComposeGetsNoModeThatYAMLHasReadAsADecimal(t *testing.T) {
	h := sharedHost(t)
	p := h.compose(t, "size: 128M")
	for _, mode := range []string{"0770", "0755"} {
		p.write(t, "size: 128M, mode: "+mode)
		if r := p.run("up", "-d"); r.code == 0 || !strings.Contains(r.stderr, `mode: "`+mode+`"`) {
			t.Errorf("mode: %s: %s", mode, r)
		}
		if volumes := h.volumes(t); volumes != "" {
			t.Fatalf("mode: %s made %s", mode, volumes)
		}
	}
	p.write(t, `size: 128M, uid: 1000, protect: "true", mode: "0770"`)
	p.run("up", "-d").must(t)
	if got := p.run("exec", "-T", "box", "stat", "-c", "%u %a", "/data").must(t); got != "1000 770" {
		t.Errorf("owner and mode are %s", got)
	}
}

// TestComposeNeitherDeletesNorGrowsAProtectedVolume is what the guide says of "down -v" and of another size in the file.
func TestComposeNeitherDeletesNorGrowsAProtectedVolume(t *testing.T) {
	h := sharedHost(t)
	p := h.compose(t, `fs: xfs, size: 320M, protect: "true"`)
	p.run("up", "-d").must(t)
	h.orlop.run("resize", "test_data", "--size", "640M").must(t)
	p.run("up", "-d").must(t) // the file keeps the old size
	p.write(t, `fs: xfs, size: 640M, protect: "true"`)
	if r := p.run("up", "-d"); r.code == 0 {
		t.Errorf("with the new size: %s", r)
	}
	p.write(t, `fs: xfs, size: 320M, protect: "true"`)
	if r := p.run("down", "-v"); r.code == 0 || !strings.Contains(r.stderr, "is protected") {
		t.Errorf("down -v: %s", r)
	}
	if size := h.orlopInspect(t, "test_data").Size; size != 640<<20 {
		t.Errorf("the volume has %d bytes", size)
	}
}
