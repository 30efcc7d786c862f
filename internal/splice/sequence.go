package splice

import (
	"math"
	"slices"
)

const (
	// surprise is how improbable, in bits, a match of two sequences by chance
	// must be, over all the places where it could have happened.
	surprise = 16
	// beside is enough where the two connections were open side by side, so
	// that an overlap is to be expected, and anything where all that the one
	// has brought was brought by the other.
	beside, all = 8, 1
)

// Fit is where the events of a connection lie among those delivered.
type Fit struct {
	// OK: there is one place for them that cannot be chance.
	OK bool
	// Before counts the first events, which were delivered before the last
	// seam, Late those after them, which were not, or too long ago to tell, and
	// Again those after these, which were delivered since. The rest are new.
	Before, Late, Again int
	// Onto is the position of the event that the late ones, if any, lie directly
	// before: see [Splice.Insert].
	Onto int
	// Equal says, where OK is false, that there is more than one place, since
	// the feed repeats itself: the line may go on at any of them.
	Equal bool
	// Known says, where OK is false, that all the events lie there in this order,
	// which may be chance.
	Known bool
	// Doubtful is how many events, of the late ones or, where OK is false, of
	// all from the first on, may hold some that were delivered before.
	Doubtful int
	// Next is the position that the event after them should have.
	Next int
}

// Stray tells whether, in a [Splice.Sequential] stream, the event is not the
// one that the line should bring next: the line's place has to be found anew.
func (s *Splice) Stray(l *Line, id []byte, content uint64) bool {
	s.begin(l)
	if !l.placed || l.at < s.base() {
		return true
	}
	p := s.next(l, s.Token(id, content))
	return p < s.end && s.entry(p).token != s.Token(id, content)
}

// expected tells whether the event is the one that was delivered where the
// line is, and moves the line past it.
func (s *Splice) expected(l *Line, token uint64) bool {
	if !l.placed || l.at < s.base() {
		return false
	}
	p := s.next(l, token)
	if p == s.end || s.entry(p).token != token {
		return false
	}
	l.at = p + 1
	return true
}

// next is the position that the line's next event should have: what it has
// brought itself it does not bring again, and of what may have been delivered
// twice it may bring the one or the other.
func (s *Splice) next(l *Line, token uint64) int {
	p := s.order.follow(l.at)
	for p < s.end && (s.entry(p).line == l.Number || s.entry(p).doubtful && s.entry(p).token != token) {
		p = s.order.follow(p + 1)
	}
	return p
}

// Place puts the line where its next event should have that position, or at
// the end if that is before it. That event is a seam, which is proven or not.
func (s *Splice) Place(l *Line, next int, proven bool) {
	s.begin(l)
	l.at, l.placed, l.joined, l.overlapped = s.order.before(min(next, s.end)), true, false, proven
}

// Doubt says that the next events of the line, so many, may have been delivered
// before.
func (s *Splice) Doubt(l *Line, events int) { l.doubt = events }

// Lose takes the line's place away: its next event strays.
func (s *Splice) Lose(l *Line) { l.placed = false }

// Distinct tells whether no two of the events that are remembered are equal.
func (s *Splice) Distinct() bool {
	seen := make(map[uint64]bool, len(s.ring))
	for i := range s.ring {
		if seen[s.ring[i].token] {
			return false
		}
		seen[s.ring[i].token] = true
	}
	return true
}

// End is the position of the next event to be delivered.
func (s *Splice) End() int { return s.end }

// Align looks for the place of a connection's events, given by their tokens,
// among those delivered: the longest stretch in which the one sequence goes
// over into the other. It is not OK where they do not overlap, where chance
// could explain the overlap, or where a shifted one would be about as long, as
// with a feed that repeats itself. open says that both connections have brought
// events side by side, and that nothing more is to be expected.
func (s *Splice) Align(l *Line, held []uint64, open bool) Fit {
	from := s.head()
	if l.placed && l.at >= s.base() {
		from = s.order.follow(l.at)
	}
	past := s.stream(from)
	for i, p := range slices.Backward(past) {
		if s.entry(p).line == l.Number {
			past = past[i+1:] // what it has brought itself is not its place
			break
		}
	}
	m := len(held)
	best := s.fit(past, held, open, false)
	if !best.ok {
		// Events delivered twice have two places: only the first one counts.
		if once := s.fit(past, held, open, true); once.ok {
			best = once
		}
	}
	if best.ok {
		f := best.among(s.end, m)
		if s.recalled > 0 || len(past) < s.end {
			f.Doubtful = f.Late // what was before nobody knows any more
		}
		return f
	}
	// The events may tell what was missed at the last seam.
	seam := max(slices.Index(past, s.seam), 0)
	if since := s.fit(past[seam:], held, open, false); since.ok && since.at < 0 && seam > 0 {
		f := since.among(s.end, m)
		f.Doubtful = f.Late
		if before := s.fit(past[:seam], held[:f.Late], false, false); before.ok && before.at >= 0 {
			f.Before = before.among(s.seam, f.Late).Again
			f.Late -= f.Before
			f.Doubtful = 0
		}
		return f
	}
	return Fit{Equal: best.equal, Known: best.whole, Doubtful: s.doubtful(held)}
}

