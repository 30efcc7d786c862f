package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// site is a target whose connections are scripted. Event n of its feed happens
// at n times every after its start; its data is "n".
type site struct {
	every  time.Duration
	start  time.Time
	replay bool // honours the cursor; otherwise a connection begins with the next event
	noIDs  bool
	script func(n int, from Cursor) step // what the n-th connection does, from 1

	mu    sync.Mutex
	froms []Cursor
	times []time.Duration
	open  int
	most  int
}

// step is what becomes of a connection.
type step struct {
	refuse error
	events int           // after so many events …
	after  time.Duration // … or so long (then events may be left out) …
	mute   bool          // … it goes silent; otherwise it ends with err
	err    error
}

func (s *site) Open(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.froms = append(s.froms, from)
	s.times = append(s.times, time.Since(s.start))
	st := step{events: 1 << 60}
	if s.script != nil {
		st = s.script(len(s.froms), from)
	}
	if st.refuse != nil {
		return nil, st.refuse
	}
	if st.after > 0 && st.events == 0 {
		st.events = 1 << 60
	}
	c := &siteConn{site: s, step: st, gone: make(chan struct{}), opened: time.Now()}
	c.n = int(time.Since(s.start)/s.every) + 1
	if s.replay {
		c.n = 1
		if from != "" {
			last, err := strconv.Atoi(string(from))
			if err != nil {
				return nil, err
			}
			c.n = last + 1
		}
	}
	// The watch sees reads: a pipe that carries one byte an event.
	pr, pw := io.Pipe()
	c.body, c.feed = sess.Watch(pr), pw
	s.open++
	s.most = max(s.most, s.open)
	go c.write()
	return c, nil
}

type siteConn struct {
	site   *site
	step   step
	n      int
	body   io.ReadCloser
	feed   *io.PipeWriter
	gone   chan struct{}
	once   sync.Once
	opened time.Time
}

func (c *siteConn) write() {
	for sent, n := 0, c.n; ; sent, n = sent+1, n+1 {
		due := time.Until(c.site.start.Add(time.Duration(n) * c.site.every))
		end := time.Duration(1 << 62)
		if c.step.after > 0 {
			end = time.Until(c.opened.Add(c.step.after))
		}
		if sent >= c.step.events || end < due {
			if sent < c.step.events {
				c.sleep(end)
			}
			if c.step.mute {
				<-c.gone
			}
			err := c.step.err
			if err == nil {
				err = io.EOF
			}
			c.feed.CloseWithError(err)
			return
		}
		if !c.sleep(due) {
			return
		}
		if _, err := c.feed.Write([]byte{'x'}); err != nil {
			return
		}
	}
}

func (c *siteConn) sleep(d time.Duration) bool {
	if d <= 0 {
		// Not a timer that has expired already: under synctest and the race
		// detector go1.26.8 crashes now and then in timer.maybeRunChan.
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

func (c *siteConn) Next(ev *Event) error {
	var b [1]byte
	if _, err := c.body.Read(b[:]); err != nil {
		return err
	}
	data := strconv.AppendInt(nil, int64(c.n), 10)
	*ev = Event{Type: "message", Data: data, Time: time.Now(), Cursor: Cursor(data)}
	if !c.site.noIDs {
		ev.ID = data
	}
	c.n++
	return nil
}

func (c *siteConn) Close() error {
	c.once.Do(func() {
		close(c.gone)
		c.body.Close()
		c.site.mu.Lock()
		c.site.open--
		c.site.mu.Unlock()
	})
	return nil
}

// read ranges over the stream until it has seen event number last, and returns
// the events' data.
func read(t *testing.T, s *Stream, last int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	for ev, err := range s.Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(ev.Data))
		if string(ev.Data) == strconv.Itoa(last) {
			return got
		}
	}
	t.Fatalf("the stream ended after %d events", len(got))
	return nil
}

func numbers(from, to int) (want []string) {
	for n := from; n <= to; n++ {
		want = append(want, strconv.Itoa(n))
	}
	return want
}

