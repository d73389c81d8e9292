package blockdevtest_test

import (
	"testing"

	"orlop/blockdev"
	"orlop/blockdev/blockdevtest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	memory := blockdevtest.NewMemory()
	t.Cleanup(memory.Close)
	blockdevtest.Run(t, blockdevtest.Harness{
		Pool: memory,
		Hold: memory.Hold,
		Full: func(t *testing.T) blockdev.Pool {
			full := blockdevtest.NewMemory()
			t.Cleanup(full.Close)
			full.SetFull(true)
			return full
		},
	})
}
