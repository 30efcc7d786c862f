package framework

import (
	"context"
	"slices"
)

// missing are the numbers that a stream is known to lack, so that they are
// accounted for when they come late or are fetched. The runner's mutex guards
// it.
type missing struct {
	holes []*hole
	// fetched are the numbers that were filled from the history: a line that
	// brings them later doubles them.
	fetched []Range
	wake    chan struct{} // there is a hole to fill; nil where nobody fills them
	// unproven are the numbers that came late and may be those of other events.
	unproven []unproven
}

// unproven are missing numbers that have come while nothing showed that the site
// had not begun its numbers anew.
type unproven struct {
	Range
	hole *hole
	by   *line // nil where its connection has ended
}

// hole is a known gap that is open.
type hole struct {
	gap     Gap
	left    []Range // what is missing still
	tries   int     // how often the history had nothing of it
	fetched bool    // some of it came from the history
	dirty   bool    // the ledger does not say yet what has come
}

// maxHoles bounds the open gaps that are watched, maxLeft the stretches that an
// entry of the ledger names, maxFetched the stretches remembered as filled.
const maxHoles, maxLeft, maxFetched = 1024, 64, 1024

// dig takes up a gap that is known.
func (r *runner) dig(g Gap) {
	m := &r.missing
	h := &hole{gap: g, left: slices.Clone(g.Left)}
	if len(h.left) == 0 {
		h.left = []Range{{g.FirstID, g.LastID}}
	}
	if len(m.holes) == maxHoles {
		m.holes = slices.Delete(m.holes, 0, 1) // it stays in the ledger
	}
	m.holes = append(m.holes, h)
	m.poke()
}

func (m *missing) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *missing) none() bool { return len(m.holes) == 0 && len(m.fetched) == 0 }

// filled tells whether the number came from the history already.
func (m *missing) filled(n uint64, ok bool) bool {
	return ok && slices.ContainsFunc(m.fetched, func(r Range) bool { return r.First <= n && n <= r.Last })
}

// lacks returns the hole that the number is missing in; nil when it is not.
func (m *missing) lacks(n uint64, ok bool) *hole {
	if !ok {
		return nil
	}
	for _, h := range m.holes {
		if slices.ContainsFunc(h.left, func(r Range) bool { return r.First <= n && n <= r.Last }) {
			return h
		}
	}
	return nil
}

// came takes a number that is there now out of its hole.
func (m *missing) came(h *hole, n uint64) {
	h.remove(n)
	h.gap.Missing--
	h.gap.Filled++
	h.dirty = true
	if len(h.left) == 0 {
		m.holes = slices.DeleteFunc(m.holes, func(o *hole) bool { return o == h })
	}
}

func (h *hole) remove(n uint64) {
	i := slices.IndexFunc(h.left, func(r Range) bool { return r.First <= n && n <= r.Last })
	r := h.left[i]
	var rest []Range
	if r.First < n {
		rest = append(rest, Range{r.First, n - 1})
	}
	if n < r.Last {
		rest = append(rest, Range{n + 1, r.Last})
	}
	h.left = slices.Replace(h.left, i, i+1, rest...)
}

// fetchedOne remembers that the number came from the history.
func (m *missing) fetchedOne(n uint64) {
	if k := len(m.fetched); k > 0 && m.fetched[k-1].Last+1 == n {
		m.fetched[k-1].Last = n
		return
	}
	if len(m.fetched) == maxFetched {
		m.fetched = slices.Delete(m.fetched, 0, 1)
	}
	m.fetched = append(m.fetched, Range{n, n})
}

// account writes into the ledger what has become of a hole. It runs under r.mu.
func (r *runner) account(ctx context.Context, h *hole) error {
	g := h.gap
	g.Left = h.left[:min(len(h.left), maxLeft)]
	if g.Missing == 0 {
		g.Left = nil
		if g.State = GapFilled; !h.fetched {
			g.State, g.Proof = GapReplayed, ProofNumbers
		}
	}
	h.dirty = false
	r.stats.filled(g)
	return r.note(ctx, NoteGap, g)
}

// accountApart does it on a stack of its own.
func (r *runner) accountApart(ctx context.Context, h *hole) (err error) {
	apart(func() { err = r.account(ctx, h) })
	return err
}

