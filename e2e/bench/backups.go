package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Aims: the peers' times divided by these, or seconds.
const (
	fullAim     = 1 / 2.5
	changedAim  = 1.0 / 25
	restoreAim  = 1.0 / 2
	sizeAim     = 1.05
	withSnapAim = 1.0 // s, 10 MiB changed, snapshot and all
	nothingAim  = 0.2 // s
	memoryAim   = 300 // MiB
)

// change is how much of the image is overwritten between two backups: ten pieces of 1 MiB.
const (
	changes    = 10
	changeSize = 1 << 20
)

// backups compares encrypted backups of a volume's snapshots to a directory, and restores to a file, with what other programs
// take for the same image. They get the snapshot's image, in the page cache, and so does the engine. The daemon, which takes
// a snapshot of its own for "orlop backup create", reads that from the disk.
func (b *bench) backups(ctx context.Context) error {
	if err := b.notePeers(ctx); err != nil {
		return err
	}
	d, err := b.newDaemon("backups", "--pool-size", "40G")
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	const volume = "image"
	size := b.pick(8, 2)
	if err := d.create(ctx, volume, map[string]string{"size": fmt.Sprintf("%dG", size)}); err != nil {
		return err
	}
	dir, err := d.mount(ctx, volume)
	if err != nil {
		return err
	}
	data, err := b.fillTree(ctx, dir)
	if err != nil {
		return err
	}
	s := &backupSeries{bench: b, daemon: d, volume: volume, dir: dir, figures: map[string]*backupFigures{}}
	for range b.pick(runs, 1) {
		if err := s.run(ctx); err != nil {
			return err
		}
	}
	s.report(size, data)
	if err := d.unmount(ctx, volume); err != nil {
		return err
	}
	if _, err := d.orlop(ctx, "delete", "--snapshots", volume); err != nil {
		return err
	}
	return b.scale(ctx)
}

// fillTree fills a volume with programs, sources and random bytes, 5 GB in all if this machine has them, and returns how
// many bytes there are.
func (b *bench) fillTree(ctx context.Context, dir string) (int64, error) {
	random := int64(b.pick(500e6, 100e6))
	if err := copyTo(filepath.Join(dir, dataFile), io.LimitReader(rand.NewChaCha8([32]byte{}), random)); err != nil {
		return 0, err
	}
	goroot, err := b.runner.Run(ctx, "go", "env", "GOROOT")
	if err != nil {
		return 0, err
	}
	left := int64(b.pick(4.5e9, 0.7e9))
	full := left
	for i, tree := range []string{strings.TrimSpace(string(goroot)), "/usr/lib", "/usr/share", "/usr/bin"} {
		if err := copyTree(ctx, filepath.Join(dir, strconv.Itoa(i)), tree, &left); err != nil {
			return 0, err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	return random + full - left, errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// copyTree copies the regular files of a tree as long as there are bytes left.
func copyTree(ctx context.Context, to, from string, left *int64) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, strings.TrimPrefix(path, from)), 0o755)
		case !entry.Type().IsRegular():
			return nil
		}
		info, err := entry.Info()
		if err != nil || info.Size() > *left {
			return err
		}
		*left -= info.Size()
		source, err := os.Open(path)
		if err != nil {
			return err
		}
		err = copyTo(filepath.Join(to, strings.TrimPrefix(path, from)), source)
		return errors.Join(err, source.Close())
	})
}

// copyTo makes a file. It takes little memory: what a process is said to have used at most includes its parent's.
func copyTo(path string, source io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, source)
	return errors.Join(err, f.Close())
}

// backupFigures are those of one program.
type backupFigures struct {
	full, fullMemory, fullCPU, size                series
	changed, changedMemory, withSnapshot, growth   series
	nothing, restore, restoreMemory, restoredBytes series
}

