package volume

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"orlop/fs"
	"orlop/internal/fault"
	"orlop/metadata"
)

// Holders, and for how long the word of each counts. Ages go by the time since the kernel started: the wall clock may be
// set back or forth at any time.

// suspectAge is how old a holder of Docker's must be before the kernel's word can stand against it: by then a container
// that was being started when it was taken has a mount namespace that shows the volume.
const suspectAge = 3 * time.Minute

// podmanHolder is the one mount ID that Podman uses for everything. Podman mounts a volume only when its own count of the
// volume's users rises from zero, and never again to confirm: what it holds stays mounted until it lets go.
const podmanHolder = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"

// A wish is the reason for settling a volume. It decides which holders may be dropped if the kernel shows no user.
type wish int

const (
	toTidy    wish = iota // nobody asked: none
	toUnmount             // one of Docker's holders was dropped: suspects
	toFree                // the volume must be unused, to delete it say: all of Docker's that are old enough
	toForget              // its client knows of no user any more: podman's too
)

// sinceBoot returns how long ago the kernel started, suspends included.
func sinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0 // no kernel that runs this program lacks it
	}
	return time.Duration(now.Nano())
}

// age returns how long ago a holder of this boot was recorded, to the second.
func age(h metadata.Holder) time.Duration {
	return sinceBoot() - time.Duration(h.SinceBoot)*time.Second
}

// keeps reports whether a holder keeps a volume mounted whatever the kernel shows, given the wish.
func (m *Manager) keeps(h metadata.Holder, w wish) bool {
	switch {
	case w == toTidy, h.User, age(h) < suspectAge:
		return true
	case w == toForget:
		return false
	case h.ID == podmanHolder:
		return true
	case w == toFree:
		return false
	}
	m.epochMu.Lock()
	defer m.epochMu.Unlock()
	return h.Epoch == m.epoch
}

// firm returns the holders that keep a volume mounted, given the wish.
func (m *Manager) firm(holders []metadata.Holder, w wish) (firm []metadata.Holder) {
	for _, h := range holders {
		if m.keeps(h, w) {
			firm = append(firm, h)
		}
	}
	return firm
}

// Suspect reports whether a holder is dropped with the next Unmount of another one, if the kernel shows no user by then:
// it was recorded before Docker last started, and Docker would have confirmed it with a Mount if it still wanted it.
func (m *Manager) Suspect(h metadata.Holder) bool { return !m.keeps(h, toUnmount) }

// starting returns Docker's holders that are young: their containers may be starting, with the path in hand and no mount
// of their own yet that the kernel would show.
func starting(holders []metadata.Holder) (young []metadata.Holder) {
	for _, h := range holders {
		if !h.User && age(h) < suspectAge {
			young = append(young, h)
		}
	}
	return young
}

// describeHolder says in a refusal who holds a volume, and how that ends. idle is set if the kernel shows no user at all.
func describeHolder(h metadata.Holder, volume string, idle bool) string {
	switch {
	case h.User && h.Mountpoint != "":
		return fmt.Sprintf("a mount at %s (run 'orlop umount %s')", h.Mountpoint, volume)
	case h.User:
		return fmt.Sprintf("'orlop mount' (run 'orlop umount %s')", volume)
	case h.ID == podmanHolder:
		return fmt.Sprintf("podman (run 'podman volume unmount %s')", volume)
	case idle && age(h) < suspectAge:
		left := (suspectAge - age(h)).Round(time.Second)
		return fmt.Sprintf("docker mount %s (no process uses it: unless its container is just starting, try again in %s)", h.ID, left)
	}
	return "docker mount " + h.ID
}

func (m *Manager) recordHolder(ctx context.Context, h metadata.Holder) error {
	h.Boot, h.Since, h.SinceBoot = m.boot, time.Now().UTC(), int64(sinceBoot()/time.Second)
	err := m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error { return tx.PutHolder(h) })
	if err != nil {
		return fmt.Errorf("record holder %s: %w", h.ID, err)
	}
	return nil
}

func (m *Manager) dropHolder(ctx context.Context, h metadata.Holder) error {
	return m.store.Update(context.WithoutCancel(ctx), func(tx *metadata.Tx) error { return tx.DeleteHolder(h.Volume, h.ID) })
}

func (m *Manager) holders(v metadata.Volume) (holders []metadata.Holder, err error) {
	err = m.store.View(func(tx *metadata.Tx) error {
		holders, err = tx.Holders(v.ID)
		return err
	})
	return holders, err
}

// loadEpoch reads the present Docker epoch, and whether a holder was recorded in it.
func (m *Manager) loadEpoch() error {
	return m.store.View(func(tx *metadata.Tx) error {
		m.epoch = tx.Epoch()
		holders, err := tx.Holders("")
		for _, h := range holders {
			m.epochUsed = m.epochUsed || !h.User && h.Epoch == m.epoch
		}
		return err
	})
}

// useEpoch returns the present epoch for a new holder's record.
func (m *Manager) useEpoch() uint64 {
	m.epochMu.Lock()
	defer m.epochMu.Unlock()
	m.epochUsed = true
	return m.epoch
}

// NewEpoch records that a Docker daemon has started, or that any podman command ran, since each activates the plugin. It
// drops nothing and unmounts nothing: it makes the holders recorded so far suspect.
func (m *Manager) NewEpoch(ctx context.Context) error {
	m.epochMu.Lock()
	defer m.epochMu.Unlock()
	if !m.epochUsed {
		return nil
	}
	next := m.epoch + 1
	if err := m.store.Update(ctx, func(tx *metadata.Tx) error { return tx.PutEpoch(next) }); err != nil {
		return fmt.Errorf("note start of docker: %w", err)
	}
	m.epoch, m.epochUsed = next, false
	return nil
}

// A Stale holder is one of Docker's that no process in any mount namespace has to do with.
type Stale struct {
	Volume string // name
	Holder metadata.Holder
}

// StaleHolders lists Docker's holders that are old enough for their container to show, and do not: Docker could not
// deliver their Unmount. Podman's are left out: it holds volumes without a container too.
func (m *Manager) StaleHolders(ctx context.Context) (stale []Stale, _ error) {
	names := map[string]metadata.Volume{}
	var candidates []metadata.Holder
	err := m.store.View(func(tx *metadata.Tx) error {
		holders, err := tx.Holders("")
		for _, h := range holders {
			if m.keeps(h, toFree) {
				continue
			}
			v, err := tx.Volume(h.Volume)
			if fault.Is(err, fault.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			names[h.Volume], candidates = v, append(candidates, h)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	devices := map[string]uint64{}
	var all []uint64
	for id, v := range names {
		if number, err := m.activeDevice(ctx, v); err == nil && number != 0 {
			devices[id], all = number, append(all, number)
		}
	}
	shown, err := fs.AllMountedElsewhere(all...)
	if err != nil {
		return nil, err
	}
	for _, h := range candidates {
		if len(shown[devices[h.Volume]]) == 0 {
			stale = append(stale, Stale{names[h.Volume].Name, h})
		}
	}
	return stale, nil
}
