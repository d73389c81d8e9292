package repo

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"orlop/internal/fault"
)

// The format that is written here, and the limits of its chunks in bytes.
const (
	configMagic = "orlop-repository"

	// Format is the number of the repository format. Version 1 is the first.
	Format = 1

	// minReader is the lowest Format whose programs may read and write what is written here.
	minReader = 1

	// MinChunk and MaxChunk bound the size of chunks, which is a power of two.
	MinChunk = 64 << 10
	MaxChunk = 4 << 20

	// DefaultChunk is the size of chunks where nobody says otherwise.
	DefaultChunk = 128 << 10
)

// The algorithms, by the names that stand in the config.
const (
	hashHMAC        = "hmac-sha-256"
	cipherGCM       = "aes-256-gcm"
	cipherMAC       = "none-hmac-sha-256-128"
	compressionZstd = "zstd"
)

// features are those that this program can read and write. The first version of the format needs none.
var features = map[string]bool{}

// A Config says what a repository is. The object holds three lines, each ended by a newline:
//
//	<the Config in JSON>
//	hmac-sha-256 <hex>    of the first line with its newline, under the key derived for "config", with the repository's ID as the salt
//	sha-256 <hex>         of the first two lines with their newlines, for who holds no key
//
// A reader that does not know a name in Features, or is older than MinReader, must refuse the repository. Fields that it
// does not know it ignores. Whoever introduces a feature whose ignorance is dangerous raises MinReader too: packs repeat
// that, and a config that is lost is made anew from packs, without its features.
type Config struct {
	Magic       string   `json:"magic"`      // "orlop-repository"
	Format      int      `json:"format"`     // of the program that made the repository
	MinReader   int      `json:"min_reader"` // the oldest Format whose programs may read it
	Features    []string `json:"features"`   // what those must know besides
	Repository  ID       `json:"repository"` // hex
	Encrypted   bool     `json:"encrypted"`
	Hash        string   `json:"hash"`        // of chunk IDs: "hmac-sha-256"
	Cipher      string   `json:"cipher"`      // "aes-256-gcm", or "none-hmac-sha-256-128" if not encrypted
	Compression string   `json:"compression"` // "zstd"
	ChunkMin    int      `json:"chunk_min"`   // bytes
	ChunkMax    int      `json:"chunk_max"`
	Slots       []Slot   `json:"slots"` // empty if not encrypted
}

// A ConfigFile is a config as it is stored.
type ConfigFile struct {
	Config Config
	signed []byte // the first line with its newline
	mac    []byte
}

// NewRepository makes the config of a new repository, its object's bytes and its keyring. With a nil key it is not
// encrypted. What is random comes from random, or crypto/rand if that is nil.
func NewRepository(key *Key, random io.Reader) (config Config, object []byte, keys *Keyring, err error) {
	config = Config{
		Magic: configMagic, Format: Format, MinReader: minReader, Features: []string{}, Hash: hashHMAC, Cipher: cipherMAC,
		Compression: compressionZstd, ChunkMin: MinChunk, ChunkMax: MaxChunk, Slots: []Slot{},
	}
	secrets := make([]byte, len(config.Repository)+2*secretSize)
	if err := fill(random, secrets); err != nil {
		return Config{}, nil, nil, fmt.Errorf("make a repository: %w", err)
	}
	copy(config.Repository[:], secrets)
	master, salt := secrets[len(config.Repository):][:secretSize], secrets[len(secrets)-secretSize:]
	var block []byte
	if key == nil {
		master = publicMaster(config.Repository)
	} else {
		config.Encrypted, config.Cipher = true, cipherGCM
		config.Slots = []Slot{newSlot(key, config.Repository, master, salt)}
		if block, err = encodeSlots(config.Slots); err != nil {
			return Config{}, nil, nil, err
		}
	}
	keys, err = newKeyring(config.Repository, config.Encrypted, master, block)
	if err != nil {
		return Config{}, nil, nil, err
	}
	keys.Random = random
	object, err = encodeConfig(config, keys)
	return config, object, keys, err
}

func encodeConfig(config Config, keys *Keyring) ([]byte, error) {
	object, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	object = append(object, '\n')
	object = fmt.Appendf(object, "%s %x\n", hashHMAC, configMAC(keys, object))
	return fmt.Appendf(object, "sha-256 %x\n", sha256.Sum256(object)), nil
}

func configMAC(keys *Keyring, signed []byte) []byte {
	mac := hmac.New(sha256.New, derive(keys.master[:], keys.repository[:], useConfig, ""))
	mac.Write(signed)
	return mac.Sum(nil)
}

