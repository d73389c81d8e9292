package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"orlop/fs"
	"orlop/internal/run"
	"orlop/metadata"
)

// host is every effect that a Manager has on the system besides its pools and records, so that the crash tests can
// cut it short before and after each. kernel is the real one; the methods are those of package fs.
type host interface {
	Make(ctx context.Context, kind fs.Type, device string, uid, gid int) error
	FinishRoot(dir string, uid, gid int, mode uint32) error
	RemoveLostFound(kind fs.Type, dir string) error
	Mount(kind fs.Type, device, dir string, options []string) error
	Unmount(dir string) error
	Bind(from, dir string) error
	Grow(kind fs.Type, device, dir string, size int64) error
	GrowOffline(ctx context.Context, kind fs.Type, device string, size int64) (madeLostFound bool, err error)
	Repair(ctx context.Context, kind fs.Type, device string) (done, madeLostFound bool, err error)
	MakeMountpoint(dir string) error
	RemoveMountpoint(dir string) error
	Sync(dir string) error
	Freeze(dir string) (*fs.Held, error)
	EndFreeze(*fs.Held) error // thaws and, if that succeeds, lets go
	Thaw(dir string) error    // what an earlier life has frozen
}

// records is what a Manager needs of a metadata.Store.
type records interface {
	RootID() string
	View(fn func(*metadata.Tx) error) error
	Update(ctx context.Context, fn func(*metadata.Tx) error) error
}

// repairLimit bounds a check or an offline growth. They are never cut short for a caller who cannot wait: they would
// begin anew at each mount.
const repairLimit = 24 * time.Hour

// makeNice keeps many creations at the same time from holding up the answers to Docker.
const makeNice = 10

type kernel struct{}

func (kernel) Make(ctx context.Context, kind fs.Type, device string, uid, gid int) error {
	return kind.Make(ctx, run.Runner{Nice: makeNice}, device, uid, gid)
}

func (kernel) Mount(kind fs.Type, device, dir string, options []string) error {
	return kind.Mount(device, dir, options)
}

// Grow also flushes the device: xfs leaves its spare superblocks in the device's cache, and after a power cut
// xfs_repair would find that they have the former size.
func (kernel) Grow(kind fs.Type, device, dir string, size int64) error {
	if err := kind.Grow(device, dir, size); err != nil {
		return err
	}
	f, err := os.Open(device)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", device, err)
	}
	return nil
}

func (kernel) GrowOffline(ctx context.Context, kind fs.Type, device string, size int64) (madeLostFound bool, err error) {
	return kind.GrowOffline(context.WithoutCancel(ctx), run.Runner{Limit: repairLimit}, device, size)
}

func (kernel) Repair(ctx context.Context, kind fs.Type, device string) (done, madeLostFound bool, err error) {
	return kind.Repair(context.WithoutCancel(ctx), run.Runner{Limit: repairLimit}, device)
}

func (kernel) FinishRoot(dir string, uid, gid int, mode uint32) error {
	return fs.FinishRoot(dir, uid, gid, mode)
}

func (kernel) RemoveLostFound(kind fs.Type, dir string) error { return kind.RemoveLostFound(dir) }

func (kernel) Unmount(dir string) error          { return fs.Unmount(dir) }
func (kernel) Bind(from, dir string) error       { return fs.Bind(from, dir) }
func (kernel) MakeMountpoint(dir string) error   { return fs.MakeMountpoint(dir) }
func (kernel) RemoveMountpoint(dir string) error { return fs.RemoveMountpoint(dir) }
func (kernel) Sync(dir string) error             { return fs.Sync(dir) }
func (kernel) Thaw(dir string) error             { return fs.Thaw(dir) }

func (kernel) Freeze(dir string) (*fs.Held, error) { return fs.FreezeHeld(dir) }

func (kernel) EndFreeze(held *fs.Held) error {
	if err := held.Thaw(); err != nil {
		return err
	}
	return held.Close()
}
