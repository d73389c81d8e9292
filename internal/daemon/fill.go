package daemon

import (
	"context"
	"fmt"
	"math"
	"slices"

	"orlop/fs"
)

// A FillView is how full the filesystem of a mounted volume is, as df(1) counts.
type FillView struct {
	FSSize     int64 `json:"fs_size"` // bytes
	FSFree     int64 `json:"fs_free"` // bytes
	Inodes     int64 `json:"inodes"`  // files that it can hold; an estimate on xfs
	InodesFree int64 `json:"inodes_free"`
}

// FSUsed returns the share of the filesystem's bytes in use, from 0 to 1.
func (f FillView) FSUsed() float64 { return share(f.FSSize, f.FSFree) }

// InodesUsed returns the share of the filesystem's inodes in use, from 0 to 1.
func (f FillView) InodesUsed() float64 { return share(f.Inodes, f.InodesFree) }

func share(all, free int64) float64 {
	if all <= 0 {
		return 0
	}
	return float64(all-free) / float64(all)
}

// Percent prints a share for people, rounded up as df(1) does.
func Percent(share float64) string { return fmt.Sprintf("%.0f%%", math.Ceil(100*share)) }

// fill returns how full a mounted filesystem is, or nil if it does not tell in time.
func (d *Daemon) fill(ctx context.Context, entry fs.Entry) *FillView {
	usage, ok := ask(ctx, &d.asking, "fill "+entry.Mountpoint, func() (fs.Usage, error) { return fs.UsageAt(entry.Mountpoint, entry.Device) })
	if !ok {
		return nil
	}
	return &FillView{FSSize: usage.Size, FSFree: usage.Free, Inodes: usage.Inodes, InodesFree: usage.FreeInodes}
}

// Shares of a volume's filesystem in use above which doctor warns.
const (
	fullAbove      = 0.90
	inodesOutAbove = 0.95
)

// findFull looks for mounted volumes whose filesystems are nearly full. Those that are mounted read-only stay as they are.
func (d *Daemon) findFull(ctx context.Context) (found []Finding, _ error) {
	views, err := d.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if v.FillView == nil || v.ReadOnly || slices.Contains(v.MountOptions, "ro") {
			continue
		}
		grow := fmt.Sprintf("orlop resize %s --size %s", v.Name, larger(v.Size))
		if used := v.FSUsed(); used > fullAbove {
			found = append(found, Finding{mild, "volume " + v.Name, fmt.Sprintf("its filesystem is %s full: %s left", Percent(used), Bytes(v.FSFree)), grow})
		}
		if used := v.InodesUsed(); used > inodesOutAbove {
			problem := fmt.Sprintf("%s of its inodes are used: %d more files fit; growing adds inodes, and xfs suits many small files", Percent(used), v.InodesFree)
			found = append(found, Finding{mild, "volume " + v.Name, problem, grow})
		}
	}
	return found, nil
}

// larger returns a size for a volume that is full, half as large again and rounded up, as ParseSize reads it.
func larger(size int64) string {
	size += size / 2
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "G"}, {1 << 20, "M"}} {
		if size >= 4*unit.bytes {
			return fmt.Sprintf("%d%s", (size+unit.bytes-1)/unit.bytes, unit.name)
		}
	}
	return fmt.Sprint(size)
}
