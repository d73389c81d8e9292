//go:build root

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/internal/backup"
	"orlop/internal/control"
	"orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/metadata"
)

// backupSteps are what the daemon is killed in. A soak in which one was never hit has not shown enough.
var backupSteps = []string{"create", "run", "collect", "restore", "docker restore", "restore in place", "start with a restore"}

// The daemon is killed at random moments of backups, runs, collections and restores. Every committed backup restores as its
// volume was; the next run completes; restores are resumed; half of the waiting commands are left waiting, and succeed with the
// next daemon; and nothing is left over.
func TestKilledDaemonKeepsEveryBackupAndResumesEveryRestore(t *testing.T) {
	seed := seed(t)
	aloneInCache(t)
	l := &backupLoad{
		host: newQuickCrashHost(t), vault: newVault(t, t.TempDir(), true), random: rand.New(rand.NewPCG(seed, 3)),
		sums: map[string][]imageSum{}, backups: map[string]imageSum{}, hits: map[string]int{}, took: map[string]time.Duration{},
	}
	l.host.begin(t)
	l.host.awaitReady(t)
	for _, name := range crashVolumeNames {
		check(t, l.host.create(name, 64<<20, "ext4"))
		l.change(t, name, 12<<20)
	}
	kills := often(12, 100)
	done := 0
	for ; done < kills || kills == 100 && len(l.missing()) > 0 && done < 3*kills; done++ {
		l.killOnce(t, done)
		if t.Failed() {
			t.Fatalf("at kill %d with ORLOP_SEED=%d", done+1, seed)
		}
	}
	t.Logf("%d kills; in flight then: %v", done, l.hits)
	if missing := l.missing(); kills == 100 && len(missing) > 0 {
		t.Errorf("never killed in: %q", missing)
	}
	l.wantAll(t)
	l.wantNothingLeft(t)
}

// crashVolumeNames are the volumes: the first two are backed up, the last one is what is restored in place.
var crashVolumeNames = []string{"a", "b", "target"}

// A backupLoad is what is done to a host that is killed, and what is known of its volumes.
type backupLoad struct {
	host    *crashHost
	vault   vault
	random  *rand.Rand
	sums    map[string][]imageSum // of each volume, at each time; the last one is how it is now
	backups map[string]imageSum   // of each committed backup, by its ID
	hits    map[string]int
	took    map[string]time.Duration // how long each step takes, about
	serial  int
}

func (l *backupLoad) missing() []string {
	return slices.DeleteFunc(slices.Clone(backupSteps), func(step string) bool { return l.hits[step] > 0 })
}

func (l *backupLoad) now(volume string) imageSum { return l.sums[volume][len(l.sums[volume])-1] }

// change writes to a volume, which is not mounted afterwards.
func (l *backupLoad) change(t *testing.T, volume string, bytes int) {
	t.Helper()
	dir := l.must(t, "mount", volume)
	fill(t, filepath.Join(dir, fmt.Sprint("file-", l.serial%2)), l.random.Uint64(), bytes)
	l.serial++
	l.must(t, "umount", volume)
	l.sums[volume] = append(l.sums[volume], sumImage(t, imageIn(t, l.host.pool(), volume)))
}

func (l *backupLoad) must(t *testing.T, args ...string) string {
	t.Helper()
	got := l.host.orlop(args...)
	if got.code != 0 {
		t.Fatalf("orlop %q: %s\n%s", args, got, l.host.logTail())
	}
	return strings.TrimSuffix(got.stdout, "\n")
}

// A backupStep is one request, and what must be so when it has succeeded.
type backupStep struct {
	name string
	args []string // of the command; empty for a request that no command makes
	do   func(ctx context.Context) error
	done func(t *testing.T)
}

// choose picks a step: those that were hit least come first.
func (l *backupLoad) choose(t *testing.T) backupStep {
	steps := []func(*testing.T) backupStep{l.create, l.run, l.collect}
	if len(l.vault.list(t)) > 0 {
		steps = append(steps, l.restore, l.dockerRestore, l.inPlace)
	}
	l.random.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	best := steps[0](t)
	for _, other := range steps[1:] {
		if s := other(t); l.hits[s.name] < l.hits[best.name] {
			best = s
		}
	}
	return best
}

func (l *backupLoad) create(*testing.T) backupStep {
	volume := crashVolumeNames[l.random.IntN(2)]
	return backupStep{
		name: "create", args: l.vault.with("backup", "create", volume, "--dest", l.vault.dir),
		done: func(t *testing.T) { l.wantBackedUp(t, volume) },
	}
}

func (l *backupLoad) run(*testing.T) backupStep {
	return backupStep{
		name: "run", args: l.vault.with("backup", "run", "a", "b", "--dest", l.vault.dir, "--keep-last", "3"),
		done: func(t *testing.T) { l.wantBackedUp(t, "a"); l.wantBackedUp(t, "b") },
	}
}

