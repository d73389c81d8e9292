//go:build vm

package lvm_test

import (
	"os"
	"testing"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
	"orlop/lvm"
)

func TestThinVolumesKeepTheContract(t *testing.T) {
	vg := group(t)
	thinPool(t, vg, "thin-pool", "2G")
	c := lvm.Config{VG: vg, ThinPool: "thin-pool"}
	pool := openPool(t, c)
	c.UUID = pool.UUID()
	blockdevtest.Run(t, blockdevtest.Harness{
		Pool:  pool,
		Chunk: chunk,
		Reopen: func(t *testing.T) blockdev.Pool {
			pool.Close()
			pool = openPool(t, c)
			return pool
		},
		Full: func(t *testing.T) blockdev.Pool {
			thinPool(t, vg, "small", "16M")
			full := openPool(t, lvm.Config{VG: vg, ThinPool: "small"})
			fill(t, full)
			return full
		},
	})
	if err := pool.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// fill leaves no chunk in a thin pool of 16 MiB.
func fill(t *testing.T, pool *lvm.Pool) {
	t.Helper()
	id := blockdev.NewID()
	if err := pool.Create(t.Context(), id, 32<<20, nil); err != nil {
		t.Fatal(err)
	}
	path, err := pool.Activate(t.Context(), id, blockdev.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for b := make([]byte, 1<<20); err == nil; {
		b[0]++
		var n int
		n, err = f.Write(b)
		written += n
		if err == nil {
			err = f.Sync()
		}
	}
	_ = f.Close()
	t.Logf("full after %d bytes: %v", written, err)
	t.Cleanup(func() {
		if err := pool.Deactivate(ctx, id); err != nil {
			t.Error(err)
		}
		if err := pool.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	})
}
