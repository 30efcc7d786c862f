package splice

// A site may begin its ids anew: then the same ids name other events. Each new
// beginning is an epoch, and an event is looked for in the one that its line has
// reached.

// Renewed says that the ids began anew in an earlier life, with the next event
// recalled or before it.
func (s *Splice) Renewed() { s.restart() }

// find looks for the id in the epoch that the line is in, and in a newer one
// that another line has begun.
func (s *Splice) find(l *Line, n name, token uint64) (p int, ok bool) {
	p, ok = s.lookup(n.key(l.epoch), token)
	switch {
	case ok && s.entry(p).token == token:
		return p, ok
	case l.epoch == s.epoch:
		if q, there := s.unite(l, n, token); there {
			return q, there
		}
		return p, ok
	}
	q, there := s.lookup(n.key(s.epoch), token)
	if ok || there && s.entry(q).token == token {
		l.epoch = s.epoch // the line has reached the new beginning, too
		return q, there
	}
	return p, ok
}

// many is how many epochs back an event is looked for.
const many = 4

// before looks for the event in the epochs before the current one.
func (s *Splice) before(n name, token uint64) (p int, epoch uint64, ok bool) {
	for epoch = s.epoch; epoch > 0 && s.epoch-epoch < many; {
		epoch--
		if p, ok = s.lookup(n.key(epoch), token); ok && s.entry(p).token == token {
			return p, epoch, true
		}
	}
	return 0, 0, false
}

// unite looks for an event that is not of the line's epoch, the current one,
// among those of others. A connection may begin with a replay from before the
// epoch. And where other lines, which have not reached the epoch, have brought
// the event since it began, it was none: the ids go on, and a single one has
// come with two contents.
func (s *Splice) unite(l *Line, n name, token uint64) (p int, ok bool) {
	p, epoch, ok := s.before(n, token)
	switch {
	case !ok || s.entry(p).line == l.Number:
		return 0, false
	case epoch+1 == s.epoch && p >= s.prelude && p < s.since && s.entry(p).line == s.herald:
		// What that line had brought before it was seen to have begun anew.
	case p >= s.since:
		if epoch < s.one {
			s.one, s.numeric, s.runs, s.astray = epoch, false, 0, 0 // what the others brought was not counted
		}
	case !l.joined:
		l.epoch = epoch
	default:
		return 0, false
	}
	return p, true
}

// reach begins a new epoch that the line has reached, with this event or with
// those before it that did not go on from the others.
func (s *Splice) reach(l *Line) {
	s.restart()
	s.prelude, s.herald, l.epoch = l.sound, l.Number, s.epoch
}

// restart begins a new epoch: what is remembered counts no more for those who
// have reached it.
func (s *Splice) restart() {
	s.epoch++
	s.since, s.one, s.top = s.end, s.epoch, 0
	s.numeric, s.runs, s.sparse, s.floor, s.last = false, 0, false, 0, 0
	for i := range s.ring {
		s.ring[i].number = 0
	}
}
