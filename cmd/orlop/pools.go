package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"orlop/blockdev/loop"
	product "orlop/internal/daemon"
	"orlop/internal/fault"
	"orlop/internal/volume"
	"orlop/metadata"
)

// poolSpec is one --pool: [NAME=]loop[:DIR].
type poolSpec struct {
	name string
	dir  string // empty for the built-in pool
}

func (p poolSpec) String() string {
	if p.dir == "" {
		return "loop"
	}
	return "loop:" + p.dir
}

const poolHelp = "use [NAME=]loop or [NAME=]loop:DIR"

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
		spec := poolSpec{name: "loop"}
		rest := text
		if name, after, ok := strings.Cut(text, "="); ok && !strings.Contains(name, ":") {
			spec.name, rest = name, after
		}
		kind, dir, hasDir := strings.Cut(rest, ":")
		switch {
		case kind != "loop":
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: kind %q is not known: %s", text, kind, poolHelp)
		case hasDir && !filepath.IsAbs(dir):
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: %q is not an absolute path: %s", text, dir, poolHelp)
		case !product.ValidName(spec.name):
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: name %q is not allowed: %s", text, spec.name, poolHelp)
		case seen[spec.name]:
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: a pool named %q is given already: name each, as in fast=%s", text, spec.name, rest)
		}
		if hasDir {
			spec.dir = filepath.Clean(dir)
		}
		if places[spec.dir] {
			return nil, fault.Errorf(fault.ErrInvalid, "--pool %q: another pool is in the same place: %s", text, poolHelp)
		}
		seen[spec.name], places[spec.dir] = true, true
		specs = append(specs, spec)
	}
	return specs, nil
}

// poolSet is the daemon's pools.
type poolSet struct {
	all  []product.Pool
	open []*loop.Pool
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
	shown := product.Pool{Kind: "loop", Spec: spec.String(), BlockSize: loop.BlockSize}
	shown.Name, shown.UUID = spec.name, known.UUID
	pool, err := loop.Open(ctx, loop.Config{Root: s.root, Dir: spec.dir, UUID: known.UUID, Adopt: s.rebuild, Size: s.poolSize, Preallocate: s.preallocate})
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
	if err := pool.GrowthError(); err != nil {
		log.Error("cannot grow pool; using it at its present size", "pool", spec.name, "error", err)
	}
	shown.UUID, shown.Dir, shown.Pool.Pool = pool.UUID(), pool.Dir(), pool
	if shown.OnRoot, err = pool.DrawsOn(s.root); err != nil {
		return err
	}
	p.all = append(p.all, shown)
	if ok {
		return nil
	}
	record := metadata.Pool{Name: spec.name, UUID: shown.UUID, Spec: shown.Spec, Created: time.Now().UTC()}
	return store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutPool(record) })
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

// detach unmounts the built-in pools and frees their loop devices.
func (p *poolSet) detach(ctx context.Context) error {
	var errs []error
	for _, pool := range p.open {
		errs = append(errs, pool.Detach(ctx))
	}
	return errors.Join(errs...)
}
