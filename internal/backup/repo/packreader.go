package repo

import (
	"context"
	"crypto/sha256"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// tailGuess is how many bytes at a pack's end are asked for first. Most footers fit.
const tailGuess = 64 << 10

// CheckPack finds damage in a whole pack without a key: its name, its lengths and its checksum. What it accepts may
// still be forged.
func CheckPack(name string, pack []byte) error {
	_, _, err := splitPack(name, pack)
	return err
}

func splitPack(name string, pack []byte) (*PackHeader, trailer, error) {
	h, err := ParsePackHeader(name, pack)
	if err != nil {
		return nil, trailer{}, believed(name, pack, err)
	}
	t, err := decodeTrailer(pack, int64(len(pack)))
	if err != nil {
		return nil, trailer{}, corrupt(name, "%v", err)
	}
	if sum := sha256.Sum256(pack[:len(pack)-sha256.Size]); sum != t.sum {
		return nil, trailer{}, corrupt(name, "its checksum does not match")
	}
	return h, t, nil
}

// believed returns the error of a pack's header, but fault.ErrCorrupt if that says that this program is too old and the
// checksum of the whole pack does not match: it may be damage that says so. Every format has the checksum at the end.
func believed(name string, pack []byte, err error) error {
	if end := len(pack) - sha256.Size; fault.Is(err, fault.ErrUnsupported) && sha256.Sum256(pack[:end]) != [sha256.Size]byte(pack[end:]) {
		return corrupt(name, "its checksum does not match")
	}
	return err
}

// ReadFooter returns what a stored pack of size bytes holds, in two or three requests. It fails with fault.ErrCorrupt if
// the pack is damaged where it looks, is not what was stored under its name, or belongs to another repository or
// lineage; with fault.ErrUnsupported if this program is too old for it, for which it reads all of it; and with
// fault.ErrNotFound if there is none.
func (l *Lineage) ReadFooter(ctx context.Context, s store.Store, name string, size int64) (PackRef, []Entry, error) {
	if size < packHeaderSize+trailerSize || size > store.MaxSize {
		return PackRef{}, nil, corrupt(name, "no pack has %d bytes", size)
	}
	start, err := s.GetRange(ctx, name, 0, min(size, maxPackHeader))
	if err != nil {
		return PackRef{}, nil, err
	}
	h, err := ParsePackHeader(name, start)
	if fault.Is(err, fault.ErrUnsupported) {
		pack, getErr := s.Get(ctx, name)
		if getErr != nil {
			return PackRef{}, nil, getErr
		}
		err = believed(name, pack, err)
	}
	if err != nil {
		return PackRef{}, nil, err
	}
	length := min(size, tailGuess)
	tail, err := s.GetRange(ctx, name, size-length, length)
	if fault.Is(err, fault.ErrCorrupt) { // records before the footer, perhaps
		length = trailerSize
		tail, err = s.GetRange(ctx, name, size-length, length)
	}
	if err != nil {
		return PackRef{}, nil, err
	}
	t, err := decodeTrailer(tail, size)
	if err != nil {
		return PackRef{}, nil, corrupt(name, "%v", err)
	}
	if missing := size - length - int64(t.offset); missing > 0 {
		before, err := s.GetRange(ctx, name, int64(t.offset), missing)
		if err != nil {
			return PackRef{}, nil, err
		}
		tail = append(before, tail...)
	}
	footer := tail[len(tail)-trailerSize-t.length : len(tail)-trailerSize]
	return l.openFooter(name, h, footer, t.offset, size)
}

// openFooter opens the sealed footer that begins at offset.
func (l *Lineage) openFooter(name string, h *PackHeader, sealed []byte, offset int, size int64) (PackRef, []Entry, error) {
	if err := l.checkOwner(name, h); err != nil {
		return PackRef{}, nil, err
	}
	ref := PackRef{Name: h.Name, Size: size, salt: h.salt}
	e := Entry{Type: typeFooter, Length: uint32(len(sealed) - tagSize)}
	sealer := l.keys.sealer(packKinds[h.Name.Kind].use, h.salt[:])
	footer, err := sealer.Open(nil, nonce(0), sealed, ref.additional(l.keys.repository, &e))
	if err != nil {
		return PackRef{}, nil, corrupt(name, "its footer is not what was written")
	}
	entries, err := decodeFooter(footer, h, offset)
	if err != nil {
		return PackRef{}, nil, corrupt(name, "%v", err)
	}
	return ref, entries, nil
}

// checkOwner refuses packs of another repository or lineage.
func (l *Lineage) checkOwner(name string, h *PackHeader) error {
	switch {
	case h.Repository != l.keys.repository:
		return foreign(name, h.Repository, l.keys.repository)
	case h.Encrypted != l.keys.encrypted:
		return corrupt(name, "it says that it is encrypted: %t", h.Encrypted)
	case h.Name.Lineage != l.name:
		return corrupt(name, "it belongs to lineage %s, not to %s", h.Name.Lineage, l.name)
	}
	return nil
}

// OpenRecord returns the plaintext of a record, given the bytes at its place in the pack. It is what the writer put
// there, with this ID, or the error is fault.ErrCorrupt.
func (l *Lineage) OpenRecord(ref PackRef, e Entry, sealed []byte) ([]byte, error) {
	name := ref.Name.String()
	if len(sealed) != int(e.Sealed) {
		return nil, corrupt(name, "%v has %d bytes instead of %d", &e, len(sealed), e.Sealed)
	}
	sealer := l.keys.sealer(packKinds[ref.Name.Kind].use, ref.salt[:])
	plaintext, err := sealer.Open(nil, nonce(e.Ordinal), sealed, ref.additional(l.keys.repository, &e))
	if err != nil {
		return nil, corrupt(name, "%v is not what was written", &e)
	}
	if e.flags == flagZstd {
		if plaintext, err = decompress(l.keys.decoder, plaintext, int(e.Length)); err != nil {
			return nil, corrupt(name, "%v: %v", &e, err)
		}
	}
	// The seal shows that nothing changed since it was written; this, that it was written right.
	if id := l.Hasher().Sum(e.Type, int(e.Level), plaintext); id != e.ID {
		return nil, corrupt(name, "%v is %s and was written as %s", &e, id, e.ID)
	}
	return plaintext, nil
}

// ReadRecord gets and opens one record of a stored pack.
func (l *Lineage) ReadRecord(ctx context.Context, s store.Store, ref PackRef, e Entry) ([]byte, error) {
	sealed, err := s.GetRange(ctx, ref.Name.String(), int64(e.Offset), int64(e.Sealed))
	if err != nil {
		return nil, err
	}
	return l.OpenRecord(ref, e, sealed)
}

// OpenPack checks a whole pack: its checksum and every record, whose plaintexts it hands to fn by their order. It fails
// with fault.ErrCorrupt at the pack's checksum or footer. A record that does not open goes to fn with its error, which
// fn may return to end it or ignore to see the others.
func (l *Lineage) OpenPack(name string, pack []byte, fn func(e Entry, plaintext []byte, err error) error) (PackRef, []Entry, error) {
	h, t, err := splitPack(name, pack)
	if err != nil {
		return PackRef{}, nil, err
	}
	return l.openRecords(name, pack, h, t, fn)
}

// SalvagePack is OpenPack for a pack whose checksum is known not to match: it hands out what can still be opened. It fails
// only if the header or the footer is damaged.
func (l *Lineage) SalvagePack(name string, pack []byte, fn func(e Entry, plaintext []byte, err error) error) (PackRef, []Entry, error) {
	h, err := ParsePackHeader(name, pack)
	if err != nil {
		return PackRef{}, nil, believed(name, pack, err)
	}
	t, err := decodeTrailer(pack, int64(len(pack)))
	if err != nil {
		return PackRef{}, nil, corrupt(name, "%v", err)
	}
	return l.openRecords(name, pack, h, t, fn)
}

func (l *Lineage) openRecords(name string, pack []byte, h *PackHeader, t trailer, fn func(Entry, []byte, error) error) (PackRef, []Entry, error) {
	ref, entries, err := l.openFooter(name, h, pack[t.offset:t.offset+t.length], t.offset, int64(len(pack)))
	if err != nil {
		return PackRef{}, nil, err
	}
	for _, e := range entries {
		plaintext, err := l.OpenRecord(ref, e, pack[e.Offset:e.Offset+e.Sealed])
		if err := fn(e, plaintext, err); err != nil {
			return ref, entries, err
		}
	}
	return ref, entries, nil
}
