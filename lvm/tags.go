package lvm

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"

	"orlop/blockdev"
	"orlop/internal/fault"
)

// What a logical volume of Orlop's carries in tags, which LVM keeps in the metadata of the volume group. A tag has at
// most 1,024 of the characters A-Z a-z 0-9 _ + . - / = ! : & #.
const (
	tagOurs     = "orlop"           // on each
	tagID       = "orlop.id="       // the device's ID: the LV's name is only for people
	tagSealed   = "orlop.sealed"    // for ever read-only
	tagReplaces = "orlop.replaces=" // UUID of the LV whose ID it took; that one is to be removed
	tagRecord   = "orlop.record."   // followed by a number, '=' and a piece of the record
	tagPool     = "orlop.pool="     // on the thin pool: its identity
)

const (
	pieceLength = 1000     // characters of the record in one tag
	maxEncoded  = 32 << 10 // characters of a whole record: LVM's metadata areas are small
	maxRecord   = 1 << 20  // bytes of a record that is read
)

var encoding = base64.RawURLEncoding

// recordTags returns the tags that hold a record: compressed, as base64, with a checksum before it, in pieces. It fails
// with fault.ErrInvalid if the record is too long. No record has no tags.
func recordTags(record blockdev.Record) ([]string, error) {
	if len(record) == 0 {
		return nil, nil
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(record); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	all := encoding.EncodeToString(packed.Bytes())
	if len(all) > maxEncoded {
		return nil, fault.Errorf(fault.ErrInvalid, "record of %d bytes: too long for LVM's tags: it has too many or too long labels", len(record))
	}
	all = fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(all))) + all
	var tags []string
	for piece := range slices.Chunk([]byte(all), pieceLength) {
		tags = append(tags, tagRecord+strconv.Itoa(len(tags))+"="+string(piece))
	}
	return tags, nil
}

// recordOf returns the record that tags hold, or nil if there is none or it is damaged.
func recordOf(tags []string) blockdev.Record {
	pieces := map[string]string{}
	for _, tag := range tags {
		if rest, is := strings.CutPrefix(tag, tagRecord); is {
			if number, piece, is := strings.Cut(rest, "="); is {
				pieces[number] = piece
			}
		}
	}
	var all strings.Builder
	for i := range len(pieces) {
		all.WriteString(pieces[strconv.Itoa(i)]) // a missing one shows in the checksum
	}
	return unpack(all.String())
}

func unpack(all string) blockdev.Record {
	if len(all) < 8 || fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(all[8:]))) != all[:8] {
		return nil
	}
	packed, err := encoding.DecodeString(all[8:])
	if err != nil {
		return nil
	}
	record, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), maxRecord+1))
	if err != nil || len(record) > maxRecord || !json.Valid(record) {
		return nil
	}
	return record
}

// valueOf returns what follows prefix in the tag that begins so; ok is false unless exactly one does.
func valueOf(tags []string, prefix string) (value string, ok bool) {
	found := 0
	for _, tag := range tags {
		if rest, is := strings.CutPrefix(tag, prefix); is {
			value = rest
			found++
		}
	}
	return value, found == 1
}

func isRecord(tag string) bool   { return strings.HasPrefix(tag, tagRecord) }
func isReplaces(tag string) bool { return strings.HasPrefix(tag, tagReplaces) }
