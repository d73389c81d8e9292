package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// The bytes of each kind of object, made with randomness that counts up from 0, as every version of the program makes
// them. ORLOP_VECTORS names a directory to put them into, for other readers to try. A failure here is a change of the
// format.
func TestObjectsAreThoseOfTheVectors(t *testing.T) {
	key, err := NewKey(bytes.NewReader(sequence(32)))
	if err != nil {
		t.Fatal(err)
	}
	counting := bytes.NewReader(bytes.Repeat(sequence(251), 4))
	_, config, keys, err := NewRepository(key, counting)
	if err != nil {
		t.Fatal(err)
	}
	lineage, err := keys.Lineage("0190-a")
	if err != nil {
		t.Fatal(err)
	}
	head, err := keys.SealObject(HeadName("0190-a", 1), []byte("head"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := lineage.newPackWriter("s1", DataPack, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second record"} {
		e := Entry{ID: lineage.Hasher().Sum(TypeChunk, 0, []byte(text)), Type: TypeChunk, Length: uint32(len(text))}
		w.add(e, []byte(text))
	}
	pack := w.finish()
	n := node{3: chunkID(1), 200: chunkID(2)}
	for name, vector := range map[string]struct {
		data []byte
		sum  string
	}{
		"key":                  {[]byte(key.Line() + "\n"), "5d082c4d9b6c20bc587bfdd1e5a827216285159d229d7a1c9eb214f5dd986541"},
		ConfigName:             {config, "b5e6abe5ac4dee619d4a2ff1148aaadaf9845f1065b9963eacbd69a6c6481e96"},
		HeadName("0190-a", 1):  {head, "959684e7c94c782a11740b7fb3dbd63175852759bf747ba492c018a8b7254ea7"},
		pack.Ref.Name.String(): {pack.Bytes, "64443496c64554108dfa6e6624c2bd526f4a7d41fc5d9415ba92d68e46754956"},
		"node":                 {n.encode(nil, 1), "87842d46f84bda9a9f4ca0bb0d2c79bc5012f6561d1594b3f34b7f7d0a5cadef"},
	} {
		sum := sha256.Sum256(vector.data)
		if got := hex.EncodeToString(sum[:]); got != vector.sum {
			t.Errorf("%s has SHA-256 %s, want %s", name, got, vector.sum)
		}
		if dir := os.Getenv("ORLOP_VECTORS"); dir != "" {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, vector.data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}
