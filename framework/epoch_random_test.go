package framework

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sethvargo/go-retry"
)

var (
	epochSeeds = flag.Int("splice.epochs", 150, "how many random feeds TestRandomFeedsWhoseNumbersBeginAnew makes")
	jitterSeed = flag.Uint64("splice.jitter", 11, "what chance makes of the waits of these feeds")
)

// cycles is a feed whose numbers begin anew now and then.
type cycles struct {
	first  []int // the event that each cycle begins with
	number []int // what each one's numbers begin with
}

// of is the index of the event's cycle.
func (c *cycles) of(n int) int {
	i, _ := slices.BinarySearch(c.first, n+1)
	return i - 1
}

func (c *cycles) numberOf(n int) int { i := c.of(n); return c.number[i] + n - c.first[i] }

// with is the event of the cycle that has the number; 0 for none.
func (c *cycles) with(cycle, number int) int {
	n := c.first[cycle] + number - c.number[cycle]
	if n >= 1 && n >= c.first[cycle] && c.of(n) == cycle {
		return n
	}
	return 0
}

// cycleLog keeps what a feed of cycles left, in order.
type cycleLog struct {
	*memoryLog
	entries []entry
}

func (l *cycleLog) Append(ctx context.Context, ev *Event) error {
	_, n, _ := strings.Cut(string(ev.Data), "/")
	at, _ := strconv.Atoi(n)
	l.entries = append(l.entries, entry{n: at, value: map[bool]string{true: "filled"}[ev.Filled]})
	return l.memoryLog.Append(ctx, ev)
}

func (l *cycleLog) Note(ctx context.Context, n Note) error {
	if n.Kind == NoteGap {
		g := &Gap{}
		if err := json.Unmarshal(n.Body, g); err != nil {
			return err
		}
		again := slices.IndexFunc(l.entries, func(e entry) bool {
			return e.gap != nil && e.gap.To.Equal(g.To) && e.gap.FirstID == g.FirstID
		})
		if again >= 0 {
			l.entries[again].gap = g
		} else {
			l.entries = append(l.entries, entry{gap: g})
		}
	}
	return l.memoryLog.Note(ctx, n)
}

// epochTally is what became of a feed of cycles.
type epochTally struct {
	delivered, lost, doubled, noted, falsely int
	silent, twice                            int // lost and doubled without a word
	silently                                 []string
}

// tally holds what was delivered against the truth: what is missing must lie at
// a gap that is open in the end, and among the numbers that it names.
func (l *cycleLog) tally(c *cycles) (a epochTally) {
	last := map[int]int{} // the entry that brought the event
	for i, e := range l.entries {
		if e.gap != nil {
			continue
		}
		a.delivered++
		if _, again := last[e.n]; again {
			a.doubled++
		}
		last[e.n] = i
	}
	lost := func(n int) bool { _, there := last[n]; return !there }
	used := map[*Gap]bool{}
	var gaps []*Gap
	doubts, highest := 0, 0
	seen := map[int]bool{}
	told := map[int]bool{}
	for _, e := range l.entries {
		if e.gap != nil {
			if doubts = max(doubts, int(e.gap.Doubled)); e.gap.State.Open() {
				gaps = append(gaps, e.gap)
				a.noted++
			}
			continue
		}
		if seen[e.n] && doubts == 0 {
			a.twice++
			a.silently = append(a.silently, fmt.Sprintf("%d doubled", e.n))
		}
		doubts = max(doubts-1, 0)
		seen[e.n] = true
		if e.value != "" {
			continue
		}
		for n := highest + 1; n < e.n && highest > 0; n++ {
			if !lost(n) {
				continue
			}
			if before := c.numberOf(highest); c.of(highest) != c.of(e.n) && (c.numberOf(e.n) == before || c.numberOf(e.n) == before+1) {
				told[n] = true // nobody can tell
			}
			for _, g := range gaps {
				number := uint64(c.numberOf(n))
				within := g.State == GapKnown && c.of(highest) == c.of(e.n)
				left := g.Left
				if len(left) == 0 {
					left = []Range{{g.FirstID, g.LastID}}
				}
				within = within && number >= g.FirstID && number <= g.LastID
				if !within || slices.ContainsFunc(left, func(r Range) bool { return r.First <= number && number <= r.Last }) {
					told[n], used[g] = true, true
				}
			}
		}
		if e.n > highest {
			highest, gaps = e.n, nil
		}
	}
	for n := 1; n < highest; n++ {
		if len(seen) > 0 && lost(n) && n > l.entries[slices.IndexFunc(l.entries, func(e entry) bool { return e.gap == nil })].n {
			if a.lost++; !told[n] {
				if a.silent++; n == 1 || !lost(n-1) || told[n-1] {
					a.silently = append(a.silently, fmt.Sprintf("lost from %d (%d:%d) on", n, c.of(n), c.numberOf(n)))
				}
			}
		}
	}
	a.falsely = a.noted - len(used)
	return a
}

