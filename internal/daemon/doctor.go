package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"orlop/blockdev"
	"orlop/fs"
	"orlop/internal/run"
	"orlop/metadata"
)

// A Finding is a problem and the command that fixes it.
type Finding struct {
	Severity string `json:"severity"` // "error": data cannot be used; "warning": it will be, or something leaks
	Subject  string `json:"subject"`
	Problem  string `json:"problem"`
	Command  string `json:"command"`
}

const (
	severe = "error"
	mild   = "warning"
)

// warnAbove is the share of a layer in use from which doctor warns.
const warnAbove = 0.80

// Doctor looks for problems. It changes nothing. With a maxBackupAge above 0, volumes that were not backed up within that
// time are problems too.
func (d *Daemon) Doctor(ctx context.Context, maxBackupAge time.Duration) ([]Finding, error) {
	findings := []Finding{}
	for _, look := range []func(context.Context) ([]Finding, error){
		d.findMissingTools, d.findPoolTrouble, d.findVolumeTrouble, d.findFull, d.findFrozen, d.findFragmented, d.findSnapshotTrouble,
		d.findAbandonedDevices, d.findUnknownDevices, d.findForeignFiles, d.findClosedDirs, d.findStaleMounts, d.findStaleHolders,
		d.findLingering, d.findStrayLoops, d.findUnitTrouble,
		d.findBackupTrouble(maxBackupAge),
	} {
		found, err := look(ctx)
		if err != nil { // no reason to keep the rest to itself
			found = append(found, Finding{severe, "doctor", err.Error(), "orlop info"})
		}
		findings = append(findings, found...)
	}
	return findings, nil
}

func (d *Daemon) findMissingTools(context.Context) (found []Finding, _ error) {
	for _, name := range fs.Names() {
		kind, err := fs.Lookup(name)
		if err == nil {
			err = kind.Available()
		}
		if err != nil {
			_, command, _ := strings.Cut(err.Error(), ": ")
			found = append(found, Finding{mild, "filesystem " + name, err.Error(), command})
		}
	}
	return found, nil
}

func (d *Daemon) findPoolTrouble(ctx context.Context) (found []Finding, _ error) {
	info, err := d.Info(ctx)
	if err != nil {
		return nil, err
	}
	for _, pool := range info.Pools {
		found = append(found, d.poolFindings(ctx, pool)...)
	}
	return found, nil
}

func (d *Daemon) poolFindings(ctx context.Context, pool PoolView) (found []Finding) {
	subject := "pool " + pool.Name
	configured, _ := d.poolNamed(pool.Name)
	for _, advice := range configured.Advice {
		found = append(found, Finding{mild, subject, advice.Problem, advice.Command})
	}
	switch {
	case pool.Problem != "" && configured.Missing == nil && pool.Kind == "lvm":
		return append(found, Finding{severe, subject, pool.Problem, "orlop info, once that is done"})
	case pool.Problem != "":
		return append(found, Finding{severe, subject, pool.Problem, d.restartOnce(pool.Name)})
	}
	layers := pool.Layers
	if len(layers) == 0 {
		layers = []LayerView{{Layer: pool.Layer, Size: pool.Size, Free: pool.Free, remedy: "orlop trim"}}
	}
	for _, l := range layers {
		if used := float64(l.Size-l.Free) / float64(max(l.Size, 1)); used >= warnAbove {
			found = append(found, Finding{mild, subject, fmt.Sprintf("%s is %.0f%% full: %s left", l.Layer, 100*used, Bytes(l.Free)), l.remedy})
		}
	}
	if data, err := dataSpace(ctx, configured); err == nil && pool.Provisioned > data.Size {
		found = append(found, Finding{
			mild, subject, fmt.Sprintf("overcommitted: volumes of %s on %s of %s", Bytes(pool.Provisioned), Bytes(data.Size), data.Layer),
			"orlop list, then orlop delete what is not needed, or give the pool more disk",
		})
	}
	return found
}

func (d *Daemon) findVolumeTrouble(ctx context.Context) (found []Finding, _ error) {
	views, err := d.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		subject := "volume " + v.Name
		switch {
		case v.ungrown:
			again := fmt.Sprintf(" ('orlop resize %s --size %d' tries again, this command keeps the present size)", v.Name, v.WantedSize)
			found = append(found, Finding{mild, subject, v.Problem + again, fmt.Sprintf("orlop resize %s --size %d", v.Name, v.Size)})
		case v.State == string(metadata.Failed):
			found = append(found, Finding{severe, subject, v.Problem, restoreAgain(v.Name, v.Restore.URL)})
		case v.Problem != "":
			found = append(found, Finding{severe, subject, v.Problem, v.remedy})
		case v.State == string(metadata.Removing):
			found = append(found, Finding{mild, subject, "its deletion is not finished; it is retried every minute", "orlop delete " + v.Name})
		}
	}
	return found, nil
}

