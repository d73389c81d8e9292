package lvm

import (
	"context"
	"fmt"

	"orlop/blockdev"
	"orlop/internal/fault"
)

const metadataBlock = 4096 // bytes of a block of a thin pool's metadata

// poolStatus returns what the kernel tells of the thin pool. It fails with fault.ErrNotFound if it is not active, and
// with fault.ErrCorrupt, naming the remedy, if it can no longer be written.
func (p *Pool) poolStatus() (poolStatus, error) {
	s, ok, err := p.poolDevice()
	if err != nil {
		return poolStatus{}, err
	}
	if !ok {
		return poolStatus{}, p.inactive()
	}
	return parsePoolStatus(s.params)
}

func (p *Pool) inactive() error {
	return fault.Errorf(fault.ErrNotFound, "thin pool %s is not active: run 'lvchange --activate y %s'", p.of(p.name), p.of(p.name))
}

// broken says why a thin pool cannot be written any more, or nil.
func (p *Pool) broken(s poolStatus) error {
	repair := fmt.Sprintf("stop the containers and the daemon, then run 'vgchange --activate n %s' and 'lvconvert --repair %s'", p.vg, p.of(p.name))
	switch {
	case s.mode == "Fail":
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s has failed: its disks or its metadata are damaged: %s", p.of(p.name), repair)
	case s.needsCheck && s.metaUsed >= s.metaTotal-s.metaTotal/100-1:
		return fault.Errorf(fault.ErrNoSpace, "thin pool %s has run out of metadata and is read-only: %s, then 'lvextend --poolmetadatasize +256M %s'", p.of(p.name), repair, p.of(p.name))
	case s.needsCheck:
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s needs a check of its metadata: %s", p.of(p.name), repair)
	case s.mode == "ro":
		return fault.Errorf(fault.ErrCorrupt, "thin pool %s is read-only: an error of its metadata: %s", p.of(p.name), repair)
	}
	return nil
}

// room fails with fault.ErrNoSpace if the thin pool has no room for another device: the kernel would make it, and fail
// the first write.
func (p *Pool) room() error {
	s, err := p.poolStatus()
	if err == nil {
		err = p.broken(s)
	}
	if err != nil {
		return err
	}
	for _, layer := range p.layersOf(s) {
		if layer.Free <= 0 {
			return fault.Errorf(fault.ErrNoSpace, "%s is full: %s", layer.Layer, layer.Remedy)
		}
	}
	return nil
}

// layersOf returns how full the thin pool's data and its metadata are.
func (p *Pool) layersOf(s poolStatus) [2]blockdev.Space {
	name := p.of(p.name)
	data := blockdev.Space{Layer: "data of thin pool " + name, Size: s.dataTotal * p.chunk, Free: (s.dataTotal - s.dataUsed) * p.chunk,
		Remedy: "delete volumes or snapshots, or enlarge it: lvextend --size +10G " + name}
	if s.mode == "out_of_data_space" {
		data.Free = 0
	}
	metadata := blockdev.Space{Layer: "metadata of thin pool " + name, Size: s.metaTotal * metadataBlock, Free: (s.metaTotal - s.metaUsed) * metadataBlock,
		Remedy: "delete volumes or snapshots, or enlarge it: lvextend --poolmetadatasize +256M " + name}
	return [2]blockdev.Space{data, metadata}
}

// Layers returns how full the thin pool's data and its metadata are. It fails as Space does.
func (p *Pool) Layers(context.Context) ([]blockdev.Space, error) {
	s, err := p.poolStatus()
	if err == nil {
		err = p.broken(s)
	}
	if err != nil {
		return nil, err
	}
	layers := p.layersOf(s)
	return layers[:], nil
}

// Space asks the kernel how full the thin pool is. It fails if the thin pool cannot be written any more, or if LVM could
// not be read at the last look, with LVM's own words.
func (p *Pool) Space(ctx context.Context) (blockdev.Space, error) {
	layers, err := p.Layers(ctx)
	if err != nil {
		return blockdev.Space{}, err
	}
	p.mu.Lock()
	trouble := p.trouble
	p.mu.Unlock()
	if trouble != nil {
		return blockdev.Space{}, trouble
	}
	if layers[1].Used() > layers[0].Used() {
		return layers[1], nil
	}
	return layers[0], nil
}