// backupSeries repeats the same with fresh repositories.
type backupSeries struct {
	*bench

	daemon      *daemon
	volume, dir string
	figures     map[string]*backupFigures // by name of the program
	created     [stages]series            // s of "orlop backup create", by stage
	rounds      int                       // that were begun
	number      int                       // of snapshots
}

// stages is how many snapshots each round backs up: everything, what changed, nothing changed.
const stages = 3

// A stage is a snapshot that is backed up.
type stage struct {
	name  string
	image string
	diff  []byte // what orlop snapshot diff says
	took  float64
}

// A program backs up images to a repository of its own.
type program interface {
	repository() string
	// save backs up the image of a stage.
	save(ctx context.Context, one stage) (cost, error)
	// load restores the stage that was saved last, and returns the file that it is in.
	load(ctx context.Context, last stage) (path string, c cost, err error)
}

func (s *backupSeries) of(name string) *backupFigures {
	if s.figures[name] == nil {
		s.figures[name] = &backupFigures{}
	}
	return s.figures[name]
}

// run backs up each stage with each program, one right after the other, and has each restore the last.
func (s *backupSeries) run(ctx context.Context) (err error) {
	s.rounds++
	dir := filepath.Join(s.bench.dir, fmt.Sprintf("round-%d", s.rounds)) // a host knows repositories by their places
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	names, programs, err := s.begin(ctx, dir)
	if err != nil {
		return err
	}
	through, err := s.newCommands(ctx, s.daemon, filepath.Join(dir, "commands"))
	if err != nil {
		return err
	}
	var all []stage
	for i := range stages {
		if i == 1 {
			if err := s.overwrite(); err != nil {
				return err
			}
		}
		c, err := through.create(ctx, s.volume)
		if err != nil {
			return err
		}
		s.created[i] = append(s.created[i], c.seconds)
		one, err := s.snapshot(ctx, all)
		if err != nil {
			return err
		}
		all = append(all, one)
		if err := warm(one.image); err != nil {
			return err
		}
		for j, p := range programs {
			if err := s.save(ctx, s.of(names[j]), p, i, one); err != nil {
				return err
			}
		}
	}
	last := all[len(all)-1]
	for i, p := range programs {
		path, c, err := p.load(ctx, last)
		if err != nil {
			return err
		}
		if err := s.restored(s.of(names[i]), last.image, path, c); err != nil {
			return err
		}
	}
	for _, one := range all {
		if _, err := s.daemon.orlop(ctx, "snapshot", "delete", s.volume+"@"+one.name); err != nil {
			return err
		}
	}
	return nil
}

// begin makes a repository for each program.
func (s *backupSeries) begin(ctx context.Context, dir string) (names []string, programs []program, err error) {
	ours, err := s.newEngine(ctx, filepath.Join(dir, "orlop"))
	if err != nil {
		return nil, nil, err
	}
	names, programs = append(names, "orlop"), append(programs, ours)
	for _, p := range peers {
		r, err := p.begin(ctx, filepath.Join(dir, p.name))
		if err != nil {
			return nil, nil, err
		}
		names, programs = append(names, p.name), append(programs, r)
	}
	return names, programs, nil
}

// save has a program back up a stage.
func (s *backupSeries) save(ctx context.Context, f *backupFigures, p program, number int, one stage) error {
	c, err := p.save(ctx, one)
	if err != nil {
		return err
	}
	size, err := sizeOf(p.repository())
	if err != nil {
		return err
	}
	f.add(number, c, size, one.took)
	return nil
}

