package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"orlop/fs"
)

// A place is a directory to be measured, in a filesystem of one kind or another.
type place struct {
	name, dir string
	figures   map[string]*series // by name of the job
}

// A job is one run of fio. A figure in µs is a latency, others are rates.
type job struct {
	name, unit string
	args       []string
	figure     func(fioResult) float64
	ratioBelow float64 // aims for a volume against a plain loop device
	ratioAbove float64
	wholePool  bool // also measured in the pool's own filesystem, to tell the layers apart
}

// fioResult is the part of fio's JSON that is read, for one job.
type fioResult struct {
	Read, Write struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
	}
	Sync struct {
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
}

// files of the jobs: one that is there already, and one that grows.
const (
	dataFile   = "bench.data"
	appendFile = "bench.append"
)

var (
	direct   = []string{"--direct=1", "--ioengine=libaio", "--filename=" + dataFile}
	random   = append(direct[:len(direct):len(direct)], "--bs=4k", "--iodepth=16")
	straight = append(direct[:len(direct):len(direct)], "--bs=1M", "--iodepth=4")
)

var jobs = []job{
	{name: "random 4 KiB reads", unit: "IOPS", args: append([]string{"--rw=randread"}, random...), figure: readIOPS, ratioAbove: 0.8},
	{name: "random 4 KiB writes", unit: "IOPS", args: append([]string{"--rw=randwrite"}, random...), figure: writeIOPS, ratioAbove: 0.8},
	{name: "sequential 1 MiB reads", unit: "MiB/s", args: append([]string{"--rw=read"}, straight...), figure: func(r fioResult) float64 { return r.Read.Bytes / (1 << 20) }},
	{name: "sequential 1 MiB writes", unit: "MiB/s", args: append([]string{"--rw=write"}, straight...), figure: func(r fioResult) float64 { return r.Write.Bytes / (1 << 20) }},
	{name: "fdatasync of 8 KiB, p50", unit: "µs", args: []string{"--rw=randwrite", "--bs=8k", "--ioengine=psync", "--fdatasync=1", "--filename=" + dataFile},
		figure: func(r fioResult) float64 { return r.Sync.Latency.Percentile["50.000000"] / 1000 }, ratioBelow: 1.3, wholePool: true},
	{name: "appends of 8 KiB with fsync", unit: "1/s", args: []string{"--rw=write", "--bs=8k", "--ioengine=psync", "--fsync=1", "--create_on_open=1", "--fallocate=none", "--unlink=1", "--filename=" + appendFile},
		figure: writeIOPS},
}

func readIOPS(r fioResult) float64  { return r.Read.IOPS }
func writeIOPS(r fioResult) float64 { return r.Write.IOPS }

const volumeForFiles = "4G"

// disks runs fio in volumes and, in turns, in what they are compared with.
func (b *bench) disks(ctx context.Context) error {
	flags := []string{"--pool-size", "40G"}
	xfs := os.Getenv("BENCH_XFS")
	if xfs != "" {
		dir, err := os.MkdirTemp(xfs, "orlop-bench-")
		if err != nil {
			return err
		}
		b.later(func() error { return os.RemoveAll(dir) })
		flags = append(flags, "--pool", "loop", "--pool", "disk=loop:"+dir)
	}
	d, err := b.newDaemon("disks", flags...)
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	places, err := b.places(ctx, d, xfs)
	if err != nil {
		return err
	}
	for turn := range b.pick(7, runs) { // many and short, for what else the machine does to spread evenly
		for _, j := range jobs {
			for i := range places {
				p := places[(i+turn)%len(places)]
				if p.name == poolItself && !j.wholePool {
					continue
				}
				if err := b.fio(ctx, p, j); err != nil {
					return err
				}
			}
		}
	}
	b.compare(places)
	return nil
}

const (
	inVolume   = "volume"
	inDirPool  = "volume on loop:DIR"
	onLoop     = "plain loop device"
	onHost     = "host filesystem"
	poolItself = "the pool's XFS"
)

