package storetest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A Memory is a store in memory, for the tests of those who use stores. It is safe for concurrent use. Each call
// happens in one instant.
type Memory struct {
	mu      sync.Mutex
	objects map[string][]byte // never written to, so that clones share them
	below   map[string]int    // how many objects are in each directory and those below it
}

var _ store.Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory() *Memory { return &Memory{objects: map[string][]byte{}, below: map[string]int{}} }

// Clone returns a store that holds what m holds now. Neither sees what happens to the other from here on.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{objects: maps.Clone(m.objects), below: maps.Clone(m.below)}
}

// Names returns the names of all objects, in order.
func (m *Memory) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// Put stores a copy of data. It refuses a name that is a directory of another's, or is inside another's.
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	if err := store.CheckPut(name, len(data)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if _, taken := m.objects[name]; taken {
		return fault.Errorf(fault.ErrExists, "put %s: exists already", name)
	}
	if m.below[name] > 0 {
		return fault.Errorf(fault.ErrInvalid, "put %s: it is a directory of objects", name)
	}
	for dir := range directories(name) {
		if _, taken := m.objects[dir]; taken {
			return fault.Errorf(fault.ErrInvalid, "put %s: there is an object %s", name, dir)
		}
	}
	m.objects[name] = append([]byte{}, data...)
	m.count(name, 1)
	return nil
}

// count adds n to the number of objects in each of name's directories. The caller holds m.mu.
func (m *Memory) count(name string, n int) {
	for dir := range directories(name) {
		m.below[dir] += n
		if m.below[dir] == 0 {
			delete(m.below, dir)
		}
	}
}

// directories yields the directories that name is in.
func directories(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range len(name) {
			if name[i] == '/' && !yield(name[:i]) {
				return
			}
		}
	}
}

// Get returns a copy of the object.
func (m *Memory) Get(ctx context.Context, name string) ([]byte, error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	data, err := m.object(ctx, name)
	return bytes.Clone(data), err
}

// GetRange returns a copy of a part of the object.
func (m *Memory) GetRange(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := store.CheckRange(name, offset, length); err != nil {
		return nil, err
	}
	data, err := m.object(ctx, name)
	if err != nil {
		return nil, err
	}
	if size := int64(len(data)); offset+length > size {
		return nil, fmt.Errorf("get %s: %w", name, store.Truncated(size, offset, length))
	}
	return bytes.Clone(data[offset : offset+length]), nil
}

func (m *Memory) object(ctx context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	data, ok := m.objects[name]
	if !ok {
		return nil, fault.Errorf(fault.ErrNotFound, "get %s: not found", name)
	}
	return data, nil
}

// List shows the store as it is when List begins.
func (m *Memory) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	for _, o := range m.listed(prefix) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := fn(o); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return nil
}

func (m *Memory) listed(prefix string) (objects []store.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, data := range m.objects {
		if strings.HasPrefix(name, prefix) {
			objects = append(objects, store.Object{Name: name, Size: int64(len(data))})
		}
	}
	slices.SortFunc(objects, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return objects
}

// Delete forgets the object.
func (m *Memory) Delete(ctx context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if _, there := m.objects[name]; there {
		delete(m.objects, name)
		m.count(name, -1)
	}
	return nil
}
