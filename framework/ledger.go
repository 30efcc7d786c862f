package framework

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Ledger is the coverage of a stream as its notes tell it: what was held, and
// what became of every stretch in which events stopped. The oldest entries may
// be summed up in Totals.
type Ledger struct {
	// From and To are the first and the last moment that it tells of.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Totals stand for entries older than those that are kept one by one.
	Totals []Total `json:"totals"`
	// Held are the stretches held, in order; connections that followed each
	// other at once through the same exit are one.
	Held []Held `json:"held"`
	// Gaps are in the order in which they were found.
	Gaps []Gap `json:"gaps"`
	// Epochs are the last times that the site began its ids anew, in order.
	Epochs []Epoch `json:"epochs,omitempty"`
	// Lost are the last parts that did not reach a sink, in order.
	Lost []Lost `json:"lost,omitempty"`
}

// ReadLedger reads a stream's notes. last is when its last event was received:
// it bounds the last connection of a program that was killed.
func ReadLedger(notes []Note, last time.Time) Ledger {
	e := readNotes(notes)
	l := Ledger{Totals: e.totals, Gaps: e.gaps, Epochs: e.epochs, Lost: e.lost}
	for i := range e.held {
		if h := &e.held[i]; h.To.IsZero() {
			h.To = later(h.From, last)
		}
	}
	l.Held = joinHeld(e.held)
	stretch := func(from, to time.Time) {
		if l.From.IsZero() || !from.IsZero() && from.Before(l.From) {
			l.From = from
		}
		l.To = later(l.To, to)
	}
	for _, t := range l.Totals {
		stretch(t.From, t.To)
	}
	for _, h := range l.Held {
		stretch(h.From, h.To)
	}
	for _, g := range l.Gaps {
		stretch(g.From, g.To)
	}
	return l
}

// Since returns what the ledger tells of the time after t. Totals that reach
// beyond t are kept whole.
func (l Ledger) Since(t time.Time) Ledger {
	out := Ledger{From: later(l.From, t), To: later(l.To, t)}
	for _, x := range l.Totals {
		if x.To.After(t) {
			out.Totals, out.From = append(out.Totals, x), earlier(out.From, x.From)
		}
	}
	for _, h := range l.Held {
		if h.To.After(t) {
			h.From = later(h.From, t)
			out.Held = append(out.Held, h)
		}
	}
	for _, g := range l.Gaps {
		if g.To.After(t) {
			if !g.From.IsZero() {
				g.From = later(g.From, t)
			}
			out.Gaps = append(out.Gaps, g)
		}
	}
	for _, x := range l.Epochs {
		if x.At.After(t) {
			out.Epochs = append(out.Epochs, x)
		}
	}
	for _, x := range l.Lost {
		if x.At.After(t) {
			out.Lost = append(out.Lost, x)
		}
	}
	return out
}

// Sum sums up the whole ledger.
func (l Ledger) Sum() Total {
	sum := Total{From: l.From, To: l.To}
	for _, t := range l.Totals {
		sum.add(t)
	}
	sum.hold(l.Held)
	for _, g := range l.Gaps {
		sum.gap(g)
	}
	return sum
}

// Coverage is the share of the time from From to To, 0 to 1, in which no
// event is missing or may be. It is 1 when there is no time.
func (t Total) Coverage() float64 {
	missed := t.Gaps[GapKnown].Seconds + t.Gaps[GapPossible].Seconds
	return 1 - share(missed, t.To.Sub(t.From))
}

// HeldShare is the share of the time in which a connection was held, 0 to 1.
func (t Total) HeldShare() float64 { return share(t.Held, t.To.Sub(t.From)) }

func share(seconds float64, of time.Duration) float64 {
	if of <= 0 {
		return 0
	}
	return min(seconds/of.Seconds(), 1)
}

func (t *Total) add(o Total) {
	t.From, t.To = earlier(t.From, o.From), later(t.To, o.To)
	t.Held += o.Held
	t.Connections += o.Connections
	t.Events += o.Events
	for state, g := range o.Gaps {
		t.count(state, g)
	}
}

func (t *Total) count(state GapState, g GapTotal) {
	if t.Gaps == nil {
		t.Gaps = map[GapState]GapTotal{}
	}
	have := t.Gaps[state]
	t.Gaps[state] = GapTotal{Count: have.Count + g.Count, Seconds: have.Seconds + g.Seconds, Missing: have.Missing + g.Missing, Filled: have.Filled + g.Filled}
}

