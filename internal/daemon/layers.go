package daemon

import (
	"context"
	"errors"
	"fmt"

	"orlop/fs"
)

// A Layer is one of the places below a pool's volumes that can fill up.
type Layer struct {
	Pool string // the pool's name
	Name string // "pool"; "metadata" of a thin pool; "host" for the data root's filesystem below the built-in pool's file
	Size int64  // bytes
	Free int64  // bytes left
}

// Pools returns the names of the configured pools, the missing ones too.
func (d *Daemon) Pools() []string {
	names := make([]string, len(d.pools))
	for i, p := range d.pools {
		names[i] = p.Name
	}
	return names
}

// Layers returns the space of every layer below the pools that are there. It fails with what it could not read, and
// returns the rest.
func (d *Daemon) Layers(ctx context.Context) (layers []Layer, err error) {
	var errs []error
	for _, p := range d.pools {
		if p.Missing != nil {
			continue
		}
		own, err := ownLayers(ctx, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("pool %q: %w", p.Name, err))
			continue
		}
		layers = append(layers, own...)
		if !p.OnRoot {
			continue
		}
		host := Layer{Pool: p.Name, Name: "host"}
		if host.Size, host.Free, err = fs.Space(d.root); err != nil {
			errs = append(errs, err)
			continue
		}
		layers = append(layers, host)
	}
	return layers, errors.Join(errs...)
}

// ownLayers looks at the filesystem that holds a pool's files, or asks a pool that has none.
func ownLayers(ctx context.Context, p Pool) (own []Layer, err error) {
	first := Layer{Pool: p.Name, Name: "pool"}
	if p.Dir != "" {
		first.Size, first.Free, err = fs.Space(p.Dir)
		return []Layer{first}, err
	}
	if p.Layers == nil {
		space, err := p.Pool.Pool.Space(ctx)
		first.Size, first.Free = space.Size, space.Free
		return []Layer{first}, err
	}
	spaces, err := p.Layers(ctx)
	for i, name := range []string{"pool", "metadata"}[:len(spaces)] {
		own = append(own, Layer{Pool: p.Name, Name: name, Size: spaces[i].Size, Free: spaces[i].Free})
	}
	return own, err
}
