package splice

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
)

type offered struct {
	line    uint32
	id      string
	content uint64
	want    string
}

func (v Verdict) String() string {
	switch {
	case v.Duplicate:
		return "dup"
	case v.Restarted:
		return "restarted " + v.Join.String()
	case v.Join == Missing:
		return fmt.Sprintf("missing %d-%d", v.From, v.To)
	default:
		return v.Join.String()
	}
}

func (j Join) String() string {
	return [...]string{"ok", "first", "proven", "possible", "missing"}[j]
}

func TestOffer(t *testing.T) {
	count := func(line uint32, from, to int) (os []offered) {
		for n := from; n <= to; n++ {
			os = append(os, offered{line, strconv.Itoa(n), uint64(n), "ok"})
		}
		return os
	}
	first := func(want string, os []offered) []offered { os[0].want = want; return os }
	all := func(want string, os []offered) []offered {
		for i := range os {
			os[i].want = want
		}
		return os
	}
	join := func(oss ...[]offered) (r []offered) {
		for _, os := range oss {
			r = append(r, os...)
		}
		return r
	}
	for name, events := range map[string][]offered{
		"a resume right after the cursor is proven by the numbers": join(
			first("first", count(1, 1, 10)), first("proven", count(2, 11, 12))),
		"a replay that starts before the cursor is dropped and proves the seam": join(
			first("first", count(1, 1, 10)), all("dup", count(2, 8, 10)), first("proven", count(2, 11, 12))),
		"missing numbers are named": join(
			first("first", count(1, 1, 10)), first("missing 11-14", count(2, 15, 16))),
		"sparse numbers prove nothing": join(
			first("first", count(1, 1, 10)), []offered{{1, "20", 20, "ok"}, {2, "30", 30, "possible"}}),
		"equal ids and contents within one connection are real": {
			{1, "a", 7, "first"}, {1, "a", 7, "ok"}, {1, "a", 7, "ok"}},
		"without ids nothing is dropped, and a seam is only possible": {
			{1, "", 7, "first"}, {1, "", 7, "ok"}, {2, "", 7, "possible"}, {2, "", 7, "ok"}},
		"an overlap of opaque ids proves the seam": {
			{1, "a", 1, "first"}, {1, "b", 2, "ok"}, {2, "b", 2, "dup"}, {2, "c", 3, "proven"}},
		"an event that comes late is delivered late": join(
			first("first", count(1, 1, 5)), []offered{{1, "7", 7, "ok"}, {1, "6", 6, "ok"}}),
		"an id with other content is a new beginning, not a replay": join(
			first("first", count(1, 1, 5)), []offered{{2, "1", 99, "restarted possible"}, {2, "2", 98, "ok"}, {2, "3", 97, "ok"}}),
		"two lines side by side deliver once": {
			{1, "a", 1, "first"}, {2, "a", 1, "dup"}, {2, "b", 2, "proven"}, {1, "b", 2, "dup"}, {1, "c", 3, "ok"}},
		"a word of welcome with the last id leaves the ids as they are": join(
			first("first", count(1, 1, 10)), []offered{{2, "10", 99, "ok"}}, first("proven", count(2, 11, 12)),
			[]offered{{3, "12", 98, "ok"}}, first("missing 13-14", count(3, 15, 16)),
			[]offered{{4, "16", 97, "ok"}}, all("dup", count(4, 15, 16)), first("proven", count(4, 17, 18))),
		"two events of each id are told apart by their sequence": {
			{1, "1", 1, "first"}, {1, "1", 2, "ok"}, {1, "2", 3, "ok"}, {2, "2", 4, "possible"}},
		"what has no id has the place of what had one": {
			{1, "1", 1, "first"}, {1, "", 2, "ok"}, {1, "3", 3, "ok"}, {1, "4", 4, "ok"}, {1, "", 5, "ok"}, {1, "6", 6, "ok"}, {1, "7", 7, "ok"},
			{2, "", 2, "possible"}, {2, "3", 3, "dup"}, {2, "4", 4, "dup"}, {2, "", 5, "dup"}, {2, "6", 6, "dup"}, {2, "7", 7, "dup"}, {2, "", 8, "ok"}},
		"a zero in front makes another id": join(
			first("first", count(1, 1, 5)), []offered{{2, "06", 6, "possible"}}),
	} {
		t.Run(name, func(t *testing.T) {
			s, lines := New(), map[uint32]*Line{}
			for i, o := range events {
				l := lines[o.line]
				if l == nil {
					l = &Line{Number: o.line}
					lines[o.line] = l
				}
				if got := s.Offer(l, []byte(o.id), o.content).String(); got != o.want {
					t.Fatalf("event %d (line %d, id %q): %s, want %s", i, o.line, o.id, got, o.want)
				}
			}
		})
	}
}

