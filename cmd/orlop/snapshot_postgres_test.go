//go:build root

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A database is Debian's PostgreSQL on a directory in a volume. It listens at a Unix socket only.
type database struct {
	commands string // directory of the installation
	data     string
	sockets  string
	server   *process
}

// postgresPatience is how long a server may take to start, recovery included, or to stop.
const postgresPatience = 5 * time.Minute

// A process is one that a test has started and ends.
type process struct {
	cmd    *exec.Cmd
	output lockedBuffer
	ended  chan struct{}
}

// asPostgres runs commands as the user whom Debian's package makes: PostgreSQL refuses to run as root.
func asPostgres(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	uid, gid := postgresIDs(t)
	return &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

func postgresIDs(t *testing.T) (uid, gid int) {
	t.Helper()
	account, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("%v: install Debian's postgresql (make deps)", err)
	}
	uid, err1 := strconv.Atoi(account.Uid)
	gid, err2 := strconv.Atoi(account.Gid)
	check(t, errors.Join(err1, err2))
	return uid, gid
}

// startProcess starts argv as PostgreSQL's user. After the test it has ended.
func startProcess(t *testing.T, argv ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	p.cmd.SysProcAttr, p.cmd.Dir = asPostgres(t), "/"
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	check(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended, its output tells
	}()
	t.Cleanup(func() { p.stop(t, syscall.SIGINT) })
	return p
}

// stop ends a process and what it has started, and waits for it; one that does not heed the signal is killed.
func (p *process) stop(t *testing.T, signal syscall.Signal) {
	t.Helper()
	for _, signal := range []syscall.Signal{signal, syscall.SIGKILL} {
		select {
		case <-p.ended:
			return
		default:
		}
		if signal == syscall.SIGKILL {
			_ = syscall.Kill(-p.cmd.Process.Pid, signal) // it may have ended
		} else {
			_ = p.cmd.Process.Signal(signal)
		}
		select {
		case <-p.ended:
			return
		case <-time.After(postgresPatience):
			t.Errorf("%q does not heed %s:\n%s", p.cmd.Args, signal, &p.output)
		}
	}
}

// newDatabase describes a database in the volume mounted at dir, whose root belongs to PostgreSQL's user.
func newDatabase(t *testing.T, dir string) *database {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	check(t, err)
	if len(found) == 0 {
		t.Fatal("no PostgreSQL here: install Debian's postgresql (make deps)")
	}
	slices.Sort(found)
	sockets, err := os.MkdirTemp("/tmp", "orlop-postgres-")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(sockets)) })
	uid, gid := postgresIDs(t)
	check(t, os.Chown(sockets, uid, gid))
	return &database{commands: filepath.Dir(found[len(found)-1]), data: filepath.Join(dir, "data"), sockets: sockets}
}

func (d *database) command(name string, args ...string) []string {
	return append([]string{filepath.Join(d.commands, name)}, args...)
}

// try runs one of PostgreSQL's commands and returns what it prints.
func (d *database) try(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr, cmd.Dir = asPostgres(t), "/"
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%q: %w: %s", argv, err, &problems)
	}
	return strings.TrimSpace(out.String()), nil
}

