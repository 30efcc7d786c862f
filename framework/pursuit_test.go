package framework

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// burst is a site without ids that the test knows: event n happens n times every
// after its start. What has happened when a connection is opened comes at once,
// or one event each pace, the rest as it happens.
type burst struct {
	every, pace time.Duration
	start       time.Time
	last        int
	id          func(n int) string // nil for none
	data        func(n int) string
	first       func(k, next int) int     // the event that the k-th connection begins with, from 1
	life        func(k int) time.Duration // how long it lives; 0 for ever
	lacks       func(k, n int) bool       // what it never brings; nil for nothing
	conns       int
	open        int
	mu          sync.Mutex
}

type burstConn struct {
	site        *burst
	k, n        int
	opened, end time.Time
	paced       time.Time
	gone        chan struct{}
	once        sync.Once
}

func (s *burst) Open(_ context.Context, _ *Session, _ Cursor) (Connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns++
	s.open++
	now := time.Now()
	c := &burstConn{site: s, k: s.conns, opened: now, paced: now, gone: make(chan struct{})}
	c.n = max(1, s.first(c.k, int(now.Sub(s.start)/s.every)+1))
	if d := s.life(c.k); d > 0 {
		c.end = now.Add(d)
	}
	return c, nil
}

func (c *burstConn) Next(ev *Event) error {
	s := c.site
	for s.lacks != nil && s.lacks(c.k, c.n) {
		c.n++
	}
	due := s.start.Add(time.Duration(c.n) * s.every)
	if due.Before(c.opened) && s.pace > 0 {
		c.paced = c.paced.Add(s.pace)
		due = c.paced
	}
	if due.Before(c.paced) {
		due = c.paced
	}
	if c.n > s.last {
		due = time.Now().Add(time.Hour)
	}
	over := !c.end.IsZero() && !due.Before(c.end)
	if over {
		due = c.end
	}
	select {
	case <-c.gone:
		return context.Canceled
	default:
	}
	if d := time.Until(due); d > 0 {
		select {
		case <-time.After(d):
		case <-c.gone:
			return context.Canceled
		}
	}
	if over {
		return fmt.Errorf("the connection has ended")
	}
	*ev = Event{Type: "message", Data: []byte(s.data(c.n)), Time: time.Now().Add(time.Duration(c.n))}
	if s.id != nil {
		ev.ID = []byte(s.id(c.n))
	}
	ev.Cursor = Cursor(strconv.Itoa(c.n))
	c.n++
	return nil
}

func (c *burstConn) Close() error {
	c.once.Do(func() {
		close(c.gone)
		c.site.mu.Lock()
		c.site.open--
		c.site.mu.Unlock()
	})
	return nil
}

// pastLog is a journal that keeps everything, in order, over several lives. A
// note of a gap takes the place of the one that it corrects.
type pastLog struct {
	feed
	entries []entry // n is the number of the event, its cursor
	tail    []TailEvent
	asked   int
}

func (l *pastLog) Append(_ context.Context, ev *Event) error {
	n, _ := strconv.Atoi(string(ev.Cursor))
	l.entries = append(l.entries, entry{n: n, value: string(ev.Data), at: time.Now()})
	l.tail = append(l.tail, TailEvent{ID: string(ev.ID), Hash: HashEvent(ev.Type, ev.Data), Time: ev.Time, Cursor: ev.Cursor, Late: ev.Late})
	return nil
}

func (l *pastLog) Note(_ context.Context, n Note) error {
	if n.Kind != NoteGap {
		return nil
	}
	g := &Gap{}
	if err := json.Unmarshal(n.Body, g); err != nil {
		return err
	}
	for i := range l.entries {
		if old := l.entries[i].gap; old != nil && old.To.Equal(g.To) && old.FirstID == g.FirstID {
			l.entries[i].gap = g
			return nil
		}
	}
	l.entries = append(l.entries, entry{gap: g, at: time.Now()})
	return nil
}

func (l *pastLog) Resume(context.Context) (Resume, error) {
	r := Resume{Known: len(l.tail) > 0, Tail: slices.Clone(l.tail[max(0, len(l.tail)-4096):])}
	if r.Known {
		r.Cursor = r.Tail[len(r.Tail)-1].Cursor
	}
	return r, nil
}

func (l *pastLog) History(_ context.Context, most int) ([]TailEvent, error) {
	l.asked++
	return slices.Clone(l.tail[max(0, len(l.tail)-most):]), nil
}

