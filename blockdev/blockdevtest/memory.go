package blockdevtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// A Memory is a pool of devices in memory. They are files, not block devices, but what Activate returns can be
// opened, read, written and looked at for a signature by any process that may see this one's /proc; it cannot be
// mounted. A Memory is safe for concurrent use. It outlives the crash of whatever uses it, not of the process.
type Memory struct {
	mu       sync.Mutex
	devices  map[blockdev.ID]*memoryDevice
	prepared map[blockdev.ID]blockdev.Record // of devices that Clone has yet to make
	holders  map[string]int                  // exclusive claims by path
	full     bool
}

type memoryDevice struct {
	data   *os.File // memfd
	open   *os.File // what the path leads to; nil unless active
	mode   blockdev.Mode
	sealed bool
	record blockdev.Record
}

var _ blockdev.Pool = (*Memory)(nil)

// memorySize is what a Memory says to have, in bytes: it has no limit of its own.
const memorySize = int64(1) << 40

// NewMemory makes an empty pool. Close gives its memory back.
func NewMemory() *Memory {
	return &Memory{devices: map[blockdev.ID]*memoryDevice{}, prepared: map[blockdev.ID]blockdev.Record{}, holders: map[string]int{}}
}

// Close forgets every device.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, device := range m.devices {
		_ = device.close() // memory: nothing to lose
		delete(m.devices, id)
	}
	clear(m.prepared)
}

// Hold claims the active device at path, as a mount would, until release is called. It fails with
// fault.ErrNotFound if no active device is there, and with fault.ErrInUse if it is claimed already.
func (m *Memory) Hold(path string) (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	active := false
	for _, device := range m.devices {
		active = active || device.path() == path
	}
	switch {
	case path == "" || !active:
		return nil, fault.Errorf(fault.ErrNotFound, "hold %s: no active device", path)
	case m.holders[path] > 0:
		return nil, fault.Errorf(fault.ErrInUse, "hold %s: in use", path)
	}
	m.holders[path]++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.holders, path)
	}), nil
}

// SetFull makes everything that needs room fail with fault.ErrNoSpace, or succeed again.
func (m *Memory) SetFull(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

func (d *memoryDevice) path() string {
	if d.open == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), d.open.Fd())
}

func (d *memoryDevice) close() error {
	err := d.data.Close()
	if d.open != nil {
		err = errors.Join(err, d.open.Close())
	}
	return err
}

func memoryFile(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("orlop-device", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "orlop-device")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// duplicate copies a memory file, holes excepted.
func duplicate(src *os.File) (*os.File, error) {
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	dst, err := memoryFile(info.Size())
	if err != nil {
		return nil, err
	}
	for offset := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst, nil // no data after offset
		}
		if err != nil {
			return nil, errors.Join(err, dst.Close())
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start))
		}
		if err != nil {
			return nil, errors.Join(err, dst.Close())
		}
		offset = end
	}
}

// device returns the device, or fault.ErrNotFound. The caller holds m.mu.
func (m *Memory) device(id blockdev.ID) (*memoryDevice, error) {
	if _, err := blockdev.ParseID(string(id)); err != nil {
		return nil, err
	}
	device, ok := m.devices[id]
	if !ok {
		return nil, fault.Errorf(fault.ErrNotFound, "device %s: not found", id)
	}
	return device, nil
}

// refuse tells why a device cannot be made, if so.
func (m *Memory) refuse(ctx context.Context, id blockdev.ID) error {
	_, err := m.device(id)
	switch {
	case err == nil:
		return fault.Errorf(fault.ErrExists, "device %s: already exists", id)
	case !fault.Is(err, fault.ErrNotFound):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("make device %s: %w", id, ctx.Err())
	case m.full:
		return fault.Errorf(fault.ErrNoSpace, "make device %s: the pool is full", id)
	}
	return nil
}

// add makes a device of what fill returns. What was prepared of it is gone, also after a failure.
func (m *Memory) add(ctx context.Context, id blockdev.ID, record blockdev.Record, fill func() (*os.File, error)) error {
	delete(m.prepared, id)
	if err := m.refuse(ctx, id); err != nil {
		return err
	}
	data, err := fill()
	if err != nil {
		return fmt.Errorf("make device %s: %w", id, err)
	}
	m.devices[id] = &memoryDevice{data: data, record: bytes.Clone(record)}
	return nil
}

// Create makes a device of exactly size bytes.
func (m *Memory) Create(ctx context.Context, id blockdev.ID, size int64, record blockdev.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add(ctx, id, record, func() (*os.File, error) { return memoryFile(size) })
}

// Prepare only remembers the record.
func (m *Memory) Prepare(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.device(src); err != nil {
		return err
	}
	if err := m.refuse(ctx, dst); err != nil {
		return err
	}
	m.prepared[dst] = bytes.Clone(record)
	return nil
}

// Clone copies what src holds.
func (m *Memory) Clone(ctx context.Context, dst, src blockdev.ID, record blockdev.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.device(src)
	if err != nil {
		return err
	}
	return m.add(ctx, dst, record, func() (*os.File, error) { return duplicate(from.data) })
}

// Describe replaces the record.
func (m *Memory) Describe(_ context.Context, id blockdev.ID, record blockdev.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return err
	}
	if m.full {
		return fault.Errorf(fault.ErrNoSpace, "describe device %s: the pool is full", id)
	}
	device.record = bytes.Clone(record)
	return nil
}

