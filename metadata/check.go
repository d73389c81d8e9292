package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// bbolt trusts what it maps: on a damaged page it may read outside the file, or go round in a circle until the
// stack ends, and neither can be recovered from. So the tree's shape is checked before bbolt reads a page of it.
// Layout of the file: go.etcd.io/bbolt/internal/common, page.go, meta.go and bucket.go; all numbers are of the
// host's byte order, as bbolt writes them.

const (
	headerLength  = 16 // of a page: id, flags, count, overflow
	elementLength = 16 // of a page's directory
	metaLength    = 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketElement = 0x01
	noFreelist    = ^uint64(0)
)

// A shape is what is known so far of a database file.
type shape struct {
	content  []byte
	pageSize uint64
	pages    uint64 // in use; the file has at least as many
	seen     map[uint64]bool
}

// checkShape fails unless the file at path is a tree of pages that lie inside it, each of them used once. Nobody
// may write to the file meanwhile.
func checkShape(path string, pageSize int) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s := &shape{content: content, pageSize: uint64(pageSize), seen: map[uint64]bool{}}
	meta, err := s.meta()
	if err != nil {
		return err
	}
	root, freelist, pages := word(meta[16:]), word(meta[32:]), word(meta[40:])
	if pages > uint64(len(content))/s.pageSize {
		return fmt.Errorf("%d pages in a file of %d bytes", pages, len(content))
	}
	s.pages = pages
	if freelist != noFreelist {
		if err := s.checkFreelist(freelist); err != nil {
			return err
		}
	}
	_, err = s.checkTree(root, span{root: true})
	return err
}

// A span says what a part of a tree may hold.
type span struct {
	root  bool   // buckets, which only the root bucket has; else records
	from  []byte // the least key; nil for none
	after bool   // from itself is not among them
	to    []byte // the first key beyond; nil for none
}

// next narrows the span to what may come after key, or fails if key lies outside it.
func (k *span) next(key []byte) error {
	if order := bytes.Compare(key, k.from); k.from != nil && (order < 0 || k.after && order == 0) || k.to != nil && bytes.Compare(key, k.to) >= 0 {
		return fmt.Errorf("key %q out of order", key)
	}
	k.from, k.after = key, true
	return nil
}

func word(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// meta returns the newer one of the two meta pages that are whole, as bbolt would choose it.
func (s *shape) meta() (newest []byte, err error) {
	for offset := uint64(0); offset <= s.pageSize; offset += s.pageSize {
		if offset+headerLength+metaLength > uint64(len(s.content)) {
			return nil, errors.New("file too small")
		}
		meta := s.content[offset+headerLength:][:metaLength]
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:56]) // never fails
		whole := binary.NativeEndian.Uint32(meta) == 0xed0cdaed && sum.Sum64() == word(meta[56:])
		if whole && (newest == nil || word(meta[48:]) > word(newest[48:])) {
			newest = meta
		}
	}
	if newest == nil {
		return nil, errors.New("no valid meta page")
	}
	return newest, nil
}

// page returns a page with its overflow, and marks it as used.
func (s *shape) page(id uint64) (page []byte, flags uint16, count int, err error) {
	if id < 2 || id >= s.pages {
		return nil, 0, 0, fmt.Errorf("page %d: out of bounds", id)
	}
	header := s.content[id*s.pageSize:][:headerLength]
	length := uint64(binary.NativeEndian.Uint32(header[12:])) + 1
	if word(header) != id || id+length > s.pages {
		return nil, 0, 0, fmt.Errorf("page %d: calls itself %d, with %d pages of %d", id, word(header), length, s.pages)
	}
	for i := id; i < id+length; i++ {
		if s.seen[i] {
			return nil, 0, 0, fmt.Errorf("page %d: used twice", i)
		}
		s.seen[i] = true
	}
	page = s.content[id*s.pageSize:][:length*s.pageSize]
	return page, binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:])), nil
}

