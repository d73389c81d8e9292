package repo

import (
	"encoding/binary"

	"github.com/klauspost/compress/zstd"

	"orlop/internal/fault"
)

// decodeHead reads the plaintext of the object of a lineage's head of that number. It fails with fault.ErrCorrupt for what
// encodeHead does not return, and with fault.ErrUnsupported if this program is too old for it.
func decodeHead(lineage string, number uint64, data []byte, decoder *zstd.Decoder) (*Head, error) {
	if len(data) < headFixed {
		return nil, fault.Errorf(fault.ErrCorrupt, "head is truncated")
	}
	if data[0] != headVersion {
		return nil, fault.Errorf(fault.ErrUnsupported, "head of version %d, this program reads version %d", data[0], headVersion)
	}
	length := int(binary.LittleEndian.Uint32(data[4:]))
	flags, body := data[1], data[headFixed:]
	if flags > flagZstd || data[2] != 0 || data[3] != 0 || length > headBodyMax {
		return nil, fault.Errorf(fault.ErrCorrupt, "head with flags %d and a body of %d bytes", flags, length)
	}
	if flags == flagZstd {
		var err error
		if body, err = decompress(decoder, body, length); err != nil {
			return nil, fault.Errorf(fault.ErrCorrupt, "head: %v", err)
		}
	}
	if len(body) != length {
		return nil, fault.Errorf(fault.ErrCorrupt, "head with %d bytes instead of %d", len(body), length)
	}
	f := &fields{rest: body}
	h := &Head{Lineage: lineage, Number: f.uint64(), Nonce: f.id(), Parent: f.id(), Sequence: f.uint64()}
	h.readRecords(f)
	for range f.count(36) {
		h.Sessions = append(h.Sessions, f.session())
	}
	packs := f.count(headPackSize)
	h.Live = make([]LivePack, 0, packs)
	for range packs {
		h.Live = append(h.Live, f.pack(lineage))
	}
	switch {
	case f.err != nil:
		return nil, f.err
	case len(f.rest) > 0:
		return nil, fault.Errorf(fault.ErrCorrupt, "head with %d bytes too many", len(f.rest))
	case h.Number != number || h.Sequence == 0 || (h.Parent == ID{}) != (number == 1):
		return nil, fault.Errorf(fault.ErrCorrupt, "head %d says that it is head %d after %s, with sequence %d", number, h.Number, h.Parent, h.Sequence)
	}
	return h, nil
}

func (h *Head) readRecords(f *fields) {
	for range f.count(4) {
		encoded := f.bytes(int(f.uint32()))
		if f.err != nil {
			return
		}
		b, err := DecodeBackup(encoded)
		if err == nil && (b.Lineage != h.Lineage || b.Sequence >= h.Sequence) {
			err = fault.Errorf(fault.ErrCorrupt, "head %d of lineage %s holds backup %s with sequence %d", h.Number, h.Lineage, b.ID(), b.Sequence)
		}
		if err != nil {
			f.err = err
			return
		}
		h.Records = append(h.Records, Record{b, encoded})
	}
}

// fields reads one field after the other. After the first error it returns zeroes.
type fields struct {
	rest []byte
	err  error
}

// bytes returns the next n bytes, which are not copied.
func (f *fields) bytes(n int) []byte {
	if f.err == nil && (n < 0 || n > len(f.rest)) {
		f.err = fault.Errorf(fault.ErrCorrupt, "head is truncated")
	}
	if f.err != nil {
		return nil
	}
	field := f.rest[:n:n]
	f.rest = f.rest[n:]
	return field
}

func (f *fields) byte() byte {
	if b := f.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (f *fields) id() (id ID) {
	copy(id[:], f.bytes(len(id)))
	return id
}

func (f *fields) text() string { return string(f.bytes(int(f.byte()))) }

// count reads how many elements follow, each of at least size bytes.
func (f *fields) count(size int) int {
	n := int(f.uint32())
	if f.err == nil && n > len(f.rest)/size {
		f.err = fault.Errorf(fault.ErrCorrupt, "head is truncated: it has no room for %d elements", n)
	}
	if f.err != nil {
		return 0
	}
	return n
}

func (f *fields) session() Session {
	s := Session{ID: f.id(), Owner: f.id(), Kind: SessionKind(f.byte())}
	s.Origin = Origin{Host: f.text(), Boot: f.text(), Process: f.text()}
	bases := int(f.byte())
	if f.err == nil && bases > maxBases {
		f.err = fault.Errorf(fault.ErrCorrupt, "session with %d bases", bases)
	}
	for range bases {
		if f.err != nil {
			break
		}
		var base Tree
		copy(base.Root[:], f.bytes(len(base.Root)))
		base.Chunks = int64(f.uint64())
		if f.err == nil {
			f.err = base.check()
		}
		s.Bases = append(s.Bases, base)
	}
	return s
}

func (f *fields) pack(lineage string) LivePack {
	session, id, kind, size := f.id(), f.id(), PackKind(f.byte()), f.uint32()
	if _, known := packKinds[kind]; !known && f.err == nil {
		f.err = fault.Errorf(fault.ErrCorrupt, "head lists a pack of unknown kind %d", kind)
	}
	return LivePack{PackName{Lineage: lineage, Session: session.String(), ID: id, Kind: kind}, int64(size)}
}
