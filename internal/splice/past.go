package splice

import (
	"math"
	"slices"
)

// Past is what was delivered, also before what a [Splice] remembers, in the
// order of the stream as far as it is known. It does not change any more: a
// connection that replays from long ago is followed through it.
type Past struct {
	tokens    []uint64
	positions []int    // of the last ones, which were remembered when it was made
	end       int      // what [Splice.End] was then
	begin     int      // how many of the first ones were delivered last
	late      []uint64 // what came late before that
	repeats   float64
}

// minReplay is how many events at least, and maxMark how many at most, tell
// that a connection has come to a place of the past.
const minReplay, maxMark = 2, 64

// Past returns what was delivered. older are the tokens of the last events of
// the journal in the order of delivery, those that are remembered among them,
// as far as the journal has them; late tells which of them came late, so that
// their place is not known. What was delivered from the position early on, if
// that is all that is remembered, lies before the rest.
func (s *Splice) Past(older []uint64, late func(i int) bool, early int) *Past {
	ring, n := s.base(), len(older)
	for p := s.end - 1; p >= ring && n > 0; p-- {
		if older[n-1] == s.entry(p).token {
			n--
		}
	}
	past := &Past{positions: s.stream(s.head()), end: s.end}
	past.tokens = make([]uint64, 0, n+len(past.positions))
	for i, t := range older[:n] {
		if late(i) {
			past.late = append(past.late, t)
		} else {
			past.tokens = append(past.tokens, t)
		}
	}
	for _, p := range past.positions {
		past.tokens = append(past.tokens, s.entry(p).token)
	}
	if k := len(past.tokens) - (s.end - early); s.All(early) && k > 0 {
		past.tokens = append(past.tokens[k:len(past.tokens):len(past.tokens)], past.tokens[:k]...)
		past.positions, past.begin = nil, len(past.tokens)-k
	}
	distinct := make(map[uint64]struct{}, len(past.tokens))
	for _, t := range past.tokens {
		distinct[t] = struct{}{}
	}
	past.repeats = float64(len(past.tokens) - len(distinct))
	return past
}

// Len is how many events there are.
func (p *Past) Len() int { return len(p.tokens) }

// Begin is the index of what the past begins with, but for what was delivered
// last.
func (p *Past) Begin() int { return p.begin }

// At returns the token of an event.
func (p *Past) At(i int) uint64 { return p.tokens[i] }

// Position is where the event was delivered; -1 if that is not known.
func (p *Past) Position(i int) int {
	switch i -= len(p.tokens) - len(p.positions); {
	case i == len(p.positions):
		return p.end
	case i < 0:
		return -1
	}
	return p.positions[i]
}

// Find looks for the place of a connection's events in the past: all of them
// lie in it, but for the first ones if it begins with what follows those, and
// for the last ones if it ends with what precedes them. at is the index of the
// first one in the past, negative if that begins later. As in [Splice.Align]
// there must be one place, and no chance that explains it; equal says that
// there is more than one.
func (p *Past) Find(held []uint64) (at int, ok, equal bool) { return p.find(p.tokens, held) }

// FindFrom looks for the place of events of which the last ones lie in the past
// from an index on, and late of them, the first ones, before it.
func (p *Past) FindFrom(from int, held []uint64) (late int, ok bool) {
	at, ok, _ := p.find(p.tokens[from:], held)
	return -at, ok && at < 0
}

// Longest returns the place at which most of the first events lie in the past,
// and how many; none where there is more than one, or chance may explain it.
func (p *Past) Longest(held []uint64) (at, events int) {
	second := 0
	for i, same := range prefixes(held, p.tokens) {
		same = min(same, len(held))
		if same > events {
			at, events, second = i, same, events
		} else {
			second = max(second, same)
		}
	}
	if 2*second >= events || !p.Telling(held[:events]) {
		return 0, 0
	}
	return at, events
}

// CameLate tells whether the events, which do not lie in the past where they
// should, lie elsewhere, one after the other and not by chance: where what came
// late lies is not always known.
func (p *Past) CameLate(events []uint64) bool {
	if !p.Telling(events) {
		return false
	}
	for _, delivered := range [][]uint64{p.late, p.tokens} {
		for _, same := range prefixes(events, delivered) {
			if same >= len(events) {
				return true
			}
		}
	}
	return false
}

func (p *Past) find(past, held []uint64) (at int, ok, equal bool) {
	at, most, second := overlap(past, held)
	if 2*second >= most {
		return at, false, most > 0 && 2*second >= len(held)
	}
	first := max(0, -at)
	need := surprise + math.Log2(float64(len(past)+len(held)))
	return at, most >= minReplay && p.evidence(held[first:first+most]) >= need, false
}

