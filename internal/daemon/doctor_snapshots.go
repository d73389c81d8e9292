package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/run"
	"orlop/internal/volume"
	"orlop/metadata"
)

// findSnapshotTrouble looks for snapshots whose devices are gone or damaged, and for what is not finished.
func (d *Daemon) findSnapshotTrouble(ctx context.Context) (found []Finding, _ error) {
	var snapshots []metadata.Snapshot
	err := d.store.View(func(tx *metadata.Tx) (err error) {
		snapshots, err = tx.Snapshots("")
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		pool, err := d.volumes.Pool(s.Volume)
		if err != nil {
			continue // its pool's trouble, and told as that
		}
		title := s.Volume.Name + "@" + s.Name
		remove := "orlop snapshot delete " + title
		switch view := d.snapshotView(ctx, s); s.State {
		case metadata.Removing:
			found = append(found, Finding{mild, "snapshot " + title, "its deletion is not finished; it is retried every minute", remove})
		case metadata.Keeping:
			if _, err := pool.Stat(ctx, blockdev.ID(s.Device)); err != nil {
				found = append(found, Finding{severe, "snapshot " + title, "what a rollback replaced cannot be kept: " + err.Error(), remove})
			}
		case metadata.Ready:
			if view.Problem != "" {
				found = append(found, Finding{severe, "snapshot " + title, "cannot be used: " + view.Problem, remove})
			}
		}
	}
	return found, nil
}

// findAbandonedDevices looks for devices of rollbacks that are to be removed and are still there.
func (d *Daemon) findAbandonedDevices(ctx context.Context) (found []Finding, _ error) {
	devices, err := d.snapshots.Abandoned()
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		pool, ok := d.poolNamed(device.Pool)
		if !ok || pool.Missing != nil {
			continue // its pool's trouble
		}
		problem, command := abandoned[device.Kind]+" is not removed; it is retried every minute", "journalctl -u orlop -g "+device.ID
		if info, err := pool.Pool.Pool.Stat(ctx, blockdev.ID(device.ID)); err == nil && info.Path != "" {
			problem += ": something uses " + info.Path
			command = whoHolds(info.Path)
		}
		found = append(found, Finding{mild, "device " + device.ID, problem, command})
	}
	return found, nil
}

// abandoned says by its kind what an abandoned device is.
var abandoned = map[string]string{
	metadata.KindTrash: "what a rollback replaced", metadata.KindIncoming: "a copy for a rollback that did not happen",
}

func (d *Daemon) poolNamed(name string) (Pool, bool) {
	i := slices.IndexFunc(d.pools, func(p Pool) bool { return p.Name == name })
	if i < 0 {
		return Pool{}, false
	}
	return d.pools[i], true
}

// manyExtents is the number of pieces of an image above which copies of it take seconds.
const manyExtents = 200_000

// findFragmented looks for volumes whose images are in very many pieces, which random writes after a snapshot make: the
// time that a snapshot takes goes by their number.
func (d *Daemon) findFragmented(context.Context) (found []Finding, _ error) {
	var volumes []metadata.Volume
	err := d.store.View(func(tx *metadata.Tx) (err error) {
		volumes, err = tx.Volumes()
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		pool, ok := d.poolNamed(v.Pool)
		if !ok || pool.Dir == "" || v.State != metadata.Ready {
			continue
		}
		n, err := extents(filepath.Join(pool.Dir, "images", v.Device+".img"))
		if err != nil {
			continue // its volume's trouble, and told as that
		}
		if n > manyExtents {
			found = append(found, Finding{
				mild, "volume " + v.Name, fmt.Sprintf("its image is in %d pieces: snapshots and copies of it take seconds", n),
				fmt.Sprintf(`orlop create NEW --size %d --fs %s, then, while nothing uses it, cp -a "$(orlop mount %s)/." "$(orlop mount NEW)"`, v.Size, v.Filesystem, v.Name),
			})
		}
	}
	return found, nil
}

// fsGetXattr is FS_IOC_FSGETXATTR of the kernel's include/uapi/linux/fs.h.
const fsGetXattr = 0x801c581f

// extents returns how many pieces the content of a file is in, where its filesystem knows without counting, as XFS does,
// and 0 elsewhere.
func extents(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var attr struct { // struct fsxattr
		xflags, extsize, nextents, projid, cowextsize uint32
		_                                             [8]byte
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&attr)))
	if errno != 0 {
		return 0, errno
	}
	return int64(attr.nextents), nil
}

// findFrozen looks for frozen volumes: those that a freeze of ours has left so, and those that somebody else has frozen.
func (d *Daemon) findFrozen(ctx context.Context) (found []Finding, _ error) {
	frozen, err := d.frozenVolumes(ctx)
	if err != nil {
		return nil, err
	}
	freezes, err := d.volumes.Freezes()
	if err != nil {
		return nil, err
	}
	announced := map[string]bool{}
	for _, f := range freezes {
		announced[f.Volume] = true
		if finding, wrong := d.judge(f); wrong {
			found = append(found, finding)
		}
	}
	for _, v := range frozen {
		// Frozen before that look and after it, and not announced in between: no freeze of ours was.
		if !announced[v.ID] && d.isFrozen(ctx, v) {
			found = append(found, Finding{
				severe, "volume " + v.Name, "its filesystem was frozen by another program: writes are blocked, and snapshots are refused",
				run.Line("fsfreeze", "--unfreeze", v.Mountpoint),
			})
		}
	}
	return found, nil
}

// judge tells what is wrong about an announced freeze, if anything is.
func (d *Daemon) judge(f volume.Freeze) (_ Finding, wrong bool) {
	subject := "volume " + f.Volume
	_ = d.store.View(func(tx *metadata.Tx) error { // one that cannot be read shows by its ID
		if v, err := tx.Volume(f.Volume); err == nil {
			subject = "volume " + v.Name
		}
		return nil
	})
	switch {
	case f.Stalled:
		return Finding{severe, subject, "writes are blocked, for a minute at most, because the host filesystem is full", run.Line("df", d.root) + ", then delete there what is not needed"}, true
	case f.UnderWay:
		return Finding{}, false
	case f.Mountpoint == "":
		return Finding{severe, subject, "a freeze of it was announced and not ended: snapshots are refused", "systemctl restart orlop"}, true
	}
	return Finding{
		severe, subject, "a freeze of it was not ended: writes are blocked, and snapshots are refused",
		run.Line("fsfreeze", "--unfreeze", f.Mountpoint) + "; systemctl restart orlop",
	}, true
}

// frozenVolumes returns the mounted volumes whose filesystems are frozen, by whomever.
func (d *Daemon) frozenVolumes(ctx context.Context) (frozen []View, _ error) {
	views, err := d.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	views = slices.DeleteFunc(views, func(v View) bool { return !v.Mounted || v.ReadOnly })
	is := make([]bool, len(views))
	var all sync.WaitGroup
	for i, v := range views {
		all.Go(func() { is[i] = d.isFrozen(ctx, v) })
	}
	all.Wait()
	for i, v := range views {
		if is[i] {
			frozen = append(frozen, v)
		}
	}
	return frozen, nil
}
