package protocoltest

import "slices"

// serve decides what becomes of p's request, and answers it.
func (w *World) serve(p *Process) {
	r := p.pending
	reads := r.verb == get || r.verb == list
	switch fate := w.Choose(40); {
	case fate == 0 && reads:
		w.resume(p, reply{err: errUnreachable})
	case fate == 0:
		w.tracef("%s: %s: done, answer lost", p, r)
		w.apply(r)
		w.resume(p, reply{err: errUnreachable})
	case fate == 1 && !reads:
		w.tracef("%s: %s: never done, answer lost", p, r)
		w.resume(p, reply{err: errUnreachable})
	case fate == 2 && !reads:
		w.tracef("%s: %s: to be done later, answer lost", p, r)
		w.postpone(r)
		w.resume(p, reply{err: errUnreachable})
	case fate == 3 && !reads:
		w.tracef("%s: %s: to be done once more later", p, r)
		w.postpone(r)
		w.resume(p, w.apply(r))
	case fate == 4 && !reads:
		w.tracef("%s: %s: delivered twice", p, r)
		w.apply(r)
		w.resume(p, w.apply(r))
	case fate == 5 && r.verb == put:
		w.tracef("%s: %s: not done, told that it exists", p, r)
		w.resume(p, reply{err: errExists})
	default:
		answer := w.apply(r)
		w.tracef("%s: %s %v %v", p, r, answer.names, answer.err)
		w.resume(p, answer)
	}
}

func (w *World) postpone(r request) {
	if r.verb == put || r.verb == remove {
		w.late = append(w.late, r)
	}
}

// deliverLate lets any one of the late requests arrive.
func (w *World) deliverLate() {
	i := w.Choose(len(w.late))
	r := w.late[i]
	w.late = slices.Delete(w.late, i, i+1)
	w.tracef("late %s", r)
	answer := w.apply(r)
	switch {
	case r.verb == remove:
		w.Saw("late delete arrived")
	case answer.err != nil:
		w.Saw("late put found its name taken")
	default:
		w.Saw("late put created its object")
	}
}

// apply does r and returns the answer.
func (w *World) apply(r request) (answer reply) {
	switch r.verb {
	case put:
		if !w.put(r.name, r.object, w.overwrite) {
			return reply{err: errExists}
		}
		w.engine.Applied(Effect{r.name, r.object})
	case remove:
		if w.remove(r.name) {
			w.engine.Applied(Effect{Name: r.name})
		}
	case get:
		if answer.object = w.Object(r.name); answer.object == nil {
			answer.err = errNotFound
		}
	case list:
		limit := len(w.names)
		if w.temper.paged {
			limit = pageSize
		}
		answer.names, answer.more = w.list(r.name, r.after, limit)
	}
	return answer
}
