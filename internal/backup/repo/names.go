// Package repo is the backup repository: what stands in its objects, and how they are written, read and checked. It
// knows no volume and needs no daemon.
//
// Integers in every binary format are little-endian and unsigned, sizes are in bytes, and "hex" is lower-case.
//
// The objects of a repository, by name:
//
//	config                                     what the repository is; see Config
//	lineages/<lineage>/heads/<N>               the states of one lineage; N has 16 decimal digits
//	lineages/<lineage>/sessions/<sid>/<id>.data   a pack of chunks; see pack.go
//	lineages/<lineage>/sessions/<sid>/<id>.meta   a pack of tree nodes and backup records
package repo

import (
	"encoding/hex"
	"fmt"
	"strings"

	"orlop/internal/backup/store"
	"orlop/internal/fault"
)

// ConfigName is the name of the object that holds the Config.
const ConfigName = "config"

const (
	lineagesPrefix = "lineages/"
	maxLabel       = 64 // bytes in the name of a lineage or a session
)

// An ID names a repository or a pack. It is random.
type ID [16]byte

// String returns the ID in hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns the ID in hex.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText returned, and nothing else; it fails with fault.ErrCorrupt.
func (id *ID) UnmarshalText(text []byte) error { return unhex(id[:], string(text)) }

// A ChunkID names a plaintext within a lineage: a chunk's, a tree node's or a backup record's. Equal plaintexts of one
// type and level have the same, which tells nothing of them to who does not hold the key. The zero ChunkID stands
// for a hole.
type ChunkID [32]byte

// Hole is the ChunkID of what reads as zeroes and is not stored.
var Hole ChunkID

// String returns the ID in hex.
func (id ChunkID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns the ID in hex.
func (id ChunkID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText returned, and nothing else; it fails with fault.ErrCorrupt.
func (id *ChunkID) UnmarshalText(text []byte) error { return unhex(id[:], string(text)) }

func unhex(to []byte, text string) error {
	decoded, err := hex.DecodeString(text)
	if err != nil || len(decoded) != len(to) || strings.ToLower(text) != text {
		return fault.Errorf(fault.ErrCorrupt, "%q is not an ID of %d hex digits", text, 2*len(to))
	}
	copy(to, decoded)
	return nil
}

// A PackKind tells what a pack holds. Its value is the byte in the pack's header.
type PackKind byte

// The kinds of packs.
const (
	DataPack PackKind = 1 // chunks
	MetaPack PackKind = 2 // tree nodes and backup records
)

// packKinds says for each kind how its objects' names end, what its keys are derived for, and how many bytes its
// records fill before the next pack is begun.
var packKinds = map[PackKind]struct {
	suffix string
	use    use
	limit  int
}{
	DataPack: {".data", useData, 32 << 20},
	MetaPack: {".meta", useMeta, 4 << 20},
}

// A PackName is where a pack is.
type PackName struct {
	Lineage string
	Session string
	ID      ID
	Kind    PackKind
}

// String returns the name of the pack's object.
func (n PackName) String() string {
	return SessionPrefix(n.Lineage, n.Session) + n.ID.String() + packKinds[n.Kind].suffix
}

// ParsePackName reads what PackName.String returns; it fails with fault.ErrInvalid for every other name.
func ParsePackName(name string) (PackName, error) {
	rest, ok := strings.CutPrefix(name, lineagesPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 || parts[1] != "sessions" || CheckLabel(parts[0]) != nil || CheckLabel(parts[2]) != nil {
		return PackName{}, fault.Errorf(fault.ErrInvalid, "object %s is not a pack by its name", name)
	}
	parsed := PackName{Lineage: parts[0], Session: parts[2]}
	for kind, of := range packKinds {
		if digits, ok := strings.CutSuffix(parts[3], of.suffix); ok && parsed.ID.UnmarshalText([]byte(digits)) == nil {
			parsed.Kind = kind
			return parsed, nil
		}
	}
	return PackName{}, fault.Errorf(fault.ErrInvalid, "object %s is not a pack by its name", name)
}

// HeadPrefix is the prefix of the names of a lineage's heads.
func HeadPrefix(lineage string) string { return lineagesPrefix + lineage + "/heads/" }

// maxHead is the highest number of a head: names have 16 digits.
const maxHead = 1e16 - 1

// HeadName is the name of a lineage's head of number n. Names sort as their numbers do.
func HeadName(lineage string, n uint64) string {
	return fmt.Sprintf("%s%016d", HeadPrefix(lineage), n)
}

// SessionsPrefix is the prefix of the names of all of a lineage's packs.
func SessionsPrefix(lineage string) string { return lineagesPrefix + lineage + "/sessions/" }

// SessionPrefix is the prefix of the names of the packs that one session wrote.
func SessionPrefix(lineage, session string) string { return SessionsPrefix(lineage) + session + "/" }

// CheckLabel fails with fault.ErrInvalid unless label may name a lineage or a session: one segment of an object's
// name, of at most 64 bytes.
func CheckLabel(label string) error {
	if len(label) > maxLabel || !store.IsSegment(label) {
		return fault.Errorf(fault.ErrInvalid, "%q cannot name a lineage or a session", label)
	}
	return nil
}

// BeatName is the name of an object by which a session shows that its owner is alive.
func BeatName(lineage, session string, id ID) string {
	return SessionPrefix(lineage, session) + id.String() + ".beat"
}
