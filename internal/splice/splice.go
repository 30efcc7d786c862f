// Package splice tells, where two connections of one stream meet, what has
// been delivered already and whether anything is missing between them.
//
// A [Splice] remembers the last events of a stream in the order in which they
// were delivered, and which connection brought them. Where the ids of a stream
// tell its events apart, they decide. Where they do not, the sequences of two
// connections are aligned: the k-th equal event of the one is the k-th equal
// event of the other. It never drops an event for looking like another one of
// the same connection: equal prices are real. It does not hold events and
// knows neither where they come from nor where they go.
package splice

import (
	"hash/maphash"
	"math/rand/v2"
)

// Window is how many events a Splice remembers.
const Window = 4096

// proven is how many consecutive ids of one connection must have grown by one
// before a missing number is taken for a missing event.
const proven = 3

// Splice is the memory of one stream. It is not safe for concurrent use.
type Splice struct {
	// Older, if set, is asked for the content of an event that was delivered
	// too long ago to be remembered.
	Older func(id []byte) (content uint64, found bool)

	seed     maphash.Seed
	odd      uint64    // spreads numbers
	ring     []entry   // the event at position p is ring[p%Window]
	order    order     // of the stream, where that is not the one of the positions
	chains   []int     // by key: see link
	linked   int       // the position before which all events are in their chains
	end      int       // the position of the next event: how many there were
	recalled int       // how many of them were delivered in an earlier life
	twins    int       // how many of those had the id of the one before
	named    int       // of the ring, those that have an id
	vague    bool      // an id was seen twice: ids do not tell events apart
	epoch    uint64    // how often the ids have begun anew
	since    int       // the position at which the last one began
	prelude  int       // the one at which the line that showed it may have reached it …
	herald   uint32    // … and that line
	one      uint64    // the oldest epoch that turned out to be the same
	astray   int       // the position after the last event of a line that had not reached it
	seam     int       // the position of the last event before which something may be missing
	floor    uint64    // the largest number of this epoch that may have been forgotten
	top      uint64    // the largest number of this epoch
	mixed    int       // what astray was before it was found that all are of one epoch
	lost     forgotten // the ids that were, where they are no numbers

	last    uint64 // the largest number delivered, if the ids are decimal numbers
	numeric bool
	runs    int  // consecutive numbers seen within connections
	sparse  bool // numbers were skipped within a connection: holes mean nothing
	conn    uint32
}

// New returns a Splice that remembers nothing.
func New() *Splice { return &Splice{seed: maphash.MakeSeed(), odd: rand.Uint64() | 1} }

// Verdict says what an offered event is.
type Verdict struct {
	// Duplicate: another connection delivered the event. It must not be
	// delivered again.
	Duplicate bool
	// Restarted: the same id was delivered with other content: the site has
	// begun its ids anew. It must be delivered.
	Restarted bool
	// Join says what lies between the event and the last one delivered, when
	// this is the first event that its connection adds.
	Join Join
	// From and To are the missing numbers, inclusive, when Join is Missing.
	From, To uint64
	// Position is where a duplicate was delivered; -1 if that is forgotten.
	Position int
	// Doubtful: the event may have been delivered before. It is delivered.
	Doubtful bool

	welcome bool // it says nothing of what lies before it
}

// Join is the quality of a seam.
type Join int

// The qualities.
const (
	// Within: not a seam.
	Within Join = iota
	// First: there was nothing before it.
	First
	// Proven: nothing is missing, shown by an overlap or by the numbers.
	Proven
	// Possible: nothing shows that something is missing, nor that nothing is.
	Possible
	// Missing: numbers are missing.
	Missing
)

// Line is what a Splice keeps for one connection. The zero Line with a number
// of its own is ready to use.
type Line struct {
	// Number tells connections of the stream apart; 0 is the journal's tail.
	Number uint32

	begun      bool
	epoch      uint64 // the one that the connection has reached
	id         uint64 // hash of the last id that it brought
	at         int    // the position after its last event: the next one follows there
	placed     bool   // at means something
	doubt      int    // so many of its next events may have been delivered before
	overlapped bool   // it brought something that had been delivered before
	sound      int    // the position after its last event that went on from the others
	deep       bool   // it may begin with what was delivered in an earlier life and not recalled
	joined     bool   // it has added an event
}

// Begun tells whether an event of the connection has been judged.
func (l *Line) Begun() bool { return l.begun }

// Behind tells whether the connection has only brought what others had
// brought before.
func (l *Line) Behind() bool { return l.overlapped && !l.joined }

// Empty tells whether nothing was delivered yet.
func (s *Splice) Empty() bool { return s.end == 0 }