func (t *Total) gap(g Gap) {
	from := g.From
	if from.IsZero() {
		from = g.To
	}
	t.From, t.To = earlier(t.From, from), later(t.To, g.To)
	t.count(g.State, GapTotal{Count: 1, Seconds: max(g.To.Sub(from), 0).Seconds(), Missing: g.Missing, Filled: g.Filled})
}

// hold adds stretches that are in order; where two overlap, the time counts
// once.
func (t *Total) hold(held []Held) {
	var until time.Time
	for _, h := range held {
		t.From, t.To = earlier(t.From, h.From), later(t.To, h.To)
		t.Connections += max(h.Connections, 1)
		t.Events += h.Events
		t.Held += max(h.To.Sub(later(h.From, until)), 0).Seconds()
		until = later(until, h.To)
	}
}

// earlier returns the earlier of two times; a zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// entries are the notes of a ledger, the later ones in the place of those that
// they replace.
type entries struct {
	totals []Total
	held   []Held
	gaps   []Gap
	epochs []Epoch
	lost   []Lost
	other  []Note // of a newer program, or damaged: kept as they are
}

func (e *entries) len() int {
	return len(e.totals) + len(e.held) + len(e.gaps) + len(e.epochs) + len(e.lost) + len(e.other)
}

func readNotes(notes []Note) *entries {
	type key struct {
		at int64
		id any
	}
	e := &entries{}
	heldAt, gapAt := map[key]int{}, map[key]int{}
	for _, n := range notes {
		switch n.Kind {
		case NoteHeld:
			if h, ok := body[Held](e, n); ok {
				k := key{h.From.UnixNano(), h.Exit}
				if i, again := heldAt[k]; again {
					e.held[i] = h
				} else {
					heldAt[k] = len(e.held)
					e.held = append(e.held, h)
				}
			}
		case NoteGap:
			if g, ok := body[Gap](e, n); ok {
				k := key{g.To.UnixNano(), g.FirstID}
				if i, again := gapAt[k]; again {
					e.gaps[i] = g
				} else {
					gapAt[k] = len(e.gaps)
					e.gaps = append(e.gaps, g)
				}
			}
		case NoteTotal:
			if t, ok := body[Total](e, n); ok {
				e.totals = append(e.totals, t)
			}
		case NoteEpoch:
			if x, ok := body[Epoch](e, n); ok {
				e.epochs = append(e.epochs, x)
			}
		case NoteLost:
			if x, ok := body[Lost](e, n); ok {
				e.lost = append(e.lost, x)
			}
		default:
			e.other = append(e.other, n)
		}
	}
	slices.SortStableFunc(e.held, func(a, b Held) int { return a.From.Compare(b.From) })
	return e
}

func body[T any](e *entries, n Note) (v T, ok bool) {
	if err := json.Unmarshal(n.Body, &v); err != nil {
		e.other = append(e.other, n)
		return v, false
	}
	return v, true
}

// atOnce is how soon one connection must follow another to be one stretch
// with it.
const atOnce = time.Second

// joinHeld merges connections that followed each other at once through the
// same exit. An open one stays by itself: its end will name its beginning.
func joinHeld(held []Held) (out []Held) {
	for _, h := range held {
		if n := len(out); n > 0 && !h.To.IsZero() {
			if p := &out[n-1]; p.Exit == h.Exit && !p.To.IsZero() && h.From.Sub(p.To) <= atOnce {
				p.Connections = max(p.Connections, 1) + max(h.Connections, 1)
				p.To, p.Events = later(p.To, h.To), p.Events+h.Events
				p.Identity, p.Cause = h.Identity, h.Cause
				continue
			}
		}
		out = append(out, h)
	}
	return out
}

