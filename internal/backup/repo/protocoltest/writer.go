package protocoltest

import (
	"cmp"
	"errors"
	"slices"
)

// A writer backs up one content.
type writer struct {
	*client
	content Content
	base    []record // whose trees are taken as given
	session session
	packs   []string // uploaded under the session, or found there
}

// attempts is how often a writer that was fenced starts over before it gives up.
const attempts = 4

// backup registers, uploads and commits, and starts over when it was fenced.
func (w *writer) backup() {
	for range attempts {
		w.owner = w.m.nonce()
		if !w.m.is(FencedKeepsPacks) {
			w.packs = nil
		}
		if w.m.is(UploadBeforeRegister) {
			w.session.id = w.m.nonce()
			w.uploadLacking(w.loaded())
		}
		w.register()
		h := w.loaded()
		w.uploadLacking(h)
		if w.World.Choose(2) == 0 {
			h = nil
		}
		if _, err := w.change(h, w.commit); err == nil {
			w.m.told(w.owner, w.content)
			return
		}
		w.World.Saw("fenced writer found out at its commit")
	}
	w.World.Saw("writer gave up")
}

// loaded returns the newest head with its indexes in memory.
func (w *writer) loaded() *head {
	for {
		h := w.read()
		var missing absent
		if !errors.As(w.load(h), &missing) {
			return h
		}
		w.suspect(string(missing))
	}
}

// register enters a session, or takes over one that a dead process of this host left, and looks what that uploaded.
func (w *writer) register() {
	based := w.World.Choose(3) != 0
	adopted := false
	early := w.early(based)
	h, _ := w.change(nil, func(h *head) (next *head, _ error) {
		if _, registered := h.owned(w.owner); registered {
			return nil, nil
		}
		s := session{id: w.m.nonce(), owner: w.owner, host: w.Host.ID, by: Backup}
		if (w.m.is(UploadBeforeRegister) || w.m.is(FencedKeepsPacks)) && w.session.id != 0 {
			s.id = w.session.id
		}
		next = h.child(w.m.nonce(), Backup)
		if i := w.orphan(h); i >= 0 && w.World.Choose(3) != 0 {
			s = next.sessions[i]
			if w.m.is(AdoptedKeepsOwner) {
				w.owner = s.owner
			}
			s.owner, adopted = w.owner, true
			next.sessions = slices.Delete(next.sessions, i, i+1)
		}
		s.bases = slices.Clone(s.bases)
		switch {
		case early != nil:
			s.bases = early
		case based && len(h.records) > 0:
			s.bases = append(s.bases, h.records[w.World.Choose(len(h.records))])
		}
		next.sessions = append(next.sessions, s)
		return next, nil
	})
	w.session, _ = h.owned(w.owner)
	w.base = w.session.bases
	if adopted {
		w.World.Saw("session adopted")
		w.adopt()
	}
}

// early is how two broken writers come to a base: it is not looked at again in the head that is extended.
func (w *writer) early(based bool) []record {
	switch {
	case w.m.is(BaseNotARecord) && based:
		if h := w.read(); len(h.records) > 0 {
			return h.records[:1:1]
		}
	case w.m.is(FencedKeepsBase):
		return w.base
	}
	return nil
}

// orphan returns the index of a session that another process of this host left, -1 if there is none.
func (w *writer) orphan(h *head) int {
	return slices.IndexFunc(h.sessions, func(s session) bool {
		return s.host == w.Host.ID && s.by == Backup && s.owner != w.owner
	})
}

// adopt takes what stands under the session for its own. A pack that is missing was deleted: the session was
// fenced meanwhile, which the commit will find out.
func (w *writer) adopt() {
	for _, name := range w.names(w.session.id.prefix(), "") {
		if p, there := w.fetch(name).(*pack); there {
			w.index[name] = p
			w.packs = append(w.packs, name)
			w.World.Saw("pack of an adopted session taken over")
		}
	}
}

// lacking returns what the content's tree needs and neither a base nor the own packs nor h's live packs hold. An
// object that is there says nothing of those below it: its pack may outlive theirs. Only below a base's
// objects is all there.
func (w *writer) lacking(h *head) (lacking []object) {
	walk(w.content.root(), func(i id) (object, bool) {
		o := objectOf(i)
		if slices.ContainsFunc(w.base, func(r record) bool { return r.content.holds(i) }) {
			w.World.Saw("subtree of a base taken as given")
			return o, false
		}
		if slices.ContainsFunc(w.packs, func(name string) bool { return w.index[name].holds(i) }) {
			return o, true
		}
		if _, _, there := w.locate(h, i); there {
			w.World.Saw("object of a live pack referred to")
			return o, !w.m.is(SubtreeTrusted)
		}
		lacking = append(lacking, o)
		return o, true
	})
	return lacking
}

// uploadLacking uploads what is lacking in h: chunks first, then the nodes, in packs of two.
func (w *writer) uploadLacking(h *head) {
	lacking := w.lacking(h)
	slices.SortFunc(lacking, func(a, b object) int { return cmp.Compare(a.id, b.id) })
	for objects := range slices.Chunk(slices.Compact(lacking), 2) {
		w.packs = append(w.packs, w.upload(w.session.id, objects))
	}
}

// commit makes the head that adds the record. What the content refers to in h's live packs was looked up in an
// earlier head; it is looked up again in this one.
func (w *writer) commit(h *head) (*head, error) {
	if _, there := h.record(w.owner); there {
		w.World.Saw("writer found its record committed")
		return nil, nil
	}
	if s, registered := h.owned(w.owner); (!registered || s.id != w.session.id) && !w.unfenced() {
		return nil, errFenced
	}
	if err := w.load(h); err != nil {
		return nil, err
	}
	if !w.m.is(NoSecondLook) {
		before := len(w.packs)
		w.uploadLacking(h)
		if len(w.packs) > before {
			w.World.Saw("objects no longer live written anew before the commit")
		}
	}
	next := h.child(w.m.nonce(), Backup)
	next.records = append(next.records, record{
		id: w.owner, sequence: h.sequence, clock: w.World.Choose(1000), root: w.content.root(), content: w.content,
	})
	next.sequence++
	next.live = append(next.live, w.packs...)
	next.end(w.session.id)
	return next, nil
}

// unfenced is how broken writers excuse themselves from being registered.
func (w *writer) unfenced() bool {
	return w.m.is(FencedCommits) || w.m.is(BeatIsLease) && w.World.Choose(8) == 0
}
