package repo

import (
	"cmp"
	"encoding/binary"
	"slices"

	"orlop/internal/fault"
)

// Kept is how many heads of a lineage a clean-up leaves, those with the highest numbers. Everybody counts on it: a head
// whose number is less than this below the newest was never deleted.
const Kept = 64

// A Head is the whole state of a lineage: the newest one tells which backups there are and which packs hold them. It
// never changes. Number 0, with no object, is the state before the first.
//
// Its object is sealed (see SealObject) and holds:
//
//	0   1   version, 1
//	1   1   flags: 1 if the body is compressed, one zstd frame, else 0
//	2   2   0
//	4   4   length of the body before compression
//	8   …   the body
//
// The body:
//
//	0   8   number, as in the object's name
//	8   16  nonce
//	24  16  nonce of the head before, zeroes for number 1
//	40  8   sequence number of the next backup
//	48  4   number of backups, and for each
//	        4   n
//	        n   the record, JSON as in its metadata pack
//	    4   number of sessions, and for each
//	        16  ID; the session's name is its hex
//	        16  nonce of the owner
//	        1   kind: 1 backup, 2 compaction, 3 repair
//	        3×  1 byte n and n bytes: host, boot, process
//	        1   number of bases, and for each
//	            32  ID of the tree's root
//	            8   number of its chunks
//	    4   number of live packs, and for each
//	        16  ID of its session
//	        16  its ID
//	        1   kind, as in the pack's header
//	        4   size of its object
type Head struct {
	Lineage  string
	Number   uint64
	Nonce    ID
	Parent   ID
	Sequence uint64
	Records  []Record
	Sessions []Session
	Live     []LivePack
}

// A Record is a committed backup. The backup's Record is the owner nonce of the run that wrote it, in hex.
type Record struct {
	*Backup

	encoded []byte // as in the pack: fields that are not known here are kept
}

// A LivePack is a pack whose records may be referred to.
type LivePack struct {
	Name PackName
	Size int64 // bytes of the object
}

// A SessionKind tells what a session is for. Its value is the byte in heads.
type SessionKind byte

// The kinds of sessions.
const (
	BackupSession     SessionKind = 1
	CompactionSession SessionKind = 2
	RepairSession     SessionKind = 3
)

// A Session protects what is uploaded under its name, and all below the roots of its bases, from collection.
type Session struct {
	ID     ID
	Owner  ID // of the run that uploads; another one took it over if this changed
	Kind   SessionKind
	Origin Origin
	Bases  []Tree // what the backup is built on; their records may be gone
}

// Name is the session's in the names of packs.
func (s *Session) Name() string { return s.ID.String() }

const (
	headVersion  = 1
	headFixed    = 8
	headBodyMax  = 256 << 20 // bytes
	headPackSize = 37
	maxBases     = 16
)

// Backups returns the backups by their sequence.
func (h *Head) Backups() []*Backup {
	backups := make([]*Backup, len(h.Records))
	for i, r := range h.Records {
		backups[i] = r.Backup
	}
	slices.SortFunc(backups, func(a, b *Backup) int { // two of one number are of a repaired chain
		return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), a.Created.Compare(b.Created), cmp.Compare(a.Record, b.Record))
	})
	return backups
}

// Backup returns the backup with a record ID, and whether there is one.
func (h *Head) Backup(record string) (*Backup, bool) {
	for _, r := range h.Records {
		if r.Record == record {
			return r.Backup, true
		}
	}
	return nil, false
}

// IsLive tells whether the head lists a pack.
func (h *Head) IsLive(name PackName) bool {
	return slices.ContainsFunc(h.Live, func(p LivePack) bool { return p.Name == name })
}

// owned returns the session of an owner.
func (h *Head) owned(owner ID) (*Session, bool) {
	for i := range h.Sessions {
		if h.Sessions[i].Owner == owner {
			return &h.Sessions[i], true
		}
	}
	return nil, false
}

