//go:build root

package volume_test

import (
	"context"
	"io"
	"runtime"
	"sync"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/volume"
	"orlop/metadata"
)

// A cut counts the effects that the Managers have on their pools, their records and the host, and ends their life
// before or after one of them, as if the process had been killed there: from then on nothing has an effect.
type cut struct {
	at    int    // number of the effect, from 1; 0 for none
	on    string // or the name of the first such effect
	after bool
	act   func() // done there instead of ending

	mu      sync.Mutex // guards what follows: the volumes of a group are frozen at the same time
	effects []string
	ended   bool
	reached bool
	open    []io.Closer
}

// arm has the life end before or after its at-th effect from now on, or act called there instead if it is not nil.
func (c *cut) arm(at int, after bool, act func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.after, c.act = at, after, act
	c.effects, c.reached = nil, false
}

// killed is what a Manager panics with when its life is cut.
type killed struct{}

// begin notes an effect, and tells whether the cut is there.
func (c *cut) begin(name string) (here bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		panic(killed{}) // what is deferred does not happen either
	}
	c.effects = append(c.effects, name)
	here = !c.reached && (len(c.effects) == c.at || name == c.on)
	c.reached = c.reached || here
	return here
}

func (c *cut) kill() {
	if c.act != nil {
		c.act()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	panic(killed{})
}

func (c *cut) effect(name string, do func() error) error {
	here := c.begin(name)
	if here && !c.after {
		c.kill()
	}
	err := do()
	if here && c.after {
		c.kill()
	}
	return err
}

// hold notes a file that the end of the process closes.
func (c *cut) hold(held io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, held)
}

// close closes what a life that has ended had open, as the kernel does.
func (c *cut) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, held := range c.open {
		_ = held.Close() // it may have been closed
	}
	c.open = nil
}

// run calls an operation, and tells whether its life was cut.
func (c *cut) run(operation func() error) (died bool, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case killed:
			died = true
		default:
			panic(p)
		}
	}()
	return false, operation()
}

type cutPool struct {
	blockdev.Pool
	*cut
}

func (p cutPool) Create(ctx context.Context, id blockdev.ID, size int64, record blockdev.Record) error {
	return p.effect("pool.Create", func() error { return p.Pool.Create(ctx, id, size, record) })
}

func (p cutPool) Prepare(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	return p.effect("pool.Prepare", func() error { return p.Pool.Prepare(ctx, dst, src, record) })
}

func (p cutPool) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	return p.effect("pool.Clone", func() error { return p.Pool.Clone(ctx, dst, src, record) })
}

func (p cutPool) Describe(ctx context.Context, id blockdev.ID, record blockdev.Record) error {
	return p.effect("pool.Describe", func() error { return p.Pool.Describe(ctx, id, record) })
}

func (p cutPool) Sync(ctx context.Context, id blockdev.ID) error {
	return p.effect("pool.Sync", func() error { return p.Pool.Sync(ctx, id) })
}

func (p cutPool) Seal(ctx context.Context, id blockdev.ID) error {
	return p.effect("pool.Seal", func() error { return p.Pool.Seal(ctx, id) })
}

func (p cutPool) Grow(ctx context.Context, id blockdev.ID, size int64) error {
	return p.effect("pool.Grow", func() error { return p.Pool.Grow(ctx, id, size) })
}

func (p cutPool) Replace(ctx context.Context, id, by blockdev.ID) error {
	return p.effect("pool.Replace", func() error { return p.Pool.Replace(ctx, id, by) })
}

func (p cutPool) Activate(ctx context.Context, id blockdev.ID, mode blockdev.Mode) (path string, err error) {
	err = p.effect("pool.Activate", func() error {
		path, err = p.Pool.Activate(ctx, id, mode)
		return err
	})
	return path, err
}

func (p cutPool) Deactivate(ctx context.Context, id blockdev.ID) error {
	return p.effect("pool.Deactivate", func() error { return p.Pool.Deactivate(ctx, id) })
}

func (p cutPool) Remove(ctx context.Context, id blockdev.ID) error {
	return p.effect("pool.Remove", func() error { return p.Pool.Remove(ctx, id) })
}

type cutRecords struct {
	volume.Records
	*cut
}

func (r cutRecords) Update(ctx context.Context, fn func(*metadata.Tx) error) error {
	return r.effect("records.Update", func() error { return r.Records.Update(ctx, fn) })
}

type cutHost struct {
	volume.Host
	*cut
}

func (h cutHost) Make(ctx context.Context, kind fs.Type, device string, uid, gid int) error {
	return h.effect("host.Make", func() error { return h.Host.Make(ctx, kind, device, uid, gid) })
}

func (h cutHost) FinishRoot(dir string, uid, gid int, mode uint32) error {
	return h.effect("host.FinishRoot", func() error { return h.Host.FinishRoot(dir, uid, gid, mode) })
}

func (h cutHost) RemoveLostFound(kind fs.Type, dir string) error {
	return h.effect("host.RemoveLostFound", func() error { return h.Host.RemoveLostFound(kind, dir) })
}

func (h cutHost) Mount(kind fs.Type, device, dir string, options []string) error {
	return h.effect("host.Mount", func() error { return h.Host.Mount(kind, device, dir, options) })
}

func (h cutHost) Unmount(dir string) error {
	return h.effect("host.Unmount", func() error { return h.Host.Unmount(dir) })
}

func (h cutHost) Bind(from, dir string) error {
	return h.effect("host.Bind", func() error { return h.Host.Bind(from, dir) })
}

func (h cutHost) Grow(kind fs.Type, device, dir string, size int64) error {
	return h.effect("host.Grow", func() error { return h.Host.Grow(kind, device, dir, size) })
}

func (h cutHost) GrowOffline(ctx context.Context, kind fs.Type, device string, size int64) (madeLostFound bool, err error) {
	err = h.effect("host.GrowOffline", func() error {
		madeLostFound, err = h.Host.GrowOffline(ctx, kind, device, size)
		return err
	})
	return madeLostFound, err
}

func (h cutHost) Repair(ctx context.Context, kind fs.Type, device string) (done, madeLostFound bool, err error) {
	err = h.effect("host.Repair", func() error {
		done, madeLostFound, err = h.Host.Repair(ctx, kind, device)
		return err
	})
	return done, madeLostFound, err
}

func (h cutHost) MakeMountpoint(dir string) error {
	return h.effect("host.MakeMountpoint", func() error { return h.Host.MakeMountpoint(dir) })
}

func (h cutHost) RemoveMountpoint(dir string) error {
	return h.effect("host.RemoveMountpoint", func() error { return h.Host.RemoveMountpoint(dir) })
}

func (h cutHost) Sync(dir string) error {
	return h.effect("host.Sync", func() error { return h.Host.Sync(dir) })
}

// Freeze is called in a goroutine of its own, whose panic would end the program. So only the goroutine ends where the
// life is cut; the operation does at its next effect.
func (h cutHost) Freeze(dir string) (held *fs.Held, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case killed:
			runtime.Goexit()
		default:
			panic(p)
		}
	}()
	err = h.effect("host.Freeze", func() error {
		if held, err = h.Host.Freeze(dir); err == nil {
			h.hold(held)
		}
		return err
	})
	return held, err
}

func (h cutHost) EndFreeze(held *fs.Held) error {
	return h.effect("host.EndFreeze", func() error { return h.Host.EndFreeze(held) })
}

func (h cutHost) Thaw(dir string) error {
	return h.effect("host.Thaw", func() error { return h.Host.Thaw(dir) })
}
