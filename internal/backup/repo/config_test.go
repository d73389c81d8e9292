package repo

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"orlop/internal/fault"
)

func newTestConfig(t testing.TB, key *Key) (Config, []byte, *Keyring) {
	t.Helper()
	config, object, keys, err := NewRepository(key, rand.NewChaCha8([32]byte{2}))
	if err != nil {
		t.Fatal(err)
	}
	return config, object, keys
}

func TestConfigReadsBack(t *testing.T) {
	for _, key := range []*Key{nil, new(Key)} {
		config, object, keys := newTestConfig(t, key)
		file, err := ParseConfig(object)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%+v", file.Config), fmt.Sprintf("%+v", config); got != want {
			t.Errorf("read %s, want %s", got, want)
		}
		unlocked, err := file.Unlock(key)
		if err != nil {
			t.Fatal(err)
		}
		if unlocked.master != keys.master || unlocked.repository != config.Repository || unlocked.encrypted != (key != nil) {
			t.Error("unlocked another keyring")
		}
		if !bytes.Equal(unlocked.slots, keys.slots) {
			t.Errorf("slots %s, want %s", unlocked.slots, keys.slots)
		}
		if sealed, err := keys.SealObject("a/b", []byte("text")); err != nil {
			t.Error(err)
		} else if text, err := unlocked.OpenObject("a/b", sealed); err != nil || string(text) != "text" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestKeyMustFitTheRepository(t *testing.T) {
	for _, key := range []*Key{nil, new(Key)} {
		_, object, _ := newTestConfig(t, key)
		file, err := ParseConfig(object)
		if err != nil {
			t.Fatal(err)
		}
		other := new(Key)
		if key != nil {
			other = nil
		}
		if _, err := file.Unlock(other); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("%v", err)
		}
	}
}

func TestDamagedConfigIsCorrupt(t *testing.T) {
	_, object, _ := newTestConfig(t, new(Key))
	for n := range object {
		if _, err := ParseConfig(object[:n]); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("cut at %d: %v", n, err)
		}
		for bit := range 8 { // one of them makes a hex digit a capital one
			flipped := bytes.Clone(object)
			flipped[n] ^= 1 << bit
			if _, err := ParseConfig(flipped); !fault.Is(err, fault.ErrCorrupt) {
				t.Errorf("byte %d changed: %v", n, err)
			}
		}
	}
}

// rewrite changes the config's JSON as a host without the key can: the checksum fits.
func rewrite(t *testing.T, object []byte, change func(string) string) []byte {
	t.Helper()
	lines := strings.SplitAfter(string(object), "\n")
	changed := change(lines[0])
	if changed == lines[0] {
		t.Fatal("nothing changed")
	}
	changed += lines[1]
	return fmt.Appendf(nil, "%ssha-256 %x\n", changed, sha256.Sum256([]byte(changed)))
}

