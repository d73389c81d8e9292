package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// A pack is an object that holds many records. It is written once, and describes itself:
//
//	header
//	record 1, record 2, …   each sealed, one after the other without gaps
//	footer                  sealed: the list of the records
//	trailer
//
// The header:
//
//	0   8  "ORLOPPK1"
//	8   1  kind: 1 data, 2 metadata
//	9   1  cipher: 1 AES-256-GCM, 2 none but a MAC
//	10  2  l, the length of the lineage's name
//	12  2  s, the length of the session's name
//	14  2  min_reader of the config less 1, so 0
//	16  4  k, the length of the slot block
//	20  4  length of the header, 88+l+s+k
//	24  16 the pack's ID, as in its object's name
//	40  16 the repository's ID
//	56  32 salt
//	88  l  lineage
//	    s  session
//	    k  the slot block: the JSON of the config's slots, nothing if the repository is not encrypted
//
// A record's nonce is its ordinal from 1 on; the footer's is 0. The key is derived from the master key and the salt for
// "data" or "meta". The additional data of a record and of the footer:
//
//	0   16 the repository's ID
//	16  16 the pack's ID
//	32  1  kind
//	33  1  type: 1 chunk, 2 tree node, 3 backup record, 255 footer
//	34  1  level, 0 for the footer
//	35  1  flags: 1 if the record is compressed (zstd), else 0
//	36  4  length of the record's plaintext before compression, or of the footer's
//	40  32 ChunkID, zeroes for the footer
//	72  2  l, and 2 bytes s
//	76  …  lineage, session
//
// The footer's plaintext:
//
//	0   32 SHA-256 of the header
//	32  4  number of records
//	36  …  for each record by its ordinal:
//	       0   32 ChunkID
//	       32  1  type
//	       33  1  level
//	       34  1  flags
//	       35  1  0
//	       36  4  offset in the pack
//	       40  4  length, sealed
//	       44  4  length of the plaintext
//
// The trailer, the last 48 bytes:
//
//	0   4  offset of the footer
//	4   4  length of the footer, sealed
//	8   8  "ORLOPEND"
//	16  32 SHA-256 of the whole pack before this field, for who holds no key
const (
	packMagic      = "ORLOPPK1"
	packHeaderSize = 88
	trailerMagic   = "ORLOPEND"
	trailerSize    = 48
	footerFixed    = 36
	entrySize      = 48

	// maxEntries bounds a pack's records, so that its footer stays below 1 MiB however well chunks compress.
	maxEntries = 1 << 14

	maxPackHeader = packHeaderSize + 2*maxLabel + maxSlots
	maxFooter     = footerFixed + maxEntries*entrySize + tagSize
	maxBackup     = 1 << 20 // bytes of a backup record's plaintext
)

// The ciphers, by the byte in a pack's header.
const (
	cipherByteGCM byte = 1
	cipherByteMAC byte = 2
)

// A PackHeader is what a pack tells without a key. Only a footer that opens makes it trustworthy.
//
// It repeats the config's min_reader, which is found nowhere else once the config is lost: without it an old program would
// make the config anew, and write.
type PackHeader struct {
	Name       PackName
	Repository ID
	Encrypted  bool
	Slots      []byte // for KeyringFromSlots

	salt   [secretSize]byte
	length int
	sum    [sha256.Size]byte
}

// encode returns the header's bytes, and sets its length and sum.
func (h *PackHeader) encode() []byte {
	cipher := cipherByteMAC
	if h.Encrypted {
		cipher = cipherByteGCM
	}
	h.length = packHeaderSize + len(h.Name.Lineage) + len(h.Name.Session) + len(h.Slots)
	data := append(make([]byte, 0, h.length), packMagic...)
	data = append(data, byte(h.Name.Kind), cipher)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(h.Name.Lineage)))
	data = binary.LittleEndian.AppendUint16(data, uint16(len(h.Name.Session)))
	data = binary.LittleEndian.AppendUint16(data, minReader-1)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(h.Slots)))
	data = binary.LittleEndian.AppendUint32(data, uint32(h.length))
	data = append(append(append(data, h.Name.ID[:]...), h.Repository[:]...), h.salt[:]...)
	data = append(append(append(data, h.Name.Lineage...), h.Name.Session...), h.Slots...)
	h.sum = sha256.Sum256(data)
	return data
}

