package framework

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// feedSite is a site whose feed the test knows: event n, from 1 to last,
// happens n times every after its start.
type feedSite struct {
	every time.Duration
	start time.Time
	last  int
	id    func(n int) string // "" for none
	data  func(n int) string
	kind  func(n int) string // nil for "message"
	// first is the event that a connection begins with, given the cursor (0
	// without one) and the next event of the feed.
	first func(from, next int) int
	// fate is what becomes of the k-th connection, from 1.
	fate func(k int) fate

	mu    sync.Mutex
	conns int
	open  int
	most  int
}

type fate struct {
	after time.Duration    // it ends after so long; 0 for never …
	mute  bool             // … by going silent
	lag   time.Duration    // its events come so late
	lacks func(n int) bool // events that it never brings; nil for none
}

func (s *feedSite) Open(_ context.Context, sess *Session, cursor Cursor) (Connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns++
	from := 0
	if cursor != "" {
		var err error
		if from, err = strconv.Atoi(string(cursor)); err != nil {
			return nil, err
		}
	}
	c := &feedConn{site: s, fate: s.fate(s.conns), opened: time.Now(), gone: make(chan struct{})}
	c.n = max(1, s.first(from, int(time.Since(s.start)/s.every)+1))
	pr, pw := io.Pipe()
	c.body, c.wire = sess.Watch(pr), pw
	s.open++
	s.most = max(s.most, s.open)
	go c.write()
	return c, nil
}

type feedConn struct {
	site   *feedSite
	fate   fate
	opened time.Time
	n      int
	body   io.ReadCloser
	wire   *io.PipeWriter
	gone   chan struct{}
	once   sync.Once
}

func (c *feedConn) write() {
	end := time.Duration(1 << 62)
	if c.fate.after > 0 {
		end = c.fate.after
	}
	for n := c.n; ; n++ {
		if c.fate.lacks != nil && c.fate.lacks(n) {
			continue
		}
		due := c.site.start.Add(time.Duration(n)*c.site.every + c.fate.lag).Sub(c.opened)
		if n > c.site.last {
			due = end
		}
		if !c.sleep(min(due, end) - time.Since(c.opened)) {
			return
		}
		if due >= end {
			if c.fate.mute {
				<-c.gone
			}
			c.wire.CloseWithError(io.EOF)
			return
		}
		if _, err := c.wire.Write([]byte{'x'}); err != nil {
			return
		}
	}
}

func (c *feedConn) sleep(d time.Duration) bool {
	if d <= 0 { // no timer: see siteConn.sleep
		select {
		case <-c.gone:
			return false
		default:
			return true
		}
	}
	select {
	case <-time.After(d):
		return true
	case <-c.gone:
		return false
	}
}

func (c *feedConn) Next(ev *Event) error {
	var b [1]byte
	if _, err := c.body.Read(b[:]); err != nil {
		return err
	}
	for c.fate.lacks != nil && c.fate.lacks(c.n) {
		c.n++
	}
	n, kind := c.n, "message"
	c.n++
	if c.site.kind != nil {
		kind = c.site.kind(n)
	}
	*ev = Event{Type: kind, ID: []byte(c.site.id(n)), Data: []byte(c.site.data(n)), Cursor: Cursor(strconv.Itoa(n))}
	ev.Time = time.Now().Truncate(time.Millisecond).Add(time.Duration(n))
	return nil
}

func (c *feedConn) Close() error {
	c.once.Do(func() {
		close(c.gone)
		c.body.Close()
		c.site.mu.Lock()
		c.site.open--
		c.site.mu.Unlock()
	})
	return nil
}

// ledger is a StreamLog that keeps everything in order.
type ledger struct {
	feed
	mu      sync.Mutex
	entries []entry
	tail    []TailEvent
}

// entry is an event, a gap that is open or a new epoch.
type entry struct {
	n     int // of the event
	value string
	gap   *Gap
	epoch *Epoch
	at    time.Time // when it was appended
}