func (l *backupLoad) collect(*testing.T) backupStep {
	return backupStep{name: "collect", done: func(*testing.T) {}, do: func(ctx context.Context) error {
		var begun control.Collecting
		request := control.Request{Destination: l.vault.url(), KeyFile: l.vault.key[1]}
		err := l.host.client.Post(ctx, "/backups/collect", request, &begun)
		var j daemon.JobView
		if err == nil {
			err = json.Unmarshal(begun.Job, &j)
		}
		for err == nil && j.State == string(metadata.JobRunning) {
			err = l.host.client.Stream(ctx, "/jobs/follow", url.Values{"id": {j.ID}}, func(line []byte) error { return json.Unmarshal(line, &j) })
		}
		if err == nil && j.Error != nil {
			err = j.Error.Err()
		}
		return err
	}}
}

// any is one of the backups.
func (l *backupLoad) any(t *testing.T) backup.View {
	views := l.vault.list(t)
	return views[l.random.IntN(len(views))]
}

func (l *backupLoad) restore(t *testing.T) backupStep {
	from := l.any(t)
	return backupStep{
		name: "restore", args: l.vault.with("backup", "restore", from.URL, "restored"),
		done: func(t *testing.T) { l.wantIs(t, "restored", from.ID) },
	}
}

func (l *backupLoad) dockerRestore(t *testing.T) backupStep {
	from := l.any(t)
	return backupStep{
		name: "docker restore",
		do: func(context.Context) error {
			return l.host.docker("Create", dockerRequest{Name: "restored", Opts: map[string]string{"backup": from.URL, "key-file": l.vault.key[1]}}, nil)
		},
		done: func(t *testing.T) { l.wantIs(t, "restored", from.ID) },
	}
}

func (l *backupLoad) inPlace(t *testing.T) backupStep {
	from := l.any(t)
	return backupStep{
		name: "restore in place", args: l.vault.with("backup", "restore", from.URL, "target", "--in-place"),
		done: func(t *testing.T) { l.wantIs(t, "target", from.ID) },
	}
}

// wantIs fails unless a volume is now what a backup holds.
func (l *backupLoad) wantIs(t *testing.T, volume, id string) {
	t.Helper()
	want, known := l.backups[id]
	if !known {
		t.Fatalf("an unknown backup %s", id)
	}
	wantRestored(t, volume+" from "+id, imageIn(t, l.host.pool(), volume), want)
}

// wantBackedUp fails unless the newest backup of a volume is of its present content, which the rest of the test then relies on.
func (l *backupLoad) wantBackedUp(t *testing.T, volume string) {
	t.Helper()
	l.learn(t)
	var newest backup.View
	for _, view := range l.vault.list(t) {
		if view.Volume == volume {
			newest = view
		}
	}
	if l.backups[newest.ID] != l.now(volume) {
		t.Errorf("the newest backup of %s is not of its content now: %+v", volume, newest)
	}
}

// learn notes what the backups that were committed since are of: the content that their volumes have had since then.
func (l *backupLoad) learn(t *testing.T) {
	t.Helper()
	for _, view := range l.vault.list(t) {
		if _, known := l.backups[view.ID]; !known && slices.Contains(crashVolumeNames, view.Volume) {
			l.backups[view.ID] = l.now(view.Volume)
		}
	}
}

// killOnce does one step, kills the daemon in it, and looks at what the next daemon makes of it.
func (l *backupLoad) killOnce(t *testing.T, round int) {
	l.change(t, crashVolumeNames[l.random.IntN(2)], 6<<20)
	s := l.choose(t)
	stays := len(s.args) > 0 && l.random.IntN(2) == 0 // the command goes on waiting
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	var got outcome
	var failed error
	ended, began := make(chan struct{}), time.Now()
	go func() {
		defer close(ended)
		if s.do != nil {
			failed = s.do(ctx)
			return
		}
		got = invokeUntil(ctx, append([]string{"--socket", l.host.path("control.sock")}, s.args...)...)
	}()
	inFlight := true
	if l.took[s.name] == 0 {
		l.took[s.name] = 300 * time.Millisecond
	}
	select {
	case <-ended:
		inFlight = false
		l.took[s.name] = time.Since(began)
	case <-time.After(time.Duration(l.random.Int64N(int64(l.took[s.name])))):
		l.took[s.name] += l.took[s.name] / 8 // it may take longer
	}
	l.host.kill(t)
	if inFlight {
		l.hits[s.name]++
	}
	if !stays {
		giveUp()
		<-ended
	}
	if inFlight && strings.HasSuffix(s.name, "restore") && l.random.IntN(2) == 0 {
		l.killStart(t)
	}
	l.host.begin(t)
	l.host.awaitReady(t)
	<-ended
	l.learn(t)
	switch {
	case s.do != nil && failed == nil, s.do == nil && got.code == 0:
		s.done(t)
	case s.do != nil && !fault.Is(failed, fault.ErrUnreachable) && !errors.Is(failed, context.Canceled): // as giveUp does
		t.Errorf("%s: %v", s.name, failed)
	case stays || !inFlight:
		t.Errorf("round %d: %s: %s", round, s.name, got)
	}
	l.settle(t, s)
}