// ParsePackHeader reads the header of the pack that is stored under name, given the pack's beginning: its first 20 KiB or
// all of it. It fails with fault.ErrCorrupt if this is no pack's beginning, or another pack's, and with
// fault.ErrUnsupported if it says that this program is too old for it.
func ParsePackHeader(name string, data []byte) (*PackHeader, error) {
	wanted, err := ParsePackName(name)
	if err != nil {
		return nil, err
	}
	h, err := decodePackHeader(data)
	if fault.Is(err, fault.ErrUnsupported) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err != nil {
		return nil, corrupt(name, "%v", err)
	}
	if h.Name != wanted {
		return nil, corrupt(name, "it holds what belongs into %s", h.Name)
	}
	return h, nil
}

func decodePackHeader(data []byte) (*PackHeader, error) {
	if len(data) < packHeaderSize || string(data[:8]) != packMagic {
		return nil, fault.Errorf(fault.ErrCorrupt, "it is truncated or no pack")
	}
	// What a later format may have changed is read only after it was found fit to be read.
	if wanted := int(binary.LittleEndian.Uint16(data[14:])) + 1; wanted > Format {
		return nil, fault.Errorf(fault.ErrUnsupported, "the pack wants a program that reads format %d, this one reads up to %d", wanted, Format)
	}
	h := &PackHeader{Encrypted: data[9] == cipherByteGCM}
	h.Name.Kind = PackKind(data[8])
	lineage := int(binary.LittleEndian.Uint16(data[10:]))
	session := int(binary.LittleEndian.Uint16(data[12:]))
	slots := int(binary.LittleEndian.Uint32(data[16:]))
	h.length = int(binary.LittleEndian.Uint32(data[20:]))
	_, known := packKinds[h.Name.Kind]
	switch {
	case !known || data[9] != cipherByteGCM && data[9] != cipherByteMAC:
		return nil, fault.Errorf(fault.ErrCorrupt, "its header has unknown values")
	case slots > maxSlots || h.length != packHeaderSize+lineage+session+slots || h.length > len(data):
		return nil, fault.Errorf(fault.ErrCorrupt, "its header is truncated or has wrong lengths")
	}
	copy(h.Name.ID[:], data[24:])
	copy(h.Repository[:], data[40:])
	copy(h.salt[:], data[56:])
	rest := data[packHeaderSize:h.length]
	h.Name.Lineage, rest = string(rest[:lineage]), rest[lineage:]
	h.Name.Session, rest = string(rest[:session]), rest[session:]
	h.Slots = bytes.Clone(rest)
	if CheckLabel(h.Name.Lineage) != nil || CheckLabel(h.Name.Session) != nil {
		return nil, fault.Errorf(fault.ErrCorrupt, "its header names no lineage and session")
	}
	h.sum = sha256.Sum256(data[:h.length])
	return h, nil
}

// A trailer is where the footer is.
type trailer struct {
	offset, length int
	sum            [sha256.Size]byte
}

// decodeTrailer reads the last bytes of a pack of size bytes.
func decodeTrailer(data []byte, size int64) (trailer, error) {
	if len(data) < trailerSize || string(data[len(data)-40:][:8]) != trailerMagic {
		return trailer{}, fault.Errorf(fault.ErrCorrupt, "it is truncated: its end is missing")
	}
	data = data[len(data)-trailerSize:]
	t := trailer{
		offset: int(binary.LittleEndian.Uint32(data)),
		length: int(binary.LittleEndian.Uint32(data[4:])),
		sum:    [sha256.Size]byte(data[16:]),
	}
	if int64(t.offset)+int64(t.length)+trailerSize != size || t.length > maxFooter || t.length < footerFixed+tagSize {
		return trailer{}, fault.Errorf(fault.ErrCorrupt, "its trailer has wrong lengths")
	}
	return t, nil
}

// An Entry is a record of a pack.
type Entry struct {
	ID      ChunkID
	Type    Type
	Level   uint8
	Ordinal uint32 // from 1
	Offset  uint32 // in the pack
	Sealed  uint32 // bytes in the pack
	Length  uint32 // bytes of the plaintext

	flags byte
}

// check refuses entries that cannot be in a pack of that kind.
func (e *Entry) check(kind PackKind) error {
	limit := map[Type]uint32{TypeChunk: MaxChunk, TypeNode: nodeMax, TypeBackup: maxBackup}[e.Type]
	switch { // the limit of an unknown type is 0
	case e.Length == 0 || e.Length > limit,
		(e.Type == TypeChunk) != (kind == DataPack),
		(e.Level > 0) != (e.Type == TypeNode) || e.Level > maxLevels,
		e.flags == 0 && e.Sealed != e.Length+tagSize,
		e.flags == flagZstd && (e.Sealed <= tagSize || e.Sealed >= e.Length+tagSize),
		e.flags > flagZstd:
		return fault.Errorf(fault.ErrCorrupt, "record %d (type %d, level %d, flags %d, %d bytes in %d) cannot be", e.Ordinal, e.Type, e.Level, e.flags, e.Length, e.Sealed)
	}
	return nil
}