// TestRandomFeedsWhoseNumbersBeginAnew makes feeds whose ids, or sequence, begin
// anew, by a new release of the site, say, or within a connection, at numbers
// that were there before or not, and holds what was delivered against the truth.
// Numbers of two cycles may adjoin, or fit into a hole, by chance, and nobody can
// tell them apart then: next to nothing of what is lost may be so.
func TestRandomFeedsWhoseNumbersBeginAnew(t *testing.T) {
	total, twice := epochTally{}, epochTally{}
	type feed struct{ seed, jitter uint64 }
	var feeds []feed
	for seed := range uint64(*epochSeeds) {
		feeds = append(feeds, feed{seed, *jitterSeed})
	}
	// These have found a fault that is rare: a number taken for the next one of
	// a count that had gone on already.
	feeds = append(feeds, feed{117, 183}, feed{117, 235}, feed{117, 461})
	for _, f := range feeds {
		t.Run(fmt.Sprint(f.seed, "/", f.jitter), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, lines := randomCycles(t, rand.New(rand.NewPCG(f.seed, 7)), jittered(f.seed, f.jitter))
				to := &total
				if lines > 1 {
					to = &twice
				}
				to.delivered, to.lost, to.doubled = to.delivered+a.delivered, to.lost+a.lost, to.doubled+a.doubled
				to.noted, to.falsely, to.silently = to.noted+a.noted, to.falsely+a.falsely, append(to.silently, a.silently...)
				to.silent, to.twice = to.silent+a.silent, to.twice+a.twice
			})
		})
	}
	for lines, a := range []epochTally{total, twice} {
		if 100*a.silent > a.lost || 100*a.twice > a.delivered || a.lost == 0 {
			t.Errorf("%d lines: %d of %d lost events are missing without a word in the ledger, %d of %d are doubled", lines+1, a.silent, a.lost, a.twice, a.delivered)
		}
		t.Logf("%d lines: %d delivered, %d lost, %d doubled, %d gaps noted, %d where nothing is missing, %d silently", lines+1, a.delivered, a.lost, a.doubled, a.noted, a.falsely, a.silent)
	}
}

// jittered is the jitter of the program, with seeds.
func jittered(seed, jitter uint64) func(retry.Backoff) retry.Backoff {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, jitter))
	return func(b retry.Backoff) retry.Backoff {
		return retry.BackoffFunc(func() (time.Duration, bool) {
			d, stop := b.Next()
			mu.Lock()
			defer mu.Unlock()
			return d*3/4 + time.Duration(rng.Int64N(int64(d/2))), stop
		})
	}
}

