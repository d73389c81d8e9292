package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/internal/backup"
	"orlop/internal/daemon"
	"orlop/internal/docker"
	"orlop/internal/job"
	"orlop/internal/volume"
	"orlop/metadata"
	"orlop/snapshot"
)

// A plugin is the protocol on a real daemon whose pool is in memory: everything but mounting works.
type plugin struct {
	store     *metadata.Store
	pool      *blockdevtest.Memory
	snapshots *snapshot.Manager
	root      string
	url       string
	log       *bytes.Buffer // from level Info
}

const poolUUID = "7c2d3a50-6f0e-4c53-9a53-0d7a6f1d2a11"

func newPlugin(t *testing.T) *plugin {
	t.Helper()
	p := &plugin{pool: blockdevtest.NewMemory(), root: t.TempDir(), log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(p.log, nil))
	t.Cleanup(p.pool.Close)
	store, err := metadata.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	p.store = store
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	pool := volume.Pool{Name: "loop", UUID: poolUUID, Pool: p.pool}
	volumes, err := volume.New(volume.Config{Root: p.root, Store: store, Pools: []volume.Pool{pool}, Boot: "this", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	p.snapshots = snapshot.New(snapshot.Config{Store: store, Volumes: volumes, Log: log})
	jobs := job.New(store, log)
	d, err := daemon.New(daemon.Config{
		Version: "test", Root: p.root, Store: store, Volumes: volumes, Snapshots: p.snapshots, Jobs: jobs,
		Backups:    backup.New(backup.Config{Store: store, Volumes: volumes, Snapshots: p.snapshots, Jobs: jobs, Log: log}),
		PluginName: "orlop",
		Pools:      []daemon.Pool{{Pool: pool, Kind: "loop", Spec: "loop", BlockSize: 4096}}, DefaultSize: 1 << 30, DefaultFS: "ext4",
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(docker.Handler(context.Background(), d, log))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// put records a volume with its device, in whatever state, as a daemon would have left it.
func (p *plugin) put(t *testing.T, name string, state metadata.State, device bool) metadata.Volume {
	t.Helper()
	v := metadata.Volume{
		ID: string(blockdev.NewID()), Name: name, Device: string(blockdev.NewID()), Pool: "loop", PoolUUID: poolUUID, Size: 16 << 20, Filesystem: "ext4",
		BlockSize: 4096, Mode: 0o755, Labels: map[string]string{"app": "shop"}, State: metadata.Creating, Created: time.Now().UTC().Truncate(time.Millisecond),
	}
	for _, v.State = range []metadata.State{metadata.Creating, metadata.Ready, metadata.Removing} {
		if err := p.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutVolume(v) }); err != nil {
			t.Fatal(err)
		}
		if v.State == state {
			break
		}
	}
	if device {
		if err := p.pool.Create(t.Context(), blockdev.ID(v.Device), v.Size, blockdev.Record(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// An answer is what Docker sees.
type answer struct {
	status int
	raw    string
	Err    string
	Volume *struct {
		Name, Mountpoint, CreatedAt string
		Status                      map[string]any
	}
	Volumes      []struct{ Name, Mountpoint string }
	Capabilities map[string]string
	Implements   []string
	Mountpoint   string
}

// post sends a call as dockerd does: without a Content-Type.
func (p *plugin) post(t *testing.T, call, body string) answer {
	t.Helper()
	response, err := http.Post(p.url+"/"+call, "", strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s %s: %v", call, body, err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", call, body, err)
	}
	got := answer{status: response.StatusCode, raw: string(raw)}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatalf("%s %s: %s: %v", call, body, raw, err)
	}
	if failed := got.status == http.StatusInternalServerError; failed != (got.Err != "") || !failed && got.status != http.StatusOK {
		t.Errorf("%s %s: status %d with Err %q: podman reads the one, docker the other", call, body, got.status, got.Err)
	}
	return got
}

// records is everything in the metadata.
func (p *plugin) records(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	err := p.store.View(func(tx *metadata.Tx) error {
		volumes, err := tx.Volumes()
		devices, deviceErr := tx.Devices()
		holders, holderErr := tx.Holders("")
		snapshots, snapshotErr := tx.Snapshots("")
		fmt.Fprintf(&b, "%+v\n%+v\n%+v\n%+v\n%d", volumes, devices, holders, snapshots, tx.Epoch())
		return errors.Join(err, deviceErr, holderErr, snapshotErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCallsWithoutBodyGetNoAnswer(t *testing.T) {
	p := newPlugin(t)
	p.put(t, "db", metadata.Ready, true)
	before := p.records(t)
	for _, call := range []string{"Create", "Remove", "Path", "Mount", "Unmount", "Get"} {
		for name, head := range map[string]string{
			"no length": "POST /VolumeDriver.%s HTTP/1.1\r\nHost: plugin\r\n\r\n", "no bytes": "POST /VolumeDriver.%s HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\n\r\n",
			"white space": "POST /VolumeDriver.%s HTTP/1.1\r\nHost: plugin\r\nContent-Length: 3\r\n\r\n \r\n",
		} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = fmt.Fprintf(conn, head, call)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if len(got) > 0 {
				t.Errorf("%s, %s: answered %q (%v)", call, name, got, err)
			}
			_ = conn.Close() // the other end has closed it
		}
	}
	if after := p.records(t); after != before {
		t.Errorf("the metadata changed from\n%s\nto\n%s", before, after)
	}
}

func TestCallsWithoutNameNeedNoBody(t *testing.T) {
	p := newPlugin(t)
	if got := p.post(t, "VolumeDriver.List", ""); got.Volumes == nil || len(got.Volumes) != 0 {
		t.Errorf("List without volumes: %s", got.raw)
	}
	p.put(t, "b", metadata.Ready, true)
	p.put(t, "a", metadata.Ready, false)
	if got := p.post(t, "VolumeDriver.List", ""); len(got.Volumes) != 2 || got.Volumes[0].Name != "a" || got.Volumes[1].Name != "b" {
		t.Errorf("List: %s", got.raw)
	}
	if got := p.post(t, "VolumeDriver.Capabilities", ""); got.Capabilities["Scope"] != "local" {
		t.Errorf("Capabilities: %s", got.raw)
	}
	if got := p.post(t, "Plugin.Activate", ""); len(got.Implements) != 1 || got.Implements[0] != "VolumeDriver" {
		t.Errorf("Activate: %s", got.raw)
	}
}

func TestCreateOfAnExistingVolumeSucceedsAndTouchesNothing(t *testing.T) {
	p := newPlugin(t)
	p.put(t, "db", metadata.Ready, true)
	before := p.records(t)
	for _, options := range []string{
		`{}`, `{"size":"99G","fs":"xfs"}`, `{"size":"1"}`, `{"nonsense":"1"}`, `{"label.app":"other","protect":"true"}`, `null`,
	} {
		if got := p.post(t, "VolumeDriver.Create", `{"Name":"db","Opts":`+options+`}`); got.status != http.StatusOK {
			t.Errorf("options %s: %s", options, got.raw)
		}
	}
	if after := p.records(t); after != before {
		t.Errorf("the metadata changed from\n%s\nto\n%s", before, after)
	}
}

func TestUnmountOfWhatIsNotMountedSucceeds(t *testing.T) {
	p := newPlugin(t)
	p.put(t, "db", metadata.Ready, true)
	p.put(t, "lost", metadata.Ready, false)
	for _, body := range []string{
		`{"Name":"db","ID":"never-seen"}`, `{"Name":"db","ID":""}`, `{"Name":"db"}`, `{"Name":"nope","ID":"x"}`, `{"Name":"lost","ID":"x"}`,
	} {
		if got := p.post(t, "VolumeDriver.Unmount", body); got.status != http.StatusOK {
			t.Errorf("%s: %s", body, got.raw)
		}
	}
}

func TestRemoveOfWhatIsGoneSucceeds(t *testing.T) {
	p := newPlugin(t)
	if got := p.post(t, "VolumeDriver.Remove", `{"Name":"nope"}`); got.status != http.StatusOK {
		t.Errorf("%s", got.raw)
	}
}

func TestGetNeverFailsForAVolumeThatExists(t *testing.T) {
	p := newPlugin(t)
	for _, test := range []struct {
		name   string
		state  metadata.State
		device bool
		shown  string
	}{
		{"whole", metadata.Ready, true, "ready"}, {"lost", metadata.Ready, false, "degraded"},
		{"made", metadata.Creating, false, "creating"}, {"going", metadata.Removing, false, "removing"},
	} {
		v := p.put(t, test.name, test.state, test.device)
		got := p.post(t, "VolumeDriver.Get", `{"Name":"`+test.name+`"}`)
		if got.status != http.StatusOK || got.Volume == nil || got.Volume.Name != test.name || got.Volume.Status["state"] != test.shown {
			t.Errorf("%s: %s", test.name, got.raw)
			continue
		}
		if problem := got.Volume.Status["problem"]; (problem != nil) != (test.shown == "degraded") {
			t.Errorf("%s: problem %v", test.name, problem)
		}
		created, err := time.Parse(time.RFC3339, got.Volume.CreatedAt)
		if err != nil || !created.Equal(v.Created) {
			t.Errorf("%s: CreatedAt %q is not %s: %v", test.name, got.Volume.CreatedAt, v.Created, err)
		}
		if got.Volume.Mountpoint != "" {
			t.Errorf("%s: mounted at %s?", test.name, got.Volume.Mountpoint)
		}
	}
	if p.log.Len() > 0 {
		t.Errorf("logged: %s", p.log)
	}
	if got := p.post(t, "VolumeDriver.Get", `{"Name":"nope"}`); p.log.Len() > 0 || got.status != http.StatusInternalServerError || !strings.Contains(got.Err, `"nope"`) {
		t.Errorf("a volume that does not exist: %s", got.raw)
	}
}

func TestGetAnswersForAPoolThatIsNotThere(t *testing.T) {
	p := newPlugin(t)
	v := p.put(t, "db", metadata.Ready, true)
	for _, uuid := range []string{"another", ""} {
		v.PoolUUID = uuid
		if err := p.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.PutVolume(v) }); err != nil {
			t.Fatal(err)
		}
		if got := p.post(t, "VolumeDriver.Get", `{"Name":"db"}`); got.status != http.StatusOK || got.Volume.Status["state"] != "degraded" {
			t.Errorf("%s", got.raw)
		}
		if got := p.post(t, "VolumeDriver.Mount", `{"Name":"db","ID":"x"}`); got.status != http.StatusInternalServerError {
			t.Errorf("%s", got.raw)
		}
		if got := p.post(t, "VolumeDriver.Path", `{"Name":"db"}`); got.status != http.StatusOK {
			t.Errorf("%s", got.raw)
		}
		if got := p.post(t, "VolumeDriver.Unmount", `{"Name":"db","ID":"x"}`); got.status != http.StatusOK {
			t.Errorf("%s", got.raw)
		}
	}
}

func TestMountOfAVolumeWithoutImageFailsAndGetDoesNot(t *testing.T) {
	p := newPlugin(t)
	p.put(t, "lost", metadata.Ready, false)
	if got := p.post(t, "VolumeDriver.Mount", `{"Name":"lost","ID":"x"}`); got.status != http.StatusInternalServerError || !strings.Contains(got.Err, `"lost"`) {
		t.Errorf("Mount: %s", got.raw)
	}
	if got := p.post(t, "VolumeDriver.Get", `{"Name":"lost"}`); got.status != http.StatusOK {
		t.Errorf("Get: %s", got.raw)
	}
}

// TestDockersNamesAreNeverTakenForIDs: a volume called like the beginning of another's ID is another volume.
func TestDockersNamesAreNeverTakenForIDs(t *testing.T) {
	p := newPlugin(t)
	v := p.put(t, "db", metadata.Ready, true)
	for _, ref := range []string{v.ID, v.ID[:8]} {
		for call, status := range map[string]int{"Get": 500, "Path": 500, "Mount": 500, "Unmount": 200, "Remove": 200} {
			if got := p.post(t, "VolumeDriver."+call, `{"Name":"`+ref+`","ID":"x"}`); got.status != status {
				t.Errorf("%s of %s: %s", call, ref, got.raw)
			}
		}
	}
	if got := p.post(t, "VolumeDriver.Get", `{"Name":"db"}`); got.status != http.StatusOK {
		t.Errorf("db is gone: %s", got.raw)
	}
}

func TestBadNamesAreRefusedByEveryCall(t *testing.T) {
	p := newPlugin(t)
	before := p.records(t)
	for _, name := range []string{"", "../x", "-rf", "a b", "a\nb", "ä", "a/b", ".", strings.Repeat("a", 129), "a\x00"} {
		for _, call := range []string{"Create", "Mount", "Unmount", "Remove", "Path", "Get"} {
			body, err := json.Marshal(map[string]string{"Name": name, "ID": "x"})
			if err != nil {
				t.Fatal(err)
			}
			got := p.post(t, "VolumeDriver."+call, string(body))
			if got.status != http.StatusInternalServerError || !strings.Contains(got.Err, strconv.Quote(name)) {
				t.Errorf("%s of %q: %s", call, name, got.raw)
			}
		}
	}
	if after := p.records(t); after != before {
		t.Errorf("the metadata changed from\n%s\nto\n%s", before, after)
	}
}

func TestRequestsThatCannotBeReadAreErrors(t *testing.T) {
	p := newPlugin(t)
	for _, body := range []string{"{", "null x", "[]", `"db"`, "{}{}", `{"Name":5}`, `{"Name":"db","Opts":"size=1G"}`, `{"Name":"` + strings.Repeat("x", 1<<20) + `"}`} {
		if got := p.post(t, "VolumeDriver.Create", body); got.status != http.StatusInternalServerError {
			t.Errorf("%.40s: %.200s", body, got.raw)
		}
	}
	if got := p.post(t, "VolumeDriver.Mount", `{"Name":"db","ID":"`+strings.Repeat("x", 257)+`"}`); got.status != http.StatusInternalServerError || !strings.Contains(got.Err, "256") {
		t.Errorf("a mount ID of 257 characters: %s", got.raw)
	}
	response, err := http.Post(p.url+"/VolumeDriver.Snapshot", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown call: %s", response.Status)
	}
}

func TestContentTypeDoesNotMatter(t *testing.T) {
	p := newPlugin(t)
	p.put(t, "db", metadata.Ready, true)
	for _, contentType := range []string{"", "text/plain", "application/json", "application/vnd.docker.plugins.v1.2+json", "rubbish"} {
		request, err := http.NewRequest(http.MethodPost, p.url+"/VolumeDriver.Get", strings.NewReader(`{"Name":"db"}`))
		if err != nil {
			t.Fatal(err)
		}
		if contentType != "" {
			request.Header.Set("Content-Type", contentType)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close() // read or not, it is over
		if response.StatusCode != http.StatusOK {
			t.Errorf("Content-Type %q: %s", contentType, response.Status)
		}
	}
}

// take takes a snapshot of a volume.
func (p *plugin) take(t *testing.T, v metadata.Volume, spec snapshot.Spec) {
	t.Helper()
	if _, err := p.snapshots.Create(t.Context(), []string{v.ID}, spec); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotsShowInStatusAndTheUsersKeepTheirVolume: "docker volume rm" takes none along but managed ones.
func TestSnapshotsShowInStatusAndTheUsersKeepTheirVolume(t *testing.T) {
	p := newPlugin(t)
	for _, test := range []struct {
		name           string
		users, managed int
	}{{"none", 0, 0}, {"mine", 1, 0}, {"both", 2, 1}, {"managed", 0, 2}} {
		v := p.put(t, test.name, metadata.Ready, true)
		for i := range test.users {
			p.take(t, v, snapshot.Spec{Name: fmt.Sprintf("mine-%d", i)})
		}
		for i := range test.managed {
			p.take(t, v, snapshot.Spec{Name: fmt.Sprintf("base-%d", i), Managed: true})
		}
		body := `{"Name":"` + test.name + `"}`
		if got := p.post(t, "VolumeDriver.Get", body); got.Volume.Status["snapshots"] != float64(test.users+test.managed) {
			t.Errorf("%s: %s", test.name, got.raw)
		}
		before := p.records(t)
		got := p.post(t, "VolumeDriver.Remove", body)
		if test.users == 0 {
			if after := p.records(t); got.status != http.StatusOK || strings.Contains(after, v.ID) {
				t.Errorf("%s: %s: left %s", test.name, got.raw, after)
			}
			continue
		}
		if !strings.Contains(got.Err, "mine-0") || strings.Contains(got.Err, "base-0") || p.records(t) != before {
			t.Errorf("%s: %s: records before\n%s\nand after\n%s", test.name, got.raw, before, p.records(t))
		}
	}
}

func TestCopiesThatCannotBeMadeLeaveNothing(t *testing.T) {
	p := newPlugin(t)
	v := p.put(t, "db", metadata.Ready, true)
	p.take(t, v, snapshot.Spec{Name: "s"})
	before := p.records(t)
	for options, says := range map[string]string{
		`{"from":"nope"}`: `\"nope\"`, `{"from":"db@nope"}`: "db@s", `{"from":""}`: "not allowed", `{"from":"db@s","size":"8M"}`: "16 MiB", `{"from":"db","fs":"xfs"}`: "ext4",
		`{"from":"db@s","pool":"x"}`: "loop", `{"from":"db@s","driver":"lvm"}`: "lvm", `{"from":"db","pre-snapshot":"true"}`: "not for docker",
	} {
		if got := p.post(t, "VolumeDriver.Create", `{"Name":"new","Opts":`+options+`}`); got.status != http.StatusInternalServerError || !strings.Contains(got.raw, says) {
			t.Errorf("%s: %s, want a word of %s", options, got.raw, says)
		}
	}
	if after := p.records(t); after != before {
		t.Errorf("the metadata changed from\n%s\nto\n%s", before, after)
	}
}