func appendEntry(data []byte, e Entry) []byte {
	data = append(append(data, e.ID[:]...), byte(e.Type), e.Level, e.flags, 0)
	data = binary.LittleEndian.AppendUint32(data, e.Offset)
	data = binary.LittleEndian.AppendUint32(data, e.Sealed)
	return binary.LittleEndian.AppendUint32(data, e.Length)
}

// encodeFooter returns the footer's plaintext.
func encodeFooter(headerSum [sha256.Size]byte, entries []Entry) []byte {
	data := append(make([]byte, 0, footerFixed+len(entries)*entrySize), headerSum[:]...)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(entries)))
	for _, e := range entries {
		data = appendEntry(data, e)
	}
	return data
}

// decodeFooter reads the plaintext of the footer at that offset, and checks it against the header.
func decodeFooter(data []byte, h *PackHeader, offset int) ([]Entry, error) {
	if len(data) < footerFixed || !bytes.Equal(data[:sha256.Size], h.sum[:]) {
		return nil, fault.Errorf(fault.ErrCorrupt, "its footer belongs to another header")
	}
	entries, err := decodeEntries(data[sha256.Size:], h.Name.Kind, h.length)
	if err != nil {
		return nil, err
	}
	if last := entries[len(entries)-1]; int(last.Offset+last.Sealed) != offset {
		return nil, fault.Errorf(fault.ErrCorrupt, "its records end at %d and not at the footer", last.Offset+last.Sealed)
	}
	return entries, nil
}

// decodeEntries reads the number of records and the records, the first of which begins at offset first.
func decodeEntries(data []byte, kind PackKind, first int) ([]Entry, error) {
	if len(data) < 4 {
		return nil, fault.Errorf(fault.ErrCorrupt, "its list of records is truncated")
	}
	count := int(binary.LittleEndian.Uint32(data))
	data = data[4:]
	if count < 1 || count > maxEntries || len(data) != count*entrySize {
		return nil, fault.Errorf(fault.ErrCorrupt, "its list of %d records has %d bytes", count, len(data))
	}
	entries := make([]Entry, count)
	next := int64(first)
	for i := range entries {
		e := decodeEntry(data[i*entrySize:], uint32(i)+1)
		if err := e.check(kind); err != nil {
			return nil, err
		}
		if int64(e.Offset) != next || next+int64(e.Sealed) > store.MaxSize || data[i*entrySize+35] != 0 {
			return nil, fault.Errorf(fault.ErrCorrupt, "record %d does not follow the one before", e.Ordinal)
		}
		next += int64(e.Sealed)
		entries[i] = e
	}
	return entries, nil
}

func decodeEntry(data []byte, ordinal uint32) Entry {
	return Entry{
		ID: ChunkID(data[:32]), Type: Type(data[32]), Level: data[33], flags: data[34], Ordinal: ordinal,
		Offset: binary.LittleEndian.Uint32(data[36:]),
		Sealed: binary.LittleEndian.Uint32(data[40:]),
		Length: binary.LittleEndian.Uint32(data[44:]),
	}
}

// A PackRef is what is needed to open a pack's records: where it is, and its salt. It comes from packs that were written
// or whose footers were opened.
type PackRef struct {
	Name PackName
	Size int64 // bytes of the object

	salt [secretSize]byte
}

// additional returns what a record is bound to.
func (p *PackRef) additional(repository ID, e *Entry) []byte {
	data := append(make([]byte, 0, 76+2*maxLabel), repository[:]...)
	data = append(append(data, p.Name.ID[:]...), byte(p.Name.Kind), byte(e.Type), e.Level, e.flags)
	data = binary.LittleEndian.AppendUint32(data, e.Length)
	data = append(data, e.ID[:]...)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(p.Name.Lineage)))
	data = binary.LittleEndian.AppendUint16(data, uint16(len(p.Name.Session)))
	return append(append(data, p.Name.Lineage...), p.Name.Session...)
}

// String describes the entry in messages.
func (e *Entry) String() string { return fmt.Sprintf("record %d at %d", e.Ordinal, e.Offset) }
