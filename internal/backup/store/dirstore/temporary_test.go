package dirstore

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// endedOwner names a process of this kernel and PID namespace that is no more: no PID is that high.
func endedOwner(s *Store) string {
	return s.owner[:strings.LastIndexByte(s.owner, '.')+1] + fmt.Sprint(1<<30)
}

func TestFirstPutRemovesTheTemporaryFilesThatNobodyWillFinish(t *testing.T) {
	dir := t.TempDir()
	s, _ := openWatched(t, dir, nil)
	must(t, s.Put(t.Context(), "a", nil)) // makes the directory; its sweep finds nothing
	const otherBoot = "00000000-0000-4000-8000-000000000000.4026531836.1"
	otherNamespace := strings.Replace(endedOwner(s), ".", ".9", 1)
	young, old := time.Now().Add(-stale/2), time.Now().Add(-2*stale)
	var kept []string
	for _, c := range []struct {
		name string
		time time.Time
		kept bool
	}{
		{otherBoot + ".young", young, true},
		{otherBoot + ".old", old, false},
		{otherBoot + ".ahead", time.Now().Add(1000 * time.Hour), true}, // its server's clock was wrong
		{otherNamespace + ".young", young, true},
		{s.owner + ".young", young, true},
		{s.owner + ".old", old, false},
		{endedOwner(s) + ".young", young, false},
		{"strange", young, true},
		{"strange-and-old", old, false},
	} {
		path := dir + "/" + temporaryDir + "/" + c.name
		must(t, os.WriteFile(path, []byte("part"), 0o600))
		must(t, os.Chtimes(path, c.time, c.time))
		if c.kept {
			kept = append(kept, c.name)
		}
	}
	must(t, os.Mkdir(dir+"/"+temporaryDir+"/directory", 0o700))
	kept = append(kept, "directory")
	slices.Sort(kept)

	s, _ = openWatched(t, dir, nil)
	must(t, s.Put(t.Context(), "b", nil))
	if got := temporaries(t, dir); !slices.Equal(got, kept) {
		t.Errorf("want %q\ngot %q", kept, got)
	}
}

func TestSweepTakesNoObjectWithIt(t *testing.T) {
	dir := t.TempDir()
	s, _ := openWatched(t, dir, func(effect string, do func() error) error {
		if effect == "unlink" {
			return nil // as after a crash: the file has both names
		}
		return do()
	})
	s.owner = endedOwner(s)
	must(t, s.Put(t.Context(), "a/b", []byte("kept")))
	if len(temporaries(t, dir)) != 1 {
		t.Fatalf("left %q", temporaries(t, dir))
	}
	s, _ = openWatched(t, dir, nil)
	must(t, s.Put(t.Context(), "c", nil))
	if left := temporaries(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if got, err := s.Get(t.Context(), "a/b"); err != nil || string(got) != "kept" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProcessWithoutAnIdentityRemovesByAgeAlone(t *testing.T) {
	dir := t.TempDir()
	s, _ := openWatched(t, dir, nil)
	s.owner = ""
	for _, name := range []string{"x.1073741824.y", ".1073741824.y", endedOwner(&Store{owner: owner()}) + ".y"} {
		if s.ended(name) {
			t.Errorf("%s is taken for another's", name)
		}
	}
	must(t, s.Put(t.Context(), "a", nil))
}
