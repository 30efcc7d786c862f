package framework

import (
	"context"
	"slices"

	"github.com/holdline/scrape/internal/splice"
)

// Numbers that begin anew name other events than before. One that is missing may
// then come and be another event, which must not heal the gap: only a line of
// which it is shown that it goes by the same count does that. It is shown by
// what it brought before or, else, by what it brings next.

// counting is where a line is in the count of the stream. The runner's mutex
// guards it.
type counting struct {
	last    uint64 // the number of its last event
	known   bool
	unsound int  // the position after its first event since nothing shows that it is in the count; 0 without one
	fell    bool // its numbers have fallen, and nothing has shown since that it is in the count
	sure    bool // it is in the count
	behind  bool // it has not reached the place where the numbers began anew
	skips   bool // its numbers have skipped some
	proven  int  // how much had been delivered when it was last known to be in the count
	shown   bool // what it brings next, until it goes on, is known to be in the count
	seam    *Gap // the one with which it began, where that may turn out to be none
}

// numberedAt is what is known of an event's number before it is delivered.
type numberedAt struct {
	n      uint64
	late   *hole // that it is missing in; nil when it is not
	beside bool  // see runner.beside
	filled bool  // it came from the history
}

// farBack is how far the numbers of a line fall where they begin anew, rather
// than come in another order.
const farBack = 16

// step takes up the number of the line's next event.
func (r *runner) step(l *line, n uint64, numbered bool) {
	c := &l.count
	if c.proven == 0 {
		c.proven = r.splice.End()
	}
	if !numbered {
		c.known = c.known && r.Sequence != nil
		return
	}
	if c.known && n < c.last {
		if c.last-n >= farBack {
			c.sure, c.fell = c.shown, true
		}
		if last, ok := r.lastNumber(); c.behind && ok && n <= last+1 {
			c.behind = false
		}
	}
	c.skips = c.known && n > c.last+1
	c.last, c.known = n, true
}

// behind tells whether the line goes by numbers from before they began anew,
// which another one has reached.
func (r *runner) behind(l *line) bool {
	if !l.count.behind {
		return false
	}
	for _, o := range r.connected {
		if o != l && !o.waiting && !o.count.behind && o.seam.Begun() {
			return true
		}
	}
	l.count.behind = false
	return false
}

// lastNumber is the largest number of the count.
func (r *runner) lastNumber() (uint64, bool) {
	if r.Sequence != nil {
		return r.sequence.last, r.sequence.known
	}
	return r.splice.Last()
}

// follows tells whether the number is the one after the largest.
func (r *runner) follows(n uint64, numbered bool) bool {
	last, ok := r.lastNumber()
	return numbered && ok && n == last+1
}

// recognised notes that the line has brought an event that was delivered before,
// at the position.
func (r *runner) recognised(ctx context.Context, l *line, n uint64, numbered bool, position int) error {
	c := &l.count
	if position >= r.anew {
		c.behind = false
	} else if position >= 0 && !l.joined && !c.sure {
		c.behind = true
	}
	if numbered && len(r.missing.unproven) > 0 {
		r.adopt(l, n, true)
	}
	if !r.sound(position) {
		return nil // it proves nothing
	}
	c.fell = false
	return r.prove(ctx, l)
}

// fallen tells whether the number shows that the numbers have begun anew within
// a connection: they fell, or it was brought already by another event.
func (r *runner) fallen(l *line, n uint64) bool {
	return l.count.fell || r.missing.waits(l) && n < r.sequence.last
}

// unproven corrects the splice's verdict of a line that brings numbers of which
// nothing shows that they go by the count.
func (r *runner) unproven(l *line, v splice.Verdict, at numberedAt) splice.Verdict {
	c, orphans := &l.count, r.unsound > 0
	switch {
	case v.Restarted && v.Join == splice.Within && c.skips && r.Sequence != nil:
		v.Join = splice.Possible
	case c.sure || v.Restarted:
	case v.Join == splice.Possible && at.late != nil && r.adopt(l, at.n, false):
		v.Join = splice.Within // it goes on where another connection has ended
	case v.Join == splice.Proven && orphans && !l.again:
		v.Join = splice.Possible // they may have been of another count
		r.disown()
	case v.Join == splice.Within && c.skips && r.Sequence != nil && at.n < r.sequence.last:
		v.Join = splice.Possible
	}
	return v
}

// adopt has the line prove what connections brought late that have ended.
func (r *runner) adopt(l *line, n uint64, again bool) bool {
	if !r.missing.adopt(l, n, again) {
		return false
	}
	if r.unsound > 0 && (l.count.unsound == 0 || r.unsound < l.count.unsound) {
		l.count.unsound = r.unsound
	}
	r.unsound = 0
	return true
}

// disown leaves missing what connections brought late that have ended.
func (r *runner) disown() {
	r.missing.drop(nil)
	r.unsound = 0
}

// parts notes that the connection of a line has ended: what it brought waits for
// another one to prove it.
func (r *runner) parts(l *line) {
	if u := l.count.unsound; u > 0 && (r.unsound == 0 || u < r.unsound) {
		r.unsound = u
	}
	l.count = counting{}
	r.missing.orphan(l)
}

// again has the ledger say that a number that came from the history comes once
// more, or is that of another event.
func (r *runner) again(l *line, n uint64, v splice.Verdict) splice.Verdict {
	if l.count.sure || v.Restarted {
		return v
	}
	for _, f := range r.missing.fetched {
		if f.First <= n && n <= f.Last {
			l.doubtful = max(l.doubtful, int(f.Last-n+1))
		}
	}
	v.Join = splice.Possible
	return v
}

// place notes where in the count the line is after a new event. late is the hole
// that the number was missing in, next says that it was the next of all.
func (r *runner) place(ctx context.Context, l *line, n uint64, numbered bool, late *hole, next bool) error {
	c := &l.count
	switch last, _ := r.lastNumber(); {
	case !numbered || r.behind(l):
	case late != nil && r.missing.lacks(n, true) == late:
		r.adopt(l, n, false)
		if c.sure {
			return r.fills(ctx, late, n)
		}
		r.missing.suspect(l, late, n)
	case next:
		c.fell = false
		return r.prove(ctx, l)
	case n >= last:
		c.unsound = 0
		r.missing.drop(l) // the count goes on from here, whatever came before
		c.sure, c.shown, c.fell, c.proven = true, false, false, r.splice.End()
	default:
		c.sure = false
	}
	if numbered && !c.sure && c.unsound == 0 {
		c.unsound = r.splice.End()
	}
	return nil
}

// sound tells whether what was delivered at the position, or before all that is
// remembered, is known to be in the count.
func (r *runner) sound(position int) bool {
	unsound := func(o *line) bool { return o.count.unsound > 0 && position >= o.count.unsound-1 }
	if slices.ContainsFunc(r.connected, unsound) || r.leaving != nil && unsound(r.leaving) {
		return false
	}
	return r.unsound == 0 || position < r.unsound-1
}