func quickly() *Limits { return &Limits{ConnectsPerSecond: 1000, Burst: 1000} }

func TestResumesFromTheCursorWhateverEndsTheConnection(t *testing.T) {
	reset := errors.New("connection reset")
	for name, ends := range map[string]step{
		"clean end":    {events: 7},
		"reset":        {events: 7, err: reset},
		"silence":      {events: 7, mute: true},
		"no event":     {events: 0},
		"server error": {refuse: &HTTPError{Status: 503}},
		"login page":   {refuse: &HTTPError{Status: 200, Reason: "content type"}},
		"not found":    {refuse: &HTTPError{Status: 404}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &site{every: time.Second, start: time.Now(), replay: true}
				s.script = func(n int, _ Cursor) step {
					if n%2 == 1 && n < 10 {
						return ends
					}
					return step{events: 5}
				}
				got := read(t, &Stream{Name: "t/s", Target: s, Limits: quickly(), StaleAfter: 5 * time.Second}, 60)
				if !slices.Equal(got, numbers(1, 60)) {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}

func TestReplayFromBeforeTheCursorIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			if n, err := strconv.Atoi(string(from)); err == nil {
				from = Cursor(strconv.Itoa(max(n-3, 0)))
			}
			return s.Open(ctx, sess, from)
		})
		s.script = func(int, Cursor) step { return step{events: 10} }
		got := read(t, &Stream{Name: "t/s", Target: target, Limits: quickly()}, 50)
		if !slices.Equal(got, numbers(1, 50)) {
			t.Errorf("got %v", got)
		}
	})
}

func TestQuietIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(n int, _ Cursor) step {
			if n == 1 {
				return step{events: 3, mute: true}
			}
			if time.Since(s.start) < 10*time.Minute { // the market is closed
				return step{mute: true}
			}
			return step{events: 1000}
		}
		logins := &countingSource{}
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: logins})})
		defer ids.Close()
		got := read(t, &Stream{Name: "t/s", Target: s, Identities: ids, Limits: quickly(), StaleAfter: 4 * time.Second}, 700)
		if !slices.Equal(got, numbers(1, 700)) {
			t.Errorf("lost or doubled: %d events", len(got))
		}
		if n := logins.count(); n > 2 {
			t.Errorf("%d logins while the feed was quiet", n)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.times); n > 15 {
			t.Errorf("%d connections in ten quiet minutes: %v", n, s.times)
		}
	})
}

// beating is a connection that brings so many events, one a second, and then
// heartbeats.
type beating struct {
	io.ReadCloser
	n, last int
}

func (c *beating) Next(ev *Event) error {
	for {
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			return err
		}
		if c.n < c.last {
			c.n++
			*ev = Event{Type: "message", ID: []byte(strconv.Itoa(c.n)), Data: []byte("x"), Cursor: Cursor(strconv.Itoa(c.n)), Time: time.Now()}
			return nil
		}
	}
}

func TestHeartbeatsOfAQuietFeedAreNoReasonToKnock(t *testing.T) {
	for name, greeting := range map[string]int{"nothing before them": 0, "the last events before them": 7} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conns := 0
				target := TargetFunc(func(_ context.Context, sess *Session, from Cursor) (Connection, error) {
					pr, pw := io.Pipe()
					go func() {
						for {
							time.Sleep(time.Second)
							if _, err := pw.Write([]byte("x")); err != nil {
								return
							}
						}
					}()
					c := &beating{ReadCloser: sess.Watch(pr), last: 50}
					if conns++; conns > 1 {
						c.n = c.last - greeting
					}
					return c, nil
				})
				logins := &countingSource{}
				holdFor(t, &Stream{Target: target, QuietAfter: 10 * time.Second, Identities: NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: logins})})}, 3*time.Hour)
				time.Sleep(2 * time.Second) // the last writer notices
				if conns > 30 || logins.count() > 2 {
					t.Errorf("%d connections and %d logins in three quiet hours", conns, logins.count())
				}
			})
		})
	}
}

