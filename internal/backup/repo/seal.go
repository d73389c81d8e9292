package repo

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"orlop/internal/fault"
)

const (
	secretSize = 32 // of the master key, of every derived key and of every salt
	nonceSize  = 12
	tagSize    = 16
)

// A use is what a key is derived for. No two uses share keys.
type use string

const (
	useWrap   use = "wrap"   // a key slot; from a key file's key
	useConfig use = "config" // the MAC of the config
	useID     use = "id"     // the chunk IDs of one lineage
	useData   use = "data"   // the records of one data pack
	useMeta   use = "meta"   // the records of one metadata pack
	useHead   use = "head"   // one object that SealObject sealed
	useCache  use = "cache"  // the MACs of one lineage's local cache; never leaves the host
)

// derive is HKDF-SHA-256 of secret and salt, with the info "orlop-1 <use>", and " <lineage>" after it where the key is
// a lineage's.
func derive(secret, salt []byte, of use, lineage string) []byte {
	info := "orlop-1 " + string(of)
	if lineage != "" {
		info += " " + lineage
	}
	key, err := hkdf.Key(sha256.New, secret, salt, info, secretSize)
	if err != nil {
		panic(fmt.Sprintf("derive a key of %d bytes: %v", secretSize, err)) // it fails for more than 8160 bytes
	}
	return key
}

// A Keyring holds the secret of one repository and makes everything from it that is sealed or opened. An encrypted
// repository's secret is its random master key, wrapped in the key slots. An unencrypted one's is public, SHA-256 of
// "orlop-1 unencrypted" followed by the repository's ID, and serves to find damage only. It is safe for concurrent
// use.
type Keyring struct {
	// Random is where salts and IDs come from; nil is crypto/rand. Only test vectors set it.
	Random io.Reader

	repository ID
	encrypted  bool
	master     [secretSize]byte
	slots      []byte // as in the config, copied to every pack
	decoder    *zstd.Decoder
}

func newKeyring(repository ID, encrypted bool, master, slots []byte) (*Keyring, error) {
	decoder, err := newDecoder()
	if err != nil {
		return nil, err
	}
	k := &Keyring{repository: repository, encrypted: encrypted, slots: slots, decoder: decoder}
	copy(k.master[:], master)
	return k, nil
}

// publicMaster is the secret of an unencrypted repository.
func publicMaster(repository ID) []byte {
	sum := sha256.Sum256(append([]byte("orlop-1 unencrypted"), repository[:]...))
	return sum[:]
}

// Repository is the ID of the repository that the keyring is for.
func (k *Keyring) Repository() ID { return k.repository }

// Encrypted tells whether the repository is.
func (k *Keyring) Encrypted() bool { return k.encrypted }

// sealer returns what seals and opens with the key for a use and a salt: AES-256-GCM, or macSealer in an unencrypted
// repository. A salt is drawn for each attempt to write an object and serves for one use, so that no key and nonce are
// used twice.
func (k *Keyring) sealer(of use, salt []byte) cipher.AEAD {
	key := derive(k.master[:], salt, of, "")
	if !k.encrypted {
		return macSealer{key}
	}
	return newGCM(key)
}

func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(fmt.Sprintf("AES with a key of %d bytes: %v", len(key), err))
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(fmt.Sprintf("AES-GCM: %v", err))
	}
	return aead
}

// nonce is an ordinal in 96 bits.
func nonce(ordinal uint32) []byte {
	return binary.LittleEndian.AppendUint32(make([]byte, 0, nonceSize), ordinal)[:nonceSize]
}

// macSealer is the cipher of an unencrypted repository: the plaintext, followed by the first 16 bytes of HMAC-SHA-256
// over the nonce, the length of the additional data (8 bytes), the additional data and the plaintext.
type macSealer struct{ key []byte }

var errTag = errors.New("message authentication failed")

func (macSealer) NonceSize() int { return nonceSize }
func (macSealer) Overhead() int  { return tagSize }

func (s macSealer) tag(nonce, plaintext, additional []byte) []byte {
	mac := hmac.New(sha256.New, s.key)
	mac.Write(binary.LittleEndian.AppendUint64(bytes.Clone(nonce), uint64(len(additional))))
	mac.Write(additional)
	mac.Write(plaintext)
	return mac.Sum(nil)[:tagSize]
}

func (s macSealer) Seal(dst, nonce, plaintext, additional []byte) []byte {
	tag := s.tag(nonce, plaintext, additional)
	return append(append(dst, plaintext...), tag...)
}

func (s macSealer) Open(dst, nonce, ciphertext, additional []byte) ([]byte, error) {
	if len(ciphertext) < tagSize {
		return nil, errTag
	}
	plaintext, tag := ciphertext[:len(ciphertext)-tagSize], ciphertext[len(ciphertext)-tagSize:]
	if !hmac.Equal(tag, s.tag(nonce, plaintext, additional)) {
		return nil, errTag
	}
	return append(dst, plaintext...), nil
}

// A Lineage is a keyring for the packs of one lineage. It is safe for concurrent use.
type Lineage struct {
	keys *Keyring
	name string
	ids  []byte // the key of chunk IDs
}

