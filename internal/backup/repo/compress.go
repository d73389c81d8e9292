package repo

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// flagZstd in a record's flags says that it holds one zstd frame (RFC 8878) of the plaintext. Otherwise it holds the
// plaintext itself.
const flagZstd byte = 1

// saving is the smallest part of a plaintext, 1/saving of it, that compression must save. Less than that does not pay
// for decompressing.
const saving = 16

// A compressor compresses records. It is not safe for concurrent use.
type compressor struct {
	encoder *zstd.Encoder
}

// newCompressor returns a compressor for plaintexts of about length bytes, a power of two of at least 64 KiB. It finds
// nothing that repeats at a greater distance. With a window of the plaintext's length, and literals compressed even where
// nothing repeats, it is 7 % faster than by default, to the same size (/usr/lib in chunks of 128 KiB).
func newCompressor(length int) (*compressor, error) {
	// The checksum would be the third over the same bytes.
	encoder, err := zstd.NewWriter(nil, zstd.WithWindowSize(length), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithAllLitEntropyCompression(true), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &compressor{encoder}, nil
}

// compress returns what to store for plaintext and its flags: the plaintext itself if it hardly compresses, else a
// frame in space, which grows if it is too small.
func (c *compressor) compress(space, plaintext []byte) (payload []byte, flags byte) {
	frame := c.encoder.EncodeAll(plaintext, space[:0])
	if len(frame) > len(plaintext)-len(plaintext)/saving-1 {
		return plaintext, 0
	}
	return frame, flagZstd
}

// newDecoder returns a decoder that is safe for concurrent use.
func newDecoder() (*zstd.Decoder, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return decoder, nil
}

// slack is how many bytes behind a plaintext the decoder wants, to copy in blocks of 16 bytes.
const slack = 16

// decompress returns the plaintext of length bytes that one frame, which is all there is, holds. It allocates no more than
// slack besides, whatever the frame says.
func decompress(decoder *zstd.Decoder, frame []byte, length int) ([]byte, error) {
	if !isOneFrame(frame) {
		return nil, errors.New("decompress: it is not one zstd frame")
	}
	plaintext, err := decoder.DecodeAll(frame, make([]byte, 0, length+slack))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(plaintext) != length {
		return nil, fmt.Errorf("decompress: %d bytes instead of %d", len(plaintext), length)
	}
	return plaintext, nil
}

// isOneFrame tells whether data has the lengths of one frame without a dictionary. The decoder takes any number of frames,
// and skips some: one plaintext could be written in many ways.
func isOneFrame(data []byte) bool {
	const blockHeader, repeated, checksum = 3, 1, 4
	var header zstd.Header
	if err := header.Decode(data); err != nil || header.Skippable || header.DictionaryID != 0 {
		return false
	}
	rest := data[header.HeaderSize:]
	for last := false; !last; {
		if len(rest) < blockHeader {
			return false
		}
		block := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		size := block >> 3
		if block>>1&3 == repeated {
			size = 1
		}
		if rest = rest[blockHeader:]; size > len(rest) {
			return false
		}
		rest, last = rest[size:], block&1 == 1
	}
	if header.HasCheckSum {
		return len(rest) == checksum
	}
	return len(rest) == 0
}