func randomCycles(t *testing.T, rng *rand.Rand, jitter func(retry.Backoff) retry.Backoff) (epochTally, int) {
	pick := func(d time.Duration) time.Duration {
		return time.Duration(rng.Int64N(int64(d))).Round(time.Millisecond)
	}
	const last = 900
	start := time.Now()
	every := []time.Duration{50, 100, 250}[rng.IntN(3)] * time.Millisecond
	c := &cycles{}
	where := []string{"one", "anywhere", "new", "mixed"}[rng.IntN(4)]
	length := 60 + rng.IntN(200)
	for n, from := 1, 5000; n <= last; n += length/2 + rng.IntN(length) {
		at := 1
		kind := where
		if where == "mixed" {
			kind = []string{"one", "anywhere", "new"}[rng.IntN(3)]
		}
		switch kind {
		case "anywhere":
			at = 1 + rng.IntN(length)
		case "new":
			if from -= 1000; rng.IntN(3) == 0 {
				from += 2000
			}
			at = max(from, 1)
		}
		c.first, c.number = append(c.first, n), append(c.number, at)
	}
	site := &feedSite{every: every, start: start, last: last}
	kind := []string{"ids", "sequence", "sequence and ids"}[rng.IntN(3)]
	site.id = func(n int) string { return strconv.Itoa(c.numberOf(n)) }
	switch kind {
	case "sequence":
		site.id = func(int) string { return "" }
	case "sequence and ids":
		site.id = func(n int) string { return fmt.Sprintf("x%x", n*7919) }
	}
	site.data = func(n int) string { return fmt.Sprintf("%d/%d", c.numberOf(n), n) }
	replay := []string{"none", "none", "exact", "number"}[rng.IntN(4)]
	site.first = func(from, next int) int {
		if replay == "none" || from == 0 || next > last {
			return next
		}
		switch now := c.of(next); {
		case c.of(from) == now:
			return from + 1
		case replay == "number": // the site takes the number for one of its own
			if n := c.with(now, c.numberOf(from)); n > 0 && n < next {
				return n + 1
			}
		}
		return next
	}
	lines := 1 + rng.IntN(2)
	deploys := rng.IntN(3) > 0
	healthy := lines == 2 && rng.IntN(3) == 0
	life := 100*every + pick(600*every)
	lag := []time.Duration{1, 300 * time.Millisecond, 3 * time.Second}[rng.IntN(3)]
	holes := kind != "ids" && rng.IntN(3) > 0 // ids that skip numbers within a connection show none
	site.fate = func(k int) fate {
		f := fate{after: life/2 + pick(life), lag: pick(lag)}
		if healthy {
			f.after = 0
		}
		if deploys {
			now := time.Since(start)
			for _, n := range c.first {
				if at := time.Duration(n)*every - now; at > 0 && (f.after == 0 || at < f.after) {
					f.after = at + pick(20*time.Millisecond) + 1
				}
			}
		}
		if holes {
			lacks := map[int]bool{}
			for range 12 {
				n, m := 1+rng.IntN(last), 1+rng.IntN(30)
				// What it lacks where the numbers begin anew nobody can know.
				for n := n; n < n+m && n <= last && c.of(n-2) == c.of(n+2) && n > 5; n, m = n+1, m-1 {
					lacks[n] = true
				}
			}
			f.lacks = func(n int) bool { return lacks[n] }
		}
		return f
	}
	s := func() *Stream {
		s := &Stream{Name: "t/s", Target: site, Lines: lines, StaleAfter: 5 * time.Second, Limits: quickly()}
		if replay == "number" {
			s.ReplayCheck = 3 // nothing else can tell
		}
		if kind != "ids" {
			s.Sequence = func(ev *Event) (uint64, bool) {
				n, _, _ := strings.Cut(string(ev.Data), "/")
				return decimal([]byte(n))
			}
		}
		return s
	}
	log := &cycleLog{memoryLog: &memoryLog{}}
	runs := 1 + rng.IntN(2)*rng.IntN(4)
	whole := last*every + 20*time.Second
	for range runs {
		ctx, cancel := context.WithTimeout(t.Context(), whole/time.Duration(runs)+7*time.Millisecond)
		r, err := newRunner(ctx, s(), log)
		if err != nil {
			t.Fatal(err)
		}
		r.jitter = jitter
		if err := r.run(ctx); err != nil {
			t.Fatal(err)
		}
		r.now().Identities.Close()
		cancel()
	}
	a := log.tally(c)
	t.Logf("%s from %s, %d cycles, deploys %v, healthy %v, replay %s, %d lines, %d runs, lag %v, every %v, holes %v: %d delivered, %d lost, %d doubled, %d gaps, %d of them false",
		kind, where, len(c.first), deploys, healthy, replay, lines, runs, lag, every, holes, a.delivered, a.lost, a.doubled, a.noted, a.falsely)
	if len(a.silently) > 0 {
		t.Logf("without a word in the ledger: %v", a.silently)
	}
	return a, lines
}
