package repo

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// A Cache keeps the footers of one lineage's packs in a local file, so that the index need not be read from the store.
// The file only saves time: it may be deleted, and what is damaged or forged in it is dropped. It is a row of segments,
// one a pack:
//
//	0   4  n, the length of what follows up to the MAC
//	4   8  size of the pack's object
//	12  32 the pack's salt
//	44  4  offset of its first record
//	48  2  m, the length of its object's name
//	50  m  name
//	    …  the number of its records and the records, as in its footer
//	    32 HMAC-SHA-256 of the segment up to here, with the key derived for "cache" and the lineage, the repository's ID as
//	       the salt
type Cache struct {
	path string
	key  []byte
	name string // of the lineage
}

const (
	cacheFixed   = 46 // bytes of a segment between its length and the name
	cacheNameMax = 1 << 10
	segmentMax   = cacheFixed + cacheNameMax + 4 + maxEntries*entrySize
)

// Cache returns the lineage's cache in the file at path, which need not be there yet.
func (l *Lineage) Cache(path string) *Cache {
	return &Cache{path: path, name: l.name, key: derive(l.keys.master[:], l.keys.repository[:], useCache, l.name)}
}

// Load adds those packs of the cache to the index for which live returns true. What follows damage in the file is cut
// off; a file that is not there is empty. Errors are the filesystem's, and the index is right without what they kept
// from it.
func (c *Cache) Load(index *Index, live func(PackName) bool) (err error) {
	file, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var good int64
	for {
		length, err := c.loadSegment(file, index, live)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, errSegment) {
			return file.Truncate(good)
		}
		if err != nil {
			return fmt.Errorf("read cache %s: %w", c.path, err)
		}
		good += length
	}
}

var errSegment = errors.New("damaged segment")

// loadSegment reads the next segment and returns its length: io.EOF if there is none, errSegment if it is not whole and
// authentic.
func (c *Cache) loadSegment(r io.Reader, index *Index, live func(PackName) bool) (int64, error) {
	segment := make([]byte, 4)
	if _, err := io.ReadFull(r, segment); err != nil {
		return 0, ended(err, io.EOF)
	}
	n := int(binary.LittleEndian.Uint32(segment))
	if n > segmentMax {
		return 0, errSegment
	}
	segment = append(segment, make([]byte, n+sha256.Size)...)
	if _, err := io.ReadFull(r, segment[4:]); err != nil {
		return 0, ended(err, errSegment)
	}
	pack, err := c.decode(segment)
	if err != nil {
		return 0, err
	}
	if live(pack.Ref.Name) {
		index.Add(pack.Ref, pack.Entries)
	}
	return int64(len(segment)), nil
}

// ended tells the end of the file from a failure to read it: nothing was read, or not all.
func ended(err, nothing error) error {
	switch {
	case errors.Is(err, io.EOF):
		return nothing
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errSegment
	}
	return err
}

func (c *Cache) mac(data []byte) []byte {
	mac := hmac.New(sha256.New, c.key)
	mac.Write(data)
	return mac.Sum(nil)
}

func (c *Cache) encode(pack Pack) []byte {
	name := pack.Ref.Name.String()
	body := make([]byte, 4, 4+cacheFixed+len(name)+4+len(pack.Entries)*entrySize+sha256.Size)
	body = binary.LittleEndian.AppendUint64(body, uint64(pack.Ref.Size))
	body = append(body, pack.Ref.salt[:]...)
	body = binary.LittleEndian.AppendUint32(body, pack.Entries[0].Offset)
	body = binary.LittleEndian.AppendUint16(body, uint16(len(name)))
	body = append(body, name...)
	body = binary.LittleEndian.AppendUint32(body, uint32(len(pack.Entries)))
	for _, e := range pack.Entries {
		body = appendEntry(body, e)
	}
	binary.LittleEndian.PutUint32(body, uint32(len(body)-4))
	return append(body, c.mac(body)...)
}

func (c *Cache) decode(segment []byte) (Pack, error) {
	body := segment[:len(segment)-sha256.Size]
	if !hmac.Equal(segment[len(body):], c.mac(body)) || len(body) < 4+cacheFixed {
		return Pack{}, errSegment
	}
	pack := Pack{Ref: PackRef{Size: int64(binary.LittleEndian.Uint64(body[4:]))}}
	copy(pack.Ref.salt[:], body[12:])
	first := int(binary.LittleEndian.Uint32(body[44:]))
	length := int(binary.LittleEndian.Uint16(body[48:]))
	if length > len(body)-50 {
		return Pack{}, errSegment
	}
	var err error
	if pack.Ref.Name, err = ParsePackName(string(body[50 : 50+length])); err != nil || pack.Ref.Name.Lineage != c.name {
		return Pack{}, errSegment
	}
	if pack.Entries, err = decodeEntries(body[50+length:], pack.Ref.Name.Kind, first); err != nil {
		return Pack{}, errSegment
	}
	return pack, nil
}

// Append adds packs, which were written or whose footers were opened. It need not survive a power cut, and cut short it
// leaves what Load cuts off.
func (c *Cache) Append(packs ...Pack) (err error) {
	file, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("append to cache %s: %w", c.path, err)
	}
	for _, pack := range packs {
		if _, err := file.Write(c.encode(pack)); err != nil {
			return fmt.Errorf("append to cache %s: %w", c.path, err)
		}
	}
	return nil
}

// open opens the file for one user at a time, whichever process that is in. Who comes second fails: what the cache saves is
// not worth waiting for somebody who may have been stopped.
func (c *Cache) open() (*os.File, error) {
	file, err := os.OpenFile(c.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock cache %s: %w", c.path, err), file.Close())
	}
	return file, nil
}
