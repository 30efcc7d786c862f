package splice

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// release delivers what a line brings, as far as its place tells, like the
// framework does.
func release(s *Splice, l *Line, text string) (out string, fit Fit) {
	fit = s.Align(l, tokens(s, text), false)
	began, late := s.End(), fit.Before+fit.Late
	s.Place(l, began, false)
	s.Doubt(l, fit.Doubtful)
	out = bring(s, l, text[fit.Before:late])
	s.Insert(began, fit.Onto)
	s.Place(l, fit.Next, true)
	return out + bring(s, l, text[late+fit.Again:]), fit
}

// After an outage of all lines the first one that is back is not the one that
// was back first: what the others missed less comes late, and is not the end of
// the stream.
func TestWhatCameLateIsNotTheEndOfTheStream(t *testing.T) {
	s, next := New(), uint32(0)
	line := func() *Line { next++; return &Line{Number: next} }
	slow := line()
	bring(s, slow, alphabet[:20])
	fastest := line()
	s.Place(fastest, s.End(), false)
	bring(s, fastest, alphabet[34:40])
	for _, c := range []struct {
		text, out string
		late      int
	}{
		{alphabet[30:37], alphabet[30:34], 4},
		{alphabet[30:34], "", 0},
		{alphabet[27:33], alphabet[27:30], 3},
		{alphabet[27:31], "", 0},
		{alphabet[24:36], alphabet[24:27], 3},
	} {
		l := line()
		out, fit := release(s, l, c.text)
		if out != c.out || !fit.OK || fit.Late != c.late {
			t.Errorf("%q: delivered %q (%+v), want %q", c.text, out, fit, c.out)
		}
		p := slices.Index([]byte(alphabet), c.text[len(c.text)-1]) + 1
		if out := bring(s, l, alphabet[p:40]); out != "" {
			t.Errorf("after %q: %q is delivered again", c.text, out)
		}
	}
	if s.Stray(fastest, nil, uint64(alphabet[40])) {
		t.Error("the next event of the line that was back first strays")
	}
	if out := bring(s, fastest, alphabet[40:45]); out != alphabet[40:45] {
		t.Errorf("then %q is delivered", out)
	}
	if out := bring(s, slow, alphabet[34:40]); out != "" {
		t.Errorf("a line that lacks what came late, too, delivers %q again", out)
	}
	last := line()
	if s.Place(last, s.End(), true); s.Stray(last, nil, '!') {
		t.Error("the end is not where the next event follows")
	}
	late := line()
	if out, fit := release(s, late, alphabet[10:43]); !fit.OK || fit.Before != 10 || out != alphabet[20:24] {
		t.Errorf("what was missed by all but one: delivered %q (%+v)", out, fit)
	}
	if out := bring(s, late, alphabet[43:50]); out != alphabet[45:50] {
		t.Errorf("then %q is delivered", out)
	}
	if out, fit := release(s, line(), alphabet[15:24]+alphabet[24:26]); !fit.OK || out != "" {
		t.Errorf("what was healed is delivered again: %q (%+v)", out, fit)
	}
	healed := line()
	s.Place(healed, s.Align(healed, tokens(s, alphabet[15:24]), false).Next, true)
	if out := bring(s, healed, alphabet[24:50]); out != "" {
		t.Errorf("after what was healed, %q is delivered again", out)
	}
}

// What a recalled life brought late is not the end of the stream either, but
// nothing tells its place any more.
func TestWhatIsRecalledAsLateIsNotTheEndOfTheStream(t *testing.T) {
	s := New()
	for _, c := range alphabet[:20] + alphabet[24:30] + alphabet[20:24] {
		s.Recall("", uint64(c))
	}
	s.Insert(26, -1)
	l := &Line{Number: 1}
	if out, fit := release(s, l, alphabet[20:24]); !fit.OK || out != "" {
		t.Errorf("delivered %q (%+v)", out, fit)
	}
	if !s.Stray(l, nil, uint64(alphabet[24])) {
		t.Error("what follows in the stream is not looked for")
	}
	if out, fit := release(s, l, alphabet[24:32]); !fit.OK || out != alphabet[30:32] {
		t.Errorf("delivered %q (%+v)", out, fit)
	}
}

// TestOrder holds the order of the stream against a list of the events that are
// remembered.
func TestOrder(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 7))
		s, l := New(), &Line{Number: 1}
		var want []int
		most := 0
		for range 200 {
			began, before := s.End(), 0
			if n := len(want); n > 0 && rng.IntN(3) > 0 {
				// What is brought now will be late: it lies before this one.
				before = want[max(0, n-1-rng.IntN(300))]
				if rng.IntN(8) == 0 {
					before = want[0]
				}
			}
			events := 1 + rng.IntN(200)
			if rng.IntN(40) == 0 {
				events = Window - 50 + rng.IntN(100)
			}
			for range events {
				s.Offer(l, nil, rng.Uint64())
				want = append(want, s.End()-1)
			}
			want = slices.DeleteFunc(want, func(p int) bool { return p < s.base() })
			if before > 0 {
				late := slices.Clone(want[max(0, len(want)-events):])
				at := max(0, slices.Index(want, before)) // where it is forgotten, before all
				want = slices.Insert(want[:len(want)-len(late)], at, late...)
				s.Insert(began, before)
			}
			if got := s.stream(s.head()); !slices.Equal(got, want) {
				t.Fatalf("seed %d: after [%d, %d) before %d: %v, want %v", seed, began, s.End(), before, got, want)
			}
			for range min(20, len(want)-1) {
				i := 1 + rng.IntN(len(want)-1)
				if at := s.order.before(want[i]); at != want[i-1]+1 || s.order.follow(at) != want[i] {
					t.Fatalf("seed %d: %d is not found after %d", seed, want[i], want[i-1])
				}
			}
			most = max(most, len(s.order.after))
		}
		if most < 10 {
			t.Errorf("seed %d: %d exceptions at most: the test tests nothing", seed, most)
		}
		for range Window + 1 {
			s.Offer(l, nil, rng.Uint64())
		}
		if len(s.order.after) > 0 {
			t.Errorf("seed %d: %d exceptions are remembered of events that are not", seed, len(s.order.after))
		}
	}
}
