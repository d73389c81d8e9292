package dirstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/storetest"
	"orlop/internal/fault"
)

func TestPutFlushesTheFileBeforeItHasItsNameAndEveryDirectoryBeforeItReturns(t *testing.T) {
	dir := t.TempDir()
	flushed := []string{"sync " + dir + "/a/b", "sync " + dir + "/a", "sync " + dir}
	s, w := openWatched(t, dir, nil)
	must(t, s.Put(t.Context(), "a/b/c", []byte("x")))
	want := slices.Concat([]string{"mkdir tmp~", "create", "write", "sync file", "mkdir a", "mkdir b", "link c"}, flushed, []string{"unlink"})
	if !slices.Equal(w.effects, want) {
		t.Errorf("new directories:\nwant %q\ngot  %q", want, w.effects)
	}

	// Another process may have made the directories, or the object, and not flushed them.
	s, w = openWatched(t, dir, nil)
	must(t, s.Put(t.Context(), "a/b/d", nil))
	want = slices.Concat([]string{"create", "sync file", "link d"}, flushed, []string{"unlink"})
	if !slices.Equal(w.effects, want) {
		t.Errorf("old directories:\nwant %q\ngot  %q", want, w.effects)
	}
	w.effects = nil
	if err := s.Put(t.Context(), "a/b/c", nil); !fault.Is(err, fault.ErrExists) {
		t.Errorf("taken name: %v", err)
	}
	want = slices.Concat([]string{"create", "sync file", "link c"}, flushed, []string{"unlink"})
	if !slices.Equal(w.effects, want) {
		t.Errorf("taken name:\nwant %q\ngot  %q", want, w.effects)
	}
}

// TestCrashInAPutLeavesAWholeObjectOrNone ends a process before and after each effect of a Put, and looks at what the
// next finds.
func TestCrashInAPutLeavesAWholeObjectOrNone(t *testing.T) {
	type crash struct{}
	data := []byte("whole")
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			dir, met := t.TempDir(), 0
			s, _ := openWatched(t, dir, func(_ string, do func() error) error {
				met++
				if met < n {
					return do()
				}
				if after && met == n {
					_ = do() // dies with it
				}
				panic(crash{}) // nothing happens afterwards
			})
			s.owner = endedOwner(s)
			crashed := func() (crashed bool) {
				defer func() { crashed = recover() != nil }()
				must(t, s.Put(t.Context(), "a/b", data))
				return false
			}()
			if !crashed {
				if n < 8 {
					t.Errorf("a put has %d effects only", n-1)
				}
				break
			}
			recoverFrom(t, fmt.Sprintf("effect %d, after: %t", n, after), dir, data)
		}
	}
}

func recoverFrom(t *testing.T, what, dir string, data []byte) {
	t.Helper()
	s, _ := openWatched(t, dir, nil)
	var listed []store.Object
	must(t, s.List(t.Context(), "", func(o store.Object) error {
		listed = append(listed, o)
		return nil
	}))
	got, err := s.Get(t.Context(), "a/b")
	switch {
	case fault.Is(err, fault.ErrNotFound) && len(listed) == 0:
	case err == nil && string(got) == string(data) && len(listed) == 1:
	default:
		t.Errorf("%s: listed %v, got %q, %v", what, listed, got, err)
	}
	if err := s.Put(t.Context(), "a/b", data); err != nil && !fault.Is(err, fault.ErrExists) {
		t.Errorf("%s: put again: %v", what, err)
	}
	if got, err := s.Get(t.Context(), "a/b"); err != nil || string(got) != string(data) {
		t.Errorf("%s: put again, and got %q, %v", what, got, err)
	}
	if left := temporaries(t, dir); len(left) > 0 {
		t.Errorf("%s: left %q", what, left)
	}
}

// TestFailureInAPutLeavesNoTemporaryFile fails each effect of a Put, before and after it happened.
func TestFailureInAPutLeavesNoTemporaryFile(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			dir, met, failed := t.TempDir(), 0, ""
			s, _ := openWatched(t, dir, func(effect string, do func() error) error {
				met++
				if met != n {
					return do()
				}
				failed = effect
				if after {
					_ = do() // its success is not told
				}
				return unix.ENOSPC
			})
			err := s.Put(t.Context(), "a/b", []byte("whole"))
			if failed == "" {
				must(t, err)
				break
			}
			what := fmt.Sprintf("%s failed, after: %t", failed, after)
			// An unlink that failed is for a sweep. A link that was made is seen to be.
			succeeds := failed == "unlink" || failed == "link b" && after
			if succeeds != (err == nil) || err != nil && !fault.Is(err, fault.ErrNoSpace) {
				t.Errorf("%s: %v", what, err)
			}
			// A create that failed has made nothing: no filesystem does both.
			if left := temporaries(t, dir); len(left) > 0 && (failed != "unlink" || after) && failed != "create" {
				t.Errorf("%s: left %q", what, left)
			}
			if got, err := s.Get(t.Context(), "a/b"); err == nil && string(got) != "whole" {
				t.Errorf("%s: got %q", what, got)
			}
		}
	}
}

// without makes effects fail as a filesystem does that has not got them.
func without(number unix.Errno, effects ...string) func(string, func() error) error {
	return func(effect string, do func() error) error {
		method, _, _ := strings.Cut(effect, " ")
		if slices.Contains(effects, method) {
			return number
		}
		return do()
	}
}

