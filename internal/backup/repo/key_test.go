package repo

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orlop/internal/fault"
)

// The key of bytes 0 to 31, as every version of the program writes and names it.
const (
	vectorKey   = "ORLOP-KEY-1 AAAQ-EAYE-AUDA-OCAJ-BIFQ-YDIO-B4IB-CEQT-CQKR-MFYY-DENB-WHA5-DYP6-P7PV\n"
	vectorKeyID = "99300b79de7b7835"
)

func sequence(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i)
	}
	return data
}

func TestKeyHasOneTextAndOneID(t *testing.T) {
	key, err := NewKey(bytes.NewReader(sequence(32)))
	if err != nil {
		t.Fatal(err)
	}
	if text := key.Line() + "\n"; text != vectorKey || key.ID() != vectorKeyID {
		t.Errorf("%q with ID %s", text, key.ID())
	}
}

func TestKeyFileReadsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v: %v", info.Mode(), err)
	}
	read, err := ReadKeyFile(path)
	if err != nil || read.secret != key.secret {
		t.Errorf("read another key: %v", err)
	}
	other, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.WriteFile(path); !fault.Is(err, fault.ErrExists) {
		t.Errorf("%v", err)
	}
	if read, err = ReadKeyFile(path); err != nil || read.secret != key.secret {
		t.Errorf("the key was overwritten: %v", err)
	}
}

func TestKeyFileOpenToOthersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for mode, fits := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o620: false} {
		if err := os.WriteFile(path, []byte(vectorKey), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := ReadKeyFile(path)
		if fits && err != nil || !fits && (!fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), path)) {
			t.Errorf("mode %o: %v", mode, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadKeyFile(path); !fault.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

func TestMistypedKeysAreRefused(t *testing.T) {
	line := strings.TrimSuffix(vectorKey, "\n")
	for text, kind := range map[string]fault.Kind{
		line:                    "",
		"":                      fault.ErrInvalid,
		"-----BEGIN KEY-----\n": fault.ErrInvalid,
		line + "\r\n":           "",
		line + " \t \n":         "",
		vectorKey + "\n":        "",
		line + "\u00a0":         fault.ErrInvalid,
		line + "\n# office":     fault.ErrInvalid,
		vectorKey + vectorKey:   fault.ErrInvalid,
		strings.Replace(line, "KEY-1", "KEY-ı", 1): fault.ErrInvalid,
		strings.Replace(line, "OCAJ", "OCAſ", 1):   fault.ErrInvalid,
		line[:len(line)-5]:                         fault.ErrInvalid,
		strings.Replace(line, "AAAQ", "AAAR", 1):   fault.ErrCorrupt,
		strings.Replace(line, "AAAQ", "AAA1", 1):   fault.ErrInvalid,
		strings.Replace(line, "KEY-1", "KEY-2", 1): fault.ErrInvalid,
	} {
		if _, err := parseKey([]byte(text)); fault.KindOf(err) != kind {
			t.Errorf("%q: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "EAYE") {
			t.Errorf("%q shows the key", err)
		}
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyFile(path); !fault.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

// A key is read as somebody may have typed it from a recovery sheet.
func TestKeysTypedFromPaperAreRead(t *testing.T) {
	line := strings.TrimSuffix(vectorKey, "\n")
	key, err := parseKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	half := strings.Index(line, "CEQT")
	for _, text := range []string{
		" " + vectorKey, strings.ToLower(line),
		"ORLOP-KEY-1\n" + strings.Join(key.Groups(), " "),
		"ORLOP-KEY-1\r\n  " + strings.Join(key.Groups()[:7], " ") + "\r\n  " + strings.Join(key.Groups()[7:], " ") + "\r\n",
		"orlop-key-1 " + strings.ToLower(strings.Join(key.Groups(), "")),
		line[:half] + "\n" + line[half:],
	} {
		read, err := parseKey([]byte(text))
		if err != nil || read.secret != key.secret {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What follows a key in its file is read, however much space is between.
func TestNothingBehindAKeyIsIgnored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, space := range []int{0, keyFileMax - len(vectorKey) - 1, keyFileMax - len(vectorKey), keyFileMax} {
		if err := os.WriteFile(path, []byte(vectorKey+strings.Repeat("\n", space)+"another line\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKeyFile(path); !fault.Is(err, fault.ErrInvalid) {
			t.Errorf("behind %d newlines: %v", space, err)
		}
	}
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(vectorKey))
	f.Add([]byte(vectorKey[:40]))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := parseKey(text)
		if err != nil {
			return
		}
		letters := func(text string) string {
			return strings.NewReplacer("-", "", " ", "", "\t", "", "\r", "", "\n", "").Replace(strings.ToUpper(text))
		}
		if letters(string(text)) != letters(key.Line()) {
			t.Errorf("%q is read as %q", text, key.Line())
		}
	})
}

func TestWrongKeyNamesBoth(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	right, wrong := new(Key), new(Key)
	wrong.secret[0] = 1
	_, object, _, err := NewRepository(right, random)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ParseConfig(object)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.Unlock(wrong)
	if !fault.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), right.ID()) || !strings.Contains(err.Error(), wrong.ID()) {
		t.Errorf("%v", err)
	}
}
