package repo

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"orlop/internal/fault"
)

// An Index knows in which packs of one lineage each record is. It takes about 60 bytes a record, and is made from
// footers: everything in it can be had again from the packs. It is safe for concurrent use.
type Index struct {
	mu     sync.RWMutex
	packs  []indexedPack
	byName map[PackName]uint32
	blocks [][]indexed // of blockLength each, so that growing copies nothing
	count  int         // records in blocks, of dropped packs too
	table  []uint32    // 1 + number of a record, 0 if free; open addressing by the ID's first bytes; a power of two

	spurned func(PackName, ChunkID) bool // copies that do not count for Has; nil if all do
}

type indexedPack struct {
	ref     PackRef
	dropped bool
}

// indexed is an Entry in 52 bytes: no length in it takes more than 24 bits.
type indexed struct {
	id      ChunkID
	pack    uint32
	offset  uint32
	ordinal uint32
	sealed  uint32 // in the lower 24 bits, with the type in the next 4 and the level in the upper 4
	length  uint32 // in the lower 24 bits, with the flags in the upper 8
}

const (
	blockLength = 4096
	lowBits     = 1<<24 - 1
)

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{byName: map[PackName]uint32{}, table: make([]uint32, 1024)}
}

func (x *indexed) entry() Entry {
	return Entry{
		ID: x.id, Type: Type(x.sealed >> 24 & 15), Level: uint8(x.sealed >> 28), Ordinal: x.ordinal, Offset: x.offset,
		Sealed: x.sealed & lowBits, Length: x.length & lowBits, flags: byte(x.length >> 24),
	}
}

func (i *Index) at(n uint32) *indexed { return &i.blocks[n/blockLength][n%blockLength] }

// Add adds a pack and its records. One that is there already stays as it is.
func (i *Index) Add(ref PackRef, entries []Entry) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if number, there := i.byName[ref.Name]; there {
		i.packs[number].dropped = false
		return
	}
	number := uint32(len(i.packs))
	i.packs = append(i.packs, indexedPack{ref: ref})
	i.byName[ref.Name] = number
	for _, e := range entries {
		if i.count%blockLength == 0 {
			i.blocks = append(i.blocks, make([]indexed, blockLength))
		}
		*i.at(uint32(i.count)) = indexed{
			id: e.ID, pack: number, offset: e.Offset, ordinal: e.Ordinal,
			sealed: e.Sealed | uint32(e.Type)<<24 | uint32(e.Level)<<28,
			length: e.Length | uint32(e.flags)<<24,
		}
		i.insert(uint32(i.count))
		i.count++
	}
}

// insert puts a record into the table, which it first doubles if that is four fifths full.
func (i *Index) insert(n uint32) {
	if (i.count+1)*5 > len(i.table)*4 {
		i.table = make([]uint32, 1<<bits.Len(uint(len(i.table))))
		for old := range uint32(i.count) {
			i.place(old)
		}
	}
	i.place(n)
}

func (i *Index) place(n uint32) {
	mask := uint64(len(i.table) - 1)
	at := i.hash(i.at(n).id)
	for i.table[at] != 0 {
		at = (at + 1) & mask
	}
	i.table[at] = n + 1
}

func (i *Index) hash(id ChunkID) uint64 {
	return binary.LittleEndian.Uint64(id[:]) & uint64(len(i.table)-1)
}

// Find returns where a record is, in a pack that was not dropped; the first added one if there are several.
func (i *Index) Find(id ChunkID) (PackRef, Entry, bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	n, ok := i.find(id)
	if !ok {
		return PackRef{}, Entry{}, false
	}
	x := i.at(n)
	return i.packs[x.pack].ref, x.entry(), true
}

// FindAll calls fn for each place of a record, those of dropped packs aside, until fn returns false.
func (i *Index) FindAll(id ChunkID, fn func(PackRef, Entry) bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	mask := uint64(len(i.table) - 1)
	for at := i.hash(id); i.table[at] != 0; at = (at + 1) & mask {
		x := i.at(i.table[at] - 1)
		if x.id == id && !i.packs[x.pack].dropped && !fn(i.packs[x.pack].ref, x.entry()) {
			return
		}
	}
}

// Has tells whether Find finds a record, in a copy that is not spurned.
func (i *Index) Has(id ChunkID) (has bool) {
	i.mu.RLock()
	spurned := i.spurned
	if spurned == nil {
		_, has = i.find(id)
	}
	i.mu.RUnlock()
	if spurned != nil {
		i.FindAll(id, func(ref PackRef, _ Entry) bool {
			has = !spurned(ref.Name, id)
			return !has
		})
	}
	return has
}

// Spurn says which copies of records do not count for Has, nil that all do. They can be found all the same.
func (i *Index) Spurn(spurned func(PackName, ChunkID) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.spurned = spurned
}

func (i *Index) find(id ChunkID) (uint32, bool) {
	mask := uint64(len(i.table) - 1)
	for at := i.hash(id); i.table[at] != 0; at = (at + 1) & mask {
		n := i.table[at] - 1
		if x := i.at(n); x.id == id && !i.packs[x.pack].dropped {
			return n, true
		}
	}
	return 0, false
}

// HasPack tells whether the pack was added and not dropped.
func (i *Index) HasPack(name PackName) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	number, there := i.byName[name]
	return there && !i.packs[number].dropped
}

// Drop forgets a pack that is not live any more. Its records keep their memory until the index is made anew.
func (i *Index) Drop(name PackName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if number, there := i.byName[name]; there {
		i.packs[number].dropped = true
	}
}

// Packs returns the packs that were not dropped, in the order in which they were added.
func (i *Index) Packs() []PackRef {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var refs []PackRef
	for _, p := range i.packs {
		if !p.dropped {
			refs = append(refs, p.ref)
		}
	}
	return refs
}

// Records counts the records of packs that were added, of dropped ones too.
func (i *Index) Records() int {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.count
}

// errMissing is the fault.ErrNotFound of a record that no pack known to the index holds.
func errMissing(id ChunkID) error {
	return fault.Errorf(fault.ErrNotFound, "no pack holds record %s", id)
}
