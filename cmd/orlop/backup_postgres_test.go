//go:build root

package main

import (
	"fmt"
	"syscall"
	"testing"
)

// PostgreSQL is backed up under pgbench, three times, and each backup restored: it recovers with all that was committed before,
// and its sums agree.
func TestPostgresRecoversFromEachBackupTakenUnderLoad(t *testing.T) {
	aloneInCache(t)
	h := startHost(t, "--pool-size", "16G")
	v := newVault(t, t.TempDir(), true)
	uid, gid := postgresIDs(t)
	h.must(t, "create", "db", "--size", "2G", "--uid", fmt.Sprint(uid), "--gid", fmt.Sprint(gid), "--mode", "0700")
	openToAll(t, h)
	db := newDatabase(t, h.must(t, "mount", "db"))
	db.initialise(t)
	bench := db.startBench(t)
	var urls []string
	var committed []int
	for i := range often(3, 10) {
		db.awaitTransactions(t, bench)
		committed = append(committed, db.transactions(t))
		made := h.backUp(t, v, "db")
		if made.Incremental != (i > 0) {
			t.Errorf("backup %d: %+v", i, made)
		}
		urls = append(urls, made.URL)
	}
	db.awaitTransactions(t, bench)
	bench.stop(t, syscall.SIGTERM)
	db.wantBalance(t)
	db.stop(t)
	h.must(t, "umount", "db")
	h.must(t, "delete", "db")
	h.dismantle(t)

	aloneInCache(t)
	h = startHost(t, "--pool-size", "16G")
	openToAll(t, h)
	for i, url := range urls {
		name := fmt.Sprint("restored-", i)
		h.restore(t, v, url, name)
		wantRecovered(t, h.must(t, "mount", name), committed[i])
		h.must(t, "umount", name)
		h.wantSound(t, name)
	}
	h.wantQuiet(t)
}