func TestRecalledTailSplicesAcrossARestart(t *testing.T) {
	s := New()
	for n := range 10 {
		s.Recall(strconv.Itoa(n+1), uint64(n+1))
	}
	if !s.Reached([]byte("11"), 11) || !s.Reached([]byte("9"), 9) || s.Reached([]byte("12"), 12) || s.Reached([]byte("9"), 8) {
		t.Error("Reached: want the next number and what was delivered only")
	}
	l := &Line{Number: 1}
	if v := s.Offer(l, []byte("10"), 10); !v.Duplicate {
		t.Errorf("replayed event: %v, want a duplicate", v)
	}
	if v := s.Offer(l, []byte("12"), 12); v.Join != Missing || v.From != 11 || v.To != 11 {
		t.Errorf("after a hole: %v, want 11 missing", v)
	}
}

func TestWindowIsBounded(t *testing.T) {
	s, l := New(), &Line{Number: 1}
	for n := range 3 * Window {
		s.Offer(l, []byte(strconv.Itoa(n)), uint64(n))
	}
	next := &Line{Number: 2}
	if v := s.Offer(next, []byte(strconv.Itoa(2*Window)), 2*Window); !v.Duplicate {
		t.Errorf("oldest remembered event: %v, want a duplicate", v)
	}
	if len(s.chains) != Window || len(s.ring) != Window {
		t.Errorf("%d chains and a ring of %d, want %d", len(s.chains), len(s.ring), Window)
	}
}

// TestLookup holds the chains against what is remembered.
func TestLookup(t *testing.T) {
	s, rng := New(), rand.New(rand.NewPCG(1, 2))
	for range 3 * Window {
		n := rng.IntN(2 * Window)
		id := strconv.Itoa(n)
		if n%2 == 0 {
			id = "x" + id
		}
		if n%5 == 0 {
			id = ""
		}
		key := s.name([]byte(id)).key(s.epoch)
		s.remember(entry{key: key, token: rng.Uint64N(2)})
		if rng.IntN(20) > 0 {
			continue
		}
		for _, probe := range []uint64{key, s.ring[rng.IntN(len(s.ring))].key, rng.Uint64()} {
			last := func(is func(*entry) bool) int {
				p := s.end - 1
				for p >= s.base() && !is(s.entry(p)) {
					p--
				}
				return p
			}
			token := rng.Uint64N(2)
			want := last(func(e *entry) bool { return e.key == probe && e.token == token })
			if want < s.base() {
				want = last(func(e *entry) bool { return e.key == probe })
			}
			if got, ok := s.lookup(probe, token); ok != (probe != 0 && want >= s.base()) || ok && got != want {
				t.Fatalf("after %d events: %d, %v; want %d", s.end, got, ok, want)
			}
		}
	}
}

func BenchmarkOffer(b *testing.B) {
	s, l := New(), &Line{Number: 1}
	id := make([]byte, 0, 20)
	var n int64
	b.ReportAllocs()
	for b.Loop() {
		n++
		id = strconv.AppendInt(id[:0], n, 10)
		s.Offer(l, id, uint64(n))
	}
}

// Each connection begins with a snapshot that has the id of the last event, of
// which another line has brought more. It must not part the two for ever.
func TestALineThatIsAheadIsNotPartedByASnapshot(t *testing.T) {
	s, ahead, behind := New(), &Line{Number: 1}, &Line{Number: 2}
	offer := func(l *Line, n, content int) Verdict {
		return s.Offer(l, []byte(strconv.Itoa(n)), uint64(content))
	}
	for n := 1; n <= 100; n++ {
		offer(ahead, n, n)
	}
	for round := range 6 {
		last := 100 + 103*round
		if v := offer(behind, last-5, 1_000_000+round); v.Duplicate || !v.Restarted {
			t.Fatalf("the snapshot: %v", v)
		}
		for n := last + 1; n <= last+100; n++ {
			if v := offer(ahead, n, n); v.Duplicate {
				t.Fatalf("event %d of the line ahead: %v", n, v)
			}
			if v := offer(behind, n, n); !v.Duplicate {
				t.Fatalf("event %d of the line behind: %v", n, v)
			}
		}
		// They count again, and what is missing is named.
		behind = &Line{Number: uint32(10 + round)}
		next := &Line{Number: uint32(20 + round)}
		if v := offer(next, last+103, last+103); v.Join != Missing || v.From != uint64(last+101) || v.To != uint64(last+102) {
			t.Fatalf("after a hole: %v", v)
		}
		for n := last + 101; n <= last+103; n++ {
			offer(ahead, n, n)
		}
	}
}

