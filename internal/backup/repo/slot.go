package repo

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"orlop/internal/fault"
)

// slotKeyFile is the kind of a slot that a key file opens.
const slotKeyFile = "key-file"

// slotSalt is the parameter of such a slot that holds its salt, 32 bytes in hex.
const slotSalt = "salt"

// A Slot is one way to the master key. Slots of kinds that are not known here are kept and not used.
type Slot struct {
	ID      string            `json:"id"` // of a key file: the key's ID
	Kind    string            `json:"kind"`
	Wrapped []byte            `json:"wrapped"` // base64
	Params  map[string]string `json:"params,omitempty"`
}

// newSlot wraps master for a key file: AES-256-GCM with nonce 0 and the repository's ID (its 16 bytes) as additional data,
// under a key derived for "wrap" from the key file's key and a random salt.
func newSlot(key *Key, repository ID, master, salt []byte) Slot {
	wrapping := newGCM(derive(key.secret[:], salt, useWrap, ""))
	return Slot{
		ID:      key.ID(),
		Kind:    slotKeyFile,
		Wrapped: wrapping.Seal(nil, nonce(0), master, repository[:]),
		Params:  map[string]string{slotSalt: hex.EncodeToString(salt)},
	}
}

// unwrap returns the master key from the slot that key opens. It fails with fault.ErrCorrupt, naming the IDs of the keys
// that would do, if there is none, or if the slot is damaged.
func unwrap(slots []Slot, key *Key, repository ID) ([]byte, error) {
	var wanted []string
	for _, slot := range slots {
		if slot.Kind != slotKeyFile {
			continue
		}
		wanted = append(wanted, slot.ID)
		if slot.ID != key.ID() {
			continue
		}
		salt, err := hex.DecodeString(slot.Params[slotSalt])
		if err != nil || len(salt) != secretSize {
			return nil, fault.Errorf(fault.ErrCorrupt, "repository %s: the slot of key %s is damaged: bad salt", repository, slot.ID)
		}
		wrapping := newGCM(derive(key.secret[:], salt, useWrap, ""))
		master, err := wrapping.Open(nil, nonce(0), slot.Wrapped, repository[:])
		if err != nil || len(master) != secretSize {
			return nil, fault.Errorf(fault.ErrCorrupt, "repository %s: the slot of key %s is damaged or belongs to another repository", repository, slot.ID)
		}
		return master, nil
	}
	if wanted == nil {
		return nil, fault.Errorf(fault.ErrUnsupported, "repository %s has no slot for key files", repository)
	}
	return nil, fault.Errorf(fault.ErrCorrupt, "wrong key: repository %s wants key %s, the key given is %s",
		repository, strings.Join(wanted, " or "), key.ID())
}

// encodeSlots returns the slot block: a JSON array, as in the config.
func encodeSlots(slots []Slot) ([]byte, error) {
	block, err := json.Marshal(slots)
	if err != nil {
		return nil, fmt.Errorf("encode key slots: %w", err)
	}
	if len(block) > maxSlots {
		return nil, fault.Errorf(fault.ErrInvalid, "the key slots take %d bytes: at most %d are allowed", len(block), maxSlots)
	}
	return block, nil
}

// maxSlots bounds the slot block, in bytes.
const maxSlots = 16 << 10

// KeyringFromSlots opens a repository whose config is lost, with what PackHeader tells. An empty slot block is that of an
// unencrypted repository. It fails as Config.Unlock does.
func KeyringFromSlots(repository ID, block []byte, key *Key) (*Keyring, error) {
	if len(block) == 0 {
		if key != nil {
			return nil, errNotEncrypted(repository)
		}
		return newKeyring(repository, false, publicMaster(repository), nil)
	}
	if key == nil {
		return nil, errEncrypted(repository)
	}
	var slots []Slot
	if err := json.Unmarshal(block, &slots); err != nil {
		return nil, fault.Errorf(fault.ErrCorrupt, "repository %s: read key slots: %w", repository, err)
	}
	master, err := unwrap(slots, key, repository)
	if err != nil {
		return nil, err
	}
	return newKeyring(repository, true, master, block)
}

func errNotEncrypted(repository ID) error {
	return fault.Errorf(fault.ErrInvalid, "repository %s is not encrypted, but a key was given, by --key-file or ORLOP_KEY_FILE: use --key-file '' to give none", repository)
}

func errEncrypted(repository ID) error {
	return fault.Errorf(fault.ErrInvalid, "repository %s is encrypted, and no key was given", repository)
}