// overwrite writes new random bytes to ten places of a file of the volume.
func (s *backupSeries) overwrite() error {
	f, err := os.OpenFile(filepath.Join(s.dir, dataFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	source := rand.NewChaCha8([32]byte{byte(s.number)})
	piece := make([]byte, changeSize)
	for i := range int64(changes) {
		_, _ = source.Read(piece) // never fails
		if _, err := f.WriteAt(piece, i*(info.Size()/changes)/changeSize*changeSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// snapshot takes a snapshot and asks what changed since the one before.
func (s *backupSeries) snapshot(ctx context.Context, before []stage) (stage, error) {
	images := filepath.Join(s.daemon.root, "pool", "images", "*.img")
	there, err := filepath.Glob(images)
	if err != nil {
		return stage{}, err
	}
	s.number++
	one := stage{name: fmt.Sprintf("s%d", s.number)}
	begin := time.Now()
	if _, err := s.daemon.orlop(ctx, "snapshot", "create", s.volume, "--name", one.name); err != nil {
		return stage{}, err
	}
	args := []string{"snapshot", "diff", s.volume + "@" + one.name}
	if len(before) > 0 {
		args = []string{"snapshot", "diff", s.volume + "@" + before[len(before)-1].name, s.volume + "@" + one.name}
	}
	if one.diff, err = s.daemon.orlop(ctx, args...); err != nil {
		return stage{}, err
	}
	one.took = time.Since(begin).Seconds()
	now, err := filepath.Glob(images)
	if err != nil {
		return stage{}, err
	}
	for _, path := range now {
		if !strings.Contains(strings.Join(there, "\n"), path) {
			one.image = path
		}
	}
	if one.image == "" {
		return stage{}, errors.New("the snapshot has no image")
	}
	return one, nil
}

// warm reads an image, so that no program has to wait for the disk.
func warm(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL); err != nil {
		return errors.Join(err, f.Close())
	}
	buf := make([]byte, 4<<20)
	for err == nil {
		_, err = f.Read(buf)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// An engine is Orlop's, without a daemon: a process for each backup.
type engine struct {
	*bench

	dir  string
	env  []string
	base string // the backup before
}

func (b *bench) newEngine(ctx context.Context, dir string) (*engine, error) {
	env, err := b.initOurs(ctx, dir)
	return &engine{bench: b, dir: dir, env: env}, err
}

func (e *engine) repository() string { return filepath.Join(e.dir, "repository") }

func (e *engine) save(ctx context.Context, one stage) (cost, error) {
	w, c, err := e.write(ctx, e.dir, one.image, e.base, one.diff)
	e.base = w.Record
	return c, err
}

func (e *engine) load(ctx context.Context, _ stage) (path string, c cost, err error) {
	path = filepath.Join(e.dir, "restored.img")
	_, c, err = measured(ctx, e.dir, e.env, nil, e.program, "backup", "restore", e.repository()+"?volume="+lineage,
		"--to-file", path, "--key-file", filepath.Join(e.dir, "key"))
	return path, c, err
}

// initOurs makes a repository, a key and a cache below dir.
func (b *bench) initOurs(ctx context.Context, dir string) (env []string, err error) {
	if err := os.MkdirAll(filepath.Join(dir, "cache"), 0o700); err != nil {
		return nil, err
	}
	env = []string{"XDG_CACHE_HOME=" + filepath.Join(dir, "xdg"), "ORLOP_DEST=", "ORLOP_KEY_FILE="}
	key := filepath.Join(dir, "key")
	if _, _, err := measured(ctx, dir, env, nil, b.program, "key", "create", key); err != nil {
		return nil, err
	}
	_, _, err = measured(ctx, dir, env, nil, b.program, "backup", "init", filepath.Join(dir, "repository"), "--key-file", key)
	return env, err
}

// write has a process write one backup into what initOurs made.
func (b *bench) write(ctx context.Context, dir, image, base string, diff []byte) (w written, c cost, err error) {
	self, err := os.Executable()
	if err != nil {
		return w, c, err
	}
	out, c, err := measured(ctx, dir, nil, bytes.NewReader(diff), self, writerCommand, "-repository", filepath.Join(dir, "repository"),
		"-key", filepath.Join(dir, "key"), "-cache", filepath.Join(dir, "cache"), "-image", image, "-base", base)
	if err != nil {
		return w, c, err
	}
	err = json.Unmarshal(out, &w)
	return w, c, err
}

// add takes the figures of the backup of a stage.
func (f *backupFigures) add(stage int, c cost, size, snapshot float64) {
	switch stage {
	case 0:
		f.full, f.fullMemory, f.fullCPU = append(f.full, c.seconds), append(f.fullMemory, c.memory), append(f.fullCPU, c.cpu)
		f.size = append(f.size, size)
	case 1:
		f.changed, f.changedMemory = append(f.changed, c.seconds), append(f.changedMemory, c.memory)
		f.withSnapshot = append(f.withSnapshot, c.seconds+snapshot)
		f.growth = append(f.growth, size-f.size[len(f.size)-1])
	case 2:
		f.nothing = append(f.nothing, c.seconds)
	}
}

// restored takes the figures of a restore, after making sure that it is right, and deletes the file.
func (s *backupSeries) restored(f *backupFigures, image, path string, c cost) error {
	if _, _, err := measured(context.Background(), s.bench.dir, nil, nil, "cmp", image, path); err != nil { // without a limit of time
		return fmt.Errorf("what was restored differs: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return err
	}
	f.restore, f.restoreMemory = append(f.restore, c.seconds), append(f.restoreMemory, c.memory)
	f.restoredBytes = append(f.restoredBytes, float64(stat.Blocks)*512/(1<<20))
	return os.Remove(path)
}

// sizeOf returns the MiB of all files below a directory.
func sizeOf(dir string) (mib float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			mib += float64(info.Size()) / (1 << 20)
		}
		return err
	})
	return mib, err
}

// report makes the rows.
func (s *backupSeries) report(size int, data int64) {
	ours := s.of("orlop")
	for _, p := range peers {
		their := s.of(p.name)
		beside := func(what, unit string, mine, peer series, aim float64) row {
			return row{what: "backup: " + what + ", " + p.name, unit: unit, ours: mine, peer: peer, ratioBelow: aim}
		}
		created := func(what string, mine, peer series, aim float64) row {
			return row{what: "backup create: " + what + ", " + p.name, unit: "s", ours: mine, peer: peer, ratioBelow: aim}
		}
		s.bench.report.add(
			created("full", s.created[0], their.full, fullAim),
			created("10 MiB changed", s.created[1], their.changed, changedAim),
			created("nothing changed", s.created[2], their.nothing, 0),
			beside("full", "s", ours.full, their.full, fullAim),
			beside("full, processor time", "s", ours.fullCPU, their.fullCPU, 0),
			beside("full, memory at most", "MiB", ours.fullMemory, their.fullMemory, 0),
			beside("repository after it", "MiB", ours.size, their.size, sizeAim),
			beside("10 MiB changed", "s", ours.changed, their.changed, changedAim),
			beside("10 MiB changed, growth", "MiB", ours.growth, their.growth, 0),
			beside("nothing changed", "s", ours.nothing, their.nothing, 0),
			beside("restore", "s", ours.restore, their.restore, restoreAim),
			beside("restore, on the disk", "MiB", ours.restoredBytes, their.restoredBytes, 0),
			beside("restore, memory at most", "MiB", ours.restoreMemory, their.restoreMemory, 0),
		)
	}
	s.bench.report.add(
		row{what: "backup create: 10 MiB changed", unit: "s", ours: s.created[1], below: withSnapAim},
		row{what: "backup create: nothing changed", unit: "s", ours: s.created[2]},
		row{what: "backup: 10 MiB changed, snapshot and all", unit: "s", ours: ours.withSnapshot, below: withSnapAim},
		row{what: "backup: nothing changed", unit: "s", ours: ours.nothing, below: nothingAim},
		row{what: "backup: full, memory at most", unit: "MiB", ours: ours.fullMemory, below: memoryAim},
		row{what: "backup: restore, memory at most", unit: "MiB", ours: ours.restoreMemory, below: memoryAim},
	)
	s.bench.report.note("Backups are of an ext4 volume of %d GiB with %.1f GB in it.", size, float64(data)/1e9)
}