// accountAll writes what came late and is not in the ledger yet.
func (r *runner) accountAll(ctx context.Context) error {
	for _, h := range r.missing.holes {
		if h.dirty {
			if err := r.account(ctx, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// orphan notes that the connection of a line has ended: what it brought late
// waits for another one to prove it.
func (m *missing) orphan(l *line) {
	for i := range m.unproven {
		if m.unproven[i].by == l {
			m.unproven[i].by = nil
		}
	}
}

// adopt has the line prove what a connection that has ended brought late, if it
// has brought the same event again or, as new, goes on with the next number, one
// that nobody has brought yet.
func (m *missing) adopt(l *line, n uint64, again bool) (adopted bool) {
	for i := range m.unproven {
		if u := &m.unproven[i]; u.by == nil && (again && u.First <= n && n <= u.Last || !again && n == u.Last+1 && !m.unsure(n)) {
			adopted = true
		}
	}
	for i := range m.unproven {
		if u := &m.unproven[i]; u.by == nil && adopted {
			u.by = l
		}
	}
	return adopted
}

// suspect notes that the line has brought a missing number late, and that
// nothing proves it.
func (m *missing) suspect(l *line, h *hole, n uint64) {
	if k := len(m.unproven); k > 0 {
		if u := &m.unproven[k-1]; u.by == l && u.hole == h && u.Last+1 == n {
			u.Last = n
			return
		}
	}
	if len(m.unproven) == maxFetched {
		m.unproven = slices.Delete(m.unproven, 0, 1) // it stays missing
	}
	m.unproven = append(m.unproven, unproven{Range{n, n}, h, l})
}

// unsure tells whether the number came late and is not proven.
func (m *missing) unsure(n uint64) bool {
	return slices.ContainsFunc(m.unproven, func(u unproven) bool { return u.First <= n && n <= u.Last })
}

// waits tells whether anything that the line brought late is not proven; of
// nil, what connections brought that have ended.
func (m *missing) waits(l *line) bool {
	return slices.ContainsFunc(m.unproven, func(u unproven) bool { return u.by == l })
}

// drop leaves missing what the line brought late and nothing has proven; of
// nil, what connections brought that have ended.
func (m *missing) drop(l *line) {
	m.unproven = slices.DeleteFunc(m.unproven, func(u unproven) bool { return u.by == l })
}

// prove takes out of their holes the numbers that the line has brought late.
func (r *runner) prove(ctx context.Context, l *line) error {
	l.count.unsound = 0
	l.count.sure, l.count.shown, l.count.proven = true, false, r.splice.End()
	if g := l.count.seam; g != nil {
		l.count.seam = nil
		g.State, g.Proof = GapReplayed, ProofNumbers
		r.stats.filled(*g)
		if err := r.note(ctx, NoteGap, *g); err != nil {
			return err
		}
	}
	return r.confirm(ctx, l)
}

// confirm takes out of their holes the numbers that the line has brought late;
// of nil, those that connections brought that have ended.
func (r *runner) confirm(ctx context.Context, l *line) error {
	if !r.missing.waits(l) {
		return nil
	}
	all := slices.Clone(r.missing.unproven)
	r.missing.drop(l)
	for _, u := range all {
		for n := u.First; u.by == l; n++ {
			if err := r.fills(ctx, u.hole, n); err != nil {
				return err
			}
			if n == u.Last {
				break
			}
		}
	}
	return nil
}

// fills takes a number that has come late out of its hole.
func (r *runner) fills(ctx context.Context, h *hole, n uint64) error {
	if r.missing.lacks(n, true) != h {
		return nil
	}
	r.missing.came(h, n)
	if len(h.left) > 0 {
		return nil
	}
	return r.accountApart(ctx, h)
}

// forget gives up the numbers because the site has begun them anew, as the line
// is the first to show.
func (r *runner) forget(ctx context.Context, l *line) error {
	for _, h := range r.missing.holes {
		h.gap.Lost = true
		if err := r.account(ctx, h); err != nil {
			return err
		}
	}
	r.missing.holes, r.missing.fetched, r.missing.unproven = nil, nil, nil
	r.sequence = sequence{}
	r.anew, r.unsound, l.count.unsound = l.count.proven, 0, 0
	l.count.seam = nil
	for _, o := range r.connected {
		o.count.behind = o != l && o.seam.Begun()
		o.count.unsound, o.count.seam = 0, nil
	}
	l.count.sure, l.count.shown, l.count.fell = true, false, false
	return nil
}

// recallFilled takes out of the holes what came before the program ended and
// was not accounted for any more. What came late counts if the numbers went on
// after it; if they had not yet, a line of this run has to prove it.
func (r *runner) recallFilled(ctx context.Context, tail []TailEvent, e *entries) error {
	begins := make(map[*hole]int, len(r.missing.holes))
	for _, h := range r.missing.holes {
		begins[h] = h.gap.begins(tail)
	}
	anew := e.beginnings()
	last, known, from, position := uint64(0), false, 0, 0
	for i := range tail {
		t := &tail[i]
		n, ok := t.Sequence, t.Sequenced
		if !ok && r.Sequence == nil {
			n, ok = decimal([]byte(t.ID))
		}
		if !t.Filled {
			position++
		}
		if anew[beginning{t.Time.UnixNano(), t.ID}] {
			r.missing.fetched, r.missing.unproven, known = nil, nil, false
		}
		h := r.missing.lacks(n, ok)
		switch late := h != nil && i >= begins[h]; {
		case !ok:
		case t.Filled:
			r.missing.fetchedOne(n)
			if late {
				h.fetched = true
				if err := r.fills(ctx, h, n); err != nil {
					return err
				}
			}
		case late && known && n+farBack > last:
			if err := r.fills(ctx, h, n); err != nil { // out of order
				return err
			}
		case late:
			if len(r.missing.unproven) == 0 {
				from = position
			}
			r.missing.suspect(nil, h, n)
		case known && n == last+1:
			if err := r.confirm(ctx, nil); err != nil {
				return err
			}
			last = n
		case !known || n > last:
			r.missing.drop(nil)
			last, known = n, true
		}
	}
	if len(r.missing.unproven) > 0 {
		r.unsound = from
	}
	return nil
}

// begins is the index of the first event of the tail that may have come after
// the gap: before it the same numbers may be those of other events, from before
// the site began them anew.
func (g *Gap) begins(tail []TailEvent) int {
	if i := slices.IndexFunc(tail, func(e TailEvent) bool { return !e.Filled && e.Time.Equal(g.From) }); i >= 0 {
		return i
	}
	for i := range tail { // the event before the gap is not in it any more, as a rule
		if tail[i].Time.After(g.From) {
			return i
		}
	}
	return len(tail)
}
