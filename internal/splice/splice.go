// Package splice tells, where two connections of one stream meet, what has
// been delivered already and whether anything is missing between them.
//
// A [Splice] remembers the last events of a stream by id and content, and by
// which connection they came. It never drops an event for looking like another
// one of the same connection: equal prices are real. It does not hold events
// and knows neither where they come from nor where they go.
package splice

import (
	"hash/maphash"
	"strconv"
)

// Window is how many events a Splice remembers.
const Window = 4096

// proven is how many consecutive ids of one connection must have grown by one
// before a missing number is taken for a missing event.
const proven = 3

// Splice is the memory of one stream. It is not safe for concurrent use.
type Splice struct {
	seed   maphash.Seed
	seen   map[uint64]entry // by hash of the id
	ring   []uint64         // the keys of seen, in the order they came
	oldest int

	last    uint64 // the number of the last delivered event, if its id is a decimal number
	numeric bool
	runs    int  // consecutive numbers seen within connections
	sparse  bool // numbers were skipped within a connection: holes mean nothing
	any     bool // something has been delivered
	conn    uint64
}

type entry struct {
	content uint64
	conn    uint64
}

// New returns a Splice that remembers nothing.
func New() *Splice { return &Splice{seed: maphash.MakeSeed()} }

// Verdict says what an offered event is.
type Verdict struct {
	// Duplicate: another connection delivered the same id with the same
	// content. It must not be delivered again.
	Duplicate bool
	// Restarted: another connection delivered the same id with other content:
	// the site has begun its ids anew. It must be delivered.
	Restarted bool
	// Join says what lies between the event and the last one delivered, when
	// this is the first event that its connection adds.
	Join Join
	// From and To are the missing numbers, inclusive, when Join is Missing.
	From, To uint64
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
	Number uint64

	overlapped bool // it brought something that had been delivered before
	joined     bool // it has added an event
}

// Recall puts an event delivered in an earlier life of the program into the
// memory. Events are recalled oldest first, before any Offer.
func (s *Splice) Recall(id string, content uint64) {
	if id != "" {
		s.remember(s.key([]byte(id)), entry{content: content})
		s.number([]byte(id), 0)
	} else {
		s.numeric = false
	}
	s.any = true
}

// Knows tells whether the event is one that was delivered already, or the very
// next one by number: then a connection that begins with it misses nothing.
func (s *Splice) Knows(id []byte, content uint64) bool {
	if len(id) == 0 {
		return false
	}
	if e, ok := s.seen[s.key(id)]; ok && e.content == content {
		return true
	}
	n, ok := decimal(id)
	return ok && s.numeric && s.runs >= proven && !s.sparse && n == s.last+1
}

// Offer judges an event of the line and, unless it is a duplicate, remembers
// it as delivered. id is the event's own, empty if it brought none.
func (s *Splice) Offer(l *Line, id []byte, content uint64) Verdict {
	var v Verdict
	var key uint64
	if len(id) > 0 {
		key = s.key(id)
		if e, ok := s.seen[key]; ok && e.conn != l.Number {
			if e.content == content {
				l.overlapped = true
				v.Duplicate = true
				return v
			}
			v.Restarted = true
			s.numeric, s.runs, s.sparse = false, 0, false
		}
	}
	if !l.joined {
		l.joined = true
		v.Join, v.From, v.To = s.join(l, id, v.Restarted)
	}
	s.any = true
	if len(id) == 0 {
		return v
	}
	s.remember(key, entry{content: content, conn: l.Number})
	s.number(id, l.Number)
	return v
}

func (s *Splice) join(l *Line, id []byte, restarted bool) (j Join, from, to uint64) {
	if !s.any {
		return First, 0, 0
	}
	if restarted {
		return Possible, 0, 0
	}
	if n, ok := decimal(id); ok && s.numeric && s.runs >= proven && !s.sparse {
		switch {
		case n == s.last+1:
			return Proven, 0, 0
		case n > s.last+1:
			return Missing, s.last + 1, n - 1
		}
	}
	if l.overlapped {
		return Proven, 0, 0
	}
	return Possible, 0, 0
}

// number learns whether the ids of the stream count without holes.
func (s *Splice) number(id []byte, conn uint64) {
	n, ok := decimal(id)
	if !ok {
		s.numeric = false
		return
	}
	if s.numeric && s.conn == conn {
		switch {
		case n == s.last+1:
			s.runs++
		case n > s.last+1 && conn != 0: // holes in the tail may be known gaps
			s.sparse = true
		}
	}
	if !s.numeric || n > s.last {
		s.last = n
	}
	s.numeric, s.conn = true, conn
}

func (s *Splice) key(id []byte) uint64 { return maphash.Bytes(s.seed, id) }

func (s *Splice) remember(key uint64, e entry) {
	if s.seen == nil {
		s.seen = map[uint64]entry{}
	}
	if _, known := s.seen[key]; !known {
		if len(s.ring) < Window {
			s.ring = append(s.ring, key)
		} else {
			delete(s.seen, s.ring[s.oldest])
			s.ring[s.oldest] = key
			s.oldest = (s.oldest + 1) % Window
		}
	}
	s.seen[key] = e
}

// decimal reads a number in its shortest decimal form: "007" names another
// event than "7".
func decimal(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 20 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	return n, err == nil
}