// Sync has nothing to do beyond finding the device.
func (m *Memory) Sync(_ context.Context, id blockdev.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.device(id)
	return err
}

// Seal makes the device refuse to be written or grown from here on.
func (m *Memory) Seal(_ context.Context, id blockdev.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return err
	}
	if device.open != nil && device.mode != blockdev.ReadOnly {
		return fault.Errorf(fault.ErrInUse, "seal device %s: %s can be written", id, device.path())
	}
	device.sealed = true
	return nil
}

// Grow extends the device.
func (m *Memory) Grow(_ context.Context, id blockdev.ID, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return err
	}
	info, err := device.data.Stat()
	if err != nil {
		return fmt.Errorf("grow device %s: %w", id, err)
	}
	if size <= info.Size() {
		return nil
	}
	if device.sealed {
		return fault.Errorf(fault.ErrProtected, "grow device %s: it is sealed", id)
	}
	if m.full {
		return fault.Errorf(fault.ErrNoSpace, "grow device %s: the pool is full", id)
	}
	for _, f := range []*os.File{device.data, device.open} {
		if f == nil {
			continue
		}
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("grow device %s: %w", id, err)
		}
	}
	return nil
}

// Replace moves what by holds.
func (m *Memory) Replace(_ context.Context, id, by blockdev.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return err
	}
	other, err := m.device(by)
	switch {
	case err != nil:
		return err
	case device.sealed || other.sealed:
		return fault.Errorf(fault.ErrProtected, "replace device %s by %s: sealed", id, by)
	case device.open != nil || other.open != nil:
		return fault.Errorf(fault.ErrInUse, "replace device %s by %s: active", id, by)
	}
	_ = device.data.Close() // memory: nothing to lose
	device.data = other.data
	delete(m.devices, by)
	return nil
}

// Activate opens the device once more and returns where /proc shows that. A read-only device is shown as a sealed
// copy, which even root cannot write to.
func (m *Memory) Activate(_ context.Context, id blockdev.ID, mode blockdev.Mode) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return "", err
	}
	if device.sealed && mode == blockdev.ReadWrite {
		return "", fault.Errorf(fault.ErrProtected, "activate device %s: it is sealed", id)
	}
	if device.open != nil {
		return device.path(), nil
	}
	device.mode = mode
	if mode == blockdev.ReadOnly {
		device.open, err = sealed(device.data)
	} else {
		device.open, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", device.data.Fd()), os.O_RDWR, 0)
	}
	if err != nil {
		device.open = nil
		return "", fmt.Errorf("activate device %s: %w", id, err)
	}
	return device.path(), nil
}

func sealed(data *os.File) (*os.File, error) {
	f, err := duplicate(data)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return nil, errors.Join(fmt.Errorf("seal: %w", err), f.Close())
	}
	return f, nil
}

// Deactivate fails with fault.ErrInUse while Hold claims the device. Others that have it open are not noticed.
func (m *Memory) Deactivate(_ context.Context, id blockdev.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if fault.Is(err, fault.ErrNotFound) || err == nil && device.open == nil {
		return nil
	}
	if err != nil {
		return err
	}
	if m.holders[device.path()] > 0 {
		return fault.Errorf(fault.ErrInUse, "deactivate device %s: %s is in use", id, device.path())
	}
	open := device.open
	device.open = nil
	if err := open.Close(); err != nil {
		return fmt.Errorf("deactivate device %s: %w", id, err)
	}
	return nil
}

// Remove forgets the device.
func (m *Memory) Remove(_ context.Context, id blockdev.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.prepared, id)
	device, err := m.device(id)
	if fault.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if device.open != nil {
		return fault.Errorf(fault.ErrInUse, "remove device %s: active as %s", id, device.path())
	}
	delete(m.devices, id)
	if err := device.close(); err != nil {
		return fmt.Errorf("remove device %s: %w", id, err)
	}
	return nil
}

// Stat describes a device, but for its record.
func (m *Memory) Stat(_ context.Context, id blockdev.ID) (blockdev.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	device, err := m.device(id)
	if err != nil {
		return blockdev.Info{}, err
	}
	info, err := device.info(id)
	info.Record = nil // from List only
	return info, err
}

func (d *memoryDevice) info(id blockdev.ID) (blockdev.Info, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(d.data.Fd()), &stat); err != nil {
		return blockdev.Info{}, fmt.Errorf("stat device %s: %w", id, err)
	}
	return blockdev.Info{ID: id, Size: stat.Size, Used: stat.Blocks * 512, Path: d.path(), Record: bytes.Clone(d.record)}, nil
}

// List describes every device, by its age; one that is only prepared has size 0.
func (m *Memory) List(context.Context) ([]blockdev.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var infos []blockdev.Info
	for id, device := range m.devices {
		info, err := device.info(id)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	for id, record := range m.prepared {
		infos = append(infos, blockdev.Info{ID: id, Record: bytes.Clone(record)})
	}
	slices.SortFunc(infos, func(a, b blockdev.Info) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return infos, nil
}

// Space shows a terabyte that is free, or none of it if the pool is full.
func (m *Memory) Space(context.Context) (blockdev.Space, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	space := blockdev.Space{Layer: "memory", Size: memorySize, Free: memorySize, Remedy: "delete volumes"}
	if m.full {
		space.Free = 0
	}
	return space, nil
}

// Traits describes this kind of pool.
func (m *Memory) Traits() blockdev.Traits { return blockdev.Traits{Kind: "memory", InstantClone: true} }
