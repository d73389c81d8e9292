package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernel answers questions about device-mapper devices. It waits neither for lvm(8) nor for its locks.
type kernel interface {
	// status describes a device by its UUID or, where that is empty, by its name; ok is false if none is active.
	status(uuid, name string) (s status, ok bool, err error)
	// message sends a message to the first target of the device called name.
	message(name, text string) error
}

// A status is what the kernel tells of an active device.
type status struct {
	name     string // in /dev/mapper
	uuid     string // as in LVM-…
	opens    int    // how often it is open, mounts included
	readOnly bool
	size     int64  // bytes
	target   string // the first target's type, as in "thin-pool"
	params   string // and its status line
}

func (s status) path() string { return "/dev/mapper/" + s.name }

// deviceMapper is the kernel's ioctl interface, version 4; see linux/dm-ioctl.h.
type deviceMapper struct{}

const (
	controlNode = "/dev/mapper/control"

	dmTableStatus = 12
	dmTargetMsg   = 14

	dmReadOnly   = 1 << 0
	dmBufferFull = 1 << 8
	dmNoFlush    = 1 << 11 // a pool without space would make a status that flushes wait

	dmBuffer = 16 << 10
)

// dmHeader is struct dm_ioctl.
type dmHeader struct {
	Version     [3]uint32
	DataSize    uint32
	DataStart   uint32
	TargetCount uint32
	OpenCount   int32
	Flags       uint32
	EventNr     uint32
	_           uint32
	Dev         uint64
	Name        [128]byte
	UUID        [129]byte
	_           [7]byte
}

const (
	dmHeaderSize = 312
	dmSpecSize   = 40 // of struct dm_target_spec
)

// call makes one ioctl for the device of this UUID or name with payload behind the header.
func (deviceMapper) call(nr uintptr, uuid, name string, flags uint32, payload []byte) (h dmHeader, data []byte, err error) {
	control, err := os.OpenFile(controlNode, os.O_RDWR, 0)
	if err != nil {
		return h, nil, fmt.Errorf("device-mapper: %w", err)
	}
	defer control.Close()
	h = dmHeader{Version: [3]uint32{4, 0, 0}, DataSize: dmBuffer, DataStart: dmHeaderSize, Flags: flags}
	if uuid != "" {
		name = ""
	}
	if len(name) >= len(h.Name) || len(uuid) >= len(h.UUID) {
		return h, nil, unix.ENXIO // none can have such a name
	}
	copy(h.Name[:], name)
	copy(h.UUID[:], uuid)
	buffer := make([]byte, dmBuffer)
	if _, err := binary.Encode(buffer, binary.NativeEndian, &h); err != nil {
		return h, nil, err
	}
	copy(buffer[dmHeaderSize:], payload)
	request := uintptr(3)<<30 | dmHeaderSize<<16 | 0xfd<<8 | nr // _IOWR(DM_IOCTL, nr, struct dm_ioctl)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&buffer[0])))
	if errno != 0 {
		return h, nil, errno
	}
	if _, err := binary.Decode(buffer, binary.NativeEndian, &h); err != nil {
		return h, nil, err
	}
	if h.Flags&dmBufferFull != 0 || int(h.DataStart) > len(buffer) {
		return h, nil, errors.New("device-mapper: answer does not fit its buffer")
	}
	return h, buffer[h.DataStart:], nil
}

func (d deviceMapper) status(uuid, name string) (s status, ok bool, err error) {
	h, data, err := d.call(dmTableStatus, uuid, name, dmNoFlush, nil)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return s, false, nil
	case err != nil:
		return s, false, fmt.Errorf("status of device-mapper device %s%s: %w", name, uuid, err)
	}
	s = status{name: text(h.Name[:]), uuid: text(h.UUID[:]), opens: int(h.OpenCount), readOnly: h.Flags&dmReadOnly != 0}
	for at := 0; h.TargetCount > 0 && at+dmSpecSize <= len(data); h.TargetCount-- {
		spec := data[at:]
		if s.target == "" {
			s.target, s.params = text(spec[24:dmSpecSize]), text(spec[dmSpecSize:])
		}
		s.size += 512 * int64(binary.NativeEndian.Uint64(spec[8:]))
		at = int(binary.NativeEndian.Uint32(spec[20:])) // the next target, counted from the first
		if at == 0 {
			break
		}
	}
	return s, true, nil
}

func (d deviceMapper) message(name, message string) error {
	payload := make([]byte, 8, 8+len(message)+1) // sector 0: the first target
	payload = append(append(payload, message...), 0)
	if _, _, err := d.call(dmTargetMsg, "", name, 0, payload); err != nil {
		return fmt.Errorf("message %q to device-mapper device %s: %w", message, name, err)
	}
	return nil
}

// text is what a field holds up to its NUL.
func text(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return string(before)
}

// mapperName returns the name that LVM gives a logical volume's device: dashes of the parts are doubled.
func mapperName(vg, lv string) string {
	return strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
}

// mapped returns the bytes that the status line of a thin device says are allocated; ok is false if it does not say.
func mapped(params string) (bytes int64, ok bool) {
	first, _, _ := strings.Cut(params, " ")
	sectors, err := strconv.ParseInt(first, 10, 64)
	if err != nil || sectors < 0 || sectors > 1<<53 {
		return 0, false
	}
	return 512 * sectors, true
}

// poolStatus is the status line of a thin pool; see Documentation/admin-guide/device-mapper/thin-provisioning.rst.
type poolStatus struct {
	metaUsed, metaTotal int64  // blocks of 4 KiB
	dataUsed, dataTotal int64  // chunks
	held                bool   // a metadata snapshot is reserved
	mode                string // "rw", "ro", "out_of_data_space" or "Fail"
	needsCheck          bool
}

func parsePoolStatus(params string) (s poolStatus, err error) {
	fields := strings.Fields(params)
	if len(fields) > 0 && (fields[0] == "Fail" || fields[0] == "Error") {
		return poolStatus{mode: "Fail"}, nil
	}
	if len(fields) < 5 {
		return s, fmt.Errorf("status %q of a thin pool: unknown form", params)
	}
	metaErr := fraction(fields[1], &s.metaUsed, &s.metaTotal)
	dataErr := fraction(fields[2], &s.dataUsed, &s.dataTotal)
	if metaErr != nil || dataErr != nil {
		return s, fmt.Errorf("status %q of a thin pool: unknown form", params)
	}
	s.held, s.mode = fields[3] != "-", fields[4]
	for _, word := range fields[5:] {
		s.needsCheck = s.needsCheck || word == "needs_check"
	}
	return s, nil
}

// fraction reads "used/total".
func fraction(field string, used, total *int64) (err error) {
	left, right, _ := strings.Cut(field, "/")
	if *used, err = strconv.ParseInt(left, 10, 64); err == nil {
		*total, err = strconv.ParseInt(right, 10, 64)
	}
	if err == nil && (*used < 0 || *total <= 0 || *used > *total) {
		err = strconv.ErrRange
	}
	return err
}
