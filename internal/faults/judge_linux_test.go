package faults

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// held is a stream that somebody holds.
type held struct {
	t     *testing.T
	seen  *collector
	ended func() bool        // nothing more will come
	news  func() []time.Time // when connections have found their places; nil where it is not told
}

// wait waits until it is done.
func (h held) wait(what string, atMost time.Duration, done func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(atMost); !done(); time.Sleep(2 * time.Millisecond) {
		if h.ended() && !done() {
			h.t.Fatalf("the stream ended before %s", what)
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// collector remembers the numbers that were received, and when.
type collector struct {
	mu   sync.Mutex
	seen []received
}

type received struct {
	n  int
	at time.Time
}

func (c *collector) add(n int, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, received{n, at})
}

func (c *collector) len() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.seen) }

func (c *collector) last() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		return time.Time{}
	}
	return c.seen[len(c.seen)-1].at
}

func (c *collector) after(at time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.seen) - 1; i >= 0 && c.seen[i].at.After(at); i-- {
		n++
	}
	return n
}

// row is what became of the events.
type row struct {
	sent, once, doubled, missed int
	// known and possible count the gaps written down, silently the events that
	// are missing and lie in none of them, falsely those that are called
	// missing and are not, doubtful those that may be doubled by the ledger.
	known, possible, silently, falsely, doubtful int
	gaps                                         []framework.Gap
	told                                         bool          // there is no ledger, only what the program told about when
	noticed, back                                time.Duration // since the fault; 0 where nothing was to be noticed
}

// judge compares what was received with what happened between the first and
// the last event received, and with what the ledger says of it.
func (s *stage) judge(seen []received, gaps []framework.Gap) row {
	r := row{gaps: gaps, told: s.alone}
	if len(seen) == 0 {
		s.t.Fatal("nothing was received")
	}
	count := map[int]int{}
	first, last := seen[0].n, seen[0].n
	for _, e := range seen {
		count[e.n]++
		first, last = min(first, e.n), max(last, e.n)
	}
	for n := first; n <= last; n++ {
		r.sent++
		switch got := count[n]; {
		case got == 0:
			r.missed++
			if !slices.ContainsFunc(gaps, func(g framework.Gap) bool { return s.covers(g, n, seen) }) {
				r.silently++
			}
		case got == 1:
			r.once++
		default:
			r.doubled++
		}
	}
	for _, g := range gaps {
		r.doubtful += int(g.Doubled)
		switch g.State {
		case framework.GapPossible:
			r.possible++
		case framework.GapKnown:
			r.known += int(g.Missing)
			for n := g.FirstID; n <= g.LastID; n++ {
				if lacks(g, int(n)) && count[int(n)] > 0 {
					r.falsely++
				}
			}
		}
	}
	// Back is when events flow again after the longest stall that the fault
	// caused.
	stall := s.pace.stall
	seen = slices.SortedFunc(slices.Values(seen), func(a, b received) int { return a.at.Compare(b.at) })
	for i := 1; i < len(seen); i++ {
		if d := seen[i].at.Sub(seen[i-1].at); seen[i].at.After(s.from) && d > stall {
			stall, r.back = d, seen[i].at.Sub(s.from)
		}
	}
	return r
}

// covers tells whether the gap owns up to the event: it names its number, or
// lies where the event should have come. What tail says of a possible gap has no
// place, only a time.
func (s *stage) covers(g framework.Gap, n int, seen []received) bool {
	switch {
	case g.State == framework.GapKnown:
		return lacks(g, n)
	case g.State != framework.GapPossible:
		return false
	case s.alone:
		at := s.site.at(n)
		return !at.Before(g.From.Add(-time.Second)) && !at.After(g.To)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].at.Equal(g.To) && seen[i-1].n < n && n < seen[i].n {
			return true
		}
	}
	return false
}

// lacks tells whether the number is missing in a known gap.
func lacks(g framework.Gap, n int) bool {
	if g.State != framework.GapKnown {
		return false
	}
	left := g.Left
	if len(left) == 0 {
		left = []framework.Range{{First: g.FirstID, Last: g.LastID}}
	}
	return slices.ContainsFunc(left, func(r framework.Range) bool { return int(r.First) <= n && n <= int(r.Last) })
}

// fill fills a row, once more if it is broken by a machine that held everything
// up for longer than the stream's patience allows: then lines are rightly taken
// for dead that have nothing, of which the row knows nothing.
func (p pace) fill(t *testing.T, source source, lines int, f fault, hold func(p pace) row) row {
	t.Helper()
	const tries = 4
	patience := cmp.Or(p.stale, 2*time.Second) / 2
	for try := 1; ; try++ {
		pulse := newPulse(t)
		r := hold(p)
		broken, loose := r.broken(source, lines, f)
		heldUp := pulse.heldUp()
		if len(broken) == 0 && len(loose) > 0 && heldUp > patience && try < tries {
			t.Logf("the machine held everything up for %v: once more", heldUp)
			continue
		}
		for _, what := range append(broken, loose...) {
			t.Error(what)
		}
		return r
	}
}

// broken tells what is not as it is promised: nothing missing where the source
// replays or another line was held, nothing doubled where ids or sequences tell
// events apart, and an honest ledger. It is loose where a machine that holds
// everything up may be why.
func (r *row) broken(source source, lines int, f fault) (broken, loose []string) {
	say := func(to *[]string, format string, args ...any) { *to = append(*to, fmt.Sprintf(format, args...)) }
	covered := source.replay || lines > 1
	switch {
	case covered && r.missed > 0:
		say(&loose, "%d of %d events are missing", r.missed, r.sent)
	case r.silently > 0 && r.told:
		say(&loose, "%d events are missing without a word", r.silently)
	}
	if r.silently > 0 && !r.told {
		say(&broken, "%d events are missing without a word in the ledger", r.silently)
	}
	if source.ids && r.doubled > 0 || r.doubled > r.doubtful {
		say(&broken, "%d events are doubled, of %d that may be by the ledger", r.doubled, r.doubtful)
	}
	if r.falsely > 0 {
		say(&broken, "%d events are called missing and are not", r.falsely)
	}
	// A night breaks all lines: that nothing happened in it is not to be proven.
	if covered && r.known+r.possible > 0 && (source.replay || !f.closed) {
		say(&loose, "nothing is missing, and the ledger says %+v", r.gaps)
	}
	return broken, loose
}
