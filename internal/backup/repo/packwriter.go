package repo

import (
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// A Pack is a finished pack, to be stored as Ref.Name.
type Pack struct {
	Ref     PackRef
	Entries []Entry
	Bytes   []byte
}

// A packWriter assembles a pack in memory. It is not safe for concurrent use. It takes records until full, and finish
// once.
type packWriter struct {
	lineage *Lineage
	ref     PackRef
	header  PackHeader
	sealer  cipher.AEAD
	data    []byte
	entries []Entry
}

// newPackWriter begins a pack in space, which grows if it is too small. ID and salt are drawn anew: a pack that could not
// be finished or stored is never continued.
func (l *Lineage) newPackWriter(session string, kind PackKind, space []byte) (*packWriter, error) {
	if err := CheckLabel(session); err != nil {
		return nil, err
	}
	w := &packWriter{lineage: l}
	name := PackName{Lineage: l.name, Session: session, Kind: kind}
	if err := fill(l.keys.Random, name.ID[:]); err != nil {
		return nil, fmt.Errorf("begin a pack: %w", err)
	}
	if err := fill(l.keys.Random, w.ref.salt[:]); err != nil {
		return nil, fmt.Errorf("begin a pack: %w", err)
	}
	w.ref.Name = name
	w.header = PackHeader{
		Name: name, Repository: l.keys.repository, Encrypted: l.keys.encrypted, Slots: l.keys.slots, salt: w.ref.salt,
	}
	w.sealer = l.keys.sealer(packKinds[kind].use, w.ref.salt[:])
	w.data = append(space[:0], w.header.encode()...)
	return w, nil
}

// packSpace is the most bytes that a pack of a kind takes.
func packSpace(kind PackKind) int {
	return maxPackHeader + packKinds[kind].limit + maxFooter + trailerSize
}

// fits tells whether there is room for a record of that many bytes before it is sealed.
func (w *packWriter) fits(payload int) bool {
	used := len(w.data) - w.header.length
	return len(w.entries) < maxEntries && used+payload+tagSize <= packKinds[w.ref.Name.Kind].limit
}

// add seals a record that fits. Of e, the ID, type, level, flags and length are given.
func (w *packWriter) add(e Entry, payload []byte) Entry {
	e.Ordinal, e.Offset, e.Sealed = uint32(len(w.entries))+1, uint32(len(w.data)), uint32(len(payload)+tagSize)
	w.data = slices.Grow(w.data, int(e.Sealed)) // Seal grows by what it needs and no more: for many records, too often
	w.data = w.sealer.Seal(w.data, nonce(e.Ordinal), payload, w.ref.additional(w.lineage.keys.repository, &e))
	w.entries = append(w.entries, e)
	return e
}

// finish adds the footer and the trailer. There must be at least one record.
func (w *packWriter) finish() Pack {
	footer := encodeFooter(w.header.sum, w.entries)
	e := Entry{Type: typeFooter, Length: uint32(len(footer))}
	offset := len(w.data)
	w.data = w.sealer.Seal(w.data, nonce(0), footer, w.ref.additional(w.lineage.keys.repository, &e))
	length := len(w.data) - offset
	w.data = binary.LittleEndian.AppendUint32(w.data, uint32(offset))
	w.data = binary.LittleEndian.AppendUint32(w.data, uint32(length))
	w.data = append(w.data, trailerMagic...)
	sum := sha256.Sum256(w.data)
	w.data = append(w.data, sum[:]...)
	w.ref.Size = int64(len(w.data))
	return Pack{Ref: w.ref, Entries: w.entries, Bytes: w.data}
}