// places makes what fio is to work in.
func (b *bench) places(ctx context.Context, d *daemon, xfs string) ([]place, error) {
	var places []place
	add := func(name, dir string) error {
		p := place{name: name, dir: dir, figures: map[string]*series{}}
		places = append(places, p)
		return b.layOut(ctx, p)
	}
	volumes := [][2]string{{inVolume, "loop"}}
	if xfs != "" {
		volumes = append(volumes, [2]string{inDirPool, "disk"})
	} else {
		b.report.note("A volume on loop:DIR was not measured: set BENCH_XFS to a directory on a disk with XFS.")
	}
	for _, v := range volumes {
		if err := d.create(ctx, "files-"+v[1], map[string]string{"size": volumeForFiles, "pool": v[1]}); err != nil {
			return nil, err
		}
		dir, err := d.mount(ctx, "files-"+v[1])
		if err != nil {
			return nil, err
		}
		if err := add(v[0], dir); err != nil {
			return nil, err
		}
	}
	dir, err := b.plainLoop(ctx)
	if err != nil {
		return nil, err
	}
	if err := add(onLoop, dir); err != nil {
		return nil, err
	}
	for _, p := range []place{{name: onHost, dir: filepath.Join(b.dir, "host")}, {name: poolItself, dir: filepath.Join(d.root, "pool", "bench")}} {
		if err := os.Mkdir(p.dir, 0o700); err != nil {
			return nil, err
		}
		if err := add(p.name, p.dir); err != nil {
			return nil, err
		}
	}
	return places, nil
}

// plainLoop mounts the filesystem that volumes have on a loop device over a sparse file of the host's filesystem.
func (b *bench) plainLoop(ctx context.Context) (dir string, err error) {
	image, dir := filepath.Join(b.dir, "plain.img"), filepath.Join(b.dir, "plain")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := b.runner.Run(ctx, "truncate", "--size", volumeForFiles, image); err != nil {
		return "", err
	}
	out, err := b.runner.Run(ctx, "losetup", "--find", "--show", "--direct-io=on", "--sector-size", "4096", image)
	if err != nil {
		return "", err
	}
	device := strings.TrimSpace(string(out))
	b.later(func() error { return b.putAway(dir, device, image) })
	ext4, err := fs.Lookup("ext4")
	if err != nil {
		return "", err
	}
	if err := ext4.Make(ctx, b.runner, device, 0, 0); err != nil {
		return "", err
	}
	return dir, ext4.Mount(device, dir, nil)
}

// layOut writes the file that jobs read and overwrite.
func (b *bench) layOut(ctx context.Context, p place) error {
	_, err := b.runner.Run(ctx, "fio", "--name=layout", "--directory="+p.dir, "--filename="+dataFile, "--rw=write", "--bs=1M",
		"--direct=1", "--fallocate=none", "--end_fsync=1", "--size="+b.fileSize())
	return err
}

func (b *bench) fileSize() string { return strconv.Itoa(b.pick(1024, 256)) + "M" }

// fio runs one job in one place.
func (b *bench) fio(ctx context.Context, p place, j job) error {
	args := append([]string{"fio", "--name=bench", "--directory=" + p.dir, "--size=" + b.fileSize(), "--output-format=json", "--randrepeat=0",
		"--time_based", "--runtime=" + strconv.Itoa(b.pick(2, 1))}, j.args...)
	out, err := b.runner.Run(ctx, args...)
	if err != nil {
		return err
	}
	var result struct {
		Jobs []fioResult `json:"jobs"`
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
		return fmt.Errorf("fio's report of %s in %s: %w", j.name, p.name, err)
	}
	if p.figures[j.name] == nil {
		p.figures[j.name] = &series{}
	}
	*p.figures[j.name] = append(*p.figures[j.name], j.figure(result.Jobs[0]))
	return nil
}

// compare reports each job: volumes against the plain loop device, and that against the host.
func (b *bench) compare(places []place) {
	at := map[string]map[string]*series{}
	for _, p := range places {
		at[p.name] = p.figures
	}
	for _, j := range jobs {
		plain := *at[onLoop][j.name]
		for _, name := range []string{inVolume, inDirPool} {
			if at[name] == nil {
				continue
			}
			b.report.add(row{what: j.name + ", " + name, unit: j.unit, ours: *at[name][j.name], peer: plain,
				ratioBelow: j.ratioBelow, ratioAbove: j.ratioAbove, explanation: b.layers(j, at)})
		}
		b.report.add(row{what: j.name + ", " + onHost, unit: j.unit, ours: *at[onHost][j.name], peer: plain})
	}
	b.report.note("The peer of fio's jobs is ext4, made and mounted as in a volume, on a plain loop device with direct I/O over the host's filesystem.")
}

// layers says what each layer below a volume brings about.
func (b *bench) layers(j job, at map[string]map[string]*series) string {
	text := fmt.Sprintf("host %s, ext4 on one loop device over it %s, in a volume %s %s",
		number(at[onHost][j.name].median()), number(at[onLoop][j.name].median()), number(at[inVolume][j.name].median()), j.unit)
	if j.wholePool {
		text += fmt.Sprintf("; in the pool's own XFS, on its loop device, %s", number(at[poolItself][j.name].median()))
	}
	return text
}