// checkTree checks the page and what is below it, and returns what may come after.
func (s *shape) checkTree(id uint64, keys span) (rest span, err error) {
	page, flags, count, err := s.page(id)
	if err != nil {
		return keys, err
	}
	switch {
	case flags == leafPage:
		rest, err = s.checkLeaf(page, count, keys)
	case flags == branchPage && count > 0:
		rest, err = s.checkBranch(page, count, keys)
	default:
		err = fmt.Errorf("unexpected type %#x with %d elements", flags, count)
	}
	if err != nil {
		return keys, fmt.Errorf("page %d: %w", id, err)
	}
	return rest, nil
}

func (s *shape) checkBranch(page []byte, count int, keys span) (rest span, err error) {
	children, firsts := make([]uint64, count), make([][]byte, count)
	for i := range count {
		element, err := elementOf(page, i)
		if err != nil {
			return keys, err
		}
		position, length := uint64(binary.NativeEndian.Uint32(element)), uint64(binary.NativeEndian.Uint32(element[4:]))
		if position+length > uint64(len(element)) {
			return keys, fmt.Errorf("key %d out of bounds", i)
		}
		children[i], firsts[i] = word(element[8:]), element[position:][:length]
	}
	rest = keys
	for i, child := range children {
		if err := rest.next(firsts[i]); err != nil {
			return keys, err
		}
		below := span{root: keys.root, from: firsts[i], to: keys.to}
		if i+1 < count {
			below.to = firsts[i+1]
		}
		if below, err = s.checkTree(child, below); err != nil {
			return keys, err
		}
		rest.from, rest.after = below.from, below.after
	}
	return rest, nil
}

func (s *shape) checkLeaf(page []byte, count int, keys span) (rest span, err error) {
	for i := range count {
		element, err := elementOf(page, i)
		if err != nil {
			return keys, err
		}
		flags, position := binary.NativeEndian.Uint32(element), uint64(binary.NativeEndian.Uint32(element[4:]))
		key, value := uint64(binary.NativeEndian.Uint32(element[8:])), uint64(binary.NativeEndian.Uint32(element[12:]))
		if position+key+value > uint64(len(element)) {
			return keys, fmt.Errorf("element %d out of bounds", i)
		}
		if err := keys.next(element[position:][:key]); err != nil {
			return keys, err
		}
		switch {
		case flags == 0 && !keys.root:
		case flags == bucketElement && keys.root:
			if err := s.checkBucket(element[position+key:][:value]); err != nil {
				return keys, fmt.Errorf("bucket %d: %w", i, err)
			}
		default:
			return keys, fmt.Errorf("element %d has unexpected flags %#x", i, flags)
		}
	}
	return keys, nil
}

// checkBucket checks a bucket: a tree of its own, or, if it is small, a leaf page inside its value.
func (s *shape) checkBucket(value []byte) error {
	if len(value) < 16 {
		return errors.New("too short")
	}
	if root := word(value); root != 0 {
		_, err := s.checkTree(root, span{})
		return err
	}
	page := value[16:]
	if len(page) < headerLength || binary.NativeEndian.Uint16(page[8:]) != leafPage || word(page) != 0 {
		return errors.New("not a leaf")
	}
	_, err := s.checkLeaf(page, int(binary.NativeEndian.Uint16(page[10:])), span{})
	return err
}

// elementOf returns a page from its i-th directory element on.
func elementOf(page []byte, i int) ([]byte, error) {
	offset := headerLength + i*elementLength
	if offset+elementLength > len(page) {
		return nil, fmt.Errorf("element %d out of bounds", i)
	}
	return page[offset:], nil
}

func (s *shape) checkFreelist(id uint64) error {
	page, flags, count, err := s.page(id)
	if err != nil {
		return err
	}
	ids := page[headerLength:]
	length := uint64(count)
	if count == 0xffff { // too long for the header
		length, ids = word(ids), ids[8:]
	}
	if flags != freelistPage || length > uint64(len(ids))/8 {
		return fmt.Errorf("page %d: not a list of free pages", id)
	}
	for i := range length {
		if free := word(ids[8*i:]); free < 2 || free >= s.pages {
			return fmt.Errorf("page %d: free page %d out of bounds", id, free)
		}
	}
	return nil
}
