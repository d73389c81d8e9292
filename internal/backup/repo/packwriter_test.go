package repo

import "testing"

// A pack that was begun without space was copied for every record that came to it.
func TestPackGrowsSeldom(t *testing.T) {
	w, err := newTestLineage(t).newPackWriter("s", MetaPack, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 5<<10)
	grown, space := 0, cap(w.data)
	for range 500 {
		w.add(Entry{ID: chunkID(1), Type: TypeNode, Level: 1, Length: uint32(len(payload))}, payload)
		if cap(w.data) != space {
			grown++
			space = cap(w.data)
		}
	}
	if grown > 50 {
		t.Errorf("the pack grew %d times for 500 records", grown)
	}
}