// TestWhatIsSentToEverybodyIsNoSignOfLife has a feed fall silent that greets
// each connection with its last events.
func TestWhatIsSentToEverybodyIsNoSignOfLife(t *testing.T) {
	for name, id := range map[string]func(int) string{
		"numbers": strconv.Itoa,
		"opaque":  func(n int) string { return fmt.Sprintf("x%x", n*7919) },
		"no ids":  func(int) string { return "" },
	} {
		for _, lines := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d lines", name, lines), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const last = 300
					site := &feedSite{every: time.Second, start: time.Now(), last: last, id: id, data: strconv.Itoa}
					site.first = func(_, next int) int { return min(next, last+1) - 20 }
					site.fate = func(int) fate { return fate{} }
					logins := &countingSource{}
					s := &Stream{Target: site, Lines: lines, StaleAfter: 4 * time.Second, Identities: NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: logins})})}
					a := holdFor(t, s, 3*time.Hour).account(id)
					if site.conns > 30*lines {
						t.Errorf("%d connections in three quiet hours", site.conns)
					}
					if n := logins.count(); n > 2*lines {
						t.Errorf("%d logins in three quiet hours", n)
					}
					if a.lost > 0 || a.doubled > 0 || len(a.silently) > 0 {
						t.Errorf("%+v", a)
					}
				})
			})
		}
	}
}

func TestBackoffGrowsAndStartsAnewAfterHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(n int, _ Cursor) step {
			switch {
			case n <= 12:
				return step{refuse: &HTTPError{Status: 500}}
			case n == 13:
				return step{after: time.Minute}
			default:
				return step{events: 1000}
			}
		}
		read(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, 1200)
		s.mu.Lock()
		defer s.mu.Unlock()
		gap := func(n int) time.Duration { return s.times[n] - s.times[n-1] }
		if first, tenth := gap(1), gap(10); first > 1300*time.Millisecond || tenth < 40*time.Second || tenth > 61*time.Second {
			t.Errorf("first wait %v, tenth %v: want 1s growing to 60s", first, tenth)
		}
		if after := gap(13) - time.Minute; after > 1300*time.Millisecond {
			t.Errorf("wait after a healthy minute: %v, want 1s", after)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(n int, _ Cursor) step {
			if n == 1 {
				return step{refuse: &HTTPError{Status: 429, Header: http.Header{"Retry-After": {"33"}}}}
			}
			return step{events: 1000}
		}
		read(t, &Stream{Name: "t/s", Target: s, Limits: quickly()}, 40)
		if s.times[1] != 33*time.Second {
			t.Errorf("came back after %v, want 33s", s.times[1])
		}
	})
}

func TestAStreamWithoutATargetIsAnError(t *testing.T) {
	n := 0
	for ev, err := range (&Stream{}).Events(t.Context()) {
		if n++; err == nil {
			t.Errorf("yields event %v", ev)
		}
	}
	if n != 1 {
		t.Errorf("yields %d times, want one error", n)
	}
}

func TestDoneAndFatalEndTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := &Stream{Name: "t/s", Limits: quickly(), Target: TargetFunc(func(context.Context, *Session, Cursor) (Connection, error) {
			return nil, fmt.Errorf("%w: 204", ErrDone)
		})}
		for _, err := range done.Events(t.Context()) {
			t.Errorf("a done stream yields %v", err)
		}
		boom := errors.New("wrong settings")
		failing := &Stream{Name: "t/s", Limits: quickly(), Target: &judging{boom}}
		var got error
		for _, err := range failing.Events(t.Context()) {
			got = err
		}
		if !errors.Is(got, boom) {
			t.Errorf("a failed stream yields %v", got)
		}
	})
}

type judging struct{ err error }

func (j *judging) Open(context.Context, *Session, Cursor) (Connection, error) { return nil, j.err }
func (j *judging) Classify(*Outcome) Verdict                                  { return Verdict{Remedy: Fail} }

// countingSource is a credential that lives for life.
type countingSource struct {
	life time.Duration
	mu   sync.Mutex
	n    int
}

