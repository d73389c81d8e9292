package loop

import (
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
