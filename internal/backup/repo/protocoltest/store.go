package protocoltest

import (
	"slices"
	"strings"
)

// A Store is the medium: named objects that are created exclusively, never changed, and deleted. Each method is one
// instant. An object must not change after Put.
type Store struct {
	objects map[string]any
	names   []string // sorted
}

// Object returns the object called name, nil if there is none.
func (s *Store) Object(name string) any { return s.objects[name] }

// Names returns all names in order. The caller must not change them.
func (s *Store) Names() []string { return s.names }

// put creates name, or, if overwrite is set, replaces it. It tells whether it did.
func (s *Store) put(name string, object any, overwrite bool) bool {
	if _, exists := s.objects[name]; exists {
		if overwrite {
			s.objects[name] = object
		}
		return overwrite
	}
	s.objects[name] = object
	at, _ := slices.BinarySearch(s.names, name)
	s.names = slices.Insert(s.names, at, name)
	return true
}

// remove deletes name and tells whether it was there.
func (s *Store) remove(name string) bool {
	if _, exists := s.objects[name]; !exists {
		return false
	}
	delete(s.objects, name)
	at, _ := slices.BinarySearch(s.names, name)
	s.names = slices.Delete(s.names, at, at+1)
	return true
}

// list returns the names that begin with prefix and come after after, in order: at most limit of them, and
// whether there are more.
func (s *Store) list(prefix, after string, limit int) (names []string, more bool) {
	at, _ := slices.BinarySearch(s.names, max(prefix, after))
	for _, name := range s.names[at:] {
		if !strings.HasPrefix(name, prefix) {
			break
		}
		if name <= after {
			continue
		}
		if len(names) == limit {
			return names, true
		}
		names = append(names, name)
	}
	return names, false
}
