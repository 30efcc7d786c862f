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

// forget gives up the numbers because the site has begun them anew.
func (r *runner) forget(ctx context.Context) error {
	for _, h := range r.missing.holes {
		h.gap.Lost = true
		if err := r.account(ctx, h); err != nil {
			return err
		}
	}
	r.missing.holes, r.missing.fetched = nil, nil
	r.sequence = sequence{}
	return nil
}

// recallFilled takes out of the holes what came before the program ended and
// was not accounted for any more.
func (r *runner) recallFilled(ctx context.Context, tail []TailEvent) error {
	begins := make(map[*hole]int, len(r.missing.holes))
	for _, h := range r.missing.holes {
		begins[h] = h.gap.begins(tail)
	}
	for i := range tail {
		e := &tail[i]
		n, ok := e.Sequence, e.Sequenced
		if !ok && r.Sequence == nil {
			n, ok = decimal([]byte(e.ID))
		}
		if e.Filled && ok {
			r.missing.fetchedOne(n)
		}
		if h := r.missing.lacks(n, ok); h != nil && i >= begins[h] {
			r.missing.came(h, n)
			h.fetched = h.fetched || e.Filled
			if len(h.left) == 0 {
				if err := r.account(ctx, h); err != nil {
					return err
				}
			}
		}
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
