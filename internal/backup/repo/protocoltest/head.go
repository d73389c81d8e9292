package protocoltest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	headPrefix    = "head/"
	sessionPrefix = "sessions/"

	// kept is how many heads a clean-up leaves: 64 in the real thing, few here so that writers sleep past it.
	kept = 3
)

// A nonce is a random number that nobody else draws.
type nonce uint32

// A head is the whole state of a lineage. It never changes.
type head struct {
	number   int // 0: the state before the first head
	nonce    nonce
	parent   nonce
	sequence int // of the next record
	records  []record
	live     []string // names of packs
	sessions []session

	by Job // ghost: what wrote it
}

// A record is a committed backup. Its id is the owner nonce of the run that wrote it.
type record struct {
	id       nonce
	sequence int
	clock    int // what the writer's clock said: anything
	root     id

	content Content // ghost: what has to come back; and the local snapshot that writers compare with
}

// A session protects what is uploaded under its name, and all below the roots of its bases.
type session struct {
	id    nonce
	owner nonce
	host  int
	by    Job
	bases []record
}

func headName(number int) string { return fmt.Sprintf("%s%06d", headPrefix, number) }

func headNumber(name string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(name, headPrefix))
	if err != nil {
		panic("not the name of a head: " + name)
	}
	return n
}

func (s nonce) prefix() string { return fmt.Sprintf("%s%06d/", sessionPrefix, s) }

// sessionOf returns the prefix of the session under which name was uploaded.
func sessionOf(name string) string { return name[:strings.LastIndexByte(name, '/')+1] }

// child returns a copy of h that is to become the next head.
func (h *head) child(n nonce, by Job) *head {
	next := *h
	next.number, next.nonce, next.parent, next.by = h.number+1, n, h.nonce, by
	next.records = slices.Clone(h.records)
	next.live = slices.Clone(h.live)
	next.sessions = slices.Clone(h.sessions)
	return &next
}

// record returns the record with an id.
func (h *head) record(id nonce) (record, bool) {
	i := slices.IndexFunc(h.records, func(r record) bool { return r.id == id })
	if i < 0 {
		return record{}, false
	}
	return h.records[i], true
}

// owned returns the session of an owner.
func (h *head) owned(owner nonce) (session, bool) {
	i := slices.IndexFunc(h.sessions, func(s session) bool { return s.owner == owner })
	if i < 0 {
		return session{}, false
	}
	return h.sessions[i], true
}

// end removes a session.
func (h *head) end(id nonce) {
	h.sessions = slices.DeleteFunc(h.sessions, func(s session) bool { return s.id == id })
}

// drop removes packs from the live list.
func (h *head) drop(packs []string) {
	h.live = slices.DeleteFunc(h.live, func(name string) bool { return slices.Contains(packs, name) })
}

// spares tells whether a head forbids to delete an object: it is live, or its session is registered.
func (h *head) spares(name string) bool {
	prefix := sessionOf(name)
	return slices.Contains(h.live, name) ||
		slices.ContainsFunc(h.sessions, func(s session) bool { return s.id.prefix() == prefix })
}