// ParseConfig reads the config's object. It fails with fault.ErrCorrupt if the object is damaged, and with
// fault.ErrUnsupported, naming what is missing, if this program is too old for the repository. The result may still be
// forged: Unlock tells.
func ParseConfig(object []byte) (*ConfigFile, error) {
	lines := bytes.SplitAfter(object, []byte("\n"))
	if len(lines) != 4 || len(lines[3]) != 0 {
		return nil, corrupt(ConfigName, "it is truncated or no config")
	}
	sum, err := sumOf(lines[2], "sha-256")
	if expected := sha256.Sum256(object[:len(lines[0])+len(lines[1])]); err != nil || !bytes.Equal(sum, expected[:]) {
		return nil, corrupt(ConfigName, "its checksum does not match")
	}
	mac, err := sumOf(lines[1], hashHMAC)
	if err != nil {
		return nil, corrupt(ConfigName, "its second line holds no MAC")
	}
	file := &ConfigFile{signed: lines[0], mac: mac}
	// What a later format may have changed is read only after it was found fit to be read.
	var version struct {
		Magic     string   `json:"magic"`
		MinReader int      `json:"min_reader"`
		Features  []string `json:"features"`
	}
	if err := json.Unmarshal(lines[0], &version); err != nil || version.Magic != configMagic {
		return nil, corrupt(ConfigName, "it is no config of a repository")
	}
	if version.MinReader > Format {
		return nil, fault.Errorf(fault.ErrUnsupported, "the repository wants a program that reads format %d, this one reads up to %d", version.MinReader, Format)
	}
	for _, feature := range version.Features {
		if !features[feature] {
			return nil, fault.Errorf(fault.ErrUnsupported, "the repository needs the feature %q, which this program does not know", feature)
		}
	}
	if err := json.Unmarshal(lines[0], &file.Config); err != nil {
		return nil, corrupt(ConfigName, "%v", err)
	}
	return file, file.Config.check()
}

// sumOf reads "<name> <64 hex digits>\n". No other bytes mean the same: capital digits are damage.
func sumOf(line []byte, name string) ([]byte, error) {
	digits, named := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte(name+" "))
	sum, err := hex.DecodeString(string(digits))
	if !named || err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != string(digits) {
		return nil, errors.New("no checksum")
	}
	return sum, nil
}

// check refuses algorithms that are not known and values that contradict each other.
func (c *Config) check() error {
	cipher := cipherMAC
	if c.Encrypted {
		cipher = cipherGCM
	}
	for _, algorithm := range []struct{ use, name, known string }{
		{"hash", c.Hash, hashHMAC}, {"cipher", c.Cipher, cipher}, {"compression", c.Compression, compressionZstd},
	} {
		if algorithm.name != algorithm.known {
			return fault.Errorf(fault.ErrUnsupported, "the repository uses the %s %q, this program only %q", algorithm.use, algorithm.name, algorithm.known)
		}
	}
	if c.ChunkMax > MaxChunk {
		return fault.Errorf(fault.ErrUnsupported, "the repository has chunks of up to %d bytes, this program reads up to %d", c.ChunkMax, MaxChunk)
	}
	if c.Encrypted == (len(c.Slots) == 0) || c.ChunkMin < 1 || c.ChunkMax < c.ChunkMin {
		return corrupt(ConfigName, "its fields contradict each other")
	}
	return nil
}

// Unlock returns the repository's keyring, having found the config authentic. It fails with fault.ErrCorrupt if the key is
// not the repository's, with both IDs in the text, or if somebody without the key changed the config; and with
// fault.ErrInvalid if the repository is encrypted and key is nil, or the other way round. That an attacker did not
// replace the whole repository is for the caller to know, from its ID.
func (f *ConfigFile) Unlock(key *Key) (*Keyring, error) {
	var raw struct {
		Slots json.RawMessage `json:"slots"` // as they stand there, with fields that are not known here
	}
	if err := json.Unmarshal(f.signed, &raw); err != nil || len(raw.Slots) > maxSlots {
		return nil, corrupt(ConfigName, "its key slots cannot be read")
	}
	if !f.Config.Encrypted {
		raw.Slots = nil
	}
	keys, err := KeyringFromSlots(f.Config.Repository, raw.Slots, key)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(f.mac, configMAC(keys, f.signed)) {
		return nil, corrupt(ConfigName, "somebody without the key changed it")
	}
	return keys, nil
}