// runs tells whether a session of that name is registered.
func (h *Head) runs(session string) bool {
	return slices.ContainsFunc(h.Sessions, func(s Session) bool { return s.Name() == session })
}

// end removes a session.
func (h *Head) end(id ID) {
	h.Sessions = slices.DeleteFunc(h.Sessions, func(s Session) bool { return s.ID == id })
}

// drop takes packs off the live list.
func (h *Head) drop(dead map[PackName]bool) {
	h.Live = slices.DeleteFunc(h.Live, func(p LivePack) bool { return dead[p.Name] })
}

// forget removes the backups with these record IDs.
func (h *Head) forget(records []string) {
	h.Records = slices.DeleteFunc(h.Records, func(r Record) bool { return slices.Contains(records, r.Record) })
}

// child returns a copy of h that is to become the head after it, with a nonce yet to be drawn.
func (h *Head) child() *Head {
	next := *h
	next.Number, next.Nonce, next.Parent = h.Number+1, ID{}, h.Nonce
	next.Records = slices.Clone(h.Records)
	next.Sessions = slices.Clone(h.Sessions)
	next.Live = slices.Clone(h.Live)
	return &next
}

// encodeHead returns the plaintext of the head's object. It fails with fault.ErrInvalid if decodeHead would refuse that.
func encodeHead(h *Head, c *compressor) ([]byte, error) {
	body := make([]byte, 0, 256+len(h.Live)*headPackSize+len(h.Records)*1024)
	body = binary.LittleEndian.AppendUint64(body, h.Number)
	body = append(append(body, h.Nonce[:]...), h.Parent[:]...)
	body = binary.LittleEndian.AppendUint64(body, h.Sequence)
	body = binary.LittleEndian.AppendUint32(body, uint32(len(h.Records)))
	for _, r := range h.Records {
		body = binary.LittleEndian.AppendUint32(body, uint32(len(r.encoded)))
		body = append(body, r.encoded...)
	}
	body = binary.LittleEndian.AppendUint32(body, uint32(len(h.Sessions)))
	for i := range h.Sessions {
		var err error
		if body, err = appendSession(body, &h.Sessions[i]); err != nil {
			return nil, err
		}
	}
	body = binary.LittleEndian.AppendUint32(body, uint32(len(h.Live)))
	for _, p := range h.Live {
		var session ID
		if err := session.UnmarshalText([]byte(p.Name.Session)); err != nil {
			return nil, fault.Errorf(fault.ErrInvalid, "pack %s: %w", p.Name, err)
		}
		body = append(append(append(body, session[:]...), p.Name.ID[:]...), byte(p.Name.Kind))
		body = binary.LittleEndian.AppendUint32(body, uint32(p.Size))
	}
	if len(body) > headBodyMax {
		return nil, fault.Errorf(fault.ErrInvalid, "a head of %d bytes: at most %d are allowed", len(body), headBodyMax)
	}
	payload, flags := c.compress(nil, body)
	data := append(make([]byte, 0, headFixed+len(payload)), headVersion, flags, 0, 0)
	return append(binary.LittleEndian.AppendUint32(data, uint32(len(body))), payload...), nil
}

func appendSession(body []byte, s *Session) ([]byte, error) {
	body = append(append(append(body, s.ID[:]...), s.Owner[:]...), byte(s.Kind))
	for _, text := range []string{s.Origin.Host, s.Origin.Boot, s.Origin.Process} {
		if len(text) > 255 {
			return nil, fault.Errorf(fault.ErrInvalid, "session of host %q: at most 255 bytes are allowed", text)
		}
		body = append(append(body, byte(len(text))), text...)
	}
	if len(s.Bases) > maxBases {
		return nil, fault.Errorf(fault.ErrInvalid, "session with %d bases: at most %d are allowed", len(s.Bases), maxBases)
	}
	body = append(body, byte(len(s.Bases)))
	for _, base := range s.Bases {
		body = binary.LittleEndian.AppendUint64(append(body, base.Root[:]...), uint64(base.Chunks))
	}
	return body, nil
}
