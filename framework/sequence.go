package framework

import (
	"context"
	"strconv"

	"github.com/holdline/scrape/internal/splice"
)

// sequence is the last number of a stream whose events count without holes.
type sequence struct {
	last  uint64
	known bool
	// least: events of other types may have followed in an earlier run, and
	// their numbers are not known any more.
	least bool
	// apart: the numbers were counted from an event of another type, and nothing
	// shows that it follows what was delivered before.
	apart bool
}

// sequenced gives the event its number, which also stands in for an id that
// the event does not have. digits is room for it.
func (r *runner) sequenced(ev *Event, digits []byte) {
	ev.Sequence, ev.Sequenced, ev.Filled, ev.Late, ev.ignored = 0, false, false, false, false
	if r.Sequence == nil {
		return
	}
	if ev.Sequence, ev.Sequenced = r.Sequence(ev); ev.Sequenced && len(ev.ID) == 0 {
		ev.ID = strconv.AppendUint(digits, ev.Sequence, 10)
	}
}

// number is what a known gap counts: the sequence, or else the id.
func (r *runner) number(ev *Event) (n uint64, ok bool) {
	if r.Sequence != nil {
		return ev.Sequence, ev.Sequenced
	}
	if r.missing.none() {
		return 0, false // nobody asks: spare the parsing
	}
	return decimal(ev.ID)
}

func decimal(id []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(id), 10, 64)
	return n, err == nil && (id[0] != '0' || len(id) == 1)
}

// count corrects the splice's verdict by the event's number, which says more
// than ids and overlaps do. late says that the number was passed before,
// within that the verdict is not about the connection's beginning.
func (r *runner) count(ctx context.Context, l *line, ev *Event, v splice.Verdict, at numberedAt) (_ splice.Verdict, within bool, err error) {
	within = v.Join == splice.Within
	if (at.beside || at.late != nil && l.count.sure) && v.Join == splice.Possible && l.doubtful == 0 {
		v.Join = splice.Within // what came late opens no gap
	}
	s, n := &r.sequence, ev.Sequence
	switch {
	case !ev.Sequenced, r.behind(l):
		return v, within, nil
	case !s.known:
	case n == s.last+1 && s.apart, n > s.last+1 && s.loose(l):
		if v.Join == splice.Missing {
			v.Join = splice.Possible // they may have been of other types
		}
	case n == s.last+1:
		if !within && v.Join != splice.First {
			v.Join = splice.Proven
		}
	case n > s.last && r.unsound > 0 && !l.again:
		v.Join = splice.Possible // the last ones may have been of another count
		r.disown()
	case n > s.last:
		if s.apart && v.Join == splice.Possible {
			err = r.seam(ctx, l, v, ev, within)
		}
		v.Join, v.From, v.To = splice.Missing, s.last+1, n-1
	case at.late != nil, at.beside, at.filled:
		return v, within, nil
	case n > 1 && within && r.fallen(l, n):
		// One connection has brought the end of the one count and the beginning
		// of the other.
		if err = r.restarted(ctx, l, ev); l.count.skips {
			v.Join = splice.Possible
		}
	case n <= 1 || !within:
		// The count begins anew, where the splice knew of no replay.
		v.Join, err = splice.Possible, r.forget(ctx, l)
	default:
		return v, within, nil // late, and never missed: two lines, or a site out of order
	}
	*s = sequence{last: n, known: true}
	return v, within, err
}

// loose tells whether the next number may be any larger one: what the line has
// brought does not reach back to the last event of an earlier run, of which it
// is not known what other events followed it.
func (s *sequence) loose(l *line) bool { return s.least && !l.again }

// passIgnored counts the number of an event that is not kept.
func (r *runner) passIgnored(ctx context.Context, l *line, ev *Event) error {
	s := &r.sequence
	if s.known && ev.Sequence <= s.last {
		return nil
	}
	from := s.last + 1
	unknown := !s.known || ev.Sequence > from && s.loose(l)
	*s = sequence{last: ev.Sequence, known: true, apart: s.apart || unknown}
	if unknown || ev.Sequence == from {
		return nil
	}
	v := splice.Verdict{Join: splice.Missing, From: from, To: ev.Sequence - 1}
	return r.seam(ctx, l, v, ev, l.joined)
}

// recallCount takes up the count where the tail leaves it: at the last number,
// or, where the last events came late, at the last one before them.
func (r *runner) recallCount(tail []TailEvent, e *entries) {
	anew := map[int64]bool{} // when the count may have begun anew
	for _, g := range e.gaps {
		if g.State == GapPossible {
			anew[g.To.UnixNano()] = true
		}
	}
	begun := map[int64]bool{} // when it has
	for _, x := range e.epochs {
		anew[x.At.UnixNano()], begun[x.At.UnixNano()] = true, true
	}
	s := &r.sequence
	for i := range tail {
		switch t := &tail[i]; {
		case t.Filled:
		case !t.Sequenced:
			s.known = false
		case !s.known, t.Sequence > s.last, t.Sequence <= 1, anew[t.Time.UnixNano()] && (begun[t.Time.UnixNano()] || r.missing.lacks(t.Sequence, true) == nil):
			*s = sequence{last: t.Sequence, known: true}
		}
	}
	s.least = r.now().types != nil
}

// recallSparse takes up whether the ids count without holes: they do not where
// the tail has a hole of which the ledger says nothing.
func (r *runner) recallSparse(tail []TailEvent, e *entries) {
	told, there := map[int64]bool{}, map[uint64]bool{}
	for _, g := range e.gaps {
		told[g.To.UnixNano()] = true
	}
	for _, x := range e.epochs {
		told[x.At.UnixNano()] = true
	}
	for i := range tail {
		if n, ok := decimal([]byte(tail[i].ID)); ok {
			there[n] = true
		}
	}
	last, known := uint64(0), false
	for i := range tail {
		t := &tail[i]
		if t.Filled {
			continue
		}
		n, ok := decimal([]byte(t.ID))
		seam := told[t.Time.UnixNano()]
		if ok && known && !seam && n > last+1 && !there[last+1] {
			r.splice.Sparse()
			return
		}
		if !known || seam || n > last || !ok {
			last, known = n, ok
		}
	}
}

// passed remembers the cursor of an event, for [Stream.ReplayCheck].
func (r *runner) passed(c Cursor) {
	if r.ReplayCheck <= 0 {
		return
	}
	if len(r.cursors) > r.ReplayCheck {
		r.cursors = append(r.cursors[:0], r.cursors[1:]...)
	}
	r.cursors = append(r.cursors, c)
}

// resumeFrom is where a new connection begins.
func (r *runner) resumeFrom() Cursor {
	if len(r.cursors) > 0 {
		return r.cursors[0]
	}
	return r.cursor
}
