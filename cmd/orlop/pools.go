package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"orlop/blockdev"
	"orlop/blockdev/loop"
	product "orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/lvm"
	"orlop/metadata"
)

// poolSpec is one --pool: [NAME=]loop[:DIR], or [NAME=]lvm:VG/THINPOOL.
type poolSpec struct {
	name  string
	kind  string
	place string // directory, empty for the built-in pool; or VG/THINPOOL
}

func (p poolSpec) String() string {
	if p.place == "" {
		return p.kind
	}
	return p.kind + ":" + p.place
}

const poolHelp = "use [NAME=]loop, [NAME=]loop:DIR or [NAME=]lvm:VG/THINPOOL"

// poolKinds check the place of a pool, by its kind, and return it as it is kept.
var poolKinds = map[string]func(place string, given bool) (string, error){
	"loop": func(dir string, given bool) (string, error) {
		if !given {
			return "", nil
		}
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("%q is not an absolute path", dir)
		}
		return filepath.Clean(dir), nil
	},
	"lvm": func(place string, _ bool) (string, error) {
		_, _, err := lvm.ParsePlace(place)
		return place, err
	},
}

// splitPools splits the value of the environment's variable, if it is set, which has a comma between pools. A flag has one pool.
func splitPools(given []string, variable string, set bool) []string {
	if set && len(given) == 1 && given[0] == variable {
		return strings.FieldsFunc(variable, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return given
}

func parsePools(texts []string) ([]poolSpec, error) {
	if len(texts) == 0 {
		texts = []string{"loop"}
	}
	var specs []poolSpec
	seen, places := map[string]bool{}, map[string]bool{}
	for _, text := range texts {
		rest, name := text, ""
		if before, after, ok := strings.Cut(text, "="); ok && !strings.Contains(before, ":") {
			name, rest = before, after
			if !product.ValidName(name) {
				return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: name %q is not allowed: %s", text, name, poolHelp)
			}
		}
		kind, place, given := strings.Cut(rest, ":")
		check, known := poolKinds[kind]
		if !known {
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: kind %q is not known: %s", text, kind, poolHelp)
		}
		spec := poolSpec{name: cmp.Or(name, kind), kind: kind}
		var err error
		if spec.place, err = check(place, given); err != nil {
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: %w: %s", text, err, poolHelp)
		}
		switch {
		case seen[spec.name]:
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: a pool named %q is given already: name each, as in fast=%s", text, spec.name, rest)
		case places[spec.String()]:
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: another pool is in the same place: %s", text, poolHelp)
		}
		seen[spec.name], places[spec.String()] = true, true
		specs = append(specs, spec)
	}
	return specs, nil
}

// poolSet is the daemon's pools.
type poolSet struct {
	all  []product.Pool
	open []openPool
}

// openPool is what the program does with a pool of any kind, beside using it.
type openPool interface {
	blockdev.Pool
	UUID() string
	Close()
	Abandon(context.Context) error
	Detach(context.Context) error
}

// openPools opens each configured pool under the identity recorded at its first use. A known pool that cannot be
// opened is missing: its volumes are degraded, the others work. A new one that cannot be made is an error, and then none
// of them is left attached by this start.
func openPools(ctx context.Context, s settings, store *metadata.Store, log *slog.Logger) (set *poolSet, err error) {
	set = &poolSet{}
	for _, spec := range s.pools {
		if err := set.add(ctx, s, spec, store, log); err != nil {
			return nil, errors.Join(err, set.abandon(ctx))
		}
	}
	return set, nil
}

// add opens one pool.
func (p *poolSet) add(ctx context.Context, s settings, spec poolSpec, store *metadata.Store, log *slog.Logger) error {
	var known metadata.Pool
	var ok bool
	err := store.View(func(tx *metadata.Tx) (err error) {
		known, ok, err = tx.Pool(spec.name)
		return err
	})
	if err != nil {
		return err
	}
	shown := product.Pool{Kind: spec.kind, Spec: spec.String()}
	shown.Name, shown.UUID = spec.name, known.UUID
	var pool openPool
	switch spec.kind {
	case "lvm":
		pool, err = openLVM(ctx, s, spec, &shown, log)
	default:
		pool, err = openLoop(ctx, s, spec, &shown, log)
	}
	switch {
	case err != nil && !ok:
		return fmt.Errorf("pool %q: %w", spec.name, err)
	case err != nil:
		log.Error("pool is missing; its volumes cannot be mounted", "pool", spec.name, "error", err)
		shown.Missing = err
		p.all = append(p.all, shown)
		return nil
	}
	p.open = append(p.open, pool)
	shown.UUID, shown.Pool.Pool = pool.UUID(), pool
	p.all = append(p.all, shown)
	if ok {
		return nil
	}
	record := metadata.Pool{Name: spec.name, UUID: shown.UUID, Spec: shown.Spec, Created: time.Now().UTC()}
	return store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutPool(record) })
}