// killStart kills a daemon while it starts, and perhaps has resumed a restore.
func (l *backupLoad) killStart(t *testing.T) {
	l.host.begin(t)
	<-time.After(time.Duration(l.random.IntN(400)) * time.Millisecond)
	if l.host.kill(t); l.host.wasReady() {
		l.hits["start with a restore"]++
	}
}

// settle waits for what the daemon resumes, looks at it, and has the volumes as they were before the step.
func (l *backupLoad) settle(t *testing.T, s backupStep) {
	t.Helper()
	h := l.host
	var view daemon.View
	var there bool
	awaitHolds(t, "end of the resumed restore", func() bool {
		view, there = h.view(t, "restored")
		return view.State != string(metadata.Restoring)
	})
	if there {
		if view.State != string(metadata.Ready) || view.Restore == nil {
			t.Fatalf("after %s: %+v", s.name, view)
		}
		from, err := url.Parse(view.Restore.URL)
		check(t, err)
		l.wantIs(t, "restored", from.Query().Get("backup"))
		l.must(t, "mount", "restored")
		l.must(t, "umount", "restored")
		l.must(t, "delete", "restored")
	}
	for _, view := range l.snapshots(t, "target") {
		if !view.Managed {
			l.must(t, "snapshot", "delete", "target@"+view.Name)
		}
	}
	if s.name == "restore in place" && len(l.vault.list(t)) > 0 {
		l.sums["target"] = append(l.sums["target"], sumImage(t, imageIn(t, h.pool(), "target")))
		known := slices.Contains(l.sums["target"][:len(l.sums["target"])-1], l.now("target"))
		for _, sum := range l.backups {
			known = known || sum.content == l.now("target").content
		}
		if !known {
			t.Error("the volume restored in place is neither as it was nor as any backup")
		}
	}
}

func (l *backupLoad) snapshots(t *testing.T, volume string) (views []daemon.SnapshotView) {
	t.Helper()
	check(t, json.Unmarshal([]byte(l.must(t, "--json", "snapshot", "list", volume)), &views))
	return views
}

// wantAll runs a backup of everything, and restores every backup there is.
func (l *backupLoad) wantAll(t *testing.T) {
	t.Helper()
	l.must(t, l.vault.with("backup", "run", "a", "b", "--dest", l.vault.dir, "--keep-last", "3")...)
	l.wantBackedUp(t, "a")
	l.wantBackedUp(t, "b")
	quietly(t, l.vault.with("backup", "verify", l.vault.dir, "--data")...)
	for i, view := range l.vault.list(t) {
		image := filepath.Join(t.TempDir(), fmt.Sprint(i))
		quietly(t, l.vault.with("backup", "restore", view.URL, "--to-file", image)...)
		if want, known := l.backups[view.ID]; !known || sumImage(t, image).content != want.content {
			t.Errorf("backup %s is not what its volume was", view.ID)
		}
	}
	for _, volume := range crashVolumeNames {
		managed := 0
		for _, s := range l.snapshots(t, volume) {
			if managed++; len(s.Pins) > 0 || s.State != string(metadata.Ready) || !s.Managed {
				t.Errorf("left: %+v", s)
			}
		}
		if managed > 1 {
			t.Errorf("volume %s has %d managed snapshots", volume, managed)
		}
	}
	var jobs []daemon.JobView
	check(t, json.Unmarshal([]byte(l.must(t, "--json", "job", "list")), &jobs))
	for _, j := range jobs {
		if j.State == string(metadata.JobRunning) {
			t.Errorf("runs still: %+v", j)
		}
	}
}

// wantNothingLeft deletes the volumes and looks for what is left on the host.
func (l *backupLoad) wantNothingLeft(t *testing.T) {
	t.Helper()
	h := l.host
	h.wantCleanImages(t)
	for _, volume := range crashVolumeNames {
		l.must(t, "delete", volume)
	}
	if got := h.orlop("doctor"); got.code != 0 {
		t.Errorf("doctor: %s", got)
	}
	if left := h.images(t); len(left) > 0 {
		t.Errorf("left in the pool: %q", left)
	}
	l.must(t, "shutdown", "--detach")
	h.awaitEnd(t)
	h.wantDetached(t)
	h.wantNoRecords(t)
}