// CompactNotes returns a ledger that says the same in fewer notes and, where
// they are more than keep, sums up the oldest by day, so that no more than keep
// are left. Gaps that are known are kept one by one for longest. keep is 16 at
// least.
func CompactNotes(notes []Note, keep int) []Note {
	e := readNotes(notes)
	e.held = joinHeld(e.held)
	if e.len() > keep {
		e.sumUp(keep)
	}
	out := make([]Note, 0, e.len())
	for _, t := range e.totals {
		out = append(out, newNote(NoteTotal, t))
	}
	out = append(out, e.other...)
	for _, x := range e.epochs {
		out = append(out, newNote(NoteEpoch, x))
	}
	for _, x := range e.lost {
		out = append(out, newNote(NoteLost, x))
	}
	held, gaps := e.held, e.gaps
	for len(held)+len(gaps) > 0 { // in the order of time, as they were written
		if len(gaps) == 0 || len(held) > 0 && held[0].From.Before(gaps[0].To) {
			out, held = append(out, newNote(NoteHeld, held[0])), held[1:]
		} else {
			out, gaps = append(out, newNote(NoteGap, gaps[0])), gaps[1:]
		}
	}
	return out
}

// sumUp reduces the entries: half of keep for the newest, an eighth for totals,
// a sixteenth each for new epochs, for losses of sinks and for what is not
// understood, and the rest for older gaps that are known.
func (e *entries) sumUp(keep int) {
	e.other = e.other[max(0, len(e.other)-keep/16):]
	e.epochs = e.epochs[max(0, len(e.epochs)-keep/16):]
	e.lost = e.lost[max(0, len(e.lost)-keep/16):]

	ends := make([]time.Time, 0, len(e.held)+len(e.gaps))
	for _, h := range e.held {
		ends = append(ends, later(h.From, h.To))
	}
	for _, g := range e.gaps {
		ends = append(ends, g.To)
	}
	slices.SortFunc(ends, func(a, b time.Time) int { return b.Compare(a) })
	var limit time.Time
	if len(ends) > keep/2 {
		limit = ends[keep/2]
	}
	open := 0 // connections whose end is to come
	for _, h := range e.held {
		if h.To.IsZero() {
			open++
		}
	}
	open = min(open, keep/8)
	recent, known := keep/2-open, keep/4-keep/16

	var held, oldHeld []Held
	for i := len(e.held) - 1; i >= 0; i-- {
		h := e.held[i]
		switch {
		case h.To.IsZero() && open > 0:
			open--
			held = append(held, h)
		case h.To.After(limit) && recent > 0:
			recent--
			held = append(held, h)
		default:
			h.To = later(h.From, h.To)
			oldHeld = append(oldHeld, h)
		}
	}
	var gaps, oldGaps []Gap
	for i := len(e.gaps) - 1; i >= 0; i-- {
		g := e.gaps[i]
		switch {
		case g.To.After(limit) && recent > 0:
			recent--
			gaps = append(gaps, g)
		case g.State == GapKnown && known > 0:
			known--
			gaps = append(gaps, g)
		default:
			oldGaps = append(oldGaps, g)
		}
	}
	slices.Reverse(held)
	slices.Reverse(gaps)
	slices.Reverse(oldHeld)
	e.held, e.gaps = held, gaps

	heldBy := byDay(oldHeld, func(h Held) time.Time { return h.From })
	for _, day := range slices.Sorted(maps.Keys(heldBy)) {
		var t Total
		t.hold(heldBy[day])
		e.total(day, t)
	}
	gapsBy := byDay(oldGaps, func(g Gap) time.Time { return g.To })
	for _, day := range slices.Sorted(maps.Keys(gapsBy)) {
		var t Total
		for _, g := range gapsBy[day] {
			t.gap(g)
		}
		e.total(day, t)
	}
	slices.SortFunc(e.totals, func(a, b Total) int { return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To)) })
	for most := keep / 8; len(e.totals) > most; {
		e.totals[0].add(e.totals[1])
		e.totals = slices.Delete(e.totals, 1, 2)
	}
}

const dayForm = time.DateOnly

func byDay[T any](list []T, at func(T) time.Time) map[string][]T {
	days := map[string][]T{}
	for _, x := range list {
		day := at(x).UTC().Format(dayForm)
		days[day] = append(days[day], x)
	}
	return days
}

// total adds to the total of the day, or of the stretch of days that it lies
// in.
func (e *entries) total(day string, t Total) {
	for i := range e.totals {
		if have := &e.totals[i]; have.From.UTC().Format(dayForm) <= day && day <= have.To.UTC().Format(dayForm) {
			have.add(t)
			return
		}
	}
	e.totals = append(e.totals, t)
}