// openLoop opens a pool of images, and fills in what of it is shown.
func openLoop(ctx context.Context, s settings, spec poolSpec, shown *product.Pool, log *slog.Logger) (openPool, error) {
	pool, err := loop.Open(ctx, loop.Config{Root: s.root, Dir: spec.place, UUID: shown.UUID, Adopt: s.rebuild, Size: s.poolSize, Preallocate: s.preallocate})
	if err != nil {
		return nil, err
	}
	if err := pool.GrowthError(); err != nil {
		log.Error("cannot grow pool; using it at its present size", "pool", spec.name, "error", err)
	}
	shown.Dir, shown.BlockSize = pool.Dir(), loop.BlockSize
	if shown.OnRoot, err = pool.DrawsOn(s.root); err != nil {
		return nil, errors.Join(err, pool.Abandon(context.WithoutCancel(ctx)))
	}
	return pool, nil
}

// openLVM opens a pool of thin volumes, and fills in what of it is shown.
func openLVM(ctx context.Context, s settings, spec poolSpec, shown *product.Pool, log *slog.Logger) (openPool, error) {
	vg, thinPool, err := lvm.ParsePlace(spec.place)
	if err != nil {
		return nil, err
	}
	pool, err := lvm.Open(ctx, lvm.Config{VG: vg, ThinPool: thinPool, UUID: shown.UUID, Adopt: s.rebuild, Create: s.thinPoolSize})
	if err != nil {
		return nil, err
	}
	for _, advice := range pool.Advice() {
		log.Warn("thin pool is not configured as it should be", "pool", spec.name, "problem", advice.Problem, "remedy", advice.Command)
		shown.Advice = append(shown.Advice, product.Advice(advice))
	}
	shown.Layers = pool.Layers
	if shown.BlockSize, err = pool.BlockSize(); err != nil {
		return nil, errors.Join(err, pool.Abandon(context.WithoutCancel(ctx)))
	}
	return pool, nil
}

// watch looks at the pools that others may change, until ctx is done.
func (p *poolSet) watch(ctx context.Context) {
	var watchers sync.WaitGroup
	defer watchers.Wait()
	for _, pool := range p.open {
		if changing, is := pool.(*lvm.Pool); is {
			watchers.Go(func() { changing.Watch(ctx) })
		}
	}
}

func (p *poolSet) forVolumes() []volume.Pool {
	pools := make([]volume.Pool, len(p.all))
	for i, pool := range p.all {
		pools[i] = pool.Pool
	}
	return pools
}

func (p *poolSet) close() {
	for _, pool := range p.open {
		pool.Close()
	}
}

// abandon is close for a start that failed: what it attached goes again, unless a volume uses it.
func (p *poolSet) abandon(ctx context.Context) error {
	var errs []error
	for _, pool := range p.open {
		errs = append(errs, pool.Abandon(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// detach unmounts the built-in pools and frees their loop devices, and deactivates the thin pools.
func (p *poolSet) detach(ctx context.Context) error {
	var errs []error
	for _, pool := range p.open {
		errs = append(errs, pool.Detach(ctx))
	}
	return errors.Join(errs...)
}
