// Package orlop_test checks that the code is built as ARCHITECTURE.md says.
package orlop_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImportsAreThoseOfTheArchitecture compares every import inside the project with the table.
func TestImportsAreThoseOfTheArchitecture(t *testing.T) {
	allowed := tables(t)[0]
	imports := projectImports(t)
	for name, imported := range imports {
		if _, listed := allowed[name]; !listed {
			t.Errorf("package %s is not in the import table of ARCHITECTURE.md", name)
			continue
		}
		for _, path := range imported {
			other, inside := shortName(path)
			switch {
			case !inside:
			case strings.HasSuffix(other, "test"):
				t.Errorf("%s imports %s, which is for tests only", name, other)
			case !slices.Contains(allowed[name], other) && !slices.Contains(allowed[name], "everything"):
				t.Errorf("%s imports %s: the import table of ARCHITECTURE.md does not allow it", name, other)
			}
		}
	}
	for name, others := range allowed {
		for _, listed := range append(others, name) {
			if _, exists := imports[listed]; !exists && listed != "nothing" && listed != "everything" {
				t.Errorf("the import table of ARCHITECTURE.md lists %s, and there is no such package", listed)
			}
		}
	}
}

// TestEachLibraryIsBehindOnePackage checks the second table.
func TestEachLibraryIsBehindOnePackage(t *testing.T) {
	libraries := tables(t)[1]
	for name, imported := range projectImports(t) {
		for _, path := range imported {
			for library, owner := range libraries {
				if (path == library || strings.HasPrefix(path, library+"/")) && !slices.Contains(owner, name) {
					t.Errorf("%s imports %s: only %s may", name, path, owner)
				}
			}
		}
	}
}

// tables reads the two fenced tables of ARCHITECTURE.md: left of the arrow, comma-separated, to its right.
func tables(t *testing.T) (found [2]map[string][]string) {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "\n```\n")
	if len(blocks) != 5 {
		t.Fatalf("ARCHITECTURE.md has %d fence lines, want 4: two tables", len(blocks)-1)
	}
	for i, block := range []string{blocks[1], blocks[3]} {
		found[i] = map[string][]string{}
		for line := range strings.Lines(block) {
			left, right, ok := strings.Cut(strings.TrimSpace(line), " → ")
			if !ok {
				t.Fatalf("ARCHITECTURE.md: no arrow in %q", line)
			}
			for _, name := range strings.Split(left, ", ") {
				found[i][name] = strings.Split(right, ", ")
			}
		}
	}
	return found
}

// projectImports returns what each package imports, by short name. Packages that are only tests are left out.
func projectImports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-tags", "root", "-json=ImportPath,GoFiles,Imports", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := map[string][]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath       string
			GoFiles, Imports []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return imports
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if name, inside := shortName(p.ImportPath); inside && len(p.GoFiles) > 0 {
			imports[name] = p.Imports
		}
	}
}

// shortName cuts orlop/ and internal/ off an import path of the project.
func shortName(path string) (name string, inside bool) {
	name, inside = strings.CutPrefix(path, "orlop/")
	return strings.TrimPrefix(name, "internal/"), inside
}