func (d *Daemon) findUnknownDevices(ctx context.Context) (found []Finding, _ error) {
	unknown, err := d.volumes.Unknowns(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range unknown {
		name, was := u.Name, ", was "+u.Was
		if taken, err := d.exists(name); !ValidName(name) || taken || err != nil {
			name = "NAME"
		}
		if u.Was == "" {
			was = ""
		}
		problem := fmt.Sprintf("unknown device in pool %s (%s%s)", u.Pool, Bytes(u.Size), was)
		command := fmt.Sprintf("orlop device adopt %s %s, or orlop device delete %s", u.ID, name, u.ID)
		if u.Size == 0 {
			problem = fmt.Sprintf("a device's record without its data in pool %s%s", u.Pool, was)
			command = fmt.Sprintf("orlop device delete %s", u.ID)
		}
		found = append(found, Finding{mild, "device " + string(u.ID), problem, command})
	}
	return found, nil
}

// findForeignFiles looks for files in the pools' directories that are not Orlop's.
func (d *Daemon) findForeignFiles(context.Context) (found []Finding, _ error) {
	for _, pool := range d.pools {
		if pool.Dir == "" {
			continue
		}
		dir := filepath.Join(pool.Dir, "images")
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("look for foreign files: %w", err)
		}
		for _, entry := range entries {
			name := strings.TrimSuffix(entry.Name(), ".tmp")                    // a record that is being replaced
			id := strings.TrimSuffix(strings.TrimSuffix(name, ".part"), ".img") // .part: a copy that is being made
			id = strings.TrimSuffix(id, ".json")
			if _, err := blockdev.ParseID(id); err != nil || id == name {
				path := filepath.Join(dir, entry.Name())
				found = append(found, Finding{mild, "file " + run.Line(path), "not one of orlop's", run.Line("mv", path, "/somewhere/else")})
			}
		}
	}
	return found, nil
}

// findClosedDirs looks for directories above the mount points that only root may pass.
func (d *Daemon) findClosedDirs(context.Context) (found []Finding, _ error) {
	for _, dir := range []string{d.root, filepath.Dir(d.volumes.Mountpoint("any"))} {
		info, err := os.Stat(dir)
		if err != nil {
			return nil, fmt.Errorf("look for closed directories: %w", err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			problem := fmt.Sprintf("has mode %04o: other users than root cannot reach mounted volumes, whatever those allow, nor can containers with userns-remap", info.Mode().Perm())
			found = append(found, Finding{mild, "directory " + run.Line(dir), problem, run.Line("chmod", "711", dir)})
		}
	}
	return found, nil
}

// findStaleMounts looks for mounts below the data root that belong to no volume.
func (d *Daemon) findStaleMounts(context.Context) (found []Finding, _ error) {
	mounted, err := d.volumes.Mounted()
	if err != nil {
		return nil, err
	}
	err = d.store.View(func(tx *metadata.Tx) error {
		return tx.Names(func(name string) error {
			delete(mounted, d.volumes.Mountpoint(name))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for dir := range mounted {
		found = append(found, Finding{mild, "mount " + run.Line(dir), "belongs to no volume", run.Line("umount", dir)})
	}
	return found, nil
}

// findStrayLoops looks for loop devices on the pools' images that no volume uses.
func (d *Daemon) findStrayLoops(ctx context.Context) (found []Finding, _ error) {
	used := map[string]bool{}
	views, err := d.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if v.Mounted || v.State != string(metadata.Ready) {
			used[v.DeviceID] = true
		}
	}
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("look for loop devices: %w", err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // detached meanwhile
		}
		file, deleted := strings.CutSuffix(strings.TrimSpace(string(text)), " (deleted)")
		ours := slices.ContainsFunc(d.pools, func(p Pool) bool { return p.Dir != "" && filepath.Dir(file) == filepath.Join(p.Dir, "images") })
		if !ours || !deleted && used[strings.TrimSuffix(filepath.Base(file), ".img")] {
			continue
		}
		device := "/dev/" + strings.Split(path, "/")[3]
		problem := "attached to " + run.Line(file) + ", whose volume is not mounted here: another mount namespace or process holds it"
		if deleted {
			problem = "attached to a deleted image " + run.Line(file)
		}
		found = append(found, Finding{mild, "loop device " + device, problem, whoHolds(device)})
	}
	return found, nil
}

// whoHolds is the command that shows which processes have a device mounted, and frees it.
func whoHolds(device string) string {
	return run.Line("grep", "-l", " "+device+" ") + " /proc/[0-9]*/mounts; " + run.Line("losetup", "-d", device)
}

// unitFiles are where the service manager may have the daemon's unit.
var unitFiles = []string{"/etc/systemd/system/orlop.service", "/usr/lib/systemd/system/orlop.service", "/lib/systemd/system/orlop.service"}

// findUnitTrouble checks that systemd, where it runs, starts the daemon before Docker: a Docker daemon that starts
// without its plugin waits 15 s for each volume.
func (d *Daemon) findUnitTrouble(context.Context) (found []Finding, _ error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, nil //nolint:nilerr // another service manager, or none
	}
	for _, path := range unitFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if !orderedBeforeDocker(string(text)) {
			found = append(found, Finding{mild, "unit " + path, "does not start before docker.service", "make install, then systemctl daemon-reload"})
		}
		return found, nil
	}
	return found, nil
}

func orderedBeforeDocker(unit string) bool {
	for line := range strings.Lines(unit) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "Before="); ok && slices.Contains(strings.Fields(value), "docker.service") {
			return true
		}
	}
	return false
}