// hold holds the stream for so long.
func (l *pastLog) hold(t *testing.T, s *Stream, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.Name, s.Limits, s.StaleAfter = "t/s", quickly(), -1
	r, err := newRunner(ctx, s, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(ctx); err != nil {
		t.Error(err)
	}
	r.now().Identities.Close()
}

// pastTally is what became of a feed.
type pastTally struct {
	delivered, lost, doubled, open int
	span                           int // how many there were from the first to the last
	twice, passed                  int // doubled, and passed over, without a word
}

func (l *pastLog) tally() (a pastTally) {
	seen := map[int]bool{}
	doubts, first, most := 0, 0, 0
	gap := false
	for _, e := range l.entries {
		if e.gap != nil {
			doubts = max(doubts, int(e.gap.Doubled))
			if e.gap.State.Open() {
				a.open++
				gap = true
			}
			continue
		}
		a.delivered++
		if seen[e.n] {
			a.doubled++
			if doubts == 0 {
				a.twice++
			}
		}
		if first == 0 {
			first = e.n
		}
		if e.n > most+1 && most > 0 && !gap {
			a.passed++
		}
		gap = false
		doubts = max(doubts-1, 0)
		seen[e.n], most = true, max(most, e.n)
	}
	a.span = most - first + 1
	for n := first; n <= most; n++ {
		if !seen[n] {
			a.lost++
		}
	}
	return a
}

func lives(lives ...time.Duration) func(k int) time.Duration {
	return func(k int) time.Duration { return lives[min(k, len(lives))-1] }
}

func back(n int) func(k, next int) int { return func(_, next int) int { return next - n } }

// A site that begins each connection with the last 9,000 events, in a stream
// whose events have no ids.
func TestADeepReplayWithoutIDsIsDropped(t *testing.T) {
	values := make([]string, 150_000)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range values {
		values[i] = strconv.Itoa(rng.IntN(40))
	}
	few := func(n int) string { return values[n] }
	for name, c := range map[string]struct {
		data  func(n int) string
		lines int
		runs  int
		pace  time.Duration
		back  int
	}{
		"at once":           {strconv.Itoa, 1, 1, 0, 9_000},
		"slowly, 40 values": {few, 1, 1, 3 * time.Millisecond, 9_000},
		"paced, 2 lines":    {strconv.Itoa, 2, 1, 500 * time.Microsecond, 9_000},
		"at once, 2 lives":  {strconv.Itoa, 1, 2, 0, 9_000},
		"just beyond it":    {strconv.Itoa, 1, 1, 0, 4097},
		"from the first on": {strconv.Itoa, 1, 1, 0, 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := &burst{every: 10 * time.Millisecond, pace: c.pace, start: time.Now().Add(-time.Second), last: 150_000, data: c.data, first: back(c.back)}
				site.life = func(k int) time.Duration {
					switch {
					case k <= c.lines:
						return 95*time.Second + time.Duration(k)*15*time.Second
					case k%3 == 0:
						return 12 * time.Second
					}
					return 30 * time.Second
				}
				log := &pastLog{}
				for range c.runs {
					log.hold(t, &Stream{Target: site, Lines: c.lines}, 190*time.Second)
				}
				a := log.tally()
				t.Logf("%+v, %d connections, the journal was asked %d times", a, site.conns, log.asked)
				if a.doubled > 0 || a.lost > 0 || a.open > 0 || a.twice+a.passed > 0 || site.open > 0 {
					t.Errorf("%+v, %d left open: want everything once and no open gap", a, site.open)
				}
				if site.conns < 5 {
					t.Error("the test tests nothing")
				}
				if a.delivered < 15_000*c.runs {
					t.Errorf("%d events delivered", a.delivered)
				}
			})
		})
	}
}

// The program has just begun, and the site begins each further connection with
// what was before, slower than the line waits for it.
func TestASlowReplayFromBeforeTheFirstEventIsDropped(t *testing.T) {
	for _, pace := range []time.Duration{0, 5, 20, 40, 60, 90, 200} {
		for _, lines := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d ms, %d lines", pace, lines), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					site := &burst{every: 500 * time.Millisecond, pace: pace * time.Millisecond, start: time.Now().Add(-100 * time.Second), last: 1 << 20, data: strconv.Itoa}
					site.first = func(k, next int) int {
						if k <= lines {
							return next
						}
						return next - 120
					}
					site.life = lives(30*time.Second, 40*time.Second, 100*time.Second, 120*time.Second, 200*time.Second)
					log := &pastLog{}
					log.hold(t, &Stream{Target: site, Lines: lines}, 600*time.Second)
					a := log.tally()
					t.Logf("%+v, %d connections", a, site.conns)
					if a.doubled > 0 && pace < 200 || a.doubled > 40 || a.lost > 0 || a.twice+a.passed > 0 {
						t.Errorf("%+v", a)
					}
				})
			})
		}
	}
}