func TestDirectoryWithoutHardLinksKeepsTheContract(t *testing.T) {
	dir := t.TempDir()
	s, _ := openWatched(t, dir, without(unix.EPERM, "link"))
	other, _ := openWatched(t, dir, without(unix.EOPNOTSUPP, "link"))
	storetest.Run(t, storetest.Harness{Store: s, Other: other})
	if left := temporaries(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestPutRefusesAFilesystemThatCannotCreateExclusively(t *testing.T) {
	for _, number := range []unix.Errno{unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS} {
		dir := t.TempDir()
		s, _ := openWatched(t, dir, without(number, "link", "rename"))
		err := s.Put(t.Context(), "a/b", nil)
		if !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "use a directory on") {
			t.Errorf("%v: %v", number, err)
		}
		if left := temporaries(t, dir); len(left) > 0 {
			t.Errorf("%v: left %q", number, left)
		}
	}
	s, _ := openWatched(t, t.TempDir(), without(unix.EXDEV, "link"))
	if err := s.Put(t.Context(), "a/b", nil); !fault.Is(err, fault.ErrUnsupported) || !strings.Contains(err.Error(), "one filesystem") {
		t.Errorf("a disk mounted below: %v", err)
	}
}

// TestPutKnowsItsOwnObjectAfterALostReply sends a link or a rename that has succeeded once more.
func TestPutKnowsItsOwnObjectAfterALostReply(t *testing.T) {
	for _, method := range []string{"link", "rename"} {
		dir := t.TempDir()
		s, w := openWatched(t, dir, func(effect string, do func() error) error {
			sent, _, _ := strings.Cut(effect, " ")
			if sent != method && sent == "link" {
				return unix.EPERM
			}
			if sent == method {
				_ = do() // the reply is lost
			}
			return do()
		})
		must(t, s.Put(t.Context(), "head/1", []byte("mine")))
		if !slices.Contains(w.effects, "sync "+dir+"/head") {
			t.Errorf("%s: the directory was not flushed: %q", method, w.effects)
		}
		if err := s.Put(t.Context(), "head/1", []byte("mine")); !fault.Is(err, fault.ErrExists) {
			t.Errorf("%s: the next put: %v", method, err)
		}
		if left := temporaries(t, dir); len(left) > 0 {
			t.Errorf("%s: left %q", method, left)
		}
	}
}

func TestPutMakesADirectoryAgainThatADeleteHasRemoved(t *testing.T) {
	removals := 0
	dir := t.TempDir()
	s, _ := openWatched(t, dir, func(effect string, do func() error) error {
		if effect == "link c" && removals < 3 {
			removals++
			must(t, errors.Join(os.Remove(dir+"/a/b"), os.Remove(dir+"/a")))
		}
		return do()
	})
	must(t, s.Put(t.Context(), "a/b/c", []byte("x")))
	if got, err := s.Get(t.Context(), "a/b/c"); err != nil || string(got) != "x" || removals != 3 {
		t.Errorf("%d removals, got %q, %v", removals, got, err)
	}
}

func TestPutFailsWithoutItsTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	s, _ := openWatched(t, dir, func(effect string, do func() error) error {
		if effect == "link b" {
			must(t, os.RemoveAll(dir+"/"+temporaryDir))
		}
		return do()
	})
	err := s.Put(t.Context(), "a/b", []byte("x"))
	if err == nil || !strings.Contains(err.Error(), "temporary file") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Get(t.Context(), "a/b"); !fault.Is(err, fault.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
}

func TestCancelledPutLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	s, w := openWatched(t, dir, func(effect string, do func() error) error {
		if effect == "write" {
			cancel()
		}
		return do()
	})
	if err := s.Put(ctx, "a/b", make([]byte, 2*block)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if want := []string{"mkdir tmp~", "create", "write", "unlink"}; !slices.Equal(w.effects, want) {
		t.Errorf("want %q, got %q", want, w.effects)
	}
}

func TestFailuresNameThePathAndHaveTheirKind(t *testing.T) {
	for _, c := range []struct {
		number unix.Errno
		kind   fault.Kind
	}{
		{unix.ENOSPC, fault.ErrNoSpace}, {unix.EDQUOT, fault.ErrNoSpace}, {unix.EROFS, fault.ErrFailed},
		{unix.EACCES, fault.ErrFailed}, {unix.EIO, fault.ErrFailed}, {unix.ESTALE, fault.ErrUnreachable},
		{unix.ENOTCONN, fault.ErrUnreachable}, {unix.ETIMEDOUT, fault.ErrUnreachable},
	} {
		dir := t.TempDir()
		s, w := openWatched(t, dir, nil)
		w.kernel = broken{linux{}, c.number}
		err := s.Put(t.Context(), "a/b", nil)
		if !fault.Is(err, c.kind) || !errors.Is(err, c.number) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v: %v", c.number, err)
		}
	}
}

func TestFullDiskIsToldOnceWithTheObjectsName(t *testing.T) {
	dir := t.TempDir()
	s, w := openWatched(t, dir, nil)
	w.kernel = full{linux{}}
	err := s.Put(t.Context(), "a/b", []byte("x"))
	if err == nil || !strings.HasPrefix(err.Error(), "put a/b: write "+dir+"/tmp~/") || strings.Count(err.Error(), "write") != 1 {
		t.Errorf("got %v", err)
	}
}

// full is a kernel that writes nothing.
type full struct{ kernel }

func (full) write(f *os.File, _ []byte) error {
	return &os.PathError{Op: "write", Path: f.Name(), Err: unix.ENOSPC}
}

// broken is a kernel that makes no directories.
type broken struct {
	kernel
	number unix.Errno
}

func (b broken) mkdir(dir *os.File, name string) error {
	return failed("make directory", dir, name, b.number)
}