// place is where held events lie in a stretch of those delivered.
type place struct {
	ok    bool
	at    int   // the index of the first of them in the stretch; negative if before it
	past  []int // the positions of the events of the stretch, in the order of the stream
	equal bool  // it is not the only place for most of them
	whole bool  // all of them lie there
}

// among tells what the place says of that many held events.
func (p *place) among(end, held int) Fit {
	f := Fit{OK: true, Late: max(-p.at, 0), Next: end}
	if f.Late > 0 {
		f.Onto = p.past[0]
	}
	f.Again = min(len(p.past)-p.at, held) - f.Late
	if n := p.at + held; n < len(p.past) {
		f.Next = p.past[n]
	}
	return f
}

// fit looks for the place of the held events among those at the positions, or
// those of them that were not doubtful.
func (s *Splice) fit(positions []int, held []uint64, open, sure bool) (best place) {
	if best.past = positions; sure {
		best.past = slices.DeleteFunc(slices.Clone(positions), func(p int) bool { return s.entry(p).doubtful })
	}
	past := make([]uint64, 0, len(best.past))
	for _, p := range best.past {
		past = append(past, s.entry(p).token)
	}
	n, m := len(past), len(held)
	if n == 0 || m == 0 {
		return best
	}
	at, most, second := overlap(past, held)
	best.at, best.whole = at, most == m
	if 2*second >= most {
		best.equal = 2*second >= m
		return best
	}
	need := surprise + math.Log2(float64(n+m))
	switch {
	case open && most == m:
		need = all
	case open:
		need = beside
	}
	first := max(0, -best.at)
	best.ok = s.evidence(held[first:first+most]) >= need
	return best
}

// overlap returns the place of the held events in the past at which most of them
// overlap with it, how many those are, and how many at the next best place.
func overlap(past, held []uint64) (at, most, second int) {
	n, m := len(past), len(held)
	try := func(place, overlap int) {
		if overlap > most {
			at, most, second = place, overlap, most
		} else {
			second = max(second, overlap)
		}
	}
	for p, same := range prefixes(held, past) {
		if overlap := min(m, n-p); same >= overlap {
			try(p, overlap)
		}
	}
	for p, same := range prefixes(past, held) {
		if overlap := min(n, m-p); p > 0 && same >= overlap {
			try(-p, overlap)
		}
	}
	return at, most, second
}

// doubtful tells how many events there are up to the last one that equals one
// delivered before.
func (s *Splice) doubtful(held []uint64) int {
	known := make(map[uint64]bool, len(s.ring))
	for i := range s.ring {
		known[s.ring[i].token] = true
	}
	n := len(held)
	for n > 0 && !known[held[n-1]] {
		n--
	}
	return n
}

// evidence is how improbable it is, in bits, that a stretch of the feed looks
// like this by chance. Events equal to the one before them count for nothing,
// since a feed that stands still says the same again and again.
func (s *Splice) evidence(stretch []uint64) float64 {
	count := make(map[uint64]int, len(s.ring))
	for i := range s.ring {
		count[s.ring[i].token]++
	}
	n := float64(len(s.ring))
	return evidence(stretch, count, n, n-float64(len(count)))
}

// evidence is that of a stretch of which the events are so often among n, of
// which so many repeat others.
func evidence(stretch []uint64, count map[uint64]int, n, repeats float64) float64 {
	total := 0.0
	for i, t := range stretch {
		switch c := count[t]; {
		case i > 0 && stretch[i-1] == t:
		case c > 1:
			total += math.Log2(n / float64(c))
		default:
			// An event of which there is no second one: the next is any old
			// one as often as that has happened, and this one rarely.
			total += math.Log2((n + 1) / (repeats + 1) * n)
		}
	}
	return total
}

// prefixes tells, for each place in b, how many elements from there on are
// those that a begins with (the Z algorithm, in linear time).
func prefixes(a, b []uint64) []int {
	all := make([]uint64, 0, len(a)+len(b))
	all = append(append(all, a...), b...)
	z := make([]int, len(all))
	for i, left, right := 1, 0, 0; i < len(all); i++ {
		if i < right {
			z[i] = min(right-i, z[i-left])
		}
		for i+z[i] < len(all) && all[z[i]] == all[i+z[i]] {
			z[i]++
		}
		if i+z[i] > right {
			left, right = i, i+z[i]
		}
	}
	return z[len(a):]
}
