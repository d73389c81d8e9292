package volume

import (
	"testing"
	"time"

	"orlop/metadata"
)

// Who looks at pins in a transaction would otherwise wait for a decision, and the decision's transaction for who looks.
func TestLookingAtPinsWaitsForNoDecision(t *testing.T) {
	store, err := metadata.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	m := &Manager{store: store}
	err = m.UpdateUnpinned(t.Context(), func(*metadata.Tx, func(string) string) error {
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			_ = store.View(func(*metadata.Tx) error { _ = m.pinned("any"); return nil })
		}()
		select {
		case <-looked:
		case <-time.After(time.Minute):
			t.Error("it waits")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
