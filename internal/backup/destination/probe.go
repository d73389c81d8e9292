package destination

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"orlop/internal/backup/store"
	"orlop/internal/backup/store/dirstore"
	"orlop/internal/backup/store/s3store"
	"orlop/internal/fault"
)

// A ProbeReport says what a probe of a destination saw. It holds no secret.
type ProbeReport struct {
	Destination string        `json:"destination"`
	Server      string        `json:"server"`    // what the server says that it is; empty for a directory
	Addresses   []string      `json:"addresses"` // that were tried; none for a directory
	Time        time.Time     `json:"time"`
	Trials      []store.Trial `json:"trials"`
	OK          bool          `json:"ok"`
}

// Probe finds out by trying whether a destination can hold a repository, and leaves nothing there but what it may not delete. It
// fails as store.Race does, and with fault.ErrNotFound if there is no such directory or bucket; the report tells in each case what
// was seen. The host remembers the result for a bucket.
func Probe(ctx context.Context, at Destination, o Options) (ProbeReport, error) {
	report := ProbeReport{Destination: at.String(), Addresses: []string{}, Time: time.Now().UTC(), Trials: []store.Trial{}}
	if at.IsBucket() {
		bucket, err := openBucket(at, o.Credentials)
		if err != nil {
			return report, err
		}
		defer bucket.Close()
		err = probeBucket(ctx, bucket, at.state(o), &report)
		if err != nil {
			err = fmt.Errorf("%s: %w", at, missingBucket(err))
		}
		return report, err
	}
	dir, err := dirstore.Open(at.dir)
	if err != nil {
		return report, err
	}
	defer dir.Close()
	if err := race(ctx, []store.Store{dir, dir}, &report); err != nil {
		return report, fmt.Errorf("%s: %w", at, err)
	}
	return report, nil
}

func race(ctx context.Context, ways []store.Store, report *ProbeReport) error {
	err := store.Race(ctx, ways, func(t store.Trial) { report.Trials = append(report.Trials, t) })
	report.OK = err == nil
	return err
}

// probeBucket races over every address of the server, over two connections if there is one.
func probeBucket(ctx context.Context, s *s3store.Store, state *State, report *ProbeReport) error {
	if err := s.Top(ctx, func(string) error { return errSeen }); err != nil && !errors.Is(err, errSeen) {
		return err // it also connects, and so finds the addresses
	}
	report.Server, report.Addresses = s.Server(), s.Addresses()
	ways := []store.Store{s}
	for _, address := range report.Addresses {
		way, err := s.Via(address)
		if err != nil {
			return err
		}
		defer way.Close()
		ways = append(ways, way)
	}
	err := race(ctx, ways, report)
	if err == nil || fault.Is(err, fault.ErrUnsupported) {
		state.rememberProbe(*report)
	}
	return err
}

// errSeen ends a listing.
var errSeen = errors.New("seen")

// probeName is the file in which a State keeps the last report.
const probeName = "probe.json"

// rememberProbe keeps a report. Where it cannot, it warns.
func (s *State) rememberProbe(report ProbeReport) {
	if s.dir == "" {
		return
	}
	data, err := json.Marshal(report)
	if err == nil {
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err == nil {
		temp := filepath.Join(s.dir, probeName+".tmp")
		if err = os.WriteFile(temp, data, 0o600); err == nil {
			err = os.Rename(temp, filepath.Join(s.dir, probeName)) // losing it in a power cut costs another probe
		}
	}
	if err != nil {
		s.warn(&StateError{s.dir, err})
	}
}

// lastProbe returns the report that was kept last. One that cannot be read is none.
func (s *State) lastProbe() (report ProbeReport, ok bool) {
	if s.dir == "" {
		return report, false
	}
	data, err := os.ReadFile(filepath.Join(s.dir, probeName))
	return report, err == nil && json.Unmarshal(data, &report) == nil
}

// probeAge is how long the result of a probe counts.
const probeAge = 30 * 24 * time.Hour

// CheckStore probes the store of a bucket again if this host's last probe is older than 30 days, was of another server or another
// version of it, or failed. It is for what deletes: whoever removes packs relies on the order in which others commit. It fails as
// Probe does.
func (r *Repository) CheckStore(ctx context.Context) error {
	bucket, ok := r.objects.(*s3store.Store)
	if !ok {
		return nil
	}
	last, known := r.State.lastProbe()
	if age := time.Since(last.Time); known && last.OK && last.Server == bucket.Server() && age >= 0 && age < probeAge {
		return nil
	}
	report := ProbeReport{Destination: r.Destination.String(), Time: time.Now().UTC()}
	return probeBucket(ctx, bucket, r.State, &report)
}