// Sequential tells whether events are told apart by their sequence, since
// their ids do not serve.
func (s *Splice) Sequential() bool { return s.vague || 2*s.named < len(s.ring) }

// fewIDs is how many events there must be for one that has the id of the one
// before it, so that ids tell them apart: some sites send the last id once more
// at the beginning of each connection, with something else.
const fewIDs = 8

// Recall puts an event delivered in an earlier life of the program into the
// memory. Events are recalled oldest first, before any Offer.
func (s *Splice) Recall(id string, content uint64) {
	n := s.name([]byte(id))
	if p, ok := s.lookup(n.key(s.epoch), n.token(content)); ok {
		switch {
		case p == s.end-1:
			s.twins++
		case s.entry(p).token != n.token(content) && s.counts():
			s.restart()
		}
	}
	if s.end == 0 && n.number > 0 {
		s.floor = n.number - 1 // there may have been more before
	}
	s.recalled++
	s.vague = fewIDs*s.twins > s.recalled
	s.number(n, 0)
	s.remember(entry{token: n.token(content), key: n.key(s.epoch), number: n.number})
}

// Unsure tells whether there may be ids, which are no numbers, that were
// delivered in an earlier life and not recalled: nothing was delivered in this
// one, and what a connection begins with may be one of them.
func (s *Splice) Unsure() bool {
	const few = 256 // it was a short life
	return s.recalled == s.end && s.end >= few && !s.numeric && !s.Sequential()
}

// Forgotten says that an event with the id was delivered before anything that is
// remembered.
func (s *Splice) Forgotten(id string) {
	if n := s.name([]byte(id)); n.hash != 0 && !n.numeric {
		s.lost.add(n.key(s.epoch))
	}
}

// Deepen has Older asked about all that the line begins with.
func (s *Splice) Deepen(l *Line) { l.deep = true }

// Token names an event: equal events have equal tokens.
func (s *Splice) Token(id []byte, content uint64) uint64 {
	return s.name(id).token(content)
}

// Reached tells whether what was delivered reaches the event: it was delivered
// itself, or so long ago that it may be forgotten, or by its number it is the
// very next one. A connection that begins with it is not ahead of the others.
func (s *Splice) Reached(id []byte, content uint64) bool {
	n := s.name(id)
	return n.numeric && s.counts() && n.number <= s.floor || s.Met(id, content)
}

// Met is Reached without what may be forgotten. A number below the last one
// that was not delivered says nothing: the ids may have begun anew.
func (s *Splice) Met(id []byte, content uint64) bool {
	if n := s.name(id); n.numeric && s.counts() && n.number == s.last+1 {
		return true
	}
	return s.Position(id, content) >= 0
}

// Position is where the event was delivered; -1 if it was not, or if that is
// forgotten.
func (s *Splice) Position(id []byte, content uint64) int {
	n := s.name(id)
	if p, ok := s.lookup(n.key(s.epoch), n.token(content)); ok && s.entry(p).token == n.token(content) {
		return p
	}
	if p, _, ok := s.before(n, n.token(content)); ok {
		return p
	}
	return -1
}

// Last is the largest number delivered, where ids are numbers.
func (s *Splice) Last() (n uint64, ok bool) { return s.last, s.numeric }

// Offer judges an event of the line and, unless it is a duplicate, remembers
// it as delivered. id is the event's own, empty if it brought none. Where
// [Splice.Stray] is true of the event it is taken for a new one.
func (s *Splice) Offer(l *Line, id []byte, content uint64) Verdict {
	s.begin(l)
	n := s.name(id)
	token := n.token(content)
	v := Verdict{Position: -1}
	if s.Sequential() || n.hash == 0 {
		if v.Duplicate = s.expected(l, token); v.Duplicate {
			v.Position = l.at - 1
		}
	} else {
		v = s.known(l, id, n, content)
	}
	if n.hash != 0 {
		l.id = n.hash
	}
	if v.Duplicate {
		l.overlapped, l.sound = true, s.end
		return v
	}
	if !l.joined && !v.welcome {
		v.Join, v.From, v.To = s.join(l, n, v.Restarted)
		l.joined = true
		if v.Join > Proven {
			s.seam = s.end
		}
	}
	v.Doubtful = l.doubt > 0
	l.doubt = max(l.doubt-1, 0)
	s.deliver(l, n, token, v.Doubtful)
	return v
}

// Next is Offer for an event that follows by its number: one that the line has
// not begun with, and of which the verdict is that it is new and Within. Of any
// other it reports false, and Offer says what it is.
func (s *Splice) Next(l *Line, id []byte, content uint64) bool {
	if !l.joined || l.doubt > 0 || s.Sequential() {
		return false
	}
	n := s.name(id)
	if !n.numeric || n.number <= s.top || l.epoch != s.epoch || s.mixed > s.base() {
		return false // it may have been delivered
	}
	l.id = n.hash
	s.deliver(l, n, n.token(content), false)
	return true
}