// run is try for what has to succeed.
func (d *database) run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := d.try(t, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// initialise makes the database with pgbench's tables.
func (d *database) initialise(t *testing.T) {
	t.Helper()
	d.run(t, d.command("initdb", "--pgdata", d.data, "--no-locale", "--encoding", "UTF8", "--auth", "trust")...)
	d.start(t)
	d.run(t, d.command("pgbench", "--initialize", "--quiet", "--host", d.sockets, "postgres")...)
}

// start starts the server, and waits until it has recovered and answers.
func (d *database) start(t *testing.T) {
	t.Helper()
	d.server = startProcess(t, d.command("postgres", "-D", d.data, "-k", d.sockets, "-c", "listen_addresses=", "-c", "shared_buffers=16MB")...)
	ready := d.command("psql", "--host", d.sockets, "--no-psqlrc", "--command", "select 1", "postgres")
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(postgresPatience)
	for {
		select {
		case <-d.server.ended:
			t.Fatalf("PostgreSQL ended:\n%s", &d.server.output)
		case <-deadline:
			t.Fatalf("PostgreSQL does not answer:\n%s", &d.server.output)
		case <-tick.C:
			if _, err := d.try(t, ready...); err == nil {
				return
			}
		}
	}
}

// stop is PostgreSQL's fast shutdown.
func (d *database) stop(t *testing.T) {
	t.Helper()
	d.server.stop(t, syscall.SIGINT)
}

func (d *database) query(t *testing.T, sql string) string {
	t.Helper()
	return d.run(t, d.command("psql", "--host", d.sockets, "--no-psqlrc", "--no-align", "--tuples-only", "--command", sql, "postgres")...)
}

// transactions is how many of pgbench's transactions are committed.
func (d *database) transactions(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(d.query(t, "select count(*) from pgbench_history"))
	check(t, err)
	return n
}

// wantBalance fails unless what was paid into accounts, by tellers and at branches is what the history says: each of
// pgbench's transactions changes all four by the same amount.
func (d *database) wantBalance(t *testing.T) {
	t.Helper()
	got := d.query(t, `select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
		(select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)`)
	sums := strings.Split(got, "|")
	if len(sums) != 4 || len(slices.Compact(sums)) != 1 {
		t.Errorf("balance of accounts, tellers, branches and history: %s", got)
	}
}

// startBench has pgbench write until it is stopped.
func (d *database) startBench(t *testing.T) *process {
	t.Helper()
	return startProcess(t, d.command("pgbench", "--host", d.sockets, "--client", "4", "--jobs", "2", "--no-vacuum", "--time", "86400", "postgres")...)
}

// awaitTransactions waits until the bench has committed more than it had.
func (d *database) awaitTransactions(t *testing.T, bench *process) {
	t.Helper()
	before := d.transactions(t)
	awaitHolds(t, "pgbench goes on", func() bool {
		select {
		case <-bench.ended:
			t.Fatalf("pgbench ended:\n%s", &bench.output)
		default:
		}
		return d.transactions(t) > before+4
	})
}

// wantRecovered starts PostgreSQL on a copy of a database in use, and wants it to recover with at least so many
// transactions and the balance intact.
func wantRecovered(t *testing.T, dir string, transactions int) {
	t.Helper()
	d := newDatabase(t, dir)
	// It names the server of the original, which runs: PostgreSQL would take it for one on this directory.
	check(t, os.Remove(filepath.Join(d.data, "postmaster.pid")))
	d.start(t)
	defer d.stop(t)
	if got := d.transactions(t); got < transactions {
		t.Errorf("%d transactions, and %d were committed before the snapshot", got, transactions)
	}
	d.wantBalance(t)
	if log := d.server.output.String(); !strings.Contains(log, "automatic recovery in progress") {
		t.Errorf("it did not have to recover, so it was not running:\n%s", log)
	}
}

// TestPostgresRecoversOnTheCloneOfEachSnapshotTakenUnderLoad also rolls it back in the end.
func TestPostgresRecoversOnTheCloneOfEachSnapshotTakenUnderLoad(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			h := startHost(t, "--pool-size", "16G")
			uid, gid := postgresIDs(t)
			h.must(t, "create", "db", "--size", "4G", "--fs", filesystem, "--uid", fmt.Sprint(uid), "--gid", fmt.Sprint(gid), "--mode", "0700")
			openToAll(t, h)
			db := newDatabase(t, h.must(t, "mount", "db"))
			db.initialise(t)
			bench := db.startBench(t)
			last, committed := "", 0
			for range often(3, 100) {
				db.awaitTransactions(t, bench)
				committed = db.transactions(t)
				last = "db@" + h.must(t, "snapshot", "create", "db")
				h.onClone(t, last, func(dir string) { wantRecovered(t, dir, committed) })
			}
			db.awaitTransactions(t, bench)
			bench.stop(t, syscall.SIGTERM)
			db.wantBalance(t)
			before := db.transactions(t)
			db.stop(t)
			h.must(t, "umount", "db")

			h.must(t, "snapshot", "restore", last)
			rolledBack := newDatabase(t, h.must(t, "mount", "db"))
			rolledBack.start(t) // the server of the snapshot's time has ended: its postmaster.pid is stale
			rolledBack.wantBalance(t)
			if got := rolledBack.transactions(t); got < committed || got >= before {
				t.Errorf("%d transactions, want from %d to below %d", got, committed, before)
			}
			rolledBack.stop(t)
			h.must(t, "umount", "db")
			h.wantSound(t, "db")
			t.Logf("%d snapshots under %d transactions", often(3, 100), before)
		})
	}
}

// openToAll lets PostgreSQL's user pass to the mount points: tests' directories are root's own.
func openToAll(t *testing.T, h *host) {
	t.Helper()
	check(t, os.Chmod(h.dir, 0o711))
}
