package protocoltest

// A Content is what a volume holds: a small vector of chunks, of which 0 is a hole.
type Content [4]uint8

// An id names a chunk or a tree node by what it says, as a keyed hash would: equal ids have equal contents. The id
// of a hole, and of a subtree of holes, is none. The top byte is the level: 1 a chunk, 2 a node, 3 a root.
type id uint32

const none id = 0

func leafID(v uint8) id {
	if v == 0 {
		return none
	}
	return 1<<24 | id(v)
}

func nodeID(a, b uint8) id {
	if a == 0 && b == 0 {
		return none
	}
	return 2<<24 | id(a)<<4 | id(b)
}

func (c Content) root() id {
	if c == (Content{}) {
		return none
	}
	return 3<<24 | id(c[0])<<12 | id(c[1])<<8 | id(c[2])<<4 | id(c[3])
}

// An object is what stands sealed in a pack under an id.
type object struct {
	id       id
	children [2]id // of a root or a node
	value    uint8 // of a chunk
}

// objectOf returns the object with an id, as who holds the content can make it.
func objectOf(i id) object {
	o := object{id: i}
	nibble := func(n int) uint8 { return uint8(i >> (4 * n) & 15) }
	switch i >> 24 {
	case 1:
		o.value = uint8(i)
	case 2:
		o.children = [2]id{leafID(nibble(1)), leafID(nibble(0))}
	case 3:
		o.children = [2]id{nodeID(nibble(3), nibble(2)), nodeID(nibble(1), nibble(0))}
	}
	return o
}

// walk calls visit for i and all that is below it, parents first, except below what visit does not want to enter.
func walk(i id, visit func(id) (object, bool)) {
	if i == none {
		return
	}
	if o, enter := visit(i); enter {
		walk(o.children[0], visit)
		walk(o.children[1], visit)
	}
}

// holds tells whether i is in the tree of c.
func (c Content) holds(i id) (found bool) {
	walk(c.root(), func(j id) (object, bool) {
		found = found || i == j
		return objectOf(j), !found
	})
	return found
}

// assemble reads the content below root. It stops at the first object that read does not deliver.
func assemble(root id, read func(id) (object, error)) (c Content, err error) {
	at := 0
	var fill func(i id, level int)
	fill = func(i id, level int) {
		if i == none || err != nil {
			at += 1 << (level - 1)
			return
		}
		var o object
		if o, err = read(i); err != nil {
			return
		}
		if level == 1 {
			c[at] = o.value
			at++
			return
		}
		fill(o.children[0], level-1)
		fill(o.children[1], level-1)
	}
	fill(root, 3)
	return c, err
}

// A pack is a write-once object that holds others. Data and tree packs are alike here.
type pack struct {
	objects []object
}

// find returns the object with an id.
func (p *pack) find(i id) (object, bool) {
	for _, o := range p.objects {
		if o.id == i {
			return o, true
		}
	}
	return object{}, false
}

func (p *pack) holds(i id) bool {
	_, there := p.find(i)
	return there
}