func (c *countingSource) Bound() auth.Binding { return auth.BoundToNone }

func (c *countingSource) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	time.Sleep(2 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	cred := &auth.Credential{Header: http.Header{"Authorization": {strconv.Itoa(c.n)}}}
	if c.life > 0 {
		cred.Expires = time.Now().Add(c.life)
	}
	return cred, nil
}

func (c *countingSource) count() int { c.mu.Lock(); defer c.mu.Unlock(); return c.n }

func TestOneRefusalSeenByManyStreamsCausesOneLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 100
		source := &countingSource{}
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source})})
		defer ids.Close()
		limits := quickly()
		var wg sync.WaitGroup
		start := time.Now()
		for range streams {
			s := &site{every: time.Second, start: start, replay: true}
			refused := false
			s.script = func(int, Cursor) step {
				if !refused && time.Since(start) > 20*time.Second && source.count() == 1 {
					refused = true
					return step{refuse: &HTTPError{Status: 401}}
				}
				return step{after: 30 * time.Second}
			}
			wg.Go(func() {
				if got := read(t, &Stream{Name: "t/s", Target: s, Identities: ids, Limits: limits}, 60); !slices.Equal(got, numbers(1, 60)) {
					t.Errorf("got %v", got)
				}
			})
		}
		wg.Wait()
		if n := source.count(); n != 2 {
			t.Errorf("%d logins, want the first and one more", n)
		}
	})
}

func TestPlannedRenewalOverlapsAndLosesNothing(t *testing.T) {
	for _, replay := range []bool{true, false} {
		t.Run(fmt.Sprintf("replay=%v", replay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &countingSource{life: 30 * time.Second}
				ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source, RenewBefore: 10 * time.Second, AttemptsPerHour: -1})})
				defer ids.Close()
				// Every connection goes mute when its credential ends.
				s := &site{every: time.Second, start: time.Now(), replay: replay}
				s.script = func(int, Cursor) step { return step{after: 30 * time.Second, mute: true} }
				got := read(t, &Stream{Name: "t/s", Target: s, Identities: ids, Limits: quickly(), StaleAfter: 5 * time.Second}, 300)
				first, err := strconv.Atoi(got[0])
				if err != nil || first > 5 {
					t.Fatalf("began with %q", got[0])
				}
				if !slices.Equal(got, numbers(first, 300)) {
					t.Errorf("lost or doubled: %v", got)
				}
				if s.most != 2 {
					t.Errorf("%d connections side by side, want 2 during a handover", s.most)
				}
				if n := source.count(); n < 10 || n > 20 {
					t.Errorf("%d logins in 300 s with a credential of 30 s", n)
				}
			})
		})
	}
}

func TestSuccessorWaitsUntilTheOldLineHasReachedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &countingSource{life: 60 * time.Second}
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source, RenewBefore: 30 * time.Second, AttemptsPerHour: -1})})
		defer ids.Close()
		// A source that cannot replay; the first connection lags 3 s behind.
		s := &site{every: 500 * time.Millisecond, start: time.Now()}
		late := &site{every: 500 * time.Millisecond, start: time.Now().Add(3 * time.Second)}
		opened := 0
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			if opened++; opened == 1 {
				return late.Open(ctx, sess, "")
			}
			return s.Open(ctx, sess, "")
		})
		got := read(t, &Stream{Name: "t/s", Target: target, Identities: ids, Limits: quickly(), StaleAfter: 5 * time.Second}, 150)
		first, _ := strconv.Atoi(got[0])
		if !slices.Equal(got, numbers(first, 150)) {
			t.Errorf("lost, doubled or out of order: %v", got)
		}
	})
}

func TestLeavingTheLoopLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a goroutine left behind fails the bubble
		s := &site{every: time.Millisecond, start: time.Now(), replay: true}
		for range (&Stream{Name: "t/s", Target: s, Limits: quickly()}).Events(t.Context()) {
			break
		}
		if s.open != 0 {
			t.Errorf("%d connections left open", s.open)
		}
	})
}
