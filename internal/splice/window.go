package splice

import "math/bits"

// entry is an event that was delivered.
type entry struct {
	token  uint64 // of its id and content
	key    uint64 // of its id and the epoch; 0 without an id
	number uint64 // its id where that is a number, else 0
	line   uint32 // Line.Number of who brought it
	back   uint16 // how far back the next one of its chain is, 0 at the end: see link
	// doubtful: it may be one that was delivered before.
	doubtful bool
}

func (s *Splice) entry(p int) *entry { return &s.ring[uint(p)%Window] }

// base is the position of the oldest event that is remembered.
func (s *Splice) base() int { return s.end - len(s.ring) }

func (s *Splice) remember(e entry) {
	if len(s.order.after) > 0 && len(s.ring) == Window {
		s.order.forget(s.base())
	}
	if len(s.ring) < Window {
		s.ring = append(s.ring, entry{})
	} else if old := s.entry(s.end); old.key != 0 {
		s.named--
		if s.floor = max(s.floor, old.number); old.number == 0 {
			s.lost.add(old.key)
		}
	}
	*s.entry(s.end) = e
	s.end++
	if e.key != 0 {
		s.named++
	}
}

// link puts the events into their chains that are not in them yet. A chain is
// known by the position after its first event and leads from each one to an
// older one. Nothing is ever taken out of it: where an event has been
// forgotten, the chain is over.
func (s *Splice) link() {
	if s.named > len(s.chains) {
		s.chains = make([]int, 1<<bits.Len(uint(s.named-1)|7))
		s.linked = 0
	}
	for p := max(s.linked, s.base()); p < s.end; p++ {
		e := s.entry(p)
		if e.key == 0 {
			continue
		}
		first := s.chain(e.key)
		if e.back = 0; *first > s.base() {
			e.back = uint16(p + 1 - *first)
		}
		*first = p + 1
	}
	s.linked = s.end
}

func (s *Splice) chain(key uint64) *int {
	return &s.chains[key>>bits.LeadingZeros64(uint64(len(s.chains)-1))]
}

// lookup returns the position of the last event with the key and the token, or
// else of the last one with the key.
func (s *Splice) lookup(key, token uint64) (p int, ok bool) {
	if s.link(); len(s.chains) == 0 || key == 0 {
		return 0, false
	}
	for at := *s.chain(key) - 1; at >= s.base(); {
		e := s.entry(at)
		if e.key == key && (!ok || e.token == token) {
			if p, ok = at, true; e.token == token {
				break
			}
		}
		if e.back == 0 {
			break
		}
		at -= int(e.back)
	}
	return p, ok
}
