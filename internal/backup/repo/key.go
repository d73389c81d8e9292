package repo

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"orlop/internal/fault"
)

// KeyMagic is the first word of a key file. That is one line and its newline:
//
//	ORLOP-KEY-1 XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX
//
// The 56 characters are base32 (RFC 4648, A-Z and 2-7, which has no 0, 1, 8 or 9 to mistake for a letter) of the 32
// bytes of the key and the first 3 bytes of SHA-256("orlop-1 key checksum" followed by the key). It is read as somebody may
// have typed it from paper, too: letters of either case, in groups of any length, with hyphens, spaces and newlines between.
const KeyMagic = "ORLOP-KEY-1"

const (
	keyDigits     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	keyGroup      = 4
	keyCheckLabel = "orlop-1 key checksum"
	keyIDLabel    = "orlop-1 key id"
	keyCheckSize  = 3
	keyFileMax    = 256 // bytes of a key file at most
)

// A Key opens repositories. It is 256 random bits, kept in a key file.
type Key struct {
	secret [32]byte
}

// NewKey makes a key from random, or from crypto/rand if that is nil.
func NewKey(random io.Reader) (*Key, error) {
	key := new(Key)
	if err := fill(random, key.secret[:]); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// ID is a short public name of the key: the first 8 bytes of SHA-256("orlop-1 key id" followed by the key), in hex.
func (k *Key) ID() string {
	sum := sha256.Sum256(append([]byte(keyIDLabel), k.secret[:]...))
	return hex.EncodeToString(sum[:8])
}

// Groups are the characters of the key's file behind its first word, which are the key and its checksum: 14 groups of 4. They
// are the secret itself.
func (k *Key) Groups() []string {
	digits := base32.StdEncoding.EncodeToString(append(k.secret[:], keyChecksum(k.secret[:])...))
	groups := make([]string, 0, len(digits)/keyGroup)
	for ; digits != ""; digits = digits[keyGroup:] {
		groups = append(groups, digits[:keyGroup])
	}
	return groups
}

// Line is the content of the key's file without its newline. It is the secret itself.
func (k *Key) Line() string { return KeyMagic + " " + strings.Join(k.Groups(), "-") }

func keyChecksum(secret []byte) []byte {
	sum := sha256.Sum256(append([]byte(keyCheckLabel), secret...))
	return sum[:keyCheckSize]
}

// parseKey reads a key file's content. It fails with fault.ErrCorrupt if the checksum does not match and with
// fault.ErrInvalid if this is no key file. Its errors never show the content.
func parseKey(text []byte) (*Key, error) {
	words := strings.FieldsFunc(string(text), func(c rune) bool { return strings.ContainsRune(" \t\r\n", c) })
	for i, word := range words {
		words[i] = upper(word)
	}
	if len(words) == 0 || words[0] != KeyMagic {
		return nil, fault.Errorf(fault.ErrInvalid, "it does not begin with %q", KeyMagic+" ")
	}
	digits := strings.ReplaceAll(strings.Join(words[1:], ""), "-", "")
	if at := strings.IndexFunc(digits, func(c rune) bool { return !strings.ContainsRune(keyDigits, c) }); at >= 0 {
		return nil, fault.Errorf(fault.ErrInvalid, "character %d behind %q is not one of A-Z and 2-7: a key has no 0, 1, 8 or 9", at+1, KeyMagic)
	}
	key := new(Key)
	if want := base32.StdEncoding.EncodedLen(len(key.secret) + keyCheckSize); len(digits) != want {
		return nil, fault.Errorf(fault.ErrInvalid, "%q is followed by %d characters instead of %d", KeyMagic, len(digits), want)
	}
	decoded, err := base32.StdEncoding.DecodeString(digits)
	if err != nil {
		return nil, fault.Errorf(fault.ErrInvalid, "the characters behind %q are not base32", KeyMagic)
	}
	copy(key.secret[:], decoded)
	if !bytes.Equal(decoded[len(key.secret):], keyChecksum(key.secret[:])) {
		return nil, fault.Errorf(fault.ErrCorrupt, "its checksum does not match: a character was changed in copying")
	}
	return key, nil
}

// upper makes capitals of ASCII letters, and of no others.
func upper(text string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		return c
	}, text)
}

// WriteFile creates the key's file with mode 0600. The file is durable on return, and gone again if it cannot be
// written; cut short by a crash it may be left incomplete, which ReadKeyFile refuses. A file that is there already is never
// touched: fault.ErrExists. Without the directory it is fault.ErrNotFound.
func (k *Key) WriteFile(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.Errorf(fault.ErrExists, "key file %s already exists", path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Errorf(fault.ErrNotFound, "create key file %s: directory %s does not exist", path, filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("create key file: %w", err)
	}
	_, err = file.WriteString(k.Line() + "\n")
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(fmt.Errorf("write key file %s: %w", path, err), os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// ReadKeyFile reads a key's file. It fails with fault.ErrNotFound if there is none, with fault.ErrCorrupt if its checksum
// does not match, and with fault.ErrInvalid if it is not a key file or is open to others. As ssh does, it refuses a file
// of the caller's own that the group or others may read or write, and lets one of another owner be: secrets that a
// container's runtime mounts are such.
func ReadKeyFile(path string) (*Key, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Errorf(fault.ErrNotFound, "key file %s does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	if info.IsDir() {
		return nil, fault.Errorf(fault.ErrInvalid, "key file %s is a directory", path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && int(owner.Uid) == os.Geteuid() && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.Errorf(fault.ErrInvalid, "key file %s is open to others (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, keyFileMax+1))
	if err != nil {
		return nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	if len(text) > keyFileMax {
		return nil, fault.Errorf(fault.ErrInvalid, "key file %s has more than %d bytes: no key file has", path, keyFileMax)
	}
	if len(text) == 0 {
		return nil, fault.Errorf(fault.ErrInvalid, "key file %s is empty: orlop key create was cut short before it made the key", path)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return key, nil
}

// syncDir makes the names in a directory survive a power cut.
func syncDir(dir string) error {
	handle, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	defer handle.Close()
	if err := handle.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// fill fills p from random, or from crypto/rand if that is nil.
func fill(random io.Reader, p []byte) error {
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, p); err != nil {
		return fmt.Errorf("read random bytes: %w", err)
	}
	return nil
}