// deliver remembers an event of the line as delivered.
func (s *Splice) deliver(l *Line, n name, token uint64, doubtful bool) {
	e := entry{token: token, key: n.key(l.epoch), line: l.Number, doubtful: doubtful}
	if !n.numeric || !s.numeric || n.number > s.last {
		l.sound = s.end + 1
	}
	if l.epoch == s.epoch {
		s.number(n, l.Number)
		e.number = n.number
	} else {
		s.astray = s.end + 1
		s.mixed = s.end + 1
	}
	if s.Sequential() || !l.placed && n.hash != 0 || l.placed && l.at == s.end {
		l.at, l.placed = s.end+1, true // where its first events have no id, the first id tells
	}
	s.remember(e)
}

// begin takes up a connection with its first event.
func (s *Splice) begin(l *Line) {
	if l.epoch >= s.one {
		l.epoch = s.epoch
	}
	if l.begun {
		return
	}
	l.begun, l.epoch = true, s.epoch
	if s.end == 0 {
		l.placed = true
	}
}

// known looks for the event by its id.
func (s *Splice) known(l *Line, id []byte, n name, content uint64) Verdict {
	token := n.token(content)
	again := l.id == n.hash
	p, ok := s.find(l, n, token)
	if !ok {
		if again {
			s.vague = true
		}
		if s.Older != nil && s.forgot(l, n) {
			switch was, found := s.Older(id); {
			case found && was == content:
				return Verdict{Duplicate: true, Position: -1}
			case found && n.numeric && n.number <= s.floor && l.epoch == s.epoch:
				s.reach(l)
				return Verdict{Restarted: true, Position: -1}
			}
		}
		return Verdict{Position: -1}
	}
	switch e := s.entry(p); {
	case again:
		// Twice within one connection are two events, whatever their ids.
		s.vague = true
	case e.token == token && e.line != l.Number:
		l.at, l.placed, l.deep = max(l.at, p+1), true, false
		return Verdict{Duplicate: true, Position: p}
	case e.token == token, e.line == l.Number && !s.counts():
		s.vague = true
	case p == s.end-1 && e.line != l.Number:
		// A word of welcome, such as the state of things, has the last id.
		return Verdict{Position: -1, welcome: true}
	case p == s.end-1:
		s.vague = true
	default:
		s.reach(l)
		return Verdict{Restarted: true, Position: -1}
	}
	return Verdict{Position: -1}
}

// forgot tells whether the event may have been delivered and forgotten. Where
// ids are no numbers, and where it may be of an earlier epoch, only what a
// connection begins with may: what follows a new event is new.
func (s *Splice) forgot(l *Line, n name) bool {
	switch {
	case n.numeric && n.number <= s.floor && l.epoch == s.epoch:
		return true
	case l.joined:
		return false
	case n.numeric:
		return s.epoch > 0 && n.number != s.last+1
	}
	return l.deep || s.lost.has(n.key(s.epoch))
}

func (s *Splice) join(l *Line, n name, restarted bool) (j Join, from, to uint64) {
	if s.end == 0 {
		return First, 0, 0
	}
	if restarted {
		return Possible, 0, 0
	}
	if n.numeric && s.counts() {
		switch {
		case n.number == s.last+1:
			return Proven, 0, 0
		case n.number > s.last+1 && s.astray > max(s.since, s.base()):
			return Possible, 0, 0 // they may be among those that were not counted
		case n.number > s.last+1:
			return Missing, s.last + 1, n.number - 1
		}
	}
	if l.overlapped {
		return Proven, 0, 0
	}
	return Possible, 0, 0
}

// counts tells whether the ids of the stream count without holes.
func (s *Splice) counts() bool { return s.numeric && s.runs >= proven && !s.sparse && !s.vague }

// number learns whether they do.
func (s *Splice) number(n name, conn uint32) {
	if !n.numeric {
		s.numeric = false
		return
	}
	if s.numeric && s.conn == conn {
		switch {
		case n.number == s.last+1:
			s.runs++
		case n.number > s.last+1 && conn != 0: // holes in the tail may be known gaps
			s.sparse = true
		}
	}
	if !s.numeric || n.number > s.last {
		s.last = n.number
	}
	s.top = max(s.top, n.number)
	s.numeric, s.conn = true, conn
}

// Sparse says that numbers were skipped without an event being missing, so that
// a missing number means nothing.
func (s *Splice) Sparse() { s.sparse = true }