func (l *ledger) Append(_ context.Context, ev *Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entry{n: ev.Time.Nanosecond() % 1e6, value: string(ev.Data), at: time.Now()})
	l.tail = append(l.tail, TailEvent{ID: string(ev.ID), Hash: HashEvent(ev.Type, ev.Data), Time: ev.Time, Late: ev.Late})
	return nil
}

func (l *ledger) Note(_ context.Context, n Note) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := entry{at: time.Now()}
	switch n.Kind {
	case NoteGap:
		e.gap = &Gap{}
		err := json.Unmarshal(n.Body, e.gap)
		if err == nil && e.gap.State.Open() {
			err = l.add(e)
		}
		return err
	case NoteEpoch:
		e.epoch = &Epoch{}
		return errors.Join(json.Unmarshal(n.Body, e.epoch), l.add(e))
	}
	return nil
}

func (l *ledger) add(e entry) error { l.entries = append(l.entries, e); return nil }

func (l *ledger) History(_ context.Context, most int) ([]TailEvent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.tail[max(0, len(l.tail)-most):]), nil
}

// hold runs the stream for so long and returns its ledger.
func holdFor(t *testing.T, s *Stream, d time.Duration) *ledger {
	t.Helper()
	log := &ledger{}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.Name, s.Limits = "t/s", quickly()
	if s.StaleAfter == 0 {
		s.StaleAfter = 5 * time.Second
	}
	r, err := newRunner(ctx, s, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(ctx); err != nil {
		t.Fatal(err)
	}
	if s.Identities != nil {
		s.Identities.Close()
	} else {
		r.now().Identities.Close()
	}
	return log
}

// account is what became of a feed.
type account struct {
	delivered, lost, doubled int
	gaps                     int
	again                    int // the first event that is doubled
	// silently are losses and doubles without a note: always a fault.
	silently []string
}

// account holds the ledger against the truth, where every event can be
// told from every other one: a loss must come right after the note of a gap, a
// double within as many events as the note says.
func (l *ledger) account(id func(int) string) (a account) {
	seen := map[int]bool{}
	highest, doubts := 0, 0
	var gap *Gap
	missing := map[int]bool{}
	for _, e := range l.entries {
		if e.gap != nil {
			gap, doubts = e.gap, max(doubts, int(e.gap.Doubled))
			a.gaps++
			continue
		}
		if e.epoch != nil {
			a.silently = append(a.silently, fmt.Sprintf("a new epoch before %d", e.n))
			continue
		}
		a.delivered++
		switch {
		case seen[e.n]:
			a.doubled++
			if a.again == 0 {
				a.again = e.n
			}
			if doubts == 0 {
				a.silently = append(a.silently, fmt.Sprintf("%d doubled", e.n))
			}
		case highest > 0 && e.n > highest+1:
			if gap == nil { // also when they come later
				a.silently = append(a.silently, fmt.Sprintf("the cursor passes from %d to %d", highest, e.n))
			}
			for n := highest + 1; n < e.n; n++ {
				number, _ := strconv.ParseUint(id(n), 10, 64)
				missing[n] = gap != nil && (gap.State == GapPossible || number >= gap.FirstID && number <= gap.LastID)
			}
		}
		delete(missing, e.n)
		if doubts > 0 {
			doubts--
		}
		seen[e.n], highest, gap = true, max(highest, e.n), nil
	}
	for n, noted := range missing {
		a.lost++
		if !noted {
			a.silently = append(a.silently, fmt.Sprintf("%d lost", n))
		}
	}
	return a
}

// kinds of feeds: what ids and data look like.
var feedKinds = map[string]struct {
	id   func(n int) string
	data func(n int) string
	// apart: events can be told apart. proves: seams prove themselves.
	apart bool
}{
	"ids":     {strconv.Itoa, func(n int) string { return strconv.Itoa(n % 3) }, true},
	"opaque":  {func(n int) string { return fmt.Sprintf("x%x", n*7919) }, strconv.Itoa, true},
	"no ids":  {func(int) string { return "" }, strconv.Itoa, true},
	"stamps":  {func(n int) string { return strconv.Itoa(1_700_000_000 + n/3) }, func(n int) string { return strconv.Itoa(n % 97) }, true},
	"alike":   {func(int) string { return "" }, func(n int) string { return strconv.Itoa(rand.New(rand.NewPCG(uint64(n), 1)).IntN(4)) }, true},
	"equal":   {func(int) string { return "" }, func(int) string { return "same" }, false},
	"same id": {func(int) string { return "0" }, strconv.Itoa, true},
}

// replays are what a connection begins with.
var replays = map[string]func(from, next int) int{
	"exact":   func(from, _ int) int { return from + 1 },
	"before":  func(from, _ int) int { return from - 30 },
	"after":   func(from, next int) int { return min(from+6, next) },
	"ignores": func(int, int) int { return 1 },
	"none":    func(_, next int) int { return next },
}

func TestSpliceTable(t *testing.T) {
	const last = 600
	for kind, k := range feedKinds {
		for replay, first := range replays {
			for _, change := range []string{"break", "overlap", "lines 2"} {
				t.Run(kind+"/"+replay+"/"+change, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						site := &feedSite{every: 250 * time.Millisecond, start: time.Now(), last: last, id: k.id, data: k.data, first: first}
						s := &Stream{Target: site}
						switch change {
						case "break":
							site.fate = func(k int) fate { return fate{after: 20 * time.Second, mute: k%2 == 0} }
						case "overlap":
							site.fate = func(int) fate { return fate{after: 30 * time.Second, mute: true} }
							s.Identities = NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{
								Source: &countingSource{life: 30 * time.Second}, RenewBefore: 15 * time.Second, AttemptsPerHour: -1})})
						case "lines 2":
							// They go mute by turns, one every 20 s.
							site.fate = func(k int) fate {
								end := site.start.Add(time.Duration(k) * 20 * time.Second)
								return fate{after: time.Until(end), mute: true, lag: time.Duration(k%3) * 600 * time.Millisecond}
							}
							s.Lines = 2
						}
						log := holdFor(t, s, last*site.every+30*time.Second+77*time.Millisecond)
						a := log.account(k.id)
						if !k.apart {
							if a.delivered < last*8/10 || a.delivered > last && a.gaps == 0 {
								t.Errorf("%d of %d events were delivered, and there are %d gaps", a.delivered, last, a.gaps)
							}
							t.Logf("%+v", a)
							return
						}
						if len(a.silently) > 0 {
							t.Errorf("without a word in the ledger: %v", a.silently)
						}
						replaying := replay != "none" && replay != "after"
						if a.lost > 0 && (replaying || change != "break") {
							t.Errorf("%d events are lost", a.lost)
						}
						if a.lost == 0 && !replaying && change == "break" {
							t.Error("nothing is lost: the test tests nothing")
						}
						// Where events look alike and the feed ends soon after a
						// successor was opened, what that has brought is too little to
						// tell its place. The ledger must say so, which was asked above.
						ends := last
						if kind == "alike" && change == "overlap" {
							ends -= int(joinTimeout / site.every)
						}
						if a.doubled > 0 && a.again <= ends {
							t.Errorf("%d events are doubled, the first is %d", a.doubled, a.again)
						}
						if a.delivered+a.lost < last-10 {
							t.Errorf("%d events were delivered and %d lost of %d", a.delivered, a.lost, last)
						}
						if site.open != 0 {
							t.Errorf("%d connections are left open", site.open)
						}
						if site.most < 2 && change != "break" {
							t.Error("no two connections side by side: the test tests nothing")
						}
						t.Logf("%+v", a)
					})
				})
			}
		}
	}
}
