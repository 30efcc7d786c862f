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
	if !s.Reached([]byte("11"), 11) || !s.Reached([]byte("9"), 9) || s.Reached([]byte("12"), 12) || !s.Reached([]byte("9"), 8) {
		t.Error("Reached: want the next number and what is before it only")
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
	if len(s.chains) != Window || len(s.ring) != Window {
		t.Errorf("%d chains and a ring of %d, want %d", len(s.chains), len(s.ring), Window)
	}
	next := &Line{Number: 2}
	if v := s.Offer(next, []byte(strconv.Itoa(2*Window)), 2*Window); !v.Duplicate {
		t.Errorf("oldest remembered event: %v, want a duplicate", v)
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
		s.remember(entry{key: key})
		if rng.IntN(20) > 0 {
			continue
		}
		for _, probe := range []uint64{key, s.ring[rng.IntN(len(s.ring))].key, rng.Uint64()} {
			want := s.end - 1
			for want >= s.base() && s.entry(want).key != probe {
				want--
			}
			if got, ok := s.lookup(probe); ok != (probe != 0 && want >= s.base()) || ok && got != want {
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