// What a line brings that has not reached the last beginning is not counted: no
// number is missing for certain that it may have brought.
func TestWhatIsNotCountedIsNotMissing(t *testing.T) {
	s, ahead, behind := New(), &Line{Number: 1}, &Line{Number: 2}
	offer := func(l *Line, n, content int) Verdict {
		return s.Offer(l, []byte(strconv.Itoa(n)), uint64(content))
	}
	for n := 1; n <= 20; n++ {
		offer(ahead, n, n)
	}
	offer(behind, 10, 1000) // a snapshot
	for n := 11; n <= 16; n++ {
		offer(behind, n, n)
		offer(ahead, n+10, n+10)
	}
	if v := offer(&Line{Number: 3}, 27, 27); v.Join != Possible {
		t.Errorf("what follows the line ahead: %v", v)
	}
}

// A replay may begin before the ids began anew.
func TestAReplayFromBeforeANewBeginning(t *testing.T) {
	s, l := New(), &Line{Number: 1}
	offer := func(l *Line, n, content int) Verdict {
		return s.Offer(l, []byte(strconv.Itoa(n)), uint64(content))
	}
	for n := 1; n <= 10; n++ {
		offer(l, n, n)
	}
	for n := 1; n <= 5; n++ {
		offer(l, n, 100+n)
	}
	next := &Line{Number: 2}
	if !s.Reached([]byte("8"), 8) {
		t.Error("what the line begins with was not reached")
	}
	for n := 8; n <= 10; n++ {
		if v := offer(next, n, n); !v.Duplicate {
			t.Fatalf("event %d of the old epoch: %v", n, v)
		}
	}
	for n := 1; n <= 5; n++ {
		if v := offer(next, n, 100+n); !v.Duplicate {
			t.Fatalf("event %d of the new epoch: %v", n, v)
		}
	}
	if v := offer(next, 6, 106); v.Join != Proven {
		t.Errorf("what follows: %v", v)
	}
}

// It may also begin before all that is remembered, or at an id that the new
// epoch has reached, too.
func TestADeepReplayFromBeforeANewBeginning(t *testing.T) {
	for _, c := range []struct{ before, since, first int }{
		{2 * Window, 100, 150}, {2 * Window, 100, Window / 2}, {2 * Window, 100, 2*Window - 10},
		{2 * Window, Window + 100, 2*Window - 10},
	} {
		before, since, first := c.before, c.since, c.first
		s, l := New(), &Line{Number: 1}
		delivered := map[string]uint64{}
		offer := func(l *Line, n int, content uint64) Verdict {
			id := strconv.Itoa(n)
			v := s.Offer(l, []byte(id), content)
			delivered[id] = content
			return v
		}
		s.Older = func(id []byte) (uint64, bool) { c, ok := delivered[string(id)]; return c, ok }
		for n := 1; n <= before; n++ {
			offer(l, n, uint64(n))
		}
		for n := 1; n <= since; n++ {
			offer(l, n, uint64(before+n))
		}
		next := &Line{Number: 2}
		for n := first; n <= before; n++ {
			if v := offer(next, n, uint64(n)); !v.Duplicate {
				t.Fatalf("from %d on: event %d of the old epoch: %v", first, n, v)
			}
		}
		for n := 1; n <= since; n++ {
			if v := offer(next, n, uint64(before+n)); !v.Duplicate {
				t.Fatalf("from %d on: event %d of the new epoch: %v", first, n, v)
			}
		}
		if v := offer(next, since+1, uint64(before+since+1)); v.Join != Proven {
			t.Errorf("from %d on: what follows: %v", first, v)
		}
	}
	s, l := New(), &Line{Number: 1}
	for n := 1; n <= 10; n++ {
		s.Offer(l, []byte(strconv.Itoa(n)), uint64(n))
	}
	for n := 1; n <= 5; n++ {
		s.Offer(l, []byte(strconv.Itoa(n)), uint64(100+n))
	}
	next := &Line{Number: 2}
	for n := 4; n <= 10; n++ {
		if v := s.Offer(next, []byte(strconv.Itoa(n)), uint64(n)); !v.Duplicate {
			t.Fatalf("event %d of the old epoch: %v", n, v)
		}
	}
	if v := s.Offer(next, []byte("1"), 101); !v.Duplicate {
		t.Errorf("the new beginning: %v", v)
	}
}

