package repo

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"orlop/internal/fault"
)

func TestSealedObjectOpensUnderItsNameOnly(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		keys := newTestKeys(t, encrypted)
		secret := []byte("nobody may read this")
		object, err := keys.SealObject("heads/1", secret)
		if err != nil {
			t.Fatal(err)
		}
		if encrypted == bytes.Contains(object, secret) {
			t.Errorf("encrypted %t, and the plaintext shows: %t", encrypted, !encrypted)
		}
		if text, err := keys.OpenObject("heads/1", object); err != nil || !bytes.Equal(text, secret) {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := keys.OpenObject("heads/2", object); !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), "heads/2") {
			t.Errorf("renamed: %v", err)
		}
		for n := range object {
			if _, err := keys.OpenObject("heads/1", object[:n]); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("cut at %d: %v", n, err)
			}
			flipped := bytes.Clone(object)
			flipped[n] ^= 4
			if _, err := keys.OpenObject("heads/1", flipped); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("byte %d changed: %v", n, err)
			}
			if err := CheckObject("heads/1", flipped); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("byte %d changed, without the key: %v", n, err)
			}
		}
	}
}

func TestSealedObjectOfAnotherRepositoryIsRefused(t *testing.T) {
	keys := newTestKeys(t, true)
	_, _, other, err := NewRepository(new(Key), rand.NewChaCha8([32]byte{9}))
	if err != nil {
		t.Fatal(err)
	}
	object, err := other.SealObject("heads/1", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = keys.OpenObject("heads/1", object)
	if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), other.Repository().String()) {
		t.Errorf("%v", err)
	}
}

// Every attempt has a key of its own, so that no nonce serves twice.
func TestEachAttemptDrawsANewSalt(t *testing.T) {
	keys := newTestKeys(t, true)
	seen := map[string]bool{}
	for range 10 {
		object, err := keys.SealObject("heads/1", []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		salt := string(object[objectHeader-secretSize : objectHeader])
		if seen[salt] {
			t.Error("a salt was used twice")
		}
		seen[salt] = true
	}
	keys.Random = io.LimitReader(rand.NewChaCha8([32]byte{}), 3)
	if _, err := keys.SealObject("heads/1", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("sealed without randomness: %v", err)
	}
}

func TestIncompressibleAndHardlyCompressibleStayRaw(t *testing.T) {
	c, err := newCompressor(DefaultChunk)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, DefaultChunk)
	if _, err := rand.NewChaCha8([32]byte{}).Read(random); err != nil {
		t.Fatal(err)
	}
	for _, zeroes := range []int{0, 100, DefaultChunk / 20, DefaultChunk / 10, DefaultChunk - 1} {
		plaintext := bytes.Clone(random)
		clear(plaintext[:zeroes])
		payload, flags := c.compress(nil, plaintext)
		if flags == 0 {
			if !bytes.Equal(payload, plaintext) || zeroes > DefaultChunk/16 {
				t.Errorf("%d zeroes: stored raw", zeroes)
			}
			continue
		}
		if len(payload) > len(plaintext)-len(plaintext)/saving || zeroes < DefaultChunk/16 {
			t.Errorf("%d zeroes: compressed to %d", zeroes, len(payload))
		}
		if got, err := decompress(decoder, payload, len(plaintext)); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d zeroes: decompressed to another plaintext: %v", zeroes, err)
		}
	}
}

// What one frame holds has one way to be written besides a compressor's choices: nothing stands before or after it.
func TestRecordIsOneFrameAndNothingElse(t *testing.T) {
	decoder, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("text and more of it "), 20_000)
	for _, checksum := range []bool{true, false} {
		for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedBestCompression} {
			encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(checksum), zstd.WithZeroFrames(true))
			if err != nil {
				t.Fatal(err)
			}
			frame, empty := encoder.EncodeAll(text, nil), encoder.EncodeAll(nil, nil)
			if got, err := decompress(decoder, frame, len(text)); err != nil || !bytes.Equal(got, text) {
				t.Errorf("one frame: %v", err)
			}
			skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}
			for what, other := range map[string][]byte{
				"two frames":              slices.Concat(encoder.EncodeAll(text[:100], nil), encoder.EncodeAll(text[100:], nil)),
				"an empty frame after it": slices.Concat(frame, empty),
				"an empty one before it":  slices.Concat(empty, frame),
				"a skippable frame after": slices.Concat(frame, skippable),
				"one before":              slices.Concat(skippable, frame),
				"a byte after it":         slices.Concat(frame, []byte{0}),
				"a byte less":             frame[:len(frame)-1],
				"nothing":                 nil,
			} {
				if _, err := decompress(decoder, other, len(text)); err == nil {
					t.Errorf("%s is taken for a record", what)
				}
			}
		}
	}
}

// A frame that says that it is large cannot make the reader allocate more than the record's plaintext.
func TestCompressionBombIsRefused(t *testing.T) {
	c, err := newCompressor(DefaultChunk)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	bomb, _ := c.compress(nil, make([]byte, 64<<20))
	for _, frame := range [][]byte{bomb, bytes.Repeat(bomb, 10)} {
		allocated := testing.AllocsPerRun(1, func() {
			if _, err := decompress(decoder, frame, 1000); err == nil {
				t.Error("decompressed 64 MiB into 1000 bytes")
			}
		})
		if allocated > 20 {
			t.Errorf("%v allocations", allocated)
		}
	}
	frame, _ := c.compress(nil, make([]byte, 1000))
	for _, length := range []int{1, 999, 1001} {
		if _, err := decompress(decoder, frame, length); err == nil {
			t.Errorf("1000 bytes decompressed into %d", length)
		}
	}
}
