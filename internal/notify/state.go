package notify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A State remembers in a directory which runs failed last: a small file for each, which the next success removes. Runs
// are told apart by destination and selection. What it remembers survives a power cut. A lost file costs the notification
// of a recovery and nothing else.
//
// The zero State remembers nothing. Processes may share a directory.
type State struct{ dir string }

// NewState returns the State in a directory, which is made when there is something to remember.
func NewState(dir string) State { return State{dir} }

// failure is the content of a file. It is for people: that the file exists is what counts.
type failure struct {
	Destination string    `json:"destination"`
	Selection   string    `json:"selection"`
	Ended       time.Time `json:"ended"`
}

// file is named after what tells one job from another.
func (s State) file(r Report) string {
	sum := sha256.Sum256([]byte(r.Destination + "\x00" + r.Selection))
	return filepath.Join(s.dir, "failed-"+hex.EncodeToString(sum[:16])+".json")
}

// failed reports whether the previous run failed.
func (s State) failed(r Report) (bool, error) {
	if s.dir == "" {
		return false, nil
	}
	_, err := os.Stat(s.file(r))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// fail remembers that a run failed.
func (s State) fail(r Report) error {
	if s.dir == "" {
		return nil
	}
	text, err := json.Marshal(failure{withoutPassword(r.Destination), r.Selection, r.Ended.UTC()})
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(s.dir, "failed.*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(append(text, '\n'))
	if err == nil {
		err = temp.Sync()
	}
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), s.file(r)); err != nil {
		return err
	}
	return s.sync()
}

// succeed remembers that a run succeeded.
func (s State) succeed(r Report) error {
	err := os.Remove(s.file(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, s.sync())
}

// sync makes names in the directory survive a power cut.
func (s State) sync() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