// A line that goes on with the old ids while another one has reached the new
// ones takes nothing from it: what was before the new beginning is not looked at.
func TestEqualEventsBeforeANewBeginningAreNotTakenForItsOwn(t *testing.T) {
	s, l := New(), &Line{Number: 1}
	for n := range 10 {
		s.Offer(l, []byte(strconv.Itoa(n+1)), 7)
	}
	anew := &Line{Number: 2}
	if v := s.Offer(anew, []byte("1"), 8); !v.Restarted {
		t.Fatalf("the new beginning: %v", v)
	}
	for n := 2; n <= 10; n++ {
		if v := s.Offer(anew, []byte(strconv.Itoa(n)), 7); v.Duplicate {
			t.Fatalf("event %d after it: %v", n, v)
		}
	}
}

// TestNextIsOffer has lines bring random feeds: what Next takes, Offer takes for
// new, and after it Offer says what it would have said without Next.
func TestNextIsOffer(t *testing.T) {
	taken := 0
	for seed := range uint64(320) {
		rng := rand.New(rand.NewPCG(seed, 0))
		feed := randomFeed(rng, 300, 60, rng.IntN(6))
		if seed >= 300 { // what was before a new beginning is forgotten
			feed = randomFeed(rng, 4*Window, 8000, 1+rng.IntN(2))
		}
		all, some := New(), New()
		type pair struct{ all, some Line }
		var lines [3]pair
		var at, paused [len(lines)]int
		number := uint32(0)
		for step := 0; step < 4*len(feed) && min(at[0], at[1], at[2]) < len(feed); step++ {
			i := rng.IntN(len(lines))
			l := &lines[i]
			if step < len(lines) {
				i, l = step, &lines[step]
			}
			if paused[i]--; paused[i] > 0 {
				continue
			}
			if rng.IntN(len(feed)) == 0 {
				paused[i] = len(feed) / 2 // it lags behind
			}
			if l.all.Number == 0 || rng.IntN(60) == 0 { // it connects again, and is sent some again
				number++
				*l = pair{Line{Number: number}, Line{Number: number}}
				at[i] = max(at[i]-rng.IntN(40), 0)
				if rng.IntN(4) == 0 {
					all.Doubt(&l.all, 3)
					some.Doubt(&l.some, 3)
				}
			}
			for range rng.IntN(8) {
				if at[i] == len(feed) {
					break
				}
				ev := feed[at[i]]
				if at[i]++; seed%3 == 0 && rng.IntN(len(feed)) == 0 {
					ev.content++ // it says something else than to the others
				}
				want := all.Offer(&l.all, ev.id, ev.content)
				got := Verdict{Position: -1}
				if some.Next(&l.some, ev.id, ev.content) {
					taken++
				} else {
					got = some.Offer(&l.some, ev.id, ev.content)
				}
				if got != want {
					t.Fatalf("seed %d: line %d, id %s, content %d: %+v with Next, %+v without", seed, number, ev.id, ev.content, got, want)
				}
			}
		}
	}
	if taken < 190_000 {
		t.Errorf("Next took %d events: the feeds show nothing", taken)
	}
}

type fed struct {
	id      []byte
	content uint64
}

// randomFeed counts, mostly: it begins anew, skips numbers, says one twice, and
// brings what is no number, so many kinds of this, each once in so many events.
func randomFeed(rng *rand.Rand, events, seldom, kinds int) (feed []fed) {
	n := rng.IntN(3)
	for range events {
		n++
		switch kind := rng.IntN(seldom); {
		case kind >= kinds:
		case kind == 0:
			n = rng.IntN(n) // anew
		case kind == 1:
			n += rng.IntN(5)
		case kind == 2:
			n-- // with other content
		case kind == 3:
			feed = append(feed, fed{[]byte("x"), rng.Uint64()})
		case kind == 4:
			feed = append(feed, fed{nil, rng.Uint64()})
		}
		feed = append(feed, fed{strconv.AppendInt(nil, int64(n), 10), rng.Uint64()})
	}
	return feed
}
