package splice

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// past is that of a journal with the tokens, of which the last ones, so many,
// are remembered.
func past(tokens []uint64, remembered int) *Past {
	s, l := New(), &Line{Number: 1}
	for _, t := range tokens[len(tokens)-remembered:] {
		s.Offer(l, nil, t)
	}
	var own []uint64
	for _, t := range tokens {
		own = append(own, s.Token(nil, t))
	}
	return s.Past(own, func(int) bool { return false }, 0)
}

func feed(events, values int) (tokens []uint64) {
	rng := rand.New(rand.NewPCG(1, uint64(values)))
	for range events {
		tokens = append(tokens, uint64(rng.IntN(values)))
	}
	return tokens
}

func TestPastIsTheJournalAndWhatIsRemembered(t *testing.T) {
	for _, values := range []int{1, 3, 1 << 40} {
		p := past(feed(20_000, values), 10_000)
		if p.Len() != 20_000 || p.Position(20_000) != 10_000 || p.Position(20_000-Window) != 10_000-Window || p.Position(20_000-Window-1) != -1 {
			t.Errorf("%d values: %d events, and the positions are wrong", values, p.Len())
		}
	}
}

func TestFindInThePast(t *testing.T) {
	for values, c := range map[int]struct{ few, enough int }{1: {4096, 0}, 2: {20, 120}, 40: {4, 12}, 1 << 40: {1, 3}} {
		p := past(feed(20_000, values), 10_000)
		held := p.tokens[5000:]
		if _, ok, _ := p.Find(held[:c.few]); ok {
			t.Errorf("%d values: %d events are found", values, c.few)
		}
		if _, n := p.Longest(held[:c.few]); n > 0 {
			t.Errorf("%d values: %d events are found", values, n)
		}
		if c.enough == 0 {
			continue
		}
		if at, ok, _ := p.Find(held[:c.enough]); !ok || at != 5000 {
			t.Errorf("%d values: found at %d, %v", values, at, ok)
		}
		if at, n := p.Longest(append(slices.Clone(held[:c.enough]), 7)); at != 5000 || n != c.enough {
			t.Errorf("%d values: %d events found at %d", values, n, at)
		}
		late, ok := p.FindFrom(5000, append([]uint64{7, 7}, held[:c.enough]...))
		if !ok || late != 2 {
			t.Errorf("%d values: %d late, %v", values, late, ok)
		}
	}
}

// A line that brings anything comes to the mark where it lies, and only there.
func TestMark(t *testing.T) {
	for _, values := range []int{2, 40, 1 << 40} {
		p := past(feed(20_000, values), 10_000)
		from, to, ok := p.Mark(1 << 18)
		if !ok || from > 200 || to-from > maxMark {
			t.Fatalf("%d values: from %d to %d, %v", values, from, to, ok)
		}
		m := p.NewMark(from, to)
		for i, token := range append(p.tokens[10_000:11_000:11_000], p.tokens...) {
			if _, all := m.Next(token); all != (i == 1000+to-1) {
				t.Fatalf("%d values: seen at %d, %v, but it ends at %d", values, i-1000, all, to)
			}
		}
	}
	if _, _, ok := past(feed(20_000, 1), 10_000).Mark(1); ok {
		t.Error("a feed that stands still has a mark")
	}
}