// The site replays from further back than the journal is asked: the ledger says
// how much is doubled, and no more is.
func TestAReplayFromBeyondTheJournalIsDoubledAndSaidSo(t *testing.T) {
	for pace, life := range map[time.Duration]time.Duration{0: 5 * time.Second, 800 * time.Microsecond: 100 * time.Second} {
		t.Run(fmt.Sprint(pace, life), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := &burst{every: 10 * time.Millisecond, pace: pace, start: time.Now(), last: 1 << 20, data: strconv.Itoa, first: back(80_000)}
				site.life = lives(850*time.Second, life, 0)
				log := &pastLog{}
				log.hold(t, &Stream{Target: site}, 1100*time.Second)
				a := log.tally()
				t.Logf("%+v, %d connections", a, site.conns)
				if a.lost > 0 || a.twice+a.passed > 0 || a.doubled == 0 || a.doubled > 3*20_000 {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// What looks like a replay and is none must not be lost, nor be late for longer
// than a line waits for its place.
func TestNothingNewIsTakenForAReplay(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	random := make([]string, 1<<20)
	for i := range random {
		random[i] = strconv.Itoa(rng.IntN(3))
	}
	for name, data := range map[string]func(n int) string{
		"a feed that stands still": func(int) string { return "same" },
		"three values":             func(n int) string { return random[n] },
		"three values, by turns":   func(n int) string { return strconv.Itoa(n % 3) },
		"it stood still":           func(n int) string { return strconv.Itoa(max(n, 5_500)) },
		"it stands still now":      func(n int) string { return strconv.Itoa(min(n, 5_000)) },
		"the same day again":       func(n int) string { return strconv.Itoa(n % 8640) },
		"the same again and again": func(n int) string { return strconv.Itoa(n % 500) },
		"the same twice":           func(n int) string { return strconv.Itoa(n / 2 % 3000) },
	} {
		for _, lines := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d lines", name, lines), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					site := &burst{every: 10 * time.Millisecond, start: time.Now(), last: 1 << 20, data: data, first: back(0)}
					site.life = func(k int) time.Duration { return 40*time.Second + time.Duration(k)*7777*time.Millisecond }
					log := &pastLog{}
					log.hold(t, &Stream{Target: site, Lines: lines}, 100*time.Second)
					seen := map[int]bool{}
					late, latest := 0, time.Duration(0)
					for _, e := range log.entries {
						if e.gap != nil {
							continue
						}
						if d := e.at.Sub(site.start.Add(time.Duration(e.n) * site.every)); d > latest {
							latest = d
						}
						if seen[e.n] {
							late++
						}
						seen[e.n] = true
					}
					// What happens while there is no connection is lost. Of equal events
					// nobody can tell which one came twice and which one never.
					if least := 10_000 - 150*site.conns; len(seen)+late < least {
						t.Errorf("%d events with %d connections, want %d", len(seen)+late, site.conns, least)
					}
					if latest > joinTimeout+2*time.Second || lines == 1 && latest > replayTimeout+time.Second/2 {
						t.Errorf("the latest came after %v", latest)
					}
					if lines == 1 && log.asked > 0 {
						t.Errorf("the journal was asked %d times about a feed that goes on from now", log.asked)
					}
					t.Logf("%d events, %d twice, the latest after %v, %d connections, asked %d times", len(seen), late, latest, site.conns, log.asked)
				})
			})
		}
	}
}

// A feed that began with a replay and brings an event every 10 ms, with a pause or
// without one.
func TestWhatComesInABurstIsNotTheUsualPace(t *testing.T) {
	for _, pause := range []time.Duration{0, time.Hour} {
		var tail []TailEvent
		at := time.Unix(1, 0)
		for n := range 21_200 {
			switch {
			case n < 20_000:
				at = at.Add(2 * time.Microsecond)
			case n == 20_500:
				at = at.Add(pause)
			default:
				at = at.Add(10 * time.Millisecond)
			}
			tail = append(tail, TailEvent{Time: at})
		}
		if got := usual(tail); got != 10*time.Millisecond {
			t.Errorf("with a pause of %v an event takes %v", pause, got)
		}
	}
}
