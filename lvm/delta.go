package lvm

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"orlop/blockdev"
)

// maxBlock bounds block numbers: what the kernel's thin pools can have, and a product with any chunk that fits.
const maxBlock = int64(1) << 40

// A change is a run of chunks that differ, in chunks.
type change struct {
	begin, length int64
	kind          blockdev.ExtentKind
}

// A delta is what differs between two thin devices.
type delta struct {
	chunk   int64 // bytes
	changes []change
}

// elements are those of thin_delta's and thin_dump's XML that tell of chunks: their attributes for the first chunk and
// the number, and what they mean. "same" means nothing.
var elements = map[string]struct {
	begin, length string
	kind          blockdev.ExtentKind
}{
	"different":      {"begin", "length", blockdev.Data},
	"right_only":     {"begin", "length", blockdev.Data},
	"left_only":      {"begin", "length", blockdev.Hole},
	"single_mapping": {"origin_block", "", blockdev.Data},
	"range_mapping":  {"origin_begin", "length", blockdev.Data},
}

// readDelta reads what thin_delta prints or, of one device, thin_dump. It fails if that does not end as it should, and
// on anything that it does not know: what is left out would be missing in a backup.
func readDelta(r io.Reader) (d delta, err error) {
	decoder := xml.NewDecoder(r)
	whole := false // the root element has ended
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return d, fmt.Errorf("read thin metadata: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			err = d.take(t)
		case xml.EndElement:
			whole = whole || t.Name.Local == "superblock"
		}
		if err != nil {
			return d, fmt.Errorf("read thin metadata: %w", err)
		}
	}
	if !whole || d.chunk == 0 {
		return d, errors.New("read thin metadata: no superblock")
	}
	return d, nil
}

// take adds what an element tells.
func (d *delta) take(e xml.StartElement) error {
	switch name := e.Name.Local; name {
	case "superblock":
		sectors, err := number(e, "data_block_size")
		if err == nil && (sectors == 0 || sectors > 1<<21) { // 1 GiB: the kernel's limit
			err = fmt.Errorf("data_block_size %d", sectors)
		}
		d.chunk = 512 * sectors
		return err
	case "diff", "device", "same", "def", "ref":
		return nil
	default:
		known, ok := elements[name]
		if !ok {
			return fmt.Errorf("element %q is not known", name)
		}
		c := change{kind: known.kind, length: 1}
		var err error
		if c.begin, err = number(e, known.begin); err != nil {
			return err
		}
		if known.length != "" {
			if c.length, err = number(e, known.length); err != nil {
				return err
			}
		}
		return d.add(c)
	}
}

// add appends a change, joined to the last one where they meet.
func (d *delta) add(c change) error {
	if c.length == 0 {
		return nil
	}
	if n := len(d.changes); n > 0 {
		last := &d.changes[n-1]
		end := last.begin + last.length
		if c.begin < end {
			return fmt.Errorf("chunk %d comes after %d", c.begin, end)
		}
		if c.begin == end && c.kind == last.kind {
			last.length += c.length
			return nil
		}
	}
	d.changes = append(d.changes, c)
	return nil
}

// number returns an attribute, which must be there.
func number(e xml.StartElement, name string) (int64, error) {
	for _, attr := range e.Attr {
		if attr.Name.Local == name {
			n, err := strconv.ParseInt(attr.Value, 10, 64)
			if err != nil || n < 0 || n > maxBlock {
				return 0, fmt.Errorf("attribute %s=%q of element %q: not a number of chunks", name, attr.Value, e.Name.Local)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("element %q has no attribute %s", e.Name.Local, name)
}

// extents calls fn for what differs in a device of size bytes. Beyond seam bytes, if that is above 0, nothing is known of
// the chunk that holds them: where the former device ended within a chunk, that differs.
func (d *delta) extents(size, seam int64, fn func(blockdev.Extent) error) error {
	pending := blockdev.Extent{}
	flush := func() error {
		if pending.Length == 0 {
			return nil
		}
		return fn(pending)
	}
	emit := func(begin, end int64, kind blockdev.ExtentKind) error {
		end = min(end, size)
		if begin = max(begin, pending.End()); begin >= end {
			return nil
		}
		if pending.Length > 0 && pending.End() == begin && pending.Kind == kind {
			pending.Length = end - pending.Offset
			return nil
		}
		if err := flush(); err != nil {
			return err
		}
		pending = blockdev.Extent{Offset: begin, Length: end - begin, Kind: kind}
		return nil
	}
	seamed := seam <= 0 || seam >= size || seam%d.chunk == 0
	cut := seam / max(d.chunk, 1)
	for _, c := range d.changes {
		if !seamed && c.begin+c.length > cut {
			if c.begin > cut {
				if err := emit(cut*d.chunk, (cut+1)*d.chunk, blockdev.Data); err != nil {
					return err
				}
			}
			seamed = true // or the change covers it
		}
		if err := emit(c.begin*d.chunk, (c.begin+c.length)*d.chunk, c.kind); err != nil {
			return err
		}
	}
	if !seamed {
		if err := emit(cut*d.chunk, (cut+1)*d.chunk, blockdev.Data); err != nil {
			return err
		}
	}
	return flush()
}

// parseList reads what thin_ls prints of each device: its number and a number of bytes.
func parseList(out []byte) (map[int64]int64, error) {
	used := map[int64]int64{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %q of thin_ls: unknown form", line)
		}
		number, err := strconv.ParseInt(fields[0], 10, 64)
		bytes, bytesErr := strconv.ParseInt(fields[1], 10, 64)
		if err := errors.Join(err, bytesErr); err != nil || bytes < 0 {
			return nil, fmt.Errorf("line %q of thin_ls: unknown form: %w", line, err)
		}
		used[number] = bytes
	}
	return used, nil
}
