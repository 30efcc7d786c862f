package splice

import (
	"strconv"
	"strings"
	"testing"
)

// bring offers a line the letters of a text as events without ids, and returns
// those that are to be delivered.
func bring(s *Splice, l *Line, text string) string {
	var out strings.Builder
	for _, c := range text {
		if v := s.Offer(l, nil, uint64(c)); !v.Duplicate {
			out.WriteRune(c)
		}
	}
	return out.String()
}

func tokens(s *Splice, text string) (ts []uint64) {
	for _, c := range text {
		ts = append(ts, s.Token(nil, uint64(c)))
	}
	return ts
}

const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func TestAlign(t *testing.T) {
	for name, c := range map[string]struct {
		past, held string
		open       bool
		want       Fit // without Next
	}{
		"a replay from before the end": {
			past: alphabet, held: "456789!", want: Fit{OK: true, Again: 6}},
		"a replay that has not reached the end": {
			past: alphabet, held: "ABCDEFG", want: Fit{OK: true, Again: 7}},
		"a replay of more than was ever delivered": {
			past: alphabet, held: "?#" + alphabet + "!", want: Fit{OK: true, Late: 2, Again: len(alphabet)}},
		"no overlap": {
			past: alphabet, held: "!?#+"},
		"an overlap that may be chance": {
			past: alphabet, held: "9!?#", want: Fit{Doubtful: 1}},
		"the same overlap of lines that were open side by side": {
			past: alphabet, held: "9", open: true, want: Fit{OK: true, Again: 1}},
		"lines open side by side that do not overlap, but for chance": {
			past: strings.Repeat("ab", 20) + "cacb", held: "b#!+?", open: true, want: Fit{Doubtful: 1}},
		"a feed that says the same again and again": {
			past: strings.Repeat("a", 100), held: strings.Repeat("a", 20), want: Fit{Equal: true, Known: true, Doubtful: 20}},
		"and the same side by side": {
			past: strings.Repeat("a", 100), held: strings.Repeat("a", 20), open: true, want: Fit{Equal: true, Known: true, Doubtful: 20}},
		"a feed that goes round": {
			past: strings.Repeat("abcdefgh", 12), held: strings.Repeat("abcdefgh", 4), want: Fit{Equal: true, Known: true, Doubtful: 32}},
		"a feed that goes round, past the end": {
			past: alphabet + strings.Repeat("+-*", 12), held: strings.Repeat("+-*", 6) + "!", want: Fit{Equal: true, Doubtful: 18}},
		"a feed that stands still after something that fixes the place": {
			past: alphabet + strings.Repeat("=", 9), held: "789" + strings.Repeat("=", 12) + "!", want: Fit{OK: true, Again: 12}},
		"a standstill is no evidence": {
			past: alphabet[:20] + strings.Repeat("=", 9), held: "t" + strings.Repeat("=", 12) + "!", want: Fit{Doubtful: 13}},
	} {
		t.Run(name, func(t *testing.T) {
			s := New()
			bring(s, &Line{Number: 1}, c.past)
			got := s.Align(&Line{Number: 2}, tokens(s, c.held), c.open)
			got.Next, got.Onto = 0, 0
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestAlignTellsWhatWasMissedAtTheLastSeam(t *testing.T) {
	s := New()
	bring(s, &Line{Number: 1}, alphabet[:30])
	l := &Line{Number: 2}
	s.Place(l, s.End(), false) // a gap
	bring(s, l, alphabet[40:50])
	got := s.Align(&Line{Number: 3}, tokens(s, alphabet[20:55]), false)
	if want := (Fit{OK: true, Before: 10, Late: 10, Again: 10, Onto: 30, Next: got.Next}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := s.Align(&Line{Number: 3}, tokens(s, alphabet[35:55]), false); !got.OK || got.Late != 5 || got.Doubtful != 5 || got.Again != 10 {
		t.Errorf("a replay from within the gap: %+v", got)
	}
}

func TestLinesThatHaveTheirPlaceDeliverOnce(t *testing.T) {
	s, a, b := New(), &Line{Number: 1}, &Line{Number: 2}
	bring(s, a, alphabet)
	s.Place(b, s.Align(b, tokens(s, alphabet[50:]), false).Next, true)
	for _, step := range []struct {
		line      *Line
		text, out string
	}{
		{a, "aaab", "aaab"}, // equal events of one line are real
		{b, "aaabaac", "aac"},
		{a, "aacdd", "dd"},
		{b, "ddd", "d"},
		{a, "d", ""},
		{a, "d", "d"}, // the k-th equal event is the k-th equal event
	} {
		if got := bring(s, step.line, step.text); got != step.out {
			t.Errorf("line %d brings %q: delivered %q, want %q", step.line.Number, step.text, got, step.out)
		}
	}
	if s.Stray(b, nil, 'd') {
		t.Error("the next event of a line strays")
	}
	if !s.Stray(b, nil, 'x') {
		t.Error("an event in the place of another does not stray")
	}
}

func TestIDsThatComeTwiceDoNotTellEventsApart(t *testing.T) {
	for name, ids := range map[string][2]string{
		"one after the other": {"7", "7"},
		"apart":               {"x", "y"},
	} {
		t.Run(name, func(t *testing.T) {
			s, l := New(), &Line{Number: 1}
			for i := range 40 {
				if v := s.Offer(l, []byte(ids[i%2]), uint64(i/2)); v.Duplicate || v.Restarted {
					t.Fatalf("event %d: %+v", i, v)
				}
			}
			if !s.Sequential() {
				t.Error("the ids are still trusted")
			}
			if !s.Stray(&Line{Number: 2}, []byte(ids[0]), 99) {
				t.Error("an event of another connection has no place yet, and does not stray")
			}
		})
	}
}

func TestIDsBeginAnew(t *testing.T) {
	s, a, b := New(), &Line{Number: 1}, &Line{Number: 2}
	for n := range uint64(20) {
		offer(s, a, n+1, n+1)
		if n < 17 { // the second line lags behind
			if v := offer(s, b, n+1, n+1); !v.Duplicate {
				t.Fatalf("event %d: %v", n+1, v)
			}
		}
	}
	c := &Line{Number: 3}
	if v := offer(s, c, 1, 101); !v.Restarted || v.Join != Possible {
		t.Fatalf("id 1 with other content: %v", v)
	}
	fresh := func(from, to uint64) {
		for n := from; n <= to; n++ {
			if v := offer(s, c, n, 100+n); v.Duplicate || v.Restarted {
				t.Fatalf("id %d of the new epoch: %v", n, v)
			}
		}
	}
	fresh(2, 18) // less than the old one has
	for n := uint64(18); n <= 20; n++ {
		if v := offer(s, b, n, n); !v.Duplicate {
			t.Errorf("id %d of the old epoch, from a line behind: %v", n, v)
		}
	}
	fresh(19, 30)
	for n := uint64(1); n <= 30; n++ {
		if v := offer(s, b, n, 100+n); !v.Duplicate {
			t.Errorf("id %d of the new epoch, from a line behind: %v", n, v)
		}
	}
	if v := offer(s, &Line{Number: 4}, 32, 132); v.Join != Missing || v.From != 31 {
		t.Errorf("a hole in the new epoch: %v", v)
	}
}

func TestWhatIsBelowTheWindowIsAskedFor(t *testing.T) {
	const total = 2*Window + 100
	s, a := New(), &Line{Number: 1}
	asked := 0
	s.Older = func(id []byte) (uint64, bool) {
		asked++
		n, ok := decimal(id)
		return n, ok && n != 50
	}
	for n := uint64(1); n <= total; n++ {
		if n == total-10 {
			continue // comes late
		}
		offer(s, a, n, n)
	}
	b := &Line{Number: 2}
	for n := uint64(1); n <= total+5; n++ {
		v := offer(s, b, n, n)
		if want := n <= total && n != 50 && n != total-10; v.Duplicate != want {
			t.Fatalf("id %d: %v", n, v)
		}
	}
	if want := total - Window; asked != want {
		t.Errorf("asked for %d ids, want those below the window: %d", asked, want)
	}
	if v := offer(s, &Line{Number: 3}, 60, 1060); !v.Restarted {
		t.Errorf("an old id with other content: %v", v)
	}
}

func offer(s *Splice, l *Line, n, content uint64) Verdict {
	return s.Offer(l, strconv.AppendUint(nil, n, 10), content)
}

// What was delivered twice would have two places for ever after.
func TestDoubtfulEventsDoNotHideThePlace(t *testing.T) {
	for _, doubt := range []int{0, 30} {
		s, again := New(), &Line{Number: 2}
		bring(s, &Line{Number: 1}, alphabet[:30])
		s.Place(again, s.End(), false)
		s.Doubt(again, doubt)
		bring(s, again, alphabet[:30])
		got := s.Align(&Line{Number: 3}, tokens(s, alphabet[10:30]), false)
		if want := doubt > 0; got.OK != want {
			t.Errorf("%d doubtful events: %+v, want OK %v", doubt, got, want)
		}
	}
}
