package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"orlop/internal/fault"
)

// A Known is what a host remembers of the repository at one destination, so that nobody else can put another one, or an
// older state of it, in its place.
type Known struct {
	Repository ID                `json:"repository"` // zero if nothing is known
	Encrypted  bool              `json:"encrypted"`
	Key        string            `json:"key,omitempty"` // its ID
	Heads      map[string]uint64 `json:"heads"`         // the highest number seen of each lineage

	// Last are heads of each lineage that certainly were in its chain, the newest seen. They may be older than those of Heads.
	Last map[string]KnownHead `json:"last,omitempty"`

	Stalls map[string]Stall `json:"stalls,omitempty"`
}

// A KnownHead tells a head from every other.
type KnownHead struct {
	Number uint64 `json:"number"` // 0 if none is known
	Nonce  ID     `json:"nonce"`
}

// A Memory keeps what a host knows of a repository. It is safe for concurrent use.
type Memory interface {
	// Recall returns what was kept, the zero Known if there is nothing.
	Recall() (Known, error)

	// Change keeps what change makes of what was kept.
	Change(change func(*Known)) error
}

// recognise compares the repository with what the host remembers, and remembers it if that is nothing.
func (r *Repository) recognise(key *Key) error {
	memory := r.options.memory
	if memory == nil {
		return nil
	}
	known, err := memory.Recall()
	if err != nil {
		return err
	}
	now := Known{Repository: r.ID(), Encrypted: r.Encrypted(), Heads: map[string]uint64{}}
	if key != nil {
		now.Key = key.ID()
	}
	hint := "another repository is in its place, or another disk is mounted there; if it is the right one, run orlop backup init " +
		r.options.destination() + " --new with its key, and this host knows it instead"
	switch {
	case known.Repository == ID{}:
		return memory.Change(func(k *Known) {
			if k.Repository == (ID{}) { // nobody was faster
				*k = now
			}
		})
	case known.Repository != now.Repository:
		return fault.Errorf(fault.ErrCorrupt, "this is repository %s, and this host knows %s at this destination: %s", now.Repository, known.Repository, hint)
	case known.Encrypted != now.Encrypted:
		return fault.Errorf(fault.ErrCorrupt, "repository %s says that it is encrypted: %t, and this host knows that it is: %t", now.Repository, now.Encrypted, known.Encrypted)
	case known.Key != now.Key:
		// The repository has several slots, and both keys open it.
		return memory.Change(func(k *Known) { k.Key = now.Key })
	}
	return nil
}

// knownHeads are what a host remembers of a lineage's heads.
func knownHeads(memory Memory, lineage string) (highest uint64, last KnownHead, err error) {
	if memory == nil {
		return 0, KnownHead{}, nil
	}
	known, err := memory.Recall()
	return known.Heads[lineage], known.Last[lineage], err
}

// remember makes the host remember the number of a head that was read, or is in the chain: before anything comes of it. An
// object that only has the name of a head is not remembered.
func (c *chain) remember(number uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.highest = max(c.highest, number)
	memory := c.repository.options.memory
	if memory == nil || number <= c.remembered {
		return nil
	}
	err := memory.Change(func(k *Known) {
		if k.Heads == nil {
			k.Heads = map[string]uint64{}
		}
		k.Heads[c.lineage.name] = max(k.Heads[c.lineage.name], number)
	})
	if err == nil {
		c.remembered = number
	}
	return err
}

// know makes the host remember a head that is in the chain for certain.
func (c *chain) know(h *Head) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.highest = max(c.highest, h.Number)
	if h.Number <= c.last.Number {
		return nil
	}
	last := KnownHead{h.Number, h.Nonce}
	if memory := c.repository.options.memory; memory != nil {
		if err := memory.Change(func(k *Known) { k.know(c.lineage.name, last) }); err != nil {
			return err
		}
	}
	c.last, c.remembered = last, max(c.remembered, h.Number)
	return nil
}

func (k *Known) know(lineage string, last KnownHead) {
	k.Heads, k.Last = cloned(k.Heads), cloned(k.Last)
	k.Heads[lineage] = max(k.Heads[lineage], last.Number)
	if k.Last[lineage].Number < last.Number {
		k.Last[lineage] = last
	}
}

// A MemoryFile is a Memory in a file. The file is replaced as a whole, and a lock beside it serves all processes.
type MemoryFile struct {
	path string
	mu   sync.Mutex
}

// NewMemoryFile returns the memory in the file at path, which need not exist; its directory must.
func NewMemoryFile(path string) *MemoryFile { return &MemoryFile{path: path} }

// Recall reads the file. It fails with fault.ErrCorrupt if that is no memory.
func (m *MemoryFile) Recall() (Known, error) {
	data, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return Known{}, nil
	}
	if err != nil {
		return Known{}, fmt.Errorf("recall a repository: %w", err)
	}
	var known Known
	if err := json.Unmarshal(data, &known); err != nil {
		return Known{}, fault.Errorf(fault.ErrCorrupt, "recall a repository: %s: %w", m.path, err)
	}
	return known, nil
}

// Change replaces the file.
func (m *MemoryFile) Change(change func(*Known)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	unlock, err := lockFile(m.path + ".lock")
	if err != nil {
		return fmt.Errorf("remember a repository: %w", err)
	}
	defer unlock()
	known, err := m.Recall()
	if err != nil {
		return err
	}
	known.Heads, known.Last, known.Stalls = cloned(known.Heads), cloned(known.Last), cloned(known.Stalls)
	change(&known)
	data, err := json.Marshal(known)
	if err != nil {
		return fmt.Errorf("remember a repository: %w", err)
	}
	return replaceFile(m.path, data)
}

// lockFile waits until no other process has the lock.
func lockFile(path string) (unlock func(), err error) {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	return func() { _ = lock.Close() }, nil
}

// cloned returns a copy to which can be added.
func cloned[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// replaceFile gives a file a new content, durably, and whole or not at all.
func replaceFile(path string, data []byte) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("remember a repository: %w", err)
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remember a repository: %w", err), os.Remove(file.Name()))
	}
	return syncDir(filepath.Dir(path))
}
