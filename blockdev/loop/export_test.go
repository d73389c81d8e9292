package loop

import (
	"context"
	"os"

	"orlop/blockdev"
)

// Image is the path of a device's image.
func (p *Pool) Image(id blockdev.ID) string { return p.image(id) }

// Lose closes what the pool holds open of an active device, as if the kernel had freed it, and makes the pool
// believe that it holds the device node whose path retake returns.
func (p *Pool) Lose(id blockdev.ID, retake func() (path string)) error {
	p.hold(id, nil)
	f, err := os.OpenFile(retake(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p.hold(id, f)
	return nil
}

// Part is the path of what there is of a device's image before it is whole.
func (p *Pool) Part(id blockdev.ID) string { return p.part(id) }

// DiffFiles compares two files as Diff does two images. It calls between after each look at a map.
func DiffFiles(ctx context.Context, from, to *os.File, between func(), fn func(blockdev.Extent) error) error {
	c, err := newComparison(from, to)
	if err != nil {
		return err
	}
	for _, reader := range []*mapReader{&c.from, &c.to} {
		*reader = interrupted{*reader, between}
	}
	return c.run(ctx, fn)
}

type interrupted struct {
	mapReader
	then func()
}

func (i interrupted) read(start, end int64) ([]mapped, int64, error) {
	extents, next, err := i.mapReader.read(start, end)
	i.then()
	return extents, next, err
}
