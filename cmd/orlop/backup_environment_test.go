//go:build root

package main

import (
	"testing"
)

func TestEveryRestoreTakesItsKeyFromTheEnvironment(t *testing.T) {
	p := newBackupPlace(t)
	h := startHost(t)
	h.must(t, "create", "db", "--size", "64M")
	t.Setenv("ORLOP_KEY_FILE", p.key)
	t.Setenv("ORLOP_DEST", p.dir)
	url := h.must(t, "backup", "create", "db")
	h.must(t, "create", "copy", "--backup", url)
	h.must(t, "backup", "restore", url, "other")
	h.must(t, "create", "new", "--size", "64M") // which needs no key
	for _, name := range []string{"copy", "other"} {
		if v := h.view(t, name); v.State != "ready" || v.Restore == nil {
			t.Errorf("%+v", v)
		}
	}
}
