//go:build root

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"sync"
	"testing"
	"time"
)

func TestContainersKeepTheirVolumesWhileOrlopIsKilledAndStartedAgain(t *testing.T) {
	h := newHost(t, false)
	h.create(t, "vol")
	h.container(t, "box", "vol")
	h.write(t, "box", "note", "from before")
	device := h.wantInUse(t, "vol", "box")
	for _, end := range []func(*process) error{(*process).kill, (*process).stop} {
		check(t, end(h.orlop.process))
		if now := h.wantInUse(t, "vol", "box"); now != device {
			t.Fatalf("with orlop gone the device was %s and is %s", device, now)
		}
		check(t, h.orlop.start())
		if now := h.wantInUse(t, "vol", "box"); now != device {
			t.Fatalf("with orlop back the device was %s and is %s", device, now)
		}
	}
	h.container(t, "other", "vol")
	h.wantFile(t, "other", "note", "from before")
	if now := h.wantInUse(t, "vol", "box", "other"); now != device {
		t.Errorf("the device was %s and is %s", device, now)
	}
	h.docker.run("rm", "-f", "box", "other").must(t)
	h.wantReleased(t)
}

// labelled is a volume as Docker knows it: what an error of Get would make it forget for ever.
type labelled struct {
	Labels, Options map[string]string
}

// createLabelled makes volumes with labels and options in Docker's own books.
func (h *host) createLabelled(t *testing.T, count int) map[string]labelled {
	t.Helper()
	made := map[string]labelled{}
	for i := range count {
		name, label := fmt.Sprintf("vol%d", i), fmt.Sprintf("label-%d", i)
		h.docker.run("volume", "create", "--driver", h.plugin, "--label", "keep="+label, "-o", "size=64M", "-o", "label.app="+label, name).must(t)
		made[name] = labelled{map[string]string{"keep": label}, map[string]string{"size": "64M", "label.app": label}}
	}
	return made
}

// ask inspects a volume through Docker's API. An error of the daemon is no matter of the test.
func (h *host) ask(volume string) (v labelled, ok bool) {
	status, answer, err := h.docker.api(http.MethodGet, "/volumes/"+volume, nil)
	ok = err == nil && status == http.StatusOK && json.Unmarshal(answer, &v) == nil
	return v, ok
}

// wantLabels fails unless Docker still knows all about the volumes, now and after it was started again: it keeps
// them in memory and on disk.
func (h *host) wantLabels(t *testing.T, made map[string]labelled) {
	t.Helper()
	for _, when := range []string{"afterwards", "after docker started again"} {
		for name, want := range made {
			eventually(t, "docker shows "+name+" "+when, func() bool { _, ok := h.ask(name); return ok })
			if got, _ := h.ask(name); !reflect.DeepEqual(got, want) {
				t.Errorf("%s docker shows %s with %+v, want %+v", when, name, got, want)
			}
		}
		check(t, h.docker.stop())
		check(t, h.docker.start())
	}
}

// The retry of a call whose plugin died comes with an empty body, and an error in answer to that would be taken for
// "no such volume".
func TestDockerKeepsLabelsAndOptionsWhenOrlopDiesInTheMiddleOfAGet(t *testing.T) {
	h := newHost(t, true)
	made := h.createLabelled(t, 2)
	var once sync.Once
	h.relay.setFault(func(c call, w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if c.verb == "Get" && c.name == "vol0" {
			once.Do(func() {
				// orlop is stopped with the request in its socket, and dies without having answered.
				if err := h.orlop.suspend(); err != nil {
					t.Error(err)
				}
				time.AfterFunc(300*time.Millisecond, func() {
					if err := h.orlop.killAndRestart(); err != nil {
						t.Error(err)
					}
				})
			})
		}
		pass.ServeHTTP(w, r)
	})
	_, ok := h.ask("vol0")
	t.Logf("docker answered the inspect: %v", ok)
	once.Do(func() { t.Error("docker sent no Get") })
	if retried := h.relay.bodyless(); retried == 0 {
		t.Error("docker sent no retry with an empty body: the test does not provoke what it is about")
	}
	h.relay.pass()
	h.wantLabels(t, made)
}

func TestDockerKeepsLabelsAndOptionsWhileOrlopIsKilledUnderLoad(t *testing.T) {
	h := newHost(t, false)
	made := h.createLabelled(t, 6)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	stop := make(chan struct{})
	var load sync.WaitGroup
	for name := range made {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					h.ask(name)
				}
			}
		})
	}
	for range 4 {
		<-time.After(time.Duration(random.IntN(300)) * time.Millisecond)
		check(t, h.orlop.killAndRestart())
	}
	close(stop)
	load.Wait()
	h.wantLabels(t, made)
}
