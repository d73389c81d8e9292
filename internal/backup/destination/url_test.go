package destination

import (
	"path/filepath"
	"testing"

	"orlop/internal/fault"
)

func FuzzURL(f *testing.F) {
	for _, text := range []string{"/a?volume=b", "file:///a%20b?backup=x.y&volume=db", "vfs:///a?backup=x", "s3://bucket/c?volume=d", "s3://bucket@eu-1/a%20b/c?endpoint=http://[::1]:7480&style=host&backup=x.y", "a b?volume=%26", "\x00?backup=0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURL(text)
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.ErrInvalid && kind != fault.ErrUnsupported {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseURL(u.String())
		if err != nil || again != u || filepath.IsAbs(u.dir) == u.IsBucket() {
			t.Errorf("%q is %+v, and %s is %+v, %v", text, u, u, again, err)
		}
	})
}