// Telling tells whether the events are many enough to be found at all.
func (p *Past) Telling(held []uint64) bool {
	return len(held) >= minReplay && p.evidence(held) >= surprise+math.Log2(float64(len(p.tokens)+len(held)))
}

// evidence is that of [Splice.evidence], of the whole past.
func (p *Past) evidence(stretch []uint64) float64 {
	count := make(map[uint64]int, len(stretch))
	for _, t := range stretch {
		count[t] = 0
	}
	for _, t := range p.tokens {
		if n, ok := count[t]; ok {
			count[t] = n + 1
		}
	}
	return evidence(stretch, count, float64(len(p.tokens)), p.repeats)
}

// Mark returns the first stretch of the past of which there is only one, and
// which cannot be mistaken for chance by a connection that brings so many
// events: the indices where it begins and ends. It is not ok where there is
// none near the beginning.
func (p *Past) Mark(events int) (from, to int, ok bool) {
	need := surprise + math.Log2(float64(len(p.tokens)+events))
	for skip := 0; p.begin+skip < len(p.tokens)-minReplay; skip = 2*skip + 1 {
		from = p.begin + skip
		most := p.tokens[from:min(from+maxMark, len(p.tokens))]
		if p.evidence(most) < need {
			continue
		}
		for n := p.shortest(most, need); ; n = min(2*n, len(most)) {
			if p.once(most[:n]) {
				return from, from + n, true
			}
			if n == len(most) {
				break
			}
		}
	}
	return 0, 0, false
}

// shortest is how many of the first events of a stretch are evidence enough.
func (p *Past) shortest(stretch []uint64, need float64) int {
	few, enough := minReplay-1, len(stretch)
	for enough-few > 1 {
		if n := (few + enough) / 2; p.evidence(stretch[:n]) >= need {
			enough = n
		} else {
			few = n
		}
	}
	return enough
}

// once tells whether the stretch is in the past only once, and more than half
// of it nowhere else: it does not repeat itself.
func (p *Past) once(stretch []uint64) bool {
	places := 0
	for _, same := range prefixes(stretch, p.tokens) {
		if 2*same > len(stretch) {
			places++
		}
	}
	return places == 1
}

// Doubtful tells how many of the events there are up to the last one that equals
// one of the past.
func (p *Past) Doubtful(held []uint64) int {
	last := make(map[uint64]int, len(held))
	for i, t := range held {
		last[t] = i + 1
	}
	n := 0
	for _, t := range p.tokens {
		n = max(n, last[t])
	}
	return n
}

// Mark is a stretch of the past that a connection may come to.
type Mark struct {
	tokens []uint64
	back   []int // how many events of the mark are matched still, where the next one does not match
	seen   int   // how many of it the connection has just brought
}

// NewMark returns the mark from one index of the past to another.
func (p *Past) NewMark(from, to int) *Mark {
	m := &Mark{tokens: slices.Clone(p.tokens[from:to]), back: make([]int, to-from)}
	for i, n := 1, 0; i < len(m.tokens); i++ {
		for n > 0 && m.tokens[i] != m.tokens[n] {
			n = m.back[n-1]
		}
		if m.tokens[i] == m.tokens[n] {
			n++
		}
		m.back[i] = n
	}
	return m
}

// Next takes the next event that the connection brings and returns how many of
// the mark it has just brought, and whether that is all of it.
func (m *Mark) Next(token uint64) (seen int, all bool) {
	if m.seen == len(m.tokens) {
		m.seen = m.back[m.seen-1]
	}
	for m.seen > 0 && m.tokens[m.seen] != token {
		m.seen = m.back[m.seen-1]
	}
	if m.tokens[m.seen] == token {
		m.seen++
	}
	return m.seen, m.seen == len(m.tokens)
}

// Remembers tells whether a line can be put at the position: the event there is
// remembered, and so is where it follows, or it is the end.
func (s *Splice) Remembers(position int) bool {
	return position >= s.base() && position <= s.end && s.order.follow(s.order.before(position)) == position
}

// All tells whether nothing is remembered but what was delivered from the
// position on.
func (s *Splice) All(from int) bool { return from > 0 && from <= s.base() }

// Own tells whether the line has delivered all that is remembered from the
// position on.
func (s *Splice) Own(l *Line, position int) bool {
	for p := max(position, s.base()); p < s.end; p++ {
		if s.entry(p).line != l.Number {
			return false
		}
	}
	return true
}