func TestConfigChangedWithoutTheKeyIsRefused(t *testing.T) {
	_, object, _ := newTestConfig(t, new(Key))
	for from, to := range map[string]string{
		`"min_reader":1`:     `"min_reader":0`,
		`"chunk_min":65536`:  `"chunk_min":64`,
		`"features":[]`:      `"extra":1,"features":[]`,
		`"kind":"key-file"}`: `"kind":"key-file"},{"id":"x","kind":"y","wrapped":""}`,
		`}]}`:                `}] }`,
	} {
		forged := rewrite(t, object, func(s string) string {
			return strings.Replace(s, strings.TrimSuffix(from, "}"), strings.TrimSuffix(to, "}"), 1)
		})
		file, err := ParseConfig(forged)
		if err != nil {
			t.Errorf("%s: %v", to, err)
			continue
		}
		if _, err := file.Unlock(new(Key)); !fault.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: %v", to, err)
		}
	}
	_, other, _, err := NewRepository(new(Key), rand.NewChaCha8([32]byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	otherFile, err := ParseConfig(other)
	if err != nil {
		t.Fatal(err)
	}
	// The slots of another repository of the same key.
	foreign := rewrite(t, object, func(s string) string {
		var config Config
		if err := json.Unmarshal([]byte(s), &config); err != nil {
			t.Fatal(err)
		}
		config.Slots = otherFile.Config.Slots
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	})
	file, err := ParseConfig(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Unlock(new(Key)); !fault.Is(err, fault.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestConfigOfALaterProgramIsRefused(t *testing.T) {
	_, object, _ := newTestConfig(t, nil)
	for _, c := range []struct{ from, to, named string }{
		{`"min_reader":1`, `"min_reader":2`, "format 2"},
		{`"features":[]`, `"features":["striped"]`, `"striped"`},
		{`"hash":"hmac-sha-256"`, `"hash":"blake3"`, `"blake3"`},
		{`"cipher":"none-hmac-sha-256-128"`, `"cipher":"rot13"`, `"rot13"`},
		{`"chunk_max":4194304`, `"chunk_max":8388608`, "8388608"},
		{`"compression":"zstd"`, `"compression":"xz"`, `"xz"`},
	} {
		later := rewrite(t, object, func(s string) string { return strings.Replace(s, c.from, c.to, 1) })
		if _, err := ParseConfig(later); !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), c.named) {
			t.Errorf("%s: %v", c.to, err)
		}
	}
}

// A key slot that this program does not know is no obstacle, and stays in the packs.
func TestUnknownSlotsAreKept(t *testing.T) {
	config, _, keys := newTestConfig(t, new(Key))
	config.Slots = append([]Slot{{ID: "p", Kind: "passphrase", Wrapped: []byte("w"), Params: map[string]string{"n": "1"}}}, config.Slots...)
	object, err := encodeConfig(config, keys)
	if err != nil {
		t.Fatal(err)
	}
	// With a field that a later program gave it.
	signed := append(bytes.Replace(object[:bytes.IndexByte(object, '\n')], []byte(`{"id":"p"`), []byte(`{"hint":"h","id":"p"`), 1), '\n')
	object = fmt.Appendf(signed, "hmac-sha-256 %x\n", configMAC(keys, signed))
	object = fmt.Appendf(object, "sha-256 %x\n", sha256.Sum256(object))
	file, err := ParseConfig(object)
	if err != nil {
		t.Fatal(err)
	}
	unlocked, err := file.Unlock(new(Key))
	if err != nil || !strings.Contains(string(unlocked.slots), `{"hint":"h","id":"p","kind":"passphrase"`) {
		t.Errorf("%s: %v", unlocked.slots, err)
	}
}

// The header of any pack opens a repository without a config.
func TestSlotBlockReplacesTheConfig(t *testing.T) {
	for _, key := range []*Key{nil, new(Key)} {
		config, _, keys := newTestConfig(t, key)
		again, err := KeyringFromSlots(config.Repository, keys.slots, key)
		if err != nil || again.master != keys.master {
			t.Errorf("another master key: %v", err)
		}
	}
	for block, kind := range map[string]fault.Kind{
		`[`:    fault.ErrCorrupt,
		`[{}]`: fault.ErrUnsupported,
		`[{"id":"` + new(Key).ID() + `","kind":"key-file","wrapped":"AA=="}]`:                        fault.ErrCorrupt,
		`[{"id":"` + new(Key).ID() + `","kind":"key-file","params":{"salt":"` + vectorKeyID + `"}}]`: fault.ErrCorrupt,
	} {
		if _, err := KeyringFromSlots(ID{}, []byte(block), new(Key)); !fault.Is(err, kind) {
			t.Errorf("%s: %v", block, err)
		}
	}
}

func TestNoUseOfAKeyIsAnothers(t *testing.T) {
	seen := map[string]string{}
	secret, salt := sequence(32), sequence(32)
	for _, of := range []use{useWrap, useConfig, useID, useData, useMeta, useHead, useCache} {
		for _, lineage := range []string{"", "a", "b"} {
			key := string(derive(secret, salt, of, lineage))
			if other, there := seen[key]; there {
				t.Errorf("%s %s has the key of %s", of, lineage, other)
			}
			seen[key] = string(of) + " " + lineage
		}
	}
}

// The header comment of chunk IDs, spelled out with the standard library.
func TestChunkIDIsTheDocumentedHMAC(t *testing.T) {
	lineage := newTestLineage(t)
	mac := hmac.New(sha256.New, lineage.ids)
	mac.Write([]byte{2, 3, 5, 0, 0, 0, 0, 0, 0, 0})
	mac.Write([]byte("plain"))
	if id := lineage.Hasher().Sum(TypeNode, 3, []byte("plain")); !bytes.Equal(id[:], mac.Sum(nil)) {
		t.Errorf("%s", id)
	}
}

func FuzzConfig(f *testing.F) {
	for _, key := range []*Key{nil, new(Key)} {
		_, object, _ := newTestConfig(f, key)
		f.Add(object[:bytes.IndexByte(object, '\n')])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		object := append(bytes.Clone(text), "\nhmac-sha-256 "+strings.Repeat("0", 64)+"\n"...)
		object = fmt.Appendf(object, "sha-256 %x\n", sha256.Sum256(object))
		file, err := ParseConfig(object)
		if err != nil {
			if !fault.Is(err, fault.ErrCorrupt) && !fault.Is(err, fault.ErrUnsupported) {
				t.Errorf("%v", err)
			}
			return
		}
		if _, err := file.Unlock(new(Key)); err == nil {
			t.Error("a config without a MAC is unlocked")
		}
	})
}