// Lineage returns the keyring for the lineage of that name; fault.ErrInvalid if CheckLabel refuses it.
func (k *Keyring) Lineage(name string) (*Lineage, error) {
	if err := CheckLabel(name); err != nil {
		return nil, err
	}
	return &Lineage{keys: k, name: name, ids: derive(k.master[:], k.repository[:], useID, name)}, nil
}

// Name is the lineage's.
func (l *Lineage) Name() string { return l.name }

// A Type tells what a record in a pack is. Its value is the byte in the formats.
type Type byte

// The types of records. Only tree nodes have a level above 0.
const (
	TypeChunk  Type = 1
	TypeNode   Type = 2
	TypeBackup Type = 3
	typeFooter Type = 255
)

// A Hasher makes the ChunkIDs of one lineage. It is not safe for concurrent use.
type Hasher struct {
	mac    hash.Hash
	prefix [10]byte
}

// Hasher returns a new Hasher.
func (l *Lineage) Hasher() *Hasher { return &Hasher{mac: hmac.New(sha256.New, l.ids)} }

// Sum returns the ID of a plaintext: HMAC-SHA-256 over its type and level, a byte each, its length (8 bytes) and itself.
// The key is derived for "id" and the lineage with the repository's ID as the salt.
func (h *Hasher) Sum(t Type, level int, plaintext []byte) (id ChunkID) {
	h.prefix[0], h.prefix[1] = byte(t), byte(level)
	binary.LittleEndian.PutUint64(h.prefix[2:], uint64(len(plaintext)))
	h.mac.Reset()
	h.mac.Write(h.prefix[:])
	h.mac.Write(plaintext)
	h.mac.Sum(id[:0])
	return id
}

// A sealed object is:
//
//	0   8   "ORLOPOB1"
//	8   16  the repository's ID
//	24  32  salt
//	56  …   the plaintext, sealed with nonce 0 and with the additional data: the repository's ID, the plaintext's length
//	        (8 bytes) and the object's name
//	-32 32  SHA-256 of everything before it, for who holds no key
const (
	objectMagic  = "ORLOPOB1"
	objectHeader = len(objectMagic) + 16 + secretSize
)

// SealObject returns what to store under name so that OpenObject finds plaintext there. Every call draws a new salt: a
// repeated attempt to store the object must send the bytes of the first.
func (k *Keyring) SealObject(name string, plaintext []byte) ([]byte, error) {
	salt := make([]byte, secretSize)
	if err := fill(k.Random, salt); err != nil {
		return nil, fmt.Errorf("seal object %s: %w", name, err)
	}
	sealed := make([]byte, 0, objectHeader+len(plaintext)+tagSize+sha256.Size)
	sealed = append(append(append(sealed, objectMagic...), k.repository[:]...), salt...)
	sealed = k.sealer(useHead, salt).Seal(sealed, nonce(0), plaintext, k.objectData(name, len(plaintext)))
	sum := sha256.Sum256(sealed)
	return append(sealed, sum[:]...), nil
}

func (k *Keyring) objectData(name string, length int) []byte {
	data := binary.LittleEndian.AppendUint64(bytes.Clone(k.repository[:]), uint64(length))
	return append(data, name...)
}

// CheckObject finds damage in a sealed object without a key. What it accepts may still be forged.
func CheckObject(name string, object []byte) error {
	if len(object) < objectHeader+tagSize+sha256.Size || string(object[:len(objectMagic)]) != objectMagic {
		return corrupt(name, "it is truncated or no sealed object")
	}
	body := object[:len(object)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], object[len(body):]) {
		return corrupt(name, "its checksum does not match")
	}
	return nil
}

// OpenObject returns the plaintext that SealObject sealed for this name in this repository. Everything else is
// fault.ErrCorrupt: damage, another object's bytes, another repository's.
func (k *Keyring) OpenObject(name string, object []byte) ([]byte, error) {
	if err := CheckObject(name, object); err != nil {
		return nil, err
	}
	if repository := ID(object[len(objectMagic):][:len(k.repository)]); repository != k.repository {
		return nil, foreign(name, repository, k.repository)
	}
	salt := object[objectHeader-secretSize : objectHeader]
	sealed := object[objectHeader : len(object)-sha256.Size]
	plaintext, err := k.sealer(useHead, salt).Open(nil, nonce(0), sealed, k.objectData(name, len(sealed)-tagSize))
	if err != nil {
		return nil, corrupt(name, "it is not what was stored under this name")
	}
	return plaintext, nil
}

// errForeign is in the error of a sound object that says that it is another repository's.
var errForeign = errors.New("another repository's")

func foreign(name string, its, wanted ID) error {
	return fault.Errorf(fault.ErrCorrupt, "object %s is %w: it belongs to repository %s, not to %s", name, errForeign, its, wanted)
}

// corrupt is the fault.ErrCorrupt of an object.
func corrupt(name, format string, args ...any) error {
	return fault.Errorf(fault.ErrCorrupt, "object %s is damaged: %s", name, fmt.Sprintf(format, args...))
}
