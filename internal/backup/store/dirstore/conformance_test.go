package dirstore_test

import (
	"testing"

	"orlop/internal/backup/store/dirstore"
	"orlop/internal/backup/store/storetest"
)

func open(t *testing.T, dir string) *dirstore.Store {
	t.Helper()
	s, err := dirstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestDirectoryKeepsTheContract(t *testing.T) {
	dir := t.TempDir()
	storetest.Run(t, storetest.Harness{Store: open(t, dir), Other: open(t, dir)})
}
